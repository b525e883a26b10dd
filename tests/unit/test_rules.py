"""The server's rules where they are easier to see than through a store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from durable_streams.protocol import rules
from durable_streams.protocol.commands import Append, Appended, Create, Created, ForkPoint, Rejection
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import (
    Policy,
    ProducerStamp,
    ProducerState,
    Retention,
    Segment,
    StreamState,
)

NOW = 1_800_000_000.0
TEXT = "text/plain"
decide_append = partial(rules.decide_append, now=NOW)


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
            decide_append(stream(), producer, command)
        assert caught.value.status == expected
        return
    appended = decide_append(stream(), producer, command)
    assert appended.duplicate == (expected == "duplicate")
    assert appended.state.tail == (0 if appended.duplicate else 4)
    assert appended.producer == (producer if appended.duplicate else ProducerState(*sent))


def test_rules_change_nothing_that_they_are_given() -> None:
    state = stream(tail=3)
    decide_append(state, None, Append(TEXT, b"data", close=True, seq="1"))
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
        assert decide_append(state, None, Append(sent, b"x")).state.tail == 1
    else:
        with pytest.raises(Rejection, match="holds"):
            decide_append(state, None, Append(sent, b"x"))


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


# -- what exists already, and what was deleted


def refusal(decide: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(Rejection) as caught:
        decide()
    return caught.value.status, caught.value.code


def test_a_deleted_stream_is_gone_for_its_users_and_in_the_way_of_a_new_one() -> None:
    deleted = stream(deleted=True, forks=1)
    assert refusal(lambda: rules.require(deleted)) == (410, "GONE")
    assert refusal(lambda: rules.require(None)) == (404, "NOT_FOUND")
    assert refusal(lambda: rules.decide_create(deleted, None, Create("s", TEXT), 2, NOW)) == (
        409,
        "CONFLICT_EXISTS",
    )


FORK = ForkPoint("source", 7, 5)
FORKED = {"forked_from": "source", "fork_position": 5}


@pytest.mark.parametrize(
    ("existing", "command", "same"),
    [
        ({}, {}, True),
        ({}, {"content_type": "TEXT/plain; charset=x"}, True),
        ({}, {"content_type": None}, False),  # the default is another type
        ({"content_type": "application/octet-stream"}, {"content_type": None}, True),
        ({}, {"closed": True}, False),
        ({"closed": True}, {"closed": True}, True),
        ({}, {"ttl": 60}, False),
        ({"ttl": 60, "deadline": NOW + 60}, {"ttl": 60}, True),
        # A moment is the same however it is spelled.
        ({"expires_at": "a", "deadline": NOW}, {"expires_at": "b", "deadline": NOW}, True),
        ({"expires_at": "a", "deadline": NOW}, {"expires_at": "a", "deadline": NOW + 1}, False),
        ({}, {"fork": FORK}, False),
        (FORKED, {}, False),
        (FORKED, {"fork": FORK, "content_type": None}, True),
        (FORKED, {"fork": ForkPoint("source", 7, 6)}, False),
        # A fork without an expiry of its own has its source's.
        ({**FORKED, "ttl": 60, "deadline": NOW + 60}, {"fork": FORK}, True),
        ({**FORKED, "ttl": 60, "deadline": NOW + 60}, {"fork": FORK, "ttl": 61}, False),
    ],
)
def test_a_stream_is_made_again_only_with_the_same_configuration(
    existing: dict[str, object], command: dict[str, object], same: bool
) -> None:
    state, create = stream(**existing), Create(**{"path": "s", "content_type": TEXT, **command})

    def decide() -> Created:
        return rules.decide_create(state, None, create, 2, NOW)

    if same:
        assert (decide().state, decide().new) == (state, False)
    else:
        assert refusal(decide) == (409, "CONFLICT_EXISTS")


def test_what_cannot_be_forked() -> None:
    source = stream(id=7, path="source", tail=9)
    missing = 404, "NOT_FOUND"
    command = Create("s", None, fork=FORK)
    assert refusal(lambda: rules.decide_create(None, None, command, 2, NOW)) == missing
    replaced = replace(source, id=8)  # since the position was resolved
    assert refusal(lambda: rules.decide_create(None, replaced, command, 2, NOW)) == missing
    assert refusal(lambda: rules.check_fork_source(None, None)) == missing
    deleted = replace(source, deleted=True)
    assert refusal(lambda: rules.check_fork_source(deleted, None)) == (409, "CONFLICT_DELETED")
    other = 409, "CONFLICT_CONTENT_TYPE"
    assert refusal(lambda: rules.check_fork_source(source, "application/json")) == other
    assert rules.check_fork_source(source, "Text/Plain") is source


def test_a_sequence_must_grow_in_the_order_of_its_bytes() -> None:
    first = decide_append(stream(), None, Append(TEXT, b"ab", seq="9")).state
    assert (first.last_seq, first.tail) == ("9", 2)
    for seq in ("9", "10"):
        assert refusal(lambda seq=seq: decide_append(first, None, Append(TEXT, b"c", seq=seq))) == (
            409,
            "CONFLICT_SEQ",
        )
    assert decide_append(first, None, Append(TEXT, b"c", seq="\u00e9")).state.last_seq == "\u00e9"
    # Only a request with a sequence moves it.
    assert decide_append(first, None, Append(TEXT, b"c")).state.last_seq == "9"


def test_a_closed_stream_takes_what_it_has_already_and_nothing_else() -> None:
    state, known = stream(closed=True, tail=9), ProducerState(3, 5)

    def append(payload: bytes = b"x", *, close: bool = False, stamp: ProducerStamp | None = None) -> Appended:
        return decide_append(state, known, Append(TEXT, payload, close=close, producer=stamp))

    for repeated in (append(stamp=ProducerStamp("p", 3, 5)), append(b"", close=True)):
        assert (repeated.state, repeated.producer, repeated.duplicate) == (state, known, True)
    for stamp in (None, ProducerStamp("p", 3, 6), ProducerStamp("p", 2, 5)):
        for close in (False, True):
            with pytest.raises(Rejection) as caught:
                append(close=close, stamp=stamp)
            assert (caught.value.status, caught.value.code) == (409, "STREAM_CLOSED")
            assert caught.value.headers["stream-closed"] == "true"
            assert caught.value.headers["stream-next-offset"].endswith("9")


def test_a_deleted_stream_and_one_without_an_end_do_not_expire() -> None:
    ended = stream(deadline=NOW)
    assert rules.is_expired(ended, None, NOW)
    assert not rules.is_expired(ended, None, NOW - 1)
    assert not rules.is_expired(replace(ended, deleted=True), None, NOW)
    assert not rules.is_expired(stream(), None, NOW)
    # With a sliding window, the last touch counts where it is known.
    sliding = stream(ttl=60, deadline=NOW)
    assert not rules.is_expired(sliding, NOW - 59, NOW)
    assert rules.is_expired(sliding, NOW - 60, NOW)


def test_a_mere_close_needs_no_content_type() -> None:
    done = decide_append(stream(tail=3), None, Append(None, b"", close=True))
    assert (done.state.closed, done.state.tail, done.duplicate) == (True, 3, False)


# -- where an append has to begin


@pytest.mark.parametrize("closed", [False, True])
def test_an_append_that_expects_another_tail_is_shown_the_streams(closed: bool) -> None:
    state = stream(tail=9, closed=closed)
    # Of a closed stream only a close without data is compared: any data is refused because it is closed.
    command = Append(None, b"", close=True, expected=5) if closed else Append(TEXT, b"x", expected=5)
    with pytest.raises(Rejection) as caught:
        decide_append(state, None, command)
    tail, expected = format_offset(9), format_offset(5)
    assert (caught.value.status, caught.value.code) == (412, "CONFLICT_OFFSET")
    assert caught.value.message == (
        f"the stream ends at {tail}, not at {expected}, where this append has to begin"
    )
    assert caught.value.headers == {
        "stream-next-offset": tail,
        "etag": f'"{tail}"',
        **({"stream-closed": "true"} if closed else {}),
    }


def test_an_append_that_expects_the_tail_is_stored_and_not_twice() -> None:
    command = Append(TEXT, b"x", expected=9)
    after = decide_append(stream(tail=9), None, command).state
    assert after.tail == 10
    assert refusal(lambda: decide_append(after, None, command)) == (412, "CONFLICT_OFFSET")


def test_the_repetition_of_a_producer_is_one_whatever_tail_it_expects() -> None:
    command = Append(TEXT, b"x", producer=ProducerStamp("p", 0, 3), expected=9)
    state, known = stream(tail=10), ProducerState(0, 3)
    assert decide_append(state, known, command) == Appended(state, known, duplicate=True)


def test_a_stream_may_be_closed_again_at_its_tail() -> None:
    state = stream(tail=9, closed=True)
    again = Append(None, b"", close=True, expected=9)
    assert decide_append(state, None, again) == Appended(state, None, duplicate=True)


# -- what a new stream keeps

POLICY = Policy(max_age=60)


def test_a_new_stream_keeps_what_its_policy_says_from_now_on() -> None:
    created = rules.decide_create(None, None, Create("s", TEXT, b"abc", policy=POLICY), 1, NOW).state
    assert created.retention == Retention(POLICY, ((NOW, 0),))
    assert (created.tail, created.created) == (3, NOW)
    assert rules.decide_create(None, None, Create("s", TEXT), 1, NOW).state.retention is None


def test_a_fork_keeps_what_its_source_keeps_unless_it_says_otherwise() -> None:
    source = stream(id=7, path="source", tail=9, earliest=2, retention=Retention(POLICY, ((NOW - 50, 2),)))
    command = Create("s", None, fork=FORK)

    def fork(source: StreamState, command: Create) -> StreamState:
        return rules.decide_create(None, source, command, 8, NOW).state

    # The inherited bytes, from 2 to the fork at 5, count as having come with the fork.
    assert fork(source, command).retention == Retention(POLICY, ((NOW, 2),))
    own = Policy(max_bytes=5)
    assert fork(source, replace(command, policy=own)).retention == Retention(own, ((NOW, 2),))
    assert fork(replace(source, retention=None), command).retention is None


def test_a_fork_of_what_its_source_has_given_up_is_refused() -> None:
    source = stream(id=7, path="source", tail=9, earliest=6)
    command = Create("s", None, fork=FORK)
    assert refusal(lambda: rules.decide_create(None, source, command, 8, NOW)) == (410, "RETENTION_GONE")


@pytest.mark.parametrize(
    ("kept", "asked", "same"),
    [
        (POLICY, POLICY, True),
        (POLICY, Policy(max_age=61), False),
        (None, POLICY, False),
        # Who asks for nothing, or is given the server's own policy, takes what there is.
        (POLICY, None, True),
        (POLICY, Policy(max_age=99, is_default=True), True),
        (None, None, True),
    ],
)
def test_a_stream_is_the_same_if_it_keeps_what_is_asked_for(
    kept: Policy | None, asked: Policy | None, same: bool
) -> None:
    existing = stream(retention=None if kept is None else Retention(kept))
    command = Create("s", TEXT, policy=asked)
    if same:
        assert rules.decide_create(existing, None, command, 2, NOW) == Created(existing, new=False)
    else:
        assert refusal(lambda: rules.decide_create(existing, None, command, 2, NOW)) == (
            409,
            "CONFLICT_EXISTS",
        )


# -- counting


def test_appends_with_data_are_counted_and_timed() -> None:
    assert rules.decide_create(None, None, Create("s", TEXT), 1, NOW).state.records == 0
    first = rules.decide_create(None, None, Create("s", TEXT, payload=b"1"), 1, NOW).state
    assert (first.records, first.appended) == (1, NOW)
    second = rules.decide_append(first, None, Append(TEXT, b"2", seq="1"), NOW + 1).state
    assert (second.records, second.appended) == (2, NOW + 1)
    closed = rules.decide_append(second, None, Append(None, b"", close=True), NOW + 2).state
    assert (closed.records, closed.appended) == (2, NOW + 1)
    # A stream of an earlier version was not counted from its beginning, so that no number is known.
    older = rules.decide_append(stream(tail=3), None, Append(TEXT, b"2"), NOW).state
    assert (older.records, older.appended) == (None, NOW)


@given(
    gaps=st.lists(st.sampled_from([0.0, 0.01, 0.5, 4.0, 6.0, 1000.0]), max_size=600), counted=st.booleans()
)
def test_what_comes_between_two_milestones_is_bounded(gaps: list[float], counted: bool) -> None:
    state = stream(records=0 if counted else None)
    written, now, since = state, NOW, 0
    for gap in gaps:
        now += gap
        before, state = state, rules.decide_append(state, None, Append(TEXT, b"x"), now).state
        since += 1
        if rules.is_milestone(before, state):
            written, since = state, 0
        assert since < rules.MILESTONE_RECORDS or not counted
        assert written.appended is not None
        assert now - written.appended < rules.MILESTONE_SECONDS
    closed = rules.decide_append(state, None, Append(None, b"", close=True), now + 1).state
    assert not rules.is_milestone(state, closed), "without data nothing is counted"


def test_a_burst_has_a_milestone_every_so_many_appends() -> None:
    state, milestones = stream(records=0, appended=NOW), []
    for number in range(1, 2 * rules.MILESTONE_RECORDS + 2):
        before, state = state, decide_append(state, None, Append(TEXT, b"x")).state
        if rules.is_milestone(before, state):
            milestones.append(number)
    assert milestones == [rules.MILESTONE_RECORDS, 2 * rules.MILESTONE_RECORDS]
    # The same number again, without an append, is none.
    state = replace(state, records=rules.MILESTONE_RECORDS)
    assert not rules.is_milestone(state, replace(state, closed=True))
