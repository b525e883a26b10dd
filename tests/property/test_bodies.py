"""Bodies in pieces: whatever is cut where, every unit is given out once, in order, with its bytes as they came."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.errors import StreamParseError
from durable_streams.protocol import bodies
from durable_streams.protocol.bodies import Body
from durable_streams.protocol.jsonchunks import ArraySplitter, without_first

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.sampled_from('"\\,[]{}: é😀\u2028a'), max_size=8)
    | st.sampled_from(["},{", '"},{"', "],["]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", 'a"', "},{"]), inner, max_size=3)
    ),
    max_leaves=12,
)
STYLES = st.sampled_from([(",", ":", ","), (", ", ": ", ", "), (" ,\n", " :\t", "\r\n,\n  ")])
CUTS = st.lists(st.integers(0, 10_000), max_size=12)
SPACE = st.sampled_from(["", " ", "\r\n\t "])


def encoded(values: list[Any], style: tuple[str, str, str], space: str) -> tuple[bytes, list[bytes]]:
    """Return an array in some style, and its messages as they stand in it."""
    item, key, between = style
    messages = [
        json.dumps(value, ensure_ascii=len(values) % 2 == 0, separators=(item, key)) for value in values
    ]
    body = f"{space}[{space}{between.join(messages)}{space}]{space}"
    return body.encode(), [message.encode() for message in messages]


def ways(data: bytes, cuts: list[int]) -> list[list[bytes]]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    at_random = [data[start:end] for start, end in pairwise(edges)]
    return [[data], [data[i : i + 1] for i in range(len(data))], at_random]


def messages_of(body: bytes) -> list[bytes]:
    return [bytes(message) for message in msgspec.json.decode(body, type=list[msgspec.Raw])]


@settings(max_examples=150)
@given(st.lists(VALUES, max_size=30), STYLES, SPACE, CUTS, st.integers(1, 60))
def test_e9_messages_do_not_depend_on_cuts(
    values: list[Any], style: tuple[str, str, str], space: str, cuts: list[int], size: int
) -> None:
    body, messages = encoded(values, style, space)
    for way in ways(body, cuts):
        splitter = ArraySplitter(size=size)
        pieces = [piece for chunk in way if (piece := splitter.feed(chunk)) is not None]
        last = splitter.finish()
        assert last is not None
        found = [messages_of(piece.body) for piece in [*pieces, last]]
        assert [len(part) for part in found] == [piece.messages for piece in [*pieces, last]]
        assert [message for part in found for message in part] == messages


@given(st.lists(VALUES, min_size=1, max_size=10), STYLES, SPACE, st.integers(0, 10_000), st.integers(1, 30))
def test_e9_an_array_that_is_cut_gives_whole_messages_and_no_end(
    values: list[Any], style: tuple[str, str, str], space: str, cut: int, size: int
) -> None:
    body, messages = encoded(values, style, space)
    body = body.rstrip()
    splitter = ArraySplitter(size=size)
    part = body[: cut % len(body)]
    given_out = [
        message
        for number in range(len(part))
        if (piece := splitter.feed(part[number : number + 1])) is not None
        for message in messages_of(piece.body)
    ]
    assert given_out == messages[: len(given_out)]
    last = splitter.finish()
    if last is not None:  # what is there ends with a bracket of its own
        with pytest.raises(msgspec.DecodeError):
            messages_of(last.body)


@given(st.lists(VALUES, max_size=20), STYLES, SPACE, st.integers(0, 20))
def test_e9_messages_are_left_out(
    values: list[Any], style: tuple[str, str, str], space: str, count: int
) -> None:
    body, messages = encoded(values, style, space)
    count = min(count, len(messages))
    assert messages_of(without_first(body, count)) == messages[count:]


@pytest.mark.parametrize("body", [b'{"error": 1}' * 10, b" 5  " * 10, b"<html>" * 10])
def test_e9_what_is_no_array_is_reported(body: bytes) -> None:
    with pytest.raises(StreamParseError, match="array"):
        ArraySplitter(size=4).feed(body)


@pytest.mark.parametrize("body", [b'["' + b"x" * 500, b"[" * 500, b"[1 1" + b"2" * 500, b'[{"a":' * 100])
def test_e9_what_has_no_end_is_bounded(body: bytes) -> None:
    splitter = ArraySplitter(100, size=10)

    def feed_all() -> None:
        for start in range(len(body)):
            splitter.feed(body[start : start + 1])

    with pytest.raises(StreamParseError, match="limit") as caught:
        feed_all()
    assert caught.value.code == "TOO_LARGE"


@settings(max_examples=150)
@given(
    st.binary(max_size=80) | st.lists(VALUES, max_size=12),
    st.lists(st.integers(0, 1000), max_size=60),
    st.data(),
)
def test_e9_a_body_that_is_cut_goes_on_where_it_was(
    content: bytes | list[Any], numbers: list[int], data: st.DataObject
) -> None:
    """Answers from one position: the first ones are cut anywhere, each is split anywhere; nothing comes twice."""
    is_json = isinstance(content, list)
    body = encoded(content, (",", ":", ","), "")[0] if isinstance(content, list) else content
    whole, size = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 60))
    given_out: list[bytes] = []
    skip = 0
    for cut in [number % (len(body) + 1) for number in numbers[:5]] + [None]:
        known = data.draw(st.booleans())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bodies, "PIECE_SIZE", size)
            taken = Body(
                is_json=is_json, expected=len(body) if known else None, whole=whole, limit=1 << 20, skip=skip
            )
        part = body[:cut]
        step = data.draw(st.integers(1, 30))
        for start in range(0, len(part), step):
            given_out += taken.receive(part[start : start + step])
        if cut is not None:
            assert taken.is_short == (known and cut < len(body))
            skip = max(skip, taken.units)
            continue
        last = taken.finish()
        assert last is not None
        given_out.append(last)
    if isinstance(content, list):
        parts = [message for piece in given_out if piece for message in messages_of(piece)]
        assert parts == messages_of(body)
    else:
        assert b"".join(given_out) == body
