"""One rule for what a JSON message is: everything that takes one takes the same texts, and gives the same values.

The oracle is the standard library, configured to keep numbers as text and objects as pairs: grammar, depth and
digits can then be read off its result.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from durable_streams.cli.ndjson import flaw_of
from durable_streams.client.decoding import item_decoder
from durable_streams.errors import StreamParseError
from durable_streams.firehose.models import decoder_for
from durable_streams.firehose.records import RecordDecoder
from durable_streams.protocol import jsonmode, operations
from durable_streams.protocol.jsonarrays import ArrayPieces, check_array, messages, split
from durable_streams.protocol.jsonparser import parse
from durable_streams.protocol.jsonrule import InvalidJSONError, check
from durable_streams.protocol.jsonvalues import decode, encode
from durable_streams.relay.target import Target

# -- the oracle


class Pairs(list[tuple[str, Any]]):
    """An object, with the members whose keys come again."""


def parsed(text: bytes) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(name)

    return json.loads(
        text.decode(), parse_int=_Digits, parse_float=str, parse_constant=refuse, object_pairs_hook=Pairs
    )


class _Digits(str):
    __slots__ = ()


def within_limits(value: Any, depth: int) -> bool:
    stack = [(value, 0)]
    while stack:
        item, above = stack.pop()
        if isinstance(item, _Digits):
            if len(item.lstrip("-")) > 4300:
                return False
        elif isinstance(item, list):
            if above == depth:
                return False
            inner = [member for _, member in item] if isinstance(item, Pairs) else item
            stack.extend((member, above + 1) for member in inner)
    return True


def is_message(text: bytes) -> bool:
    """Return what the rule says of a text."""
    try:
        return within_limits(parsed(text), 512)
    except ValueError:
        return False
    except RecursionError:
        return False  # it has more levels than Python's stack has room for, and so more than 512


def value_of(text: bytes) -> Any:
    """Return the value of a message, its integers in full."""
    return json.loads(text.decode(), parse_int=_exact)


def _exact(digits: str) -> int:
    value = 0
    for start in range(0, len(digits.lstrip("-")), 500):
        part = digits.lstrip("-")[start : start + 500]
        value = value * 10 ** len(part) + int(part)
    return -value if digits.startswith("-") else value


# -- texts: valid ones with everything that is strange, nearly valid ones, and damaged ones

BLANKS = st.text(alphabet=" \t\r\n", max_size=3)
NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.builds(
        lambda sign, digits, rest: sign + digits + rest,
        st.sampled_from(["", "-"]),
        st.sampled_from(
            ["0", "7", "9" * 19, "9" * 20, "1" * 640, "8" * 641, "9" * 4300, "9" * 4301, "1" + "0" * 5000]
        ),
        st.sampled_from(
            ["", ".5", "e5", "E-5", "e+400", ".0e5000", "." + "1" * 4301, "e" + "1" * 4301, "e-" + "1" * 4301]
        ),
    ),
)
ESCAPES = st.sampled_from(
    [
        r"\ud83d",
        r"\uDE00",
        r"\ud83d\ude00",
        r"\\ud83d",
        r"\\\ud83d",
        r"\u0000",
        r"\"",
        r"\\",
        r"\/",
        r"\n",
        "é",
        "日",
        "😀",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "\x7f",
        "\u2028",
        "\ufeff",
    ]
)
STRINGS = st.one_of(
    st.text(max_size=10).map(json.dumps),
    st.text(max_size=10)
    .filter(lambda text: text.isprintable())
    .map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.lists(ESCAPES, max_size=5).map(lambda parts: f'"{"".join(parts)}"'),
    st.sampled_from(
        ['"' + "9" * 4400 + '"', '"' + "[" * 600 + '"', '"' + "]" * 600 + '"', '"' + r"\"" * 50 + '"']
    ),
)
SCALARS = st.one_of(NUMBERS, STRINGS, st.sampled_from(["true", "false", "null"]))


def _array(parts: list[tuple[str, str, str]]) -> str:
    return "[" + ",".join("".join(part) for part in parts) + "]"


def _object(parts: list[tuple[str, str, str, str]]) -> str:
    return (
        "{"
        + ",".join(f"{blank}{key}{blank}:{after}{value}{after}" for blank, key, value, after in parts)
        + "}"
    )


def _inside(within: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    keys = st.one_of(STRINGS, st.sampled_from(['"id"', '"t"']))  # some come more than once
    return st.one_of(
        st.lists(st.tuples(BLANKS, within, BLANKS), max_size=3).map(_array),
        st.lists(st.tuples(BLANKS, keys, within, BLANKS), max_size=3).map(_object),
        st.tuples(
            st.sampled_from([1, 100, 199, 200, 201, 509, 510, 511, 512, 513, 940, 2000]),
            within,
            st.booleans(),
        ).map(_nested),
    )


def _nested(case: tuple[int, str, bool]) -> str:
    levels, text, objects = case
    return '{"id":' * levels + text + "}" * levels if objects else "[" * levels + text + "]" * levels


VALUES = st.recursive(SCALARS, _inside, max_leaves=6)
TEXTS = st.tuples(BLANKS, VALUES, BLANKS).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
PIECES = [
    b"NaN",
    b"Infinity",
    b"-",
    b"01",
    b"+1",
    b".5",
    b"1.",
    b"\\x",
    b"\\u12",
    b"\x00",
    b"\x1f",
    b"\x0c",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xc2\xa0",
    b"]",
    b"}",
    b"[",
    b"{",
    b'"',
    b",",
    b":",
    b"//",
    b"'a'",
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    text = draw(TEXTS)
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(st.sampled_from(PIECES)) + text[place + draw(st.integers(0, 2)) :]


ANY = st.one_of(TEXTS, TEXTS, damaged(), st.binary(max_size=20))


def takes(function: Callable[[bytes], object], text: bytes) -> bool:
    try:
        function(text)
    except (ValueError, StreamParseError) as error:
        refusal = str(error)
    else:
        return True
    assert len(refusal.splitlines()) == 1
    return False


# -- who takes what

CHECKS: dict[str, Callable[[bytes], object]] = {
    "the rule": check,
    "a value": decode,
    "the server": lambda text: jsonmode.payload_from_body(b"[" + text + b"]"),
    "the client": lambda text: operations.encode_payload(text, "application/json"),
    "a producer": operations.encoder_for("application/json"),
    "the relay": Target(
        "http://host/s",
        headers=None,
        content_type="application/json",
        retry_for=0,
        stopping=threading.Event(),
    ).encode,
    "the command line": lambda text: _refuse(flaw_of(text)),
    "a feed": lambda text: _values(RecordDecoder(problems=False), text),
    "a feed of bytes": lambda text: _values(RecordDecoder(decoder_for(bytes), problems=False), text),
    "a read": lambda text: list(item_decoder()(b"[" + text + b"]", "7", "")),
}


def _refuse(flaw: str | None) -> None:
    if flaw is not None:
        raise ValueError(flaw)


def _values(decoder: RecordDecoder, text: bytes) -> list[Any]:
    values: list[Any] = []
    for item in decoder.items([text]):
        if not isinstance(item, list):
            raise ValueError("invalid")  # noqa: TRY004 - as everything else that is asked
        values += item
    return values


@pytest.mark.parametrize("name", CHECKS)
@given(ANY)
@example(b"")
@example(b"\xef\xbb\xbf1")
@example(b"[1 2]")
@example(b'{"a":1,}')
@example(b"1e400")
@example(b"\x0b")
@example(b'"\\ud800')
@example(b'"\xed\xa0\x80"')
@settings(max_examples=100)
def test_a7_everything_takes_the_same_texts(name: str, text: bytes) -> None:
    if not text.strip(b" \t\r\n") or is_several(text):
        return  # inside of an array it would be none, or several
    assert takes(CHECKS[name], text) == is_message(text)


def is_json(text: bytes) -> bool:
    try:
        parsed(text)
    except (ValueError, RecursionError):
        return False
    return True


def is_several(text: bytes) -> bool:
    try:
        return len(parsed(b"[" + text + b"]")) != 1
    except (ValueError, RecursionError):
        return False


# -- what it is

MESSAGES = TEXTS.map(lambda text: text.strip(b" \t\r\n")).filter(is_message)


@given(MESSAGES)
@settings(max_examples=100)
def test_a7_every_decoder_gives_the_value_in_full(text: bytes) -> None:
    expected = value_of(text)
    assert decode(text) == expected
    assert parse(text) == expected
    assert list(item_decoder()(b"[" + text + b"," + text + b"]", "7", "")) == [expected, expected]
    assert list(item_decoder(lambda value: [value])(b"[" + text + b"]", "7", "")) == [[expected]]


@given(MESSAGES)
@settings(max_examples=100)
def test_a7_what_a_reader_gives_can_be_appended(text: bytes) -> None:
    value = value_of(text)
    again = encode(value, beyond_double=True)
    check(again)
    assert value_of(again) == json.loads(
        json.dumps(value), parse_int=_exact
    )  # surrogates that meet become one character
    if again.count(b"1e999"):
        with pytest.raises(ValueError, match=r"JSON has no -?inf"):
            encode(value)
    elif not isinstance(value, str):  # text is taken for JSON
        assert operations.encode_json_message(value) == again


@given(MESSAGES)
@settings(max_examples=100)
def test_a7_feeds_give_the_value_in_full(text: bytes) -> None:
    assert _values(RecordDecoder(problems=False), text) == [value_of(text)]
    assert _values(RecordDecoder(decoder_for(bytes), problems=False), text) == [text]
    assert _values(RecordDecoder(decoder_for(lambda value: [value]), problems=False), text) == [
        [value_of(text)]
    ]


class Struct(msgspec.Struct):
    n: int


class Model(pydantic.BaseModel):
    n: int


@pytest.mark.parametrize("kind", [Struct, Model, pydantic.TypeAdapter(Model)], ids=str)
@given(MESSAGES, st.sampled_from([1, 2**70, 10**4299]))
@example(b"9" * 4301 + b".5", 1)
@example(b"-" + b"9" * 9000 + b"e-9000", 1)
@settings(max_examples=100)
def test_a7_models_take_whatever_stands_where_they_do_not_look(kind: Any, text: bytes, number: int) -> None:
    body = b'[{"a":%b,"n":%b},{"n":2,"\\ud800":%b}]' % (text, encode(number), text)
    if not all(map(is_message, split(body))):
        return  # one level too deep by now
    made = list(item_decoder(kind)(body, "7", ""))
    assert [item.n for item in made] == [number, 2]
    decoder = RecordDecoder(decoder_for(kind), problems=False)
    assert [_values(decoder, record)[0].n for record in split(body)] == [number, 2]
    assert [value.n for item in decoder.items(split(body)) for value in item] == [number, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [Struct, Model, pydantic.TypeAdapter(Model)], ids=str)
@given(ANY)
@settings(max_examples=100)
def test_a7_models_take_nothing_that_the_rule_refuses(kind: Any, text: bytes) -> None:
    record = b'{"n":1,"a":%b}' % text
    if is_json(b"[" + text + b"]") != is_json(record):
        return  # it is more than one value
    expected = is_message(record)
    assert takes(lambda body: list(item_decoder(kind)(body, "7", "")), b"[" + record + b"]") == expected
    decoder = RecordDecoder(decoder_for(kind), problems=False)
    assert takes(lambda body: _values(decoder, body), record) == expected


@given(st.lists(st.tuples(BLANKS, st.one_of(MESSAGES, TEXTS), BLANKS), max_size=8))
@settings(max_examples=100)
def test_a8_messages_are_kept_apart_whether_the_rule_takes_them_or_not(
    parts: list[tuple[str, bytes, str]],
) -> None:
    array = b"[" + b",".join(before.encode() + text + after.encode() for before, text, after in parts) + b"]"
    expected = [text.strip(b" \t\r\n") for _, text, _ in parts]
    assert split(array) == expected
    assert list(messages(array)) == expected
    refused: list[bytes] = []
    items = list(item_decoder()(array, "7", "", lambda raw, _: refused.append(raw)))
    assert items == [value_of(text) for text in expected if is_message(text)]
    assert refused == [text for text in expected if not is_message(text)]
    if refused:
        before: list[Any] = []
        with pytest.raises(StreamParseError):
            before.extend(item_decoder()(array, "7", ""))
        first = expected.index(refused[0])
        assert before == [value_of(text) for text in expected[:first]]


@given(damaged().map(lambda text: b"[" + text + b"]"))
@settings(max_examples=100)
def test_a8_a_damaged_array_costs_what_is_damaged(array: bytes) -> None:
    if takes(check_array, array):
        assert split(array) == list(messages(array))
    refused: list[bytes] = []
    items = list(item_decoder()(array, "7", "", lambda raw, _: refused.append(raw)))
    assert bool(refused) != takes(check_array, array)
    assert len(b"".join(refused)) <= len(array)
    assert items or refused or not array[1:-1].strip(b" \t\r\n")


# -- cut into pieces

RECORDS = st.sampled_from(
    [
        b'{"id":1,"t":"x"}',
        b'{"id":[{"id":2},{"id":3}]}',
        rb'{"id":"},{\"id\":1"}',
        rb'{"id":"\ud83d"}',
        b'{"other":1}',
        b"[[1],[2]]",
        b"7",
    ]
)


@given(
    st.lists(RECORDS, min_size=1, max_size=12),
    st.integers(2500, 4000),
    st.sampled_from([b",", b", ", b",\n", b" , "]),
)
@settings(max_examples=30)
def test_a_large_array_in_pieces_is_the_array(records: list[bytes], count: int, between: bytes) -> None:
    all_of_them = (records * (count // len(records) + 1))[:count]
    array = b"[" + between.join(all_of_them) + b"]"
    pieces = ArrayPieces(array)
    inner = [piece[1:-1] for piece in pieces]
    assert b",".join(inner) == array[1:-1]
    check_array(array)
    assert split(array) == all_of_them
    expected = [value_of(record) for record in records] * (count // len(records) + 1)
    assert list(item_decoder()(array, "7", "")) == expected[:count]
    broken = array[:-1] + between + b"]"
    with pytest.raises(InvalidJSONError):
        check_array(broken)


# -- interpreter limits


@contextmanager
def limits(digits: int | None, recursion: int | None) -> Iterator[None]:
    before = sys.get_int_max_str_digits(), sys.getrecursionlimit()
    try:
        if digits is not None:
            sys.set_int_max_str_digits(digits)
        if recursion is not None:
            sys.setrecursionlimit(recursion)
        yield
    finally:
        sys.set_int_max_str_digits(before[0])
        sys.setrecursionlimit(before[1])


def everything_of(text: bytes) -> tuple[Any, ...]:
    """Return what each of the checks and decoders says, as something that compares without recursion."""
    says = [takes(function, text) for function in CHECKS.values()]
    found = [
        takes(lambda body, kind=kind: list(item_decoder(kind)(body, "7", "")), b'[{"n":1,"a":%b}]' % text)
        for kind in (Struct, Model)
    ]
    encoded = (
        encode(decode(text)) if says[0] and not math.isinf(decode(text) if len(text) < 9 else 0) else None
    )
    return (says, found, encoded)


STRANGE = {
    "scalar": b"1",
    "deep": b"[" * 511 + b"]" * 511,
    "deepest": b'{"a":' * 512 + b"1" + b"}" * 512,
    "too deep": b"[" * 513 + b"]" * 513,
    "much too deep": b"[" * 100_000 + b"]" * 100_000,
    "long integer": b"-" + b"9" * 4300,
    "too long integer": b"9" * 4301,
    "lone surrogate": rb'{"a":["\ud800"]}',
    "deep surrogate": b"[" * 400 + rb'"\ud800"' + b"]" * 400,
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize(
    ("digits", "recursion", "stack"),
    [
        (640, None, 0),
        (0, None, 0),
        (None, 5000, 0),
        (None, None, 500),
        (None, None, 800),
        (640, 1200, 900),
        (None, 200, 100),
    ],
)
def test_a7_limits_of_the_interpreter_change_nothing(
    name: str, digits: int | None, recursion: int | None, stack: int
) -> None:
    expected = everything_of(STRANGE[name])
    found: list[Any] = []

    def descend(levels: int) -> None:
        if levels:
            descend(levels - 1)
        else:
            found.append(everything_of(STRANGE[name]))

    def run() -> None:
        with limits(digits, recursion):
            descend(stack)

    # In a thread, whose stack is empty: how deep the test runner's is, is not known.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [expected]


class Node(msgspec.Struct):
    children: list[Node] = []


def test_a7_a_model_of_any_depth_is_made_on_any_stack() -> None:
    text = b'[{"children":' * 255 + b"[]" + b"}]" * 255
    found: list[Any] = []

    def descend(levels: int) -> None:
        if levels:
            descend(levels - 1)
            return
        (nodes,) = item_decoder(list[Node])(b"[" + text + b"]", "7", "")
        found.append(nodes)

    thread = threading.Thread(target=descend, args=(900,))
    thread.start()
    thread.join()
    depth = 0
    while found:
        depth += 1
        found = found[0] if isinstance(found[0], list) else found[0].children
    assert depth == 256


ADVERSARIES = {
    "nested": b"[" * 16,
    "nested objects": b'{"":' * 4,
    "as deep as may be": b"[[]],[],",
    "empty": b"{},",
    "surrogates": rb'"\ud800",',
    "backslashes": rb'"\\\"\\",',
    "brackets in strings": b'"]["],',
    "digits": b"1" * 16,
    "integers": b"9" * 4300 + b",",
    "fractions": b"0." + b"9" * 9000 + b",",
}


@pytest.mark.parametrize("name", ADVERSARIES)
def test_a7_what_a_large_body_costs_is_bounded(name: str) -> None:
    """In a process of its own: a few times the body, whatever is in it."""
    code = """
import resource, sys
from durable_streams.protocol.jsonmode import InvalidJSONError, payload_from_body
unit, size = bytes.fromhex(sys.argv[1]), 1 << 24
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for head in (b"[", b"[" * 512 + b"[],", b'["\\ud800",'):
    try:
        payload_from_body(head + unit * (size // len(unit)) + b"1]" + b"]" * (head.count(b"[") - 2))
    except InvalidJSONError:
        pass
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown if sys.platform != "darwin" else grown >> 10)
"""
    unit = ADVERSARIES[name].hex()
    run = subprocess.run(
        [sys.executable, "-c", code, unit], capture_output=True, text=True, check=True, timeout=100
    )
    assert int(run.stdout) < 10 * (1 << 14), f"{int(run.stdout) >> 10} MiB for 16"
