"""Typed items out of JSON batches: what types, callables and damaged messages give."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from typing import Annotated, Any, ForwardRef, Literal, NamedTuple, NewType, Optional, TypedDict, Union

import attrs
import msgspec
import pydantic
import pytest

from durable_streams.client.decoding import Items, deliver, item_decoder
from durable_streams.errors import StreamParseError

URL = "http://host/s"


class Event(msgspec.Struct):
    n: int
    name: str = ""


class Tick(msgspec.Struct, tag=True):
    n: int


class Tock(msgspec.Struct, tag=True):
    n: int


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@attrs.define
class Place:
    x: int


class Row(TypedDict):
    n: int


class Pair(NamedTuple):
    n: int
    name: str


class Model(pydantic.BaseModel):
    n: int
    children: list[Model] = []


class Other(pydantic.BaseModel):
    m: int


@pydantic.dataclasses.dataclass
class PydanticPoint:
    x: int


Missing = ForwardRef("Missing")
UserId = NewType("UserId", int)


def label(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)


def decoded(decode: Any, body: bytes | str) -> list[Any]:
    raw = body.encode() if isinstance(body, str) else body
    return list(item_decoder(decode)(raw, "7", URL))


def until_error(items: Items[Any]) -> tuple[list[Any], StreamParseError]:
    """Return the items before the error, and the error."""
    good: list[Any] = []
    with pytest.raises(StreamParseError) as caught:
        good.extend(items)  # what came before the error stays in the list
    return good, caught.value


@pytest.mark.parametrize(
    ("decode", "body", "expected"),
    [
        (None, '[1,"a",null,[2]]', [1, "a", None, [2]]),
        (Event, '[{"n":1,"name":"é"},{"n":2}]', [Event(1, "é"), Event(2)]),
        (Point, '[{"x":1,"y":2},{"x":3}]', [Point(1, 2), Point(3)]),
        (Place, '[{"x":1}]', [Place(1)]),
        (Row, '[{"n":1}]', [{"n": 1}]),
        (Pair, '[[1,"a"]]', [Pair(1, "a")]),
        (Tick | Tock, '[{"type":"Tock","n":1},{"type":"Tick","n":2}]', [Tock(1), Tick(2)]),
        (list[int], "[[1,2],[]]", [[1, 2], []]),
        (dict[str, Event], '[{"a":{"n":1}}]', [{"a": Event(1)}]),
        (Optional[int], "[1,null]", [1, None]),  # noqa: UP045 - the old spelling is another type
        (Union[int, str], '[1,"a"]', [1, "a"]),  # noqa: UP007 - as above
        (Literal["a", "b"], '["a","b"]', ["a", "b"]),
        (Annotated[int, msgspec.Meta(ge=0)], "[0,1]", [0, 1]),
        (Annotated[int, {"not": "hashable"}], "[0,1]", [0, 1]),
        (UserId, "[5]", [5]),
        (Any, '[5,"a"]', [5, "a"]),
        (Model, '[{"n":1,"children":[{"n":2}]}]', [Model(n=1, children=[Model(n=2)])]),
        (Model | Other, '[{"m":1},{"n":2}]', [Other(m=1), Model(n=2)]),
        (list[Model], '[[{"n":1}],[]]', [[Model(n=1)], []]),
        (Annotated[int, pydantic.Field(gt=0)], "[1]", [1]),
        (PydanticPoint, '[{"x":1}]', [PydanticPoint(1)]),
        (pydantic.TypeAdapter(Model), '[{"n":1},{"n":2}]', [Model(n=1), Model(n=2)]),
        (pydantic.TypeAdapter(dict[str, int]), '[{"a":1}]', [{"a": 1}]),
        (int, '[1,"2",3.5]', [1, 2, 3]),
        (str, "[1]", ["1"]),
        (dict, '[{"a":1}]', [{"a": 1}]),
        (complex, "[1]", [1 + 0j]),
        (lambda item: item["n"] * 2, '[{"n":1},{"n":2}]', [2, 4]),
    ],
    ids=label,
)
def test_what_each_kind_of_decode_gives(decode: Any, body: str, expected: list[Any]) -> None:
    result = decoded(decode, body)
    assert result == expected
    assert [type(item) for item in result] == [type(item) for item in expected]
    assert decoded(decode, b"") == []
    assert decoded(decode, b"[]") == []


@pytest.mark.parametrize("decode", [None, Event, Model, str, pydantic.TypeAdapter(Model)], ids=label)
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'[{"n":1}', "not valid JSON"),
        (b'[{"n":1},]', "not valid JSON"),
        (b'[{"n":1,"name":"\xff"}]', "invalid UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"n":1}', "not an array"),
        (b"7", "not an array"),
    ],
    ids=repr,
)
def test_a_body_that_is_no_array_of_messages_is_refused_whole(decode: Any, body: bytes, reason: str) -> None:
    with pytest.raises(StreamParseError, match=reason) as caught:
        list(item_decoder(decode)(body, "7", URL))
    assert (caught.value.offset, caught.value.url) == ("7", URL)


@pytest.mark.parametrize(
    ("decode", "bad", "reason"),
    [
        (Event, '{"n":"x"}', r"valid Event: Expected `int`, got `str` - at `\$\.n`\."),
        (Point, "{}", r"valid Point: Object missing required field `x`\."),
        (Row, "[1]", "valid Row: Expected `object`, got `array`"),
        (Tick | Tock, '{"type":"Boo"}', "Invalid value 'Boo'"),
        (list[int], "[1.5]", r"valid list\[int\]: Expected `int`, got `float` - at `\$\[0\]`"),
        (
            Model,
            '{"n":"x","children":3}',
            r"valid Model: n: Input should be a valid integer.* \(and 1 more\)\.",
        ),
        (Annotated[int, pydantic.Field(gt=0)], "0", "greater than 0"),
        (pydantic.TypeAdapter(Model), '{"n":{}}', "n: Input should be a valid integer"),
    ],
    ids=label,
)
def test_the_good_messages_before_an_invalid_one_are_given_out(decode: Any, bad: str, reason: str) -> None:
    good: Any = {"x": 1, "n": 1, "type": "Tick"} if decode != list[int] else [1]
    if "greater" in reason:
        good = 1
    text = json.dumps(good)
    items = item_decoder(decode)(f"[{text},{text},{bad},{text}]".encode(), "7", URL)
    before, error = until_error(items)
    assert before == decoded(decode, f"[{text},{text}]")
    assert error.message.startswith("Message 3 of the batch after offset 7 is not a valid ")
    assert "\n" not in error.message
    assert re.search(reason, error.message)
    assert (error.offset, error.url, error.code) == ("7", URL, "PARSE_ERROR")
    assert error.details["number"] == 3
    assert json.loads(error.details["json"]) == json.loads(bad)
    assert error.details["errors"]
    assert isinstance(error.__cause__, (msgspec.ValidationError, pydantic.ValidationError))


def test_a_callable_is_applied_when_its_item_is_asked_for() -> None:
    seen = []
    items = iter(item_decoder(seen.append)(b"[1,2,3]", None, URL))
    assert seen == []
    next(items)
    assert seen == [1]


@pytest.mark.parametrize("error", [ValueError, KeyError, StreamParseError])
def test_what_a_callable_raises_is_the_callers_own(error: type[Exception]) -> None:
    def decode(item: int) -> int:
        if item == 2:
            raise error("mine")
        return item

    items = iter(item_decoder(decode)(b"[1,2]", None, URL))
    assert next(items) == 1
    with pytest.raises(error, match="mine"):
        next(items)


def test_stop_iteration_out_of_a_callable_loses_nothing_in_silence() -> None:
    with pytest.raises(RuntimeError):
        decoded(lambda _: next(iter([])), "[1]")


def test_what_a_models_own_code_raises_gets_out_after_the_good_messages() -> None:
    @dataclasses.dataclass
    class Picky:
        n: int

        def __post_init__(self) -> None:
            if self.n == 2:
                raise KeyError("mine")

    items = iter(item_decoder(Picky)(b'[{"n":1},{"n":2}]', None, URL))
    assert next(items) == Picky(1)
    with pytest.raises(KeyError, match="mine"):
        next(items)


def test_a_number_beyond_a_double() -> None:
    assert decoded(None, '[1e400,{"a":-1e400}]') == [math.inf, {"a": -math.inf}]
    assert decoded(lambda item: item, "[1e400]") == [math.inf]
    # As `iter_json` has it without a type: what the server takes, every decoder gives.
    assert decoded(list[float], "[[1],[1e400]]") == [[1.0], [math.inf]]
    assert decoded(Event, '[{"n":1,"more":-1e400}]') == [Event(1)]


def test_big_integers_stay_exact() -> None:
    assert decoded(None, f"[{2**100}]") == [2**100]
    assert decoded(list[int], f"[[{2**100}]]") == [[2**100]]


@pytest.mark.parametrize("decode", [3, "Event", b"", [int], {"n": int}], ids=label)
def test_what_is_neither_type_nor_callable_is_refused_at_once(decode: Any) -> None:
    with pytest.raises(TypeError, match=r"^decode must be None, a type or a callable, not .*\.$"):
        item_decoder(decode)


@pytest.mark.parametrize("decode", [list[Missing], Model | list[Missing]], ids=label)
def test_a_type_that_no_json_can_be_read_into_is_refused_at_once(decode: Any) -> None:
    with pytest.raises(TypeError, match="is not a type that JSON can be read into") as caught:
        item_decoder(decode)
    assert "\n" not in str(caught.value)


def test_decoders_are_kept_but_the_order_of_a_union_is_respected() -> None:
    class Left(pydantic.BaseModel):
        n: int

    class Right(pydantic.BaseModel):
        n: int

    assert item_decoder(Event) is item_decoder(Event)
    assert isinstance(decoded(Left | Right, '[{"n":1}]')[0], Left)
    assert isinstance(decoded(Right | Left, '[{"n":1}]')[0], Right)


@pytest.mark.parametrize("decode", [None, Event, lambda item: item], ids=label)
def test_delivery_commits_with_the_last_item(decode: Any) -> None:
    log: list[Any] = []

    def commit() -> None:
        log.append("commit")

    items = item_decoder(decode)(b'[{"n":1},{"n":2},{"n":3}]', None, URL)
    log.extend("item" for _ in deliver(items, commit))
    assert log == ["item", "item", "commit", "item"]
    assert list(deliver(item_decoder(decode)(b"[]", None, URL), commit)) == []
    assert log[4:] == ["commit"]


@pytest.mark.parametrize(
    ("decode", "error"),
    [(Event, StreamParseError), (Model, StreamParseError), (lambda item: item["n"], KeyError)],
)
def test_delivery_commits_nothing_where_a_message_is_invalid(decode: Any, error: type[Exception]) -> None:
    items = item_decoder(decode)(b'[{"n":1},{}]', None, URL)
    given = deliver(items, lambda: pytest.fail("committed"))
    next(given)
    with pytest.raises(error):
        next(given)


def test_pydantic_is_imported_for_its_own_types_only() -> None:
    code = (
        "import sys, msgspec\n"
        "from durable_streams.client.decoding import item_decoder\n"
        "class E(msgspec.Struct): n: int\n"
        "assert list(item_decoder(E | None)(b'[null]', None, '')) == [None]\n"
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
