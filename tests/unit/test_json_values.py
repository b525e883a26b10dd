"""JSON texts and values where the fast way ends, and arrays where guesses about messages fail."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any

import msgspec
import pytest

from durable_streams.protocol.jsonarrays import ArrayPieces, messages, split
from durable_streams.protocol.jsonchunks import ArraySplitter
from durable_streams.protocol.jsonparser import parse
from durable_streams.protocol.jsonrule import MAX_DEPTH, MAX_INTEGER_DIGITS, InvalidJSONError
from durable_streams.protocol.jsonvalues import decode, encode

LONE = "\ud800"  # what the fast encoder refuses


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1.5, "b": None}, b'{"a":1.5,"b":null}'),
        (Point(1), b'{"x":1,"y":null}'),
        ([Point(LONE)], b'[{"x":"\\ud800","y":null}]'),
        ({"a": msgspec.Raw(b"[1]"), "b": LONE}, b'{"a":[1],"b":"\\ud800"}'),
        ({1: LONE}, b'{"1":"\\ud800"}'),
        ({uuid.UUID(int=0): LONE}, b'{"00000000-0000-0000-0000-000000000000":"\\ud800"}'),
        (
            [True, 1, -(10**30), None, 0.5, "é", LONE],
            b"[true,1,-1" + b"0" * 30 + b',null,0.5,"\xc3\xa9","\\ud800"]',
        ),
        ([[], {}, (), LONE], b'[[],{},[],"\\ud800"]'),
    ],
)
def test_values_that_the_fast_way_does_not_know_have_the_same_text(value: Any, text: bytes) -> None:
    assert encode(value) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Point(float("nan")), "JSON has no nan"),
        ([float("inf"), None], "JSON has no inf"),
        ({"a": msgspec.Raw(b"[1"), "b": LONE}, "."),
        ([10**MAX_INTEGER_DIGITS, LONE], "more than 4,300 digits"),
    ],
)
def test_values_without_a_text_are_refused(value: Any, reason: str) -> None:
    with pytest.raises(InvalidJSONError, match=reason):
        encode(value)


@pytest.mark.parametrize("leaf", [0, LONE])
def test_a_value_may_nest_as_deep_as_a_message_and_no_deeper(leaf: Any) -> None:
    value = leaf
    for _ in range(MAX_DEPTH):
        value = [value]
    assert json.loads(encode(value)) == value
    with pytest.raises(InvalidJSONError, match=r"nests more than 512 levels deep|is nested deeper"):
        encode([value] * 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[1] 2", "unexpected '2' at character 4"),
        (b"[1}", "unexpected '}' at character 2"),
        (b'{"a":1]', r"unexpected '\]' at character 6"),
        (b"{1:2}", "unexpected '1' at character 1"),
        (b'{"a" 1}', "unexpected '1' at character 5"),
        (b'{"a":1,}', "unexpected '}' at character 7"),
        (b"[1", "it is cut off"),
        (b'{"a"', "it is cut off"),
        (b"[NaN]", "JSON has no NaN"),
        (b"[nul]", "expecting value"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)
    with pytest.raises(InvalidJSONError):
        decode(text)


# -- arrays


def test_an_array_of_long_messages_is_cut_between_them() -> None:
    texts = [b'{"a":"' + bytes([letter]) * 20_000 + b'"}' for letter in b"bcdef"]
    pieces = list(ArrayPieces(b"[" + b",".join(texts) + b"]"))
    assert len(pieces) > 1
    assert [message for piece in pieces for message in split(piece)] == texts


@pytest.mark.parametrize(("body", "count"), [(b"[1,2,3]", 3), (b"[1,,3]", 3), (b"[1,2 3]", 2), (b"[]", 0)])
def test_the_last_piece_of_an_array_is_given_as_it_is(body: bytes, count: int) -> None:
    splitter = ArraySplitter(size=1000)
    assert splitter.feed(body) is None
    last = splitter.finish()
    assert last is not None
    assert (last.body, last.messages) == (body, count)


def test_messages_before_one_that_nests_deeply_are_given_first() -> None:
    deep = b"[" * 400 + b"0," * 10_000 + b"0" + b"]" * 400
    splitter = ArraySplitter(size=10_000)
    first = splitter.feed(b'["a","b",' + deep[:12_000])
    assert first is not None
    assert (first.body, first.messages) == (b'["a","b"]', 2)
    rest = [splitter.feed(deep[12_000:]), splitter.feed(b',"c"]'), splitter.finish()]
    given = [message for piece in rest if piece is not None for message in split(piece.body)]
    assert given == [deep, b'"c"']


def test_messages_before_a_long_text_are_given_first() -> None:
    splitter = ArraySplitter(size=10_000)
    first = splitter.feed(b'["a","b","' + b"x" * 12_000)
    assert first is not None
    assert (first.body, first.messages) == (b'["a","b"]', 2)


def test_what_is_no_array_has_no_messages() -> None:
    with pytest.raises(InvalidJSONError, match="not an array of messages"):
        list(messages(b"{}"))
