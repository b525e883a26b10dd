"""JSON mode against the standard library: the same texts are valid, bytes and boundaries are kept."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from durable_streams.protocol.jsonmode import InvalidJSONError, message_end, payload_from_body, response_body

BLANKS = st.text(alphabet=" \t\r\n", max_size=3)
NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(
        [
            "0",
            "-0",
            "-0.0",
            "1e400",
            "-1E+400",
            "1e-999",
            "1.10",
            "100000000000000000001",
            "0.1e1",
            "9" * 4300,
        ]
    ),
)
STRINGS = st.one_of(
    st.text(max_size=10).filter(lambda text: text.isprintable()).map(json.dumps),
    st.text(max_size=10).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(
        [r'"\u0000"', r'"\ud83d\ude00"', r'"\/\b"', '"],["', r'"\\"', r'"\""', '"日本"', '"\u2028"']
    ),
)


def _array(parts: list[tuple[str, str, str]]) -> str:
    return "[" + ",".join("".join(part) for part in parts) + "]"


def _object(parts: list[tuple[str, str, str, str]]) -> str:
    return (
        "{"
        + ",".join(f"{before}{key}{before}:{after}{value}{after}" for before, key, value, after in parts)
        + "}"
    )


def _inside(within: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(st.tuples(BLANKS, within, BLANKS), max_size=3).map(_array),
        st.lists(st.tuples(BLANKS, STRINGS, within, BLANKS), max_size=3).map(_object),
    )


# JSON texts as people write them: blanks anywhere, keys in any order and more than once.
VALUES = st.recursive(
    st.one_of(NUMBERS, STRINGS, st.sampled_from(["true", "false", "null"])), _inside, max_leaves=8
)


@given(VALUES, BLANKS, BLANKS)
def test_one_value_is_kept_as_it_is(text: str, before: str, after: str) -> None:
    if text.startswith("["):
        return
    assert payload_from_body(f"{before}{text}{after}".encode()) == text.encode() + b","


@given(st.lists(VALUES, max_size=6), BLANKS)
def test_an_array_is_flattened_by_one_level(messages: list[str], blank: str) -> None:
    body = f"{blank}[{blank}" + f"{blank},{blank}".join(messages) + f"{blank}]{blank}"
    payload = payload_from_body(body.encode())
    pieces = f"{blank},{blank}".join(messages).encode() + b"," if messages else b""
    assert payload == pieces
    assert message_end(payload, 0) == 0
    for count in range(1, len(messages) + 1):
        # Between any two messages, right after the comma: either side is a payload of its own.
        end = message_end(payload, count)
        assert end is not None
        assert payload[:end].rstrip(b", \t\r\n") == f"{blank},{blank}".join(messages[:count]).encode()
        assert payload[end:].strip() == f"{blank},{blank}".join(messages[count:]).encode() + b"," * (
            count < len(messages)
        )
    assert message_end(payload, len(messages) + 1) is None


@given(st.lists(st.lists(VALUES, min_size=1, max_size=3), max_size=5))
def test_any_number_of_payloads_is_one_array(appends: list[list[str]]) -> None:
    payload = b"".join(payload_from_body(f"[{','.join(messages)}]".encode()) for messages in appends)
    everything = [message for messages in appends for message in messages]
    answer = response_body(payload)
    assert answer == b"[" + ",".join(everything).encode() + b"]"
    keep = {"parse_int": str, "parse_float": str}
    assert json.loads(answer, **keep) == [json.loads(message, **keep) for message in everything]


def valid(body: bytes) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(body.decode(), parse_constant=refuse, parse_int=str, parse_float=str)
    except ValueError:
        return False
    return True


def accepted(body: bytes) -> bool:
    try:
        payload_from_body(body)
    except InvalidJSONError as error:
        refusal = str(error)
    else:
        return True
    assert len(refusal.splitlines()) == 1
    return False


PIECES = [
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b'"',
    b'"a"',
    b"1",
    b"-",
    b".5",
    b"e9",
    b"01",
    b"null",
    b"tru",
    b"NaN",
]
PIECES += [
    b"Infinity",
    b" ",
    b"\n",
    b"\\",
    b"\\u12",
    b"\x00",
    b"\x1f",
    b"\x7f",
    b"\xff",
    b"\xc3",
    b"\xc3\xa9",
]
PIECES += [b"\xed\xa0\x80", b"\xef\xbb\xbf", b"'a'", b"//", b"1e400", b"\\ud800", b"\xc0\x80"]
FRAGMENTS = st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)


@given(
    st.one_of(
        FRAGMENTS,
        FRAGMENTS.map(lambda part: b"[" + part + b"]"),
        FRAGMENTS.map(lambda part: b'"' + part + b'"'),
    )
)
@example(b"")
@example(b"[]")
@example(b"[1,]")
@example(b"[,1]")
@example(b"[1 2]")
@example(b"[1][2]")
@example(b"1 2")
@example(b'{"a":1,}')
@example(b"[1e400,]")
@example(b"[1e400 1]")
@example(b'["\x01"]')
@example(b'["\\x"]')
@example(b"\x0c1")
@example(b"[1e400,NaN]")
def test_the_same_texts_are_valid(body: bytes) -> None:
    if b"\\ud" in body:
        return  # half a character in an escape: JSON's grammar allows it, decoders differ
    assert accepted(body) == valid(body), body


@given(st.binary(max_size=20))
def test_any_bytes_are_valid_or_refused(body: bytes) -> None:
    if accepted(body):
        assert valid(body)
        assert valid(response_body(payload_from_body(body)))


@pytest.mark.parametrize("depth", [100, 1000, 20_000, 500_000])
@pytest.mark.parametrize("number", [b"1", b"1e400"])
def test_deep_nesting_is_answered(depth: int, number: bytes) -> None:
    accepted(b"[" * depth + number + b"]" * depth)
    accepted(b"[" * depth)
    accepted(b'{"a":' * depth + number + b"}" * depth)
