"""Records out of chunks: the same wherever they are cut, whatever they hold."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.firehose.records import Invalid, Problem, RecordDecoder, RecordSplitter, key_at


def cut(wire: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(place, len(wire)) for place in cuts} | {0, len(wire)})
    return [wire[start:end] for start, end in pairwise(places)]


def split(chunks: list[bytes], form: Any = "ndjson", limit: int = 2**20) -> tuple[list[bytes], bool, bool]:
    """Return the records, whether a part of one is left, and whether one was too long."""
    splitter = RecordSplitter(form, limit)
    records: list[bytes] = []
    for chunk in chunks:
        records += splitter.feed(chunk)
        if splitter.error is not None:
            return records, False, True
    return records, splitter.pending, False


wires = st.lists(
    st.sampled_from(
        [
            b'{"a":1}',
            b"\r\n",
            b"\n",
            b"\r",
            b'{"t":"\xe2\x80\xa8\xc2\x85"}',
            b"x" * 9,
            b"data: [1]",
            b": hi",
            b" ",
        ]
    ),
    max_size=30,
).map(b"".join)
cuts = st.lists(st.integers(0, 200), max_size=12)


@given(
    wire=wires, places=cuts, form=st.sampled_from(["ndjson", "sse"]), limit=st.sampled_from([8, 30, 10_000])
)
def test_where_chunks_are_cut_changes_nothing(wire: bytes, places: list[int], form: str, limit: int) -> None:
    whole = split([wire], form, limit)
    assert split(cut(wire, places), form, limit) == whole
    assert split([wire[place : place + 1] for place in range(len(wire))], form, limit) == whole


@given(
    values=st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), max_size=8),
    places=cuts,
)
def test_what_was_encoded_comes_out_again(values: list[Any], places: list[int]) -> None:
    wire = b"".join(json.dumps(value, ensure_ascii=False).encode() + b"\r\n\r\n" for value in values)
    records, pending, _ = split(cut(wire, places))
    decoded = [value for item in RecordDecoder(problems=False).items(records) for value in item]  # type: ignore[union-attr]
    assert (decoded, pending) == (values, False)


@pytest.mark.parametrize("form", ["ndjson", "sse"])
def test_what_precedes_a_record_over_the_limit_is_given_out(form: str) -> None:
    lead = b"" if form == "ndjson" else b"data: "
    end = b"\n" if form == "ndjson" else b"\n\n"
    wire = lead + b"[1]" + end + lead + b"[2]" + end + lead + b"x" * 500 + end
    assert split([wire], form, 100) == ([b"[1]", b"[2]"], False, True)


@pytest.mark.parametrize(
    ("last", "records", "left"),
    [
        (b'{"a":1}', [b'{"a":1}'], False),
        (b'{"a":1}\r', [b'{"a":1}'], False),
        (b"[1]", [b"[1]"], False),
        (b'{"a":', [], True),
        (b"12", [], True),  # perhaps the beginning of 123
        (b"", [], False),
    ],
)
def test_a_last_line_without_its_end_counts_if_it_is_whole(
    last: bytes, records: list[bytes], left: bool
) -> None:
    splitter = RecordSplitter()
    splitter.feed(b"1\n" + last)
    assert (splitter.finish(), splitter.pending) == (records, left)


def items(*records: bytes, decoder: RecordDecoder | None = None) -> list[Any]:
    found = (decoder or RecordDecoder()).items(list(records))
    return [item.raw if isinstance(item, (Invalid, Problem)) else item for item in found]


def test_invalid_records_stand_where_they_were() -> None:
    assert items(b"1", b"2", b"nope", b"3", b"\xff") == [[1, 2], b"nope", [3], b"\xff"]
    assert items(b'"\xff"', b'{"a":"\xe4"}') == [
        b'"\xff"',
        b'{"a":"\xe4"}',
    ]  # UTF-8 inside strings is checked
    assert items(b"NaN", b" ", b"0") == [b"NaN", [0]]
    assert items(b"1e400", b"12345678901234567890123") == [[float("inf"), 12345678901234567890123]]


@pytest.mark.parametrize(
    ("record", "is_problem"),
    [
        (b'{"errors":[{"title":"operational-disconnect"}]}', True),
        (b'{"title":"x","disconnect_type":"OperationalDisconnect"}', True),
        (b'{"title":"ConnectionException","connection_issue":"TooManyConnections"}', True),
        (b'{"data":{"id":"1"},"errors":[{"title":"Not Found Error"}]}', False),
        (b'{"errors":[{"title":"Not Found Error"}],"data":{"id":"1"}}', False),
        (b'{"errors":[]}', False),
        (b'{"errors":3}', False),
        (b'{"errors":["of yesterday"]}', False),
        (b'["errors"]', False),
    ],
)
@pytest.mark.parametrize("decode", [None, json.loads])
def test_errors_inside_the_stream_are_distinguished_from_data(
    record: bytes, is_problem: bool, decode: Any
) -> None:
    """Pitfall 24."""
    found = list(RecordDecoder(decode).items([b'{"data":1}', record, b"[]"]))
    if is_problem:
        assert found == [[{"data": 1}], Problem(record, json.loads(record)), [[]]]
    else:
        assert found == [[{"data": 1}, json.loads(record), []]]
    assert all(isinstance(item, list) for item in RecordDecoder(decode, problems=False).items([record]))


def test_one_huge_record_costs_linear_time_and_bounded_memory() -> None:
    splitter = RecordSplitter(limit=40_000_000)
    piece = b"x" * 1000
    for _ in range(40_000):
        assert splitter.feed(piece) == []
    assert splitter.feed(b"x") == []
    assert splitter.error is not None
    assert "40000000 bytes" in splitter.error.message


def test_keys_are_found_in_mappings_and_objects() -> None:
    class Post:
        def __init__(self) -> None:
            self.data = {"id": "7", "list": []}

    assert key_at("data.id")({"data": {"id": 5}}) == 5
    assert key_at("data.id")(Post()) == "7"
    assert [key_at(path)(Post()) for path in ("data.list", "data.none.none", "x")] == [None, None, None]
    assert key_at("id")([1]) is None
