"""The server's rules where they are easier to see than through a store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from durable_streams.protocol import rules
from durable_streams.protocol.commands import Append, Create, ForkPoint, Rejection
from durable_streams.protocol.state import ProducerStamp, ProducerState, Segment, StreamState

NOW = 1_800_000_000.0
TEXT = "text/plain"


def stream(**changes: object) -> StreamState:
    return replace(StreamState(id=1, path="s", content_type=TEXT), **changes)


# The table of protocol section 4: what is known, what comes, what becomes of it.
TABLE = [
    (None, (0, 0), "accept"),
    (None, (7, 0), "accept"),
    (None, (0, 1), 409),
    ((3, 5), (2, 6), 403),
    ((3, 5), (2, 0), 403),
    ((3, 5), (4, 0), "accept"),
    ((3, 5), (9, 0), "accept"),
    ((3, 5), (4, 1), 400),
    ((3, 5), (3, 5), "duplicate"),
    ((3, 5), (3, 0), "duplicate"),
    ((3, 5), (3, 6), "accept"),
    ((3, 5), (3, 7), 409),
]


@pytest.mark.parametrize(("known", "sent", "expected"), TABLE)
def test_producer_table(known: tuple[int, int] | None, sent: tuple[int, int], expected: str | int) -> None:
    command = Append(TEXT, b"data", producer=ProducerStamp("p", *sent))
    producer = None if known is None else ProducerState(*known)
    if isinstance(expected, int):
        with pytest.raises(Rejection) as caught:
            rules.decide_append(stream(), producer, command)
        assert caught.value.status == expected
        return
    appended = rules.decide_append(stream(), producer, command)
    assert appended.duplicate == (expected == "duplicate")
    assert appended.state.tail == (0 if appended.duplicate else 4)
    assert appended.producer == (producer if appended.duplicate else ProducerState(*sent))


def test_rules_change_nothing_that_they_are_given() -> None:
    state = stream(tail=3)
    rules.decide_append(state, None, Append(TEXT, b"data", close=True, seq="1"))
    assert state == stream(tail=3)


@pytest.mark.parametrize(
    ("stored", "sent", "same"),
    [
        ("text/plain", "TEXT/Plain", True),
        ("text/plain; charset=utf-8", "text/plain", True),
        ("text/plain", "text/plain ; charset=latin-1", True),
        ("text/plain", "text/html", False),
        ("application/json", "application/json5", False),
    ],
)
def test_content_types_are_compared_without_case_and_parameters(stored: str, sent: str, same: bool) -> None:
    state = stream(content_type=stored)
    if same:
        assert rules.decide_append(state, None, Append(sent, b"x")).state.tail == 1
    else:
        with pytest.raises(Rejection, match="holds"):
            rules.decide_append(state, None, Append(sent, b"x"))


@given(ttl=st.integers(0, 10**10), steps=st.lists(st.floats(0.1, 1e6), max_size=20))
def test_what_is_stored_never_lets_a_stream_expire_early(ttl: int, steps: list[float]) -> None:
    """However rarely a touch is written down: what is written is not before the last touch plus the window."""
    now = NOW
    state = rules.decide_create(None, None, Create("s", TEXT, ttl=ttl), 1, now).state
    touched = now
    for step in steps:
        now += step
        if rules.is_expired(state, touched, now):
            return
        touched = now
        state = rules.decide_touch(state, now) or state
        assert state.deadline is not None
        assert state.deadline >= touched + ttl
        assert state.deadline <= touched + ttl + rules.touch_slack(ttl) + 1e-3
        assert not rules.is_expired(state, None, touched + ttl * 0.999 - 1) or ttl == 0


def test_a_fixed_end_is_not_moved() -> None:
    state = stream(expires_at="x", deadline=NOW)
    assert rules.decide_touch(state, NOW - 100) is None
    assert not rules.is_expired(state, None, NOW - 0.001)
    assert rules.is_expired(state, NOW - 1, NOW)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=6), st.lists(st.integers(0, 9), min_size=6, max_size=6)
)
def test_a_forks_lineage_says_whose_every_byte_is(cuts: list[int], own: list[int]) -> None:
    """Against a plain list of owners, down a chain of forks."""
    state = stream(tail=10)
    owners = [1] * 10
    for number, (cut, more) in enumerate(zip(cuts, own, strict=False), start=2):
        position = cut % (len(owners) + 1)
        fork = ForkPoint(state.path, state.id, position)
        state = rules.decide_create(None, state, Create(f"s{number}", None, fork=fork), number, NOW).state
        owners = owners[:position] + [number] * more
        state = replace(state, tail=len(owners))
        ends = [segment.end for segment in state.lineage]
        assert ends == sorted(ends)
        seen = [
            next((segment.id for segment in state.lineage if at < segment.end), state.id)
            for at in range(len(owners))
        ]
        assert seen == owners


def test_release() -> None:
    assert rules.decide_release(stream(), []) == [None]
    assert rules.decide_release(stream(forks=1), []) == [stream(forks=1, deleted=True)]
    fork = stream(id=2, forked_from="s", lineage=(Segment(1, 5),))
    assert rules.decide_release(fork, [stream(forks=2)]) == [None, stream(forks=1)]
    assert rules.decide_release(fork, [stream(forks=1)]) == [None, stream(forks=0)]
    assert rules.decide_release(fork, [stream(forks=1, deleted=True)]) == [None, None]
    assert rules.decide_release(fork, [stream(forks=2, deleted=True)]) == [
        None,
        stream(forks=1, deleted=True),
    ]


def test_messages_are_one_sentence() -> None:
    refusals = [
        rules.not_found(),
        rules.unknown_offset(7),
        rules.closed(stream()),
        rules.other_content_type(stream(), "a/b"),
    ]
    for refusal in refusals:
        assert refusal.message
        assert "\n" not in refusal.message
        assert refusal.code.isupper()


JSON = "application/json"


@pytest.mark.parametrize(
    ("state", "content_type", "body", "close", "expected"),
    [
        (stream(), TEXT, b"a", False, b"a"),
        (stream(), None, b"", True, b""),
        (stream(content_type=JSON), JSON, b" [1, 2] ", False, b"1, 2,"),
        (stream(content_type=JSON, closed=True), JSON, b"1", False, b"1,"),  # decide_append refuses it
        (None, TEXT, b"a", False, 404),
        (stream(), TEXT, b"", False, 400),
        (stream(), None, b"a", False, 400),
        (stream(), JSON, b"1", False, 409),
        (stream(content_type=JSON), JSON, b"{", False, 400),
        (stream(content_type=JSON, closed=True), JSON, b"{", False, 409),
        (stream(content_type=JSON), JSON, b"[]", True, 400),
    ],
)
def test_what_a_body_is_stored_as(
    state: StreamState | None, content_type: str | None, body: bytes, close: bool, expected: bytes | int
) -> None:
    if isinstance(expected, bytes):
        assert rules.prepare_append(state, content_type, body, close=close) == expected
        return
    with pytest.raises(Rejection) as caught:
        rules.prepare_append(state, content_type, body, close=close)
    assert caught.value.status == expected
