"""Typed feeds take every record that is JSON by the rule, whatever stands where the model does not look."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from durable_streams.firehose.models import decoder_for
from durable_streams.firehose.records import Invalid, RecordDecoder


class Struct(msgspec.Struct):
    id: int


@dataclasses.dataclass
class DataClass:
    id: int


class Typed(TypedDict):
    id: int


class Model(pydantic.BaseModel):
    id: int


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    id: pydantic.AwareDatetime


class Overridden(pydantic.BaseModel):
    id: int

    @classmethod
    def model_validate_json(cls, data: Any, **options: Any) -> Any:
        return super().model_validate_json(data, **options)


class Holding(msgspec.Struct):
    id: msgspec.Raw


FIELDS = {
    "surrogate": rb'"a\ud83d"',
    "pair": rb'"\ud83d\ude00"',
    "deep": b"[" * 511 + b"]" * 511,
    "deep objects": b'{"":' * 511 + b"1" + b"}" * 511,
    "deep surrogate": b"[" * 300 + rb'"\udc00"' + b"]" * 300,
    "beyond a double": b"-1e400",
    "long fraction": b"1" * 6000 + b".5",
    "long integer": b"9" * 4300,
    "twice": b'{"a":1,"a":2}',
}
KINDS = [
    Struct,
    DataClass,
    Typed,
    Model,
    pydantic.TypeAdapter(Model),
    Overridden,
    dict[str, Any],
    None,
    Strict,
    Holding,
]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: getattr(kind, "__name__", str(kind)))
def test_a7_a_typed_feed_takes_what_the_rule_allows(kind: Any, name: str) -> None:
    number = b'"2026-01-01T00:00:00Z"' if kind is Strict else b"2"
    record = b'{"id":%b,"t":%b}\r' % (number, FIELDS[name])
    key = b'{"id":%b,"\\udc00":%b}' % (number, FIELDS[name])
    for records in ([record], [key], [record] * 5, [record, key, b'{"id":%b}' % number]):
        found = list(RecordDecoder(decoder_for(kind)).items(records))
        assert not [item.cause for item in found if isinstance(item, Invalid)]
        values = [value for item in found for value in item]  # type: ignore[union-attr]
        assert len(values) == len(records)
        for value in values:
            made = value["id"] if isinstance(value, dict) else value.id
            assert str(bytes(made).decode() if kind is Holding else made) in {
                "2",
                "2026-01-01 00:00:00+00:00",
            }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: getattr(kind, "__name__", str(kind)))
@pytest.mark.parametrize(
    "field", [b"9" * 4301, b"[" * 512 + b"]" * 512, b"NaN", b"-Infinity", b'"\xff"', rb'"\ud8"', b'"\x01"']
)
def test_a7_a_typed_feed_takes_nothing_else(kind: Any, field: bytes) -> None:
    record = b'{"id":2,"t":%b}' % field
    good = b'{"id":"2026-01-01T00:00:00Z"}' if kind is Strict else b'{"id":1}'
    found = list(RecordDecoder(decoder_for(kind)).items([good, record, good]))
    assert [type(item) for item in found] == [list, Invalid, list]


def test_a7_fields_that_the_model_looks_at() -> None:
    class Fields(msgspec.Struct):
        t: str = ""
        x: float = 0.0
        n: int = 0
        any: Any = None

    class Same(pydantic.BaseModel):
        x: float = 0.0
        n: int = 0
        any: Any = None

    for kind in (Fields, Same):
        decoder = RecordDecoder(decoder_for(kind))
        records = [
            rb'{"any":"\ud83d"}',
            b'{"x":1e400,"any":[1e400]}',
            b'{"n":%b,"any":"\\ud83d"}' % (b"9" * 4300),
        ]
        values = [value for item in decoder.items(records) for value in item]  # type: ignore[union-attr]
        assert values[0].any == "\ud83d"
        assert (values[1].x, values[1].any) == (float("inf"), [float("inf")])
        assert values[2].n == 10**4300 - 1
    value = next(iter(RecordDecoder(decoder_for(Fields)).items([rb'{"t":"\ud83d\ud83d\ude00"}'])))
    assert value[0].t == "\ud83d😀"  # type: ignore[index]


@pytest.mark.parametrize("record", [b"1", b"[1]", b'{"t":1}', b'{"id":"x","t":"\\ud83d"}'])
@pytest.mark.parametrize("kind", [Struct, Model])
def test_a7_a_model_still_refuses_what_does_not_fit(kind: Any, record: bytes) -> None:
    (item,) = RecordDecoder(decoder_for(kind)).items([record])
    assert isinstance(item, Invalid)
    assert "id" in str(item.cause) or "object" in str(item.cause) or "Model" in str(item.cause)


def test_the_field_is_what_the_standard_library_gives() -> None:
    for text in FIELDS.values():
        (values,) = RecordDecoder(problems=False).items([text])
        assert values == [json.loads(text)]
