from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from durable_streams.errors import (
    DurableStreamError,
    StreamExistsError,
    StreamNotFoundError,
    StreamParseError,
)
from durable_streams.protocol import operations
from durable_streams.protocol.request import Op, Request, Response

URL = "http://host/v1/stream/a"


def play(op: Op[Any], *responses: Response) -> tuple[list[Request], Any]:
    requests = [next(op)]
    for response in responses:
        try:
            requests.append(op.send(response))
        except StopIteration as done:
            return requests, done.value
    raise AssertionError("it wants another answer")


def test_create_says_all_of_its_configuration() -> None:
    op = operations.create(URL, content_type="application/json", ttl_seconds=60, body=[1], closed=True)
    [request], result = play(op, Response(201, {"stream-next-offset": "4", "stream-closed": "true"}))
    assert request.headers == {
        "content-type": "application/json",
        "stream-ttl": "60",
        "stream-closed": "true",
    }
    assert (request.method, request.body, request.idempotent) == ("PUT", b"[[1]]", True)
    assert (result.offset, result.stream_closed, result.content_type) == ("4", True, "application/json")


def test_a_fork_names_the_sources_path() -> None:
    op = operations.create(URL, source="https://host/v1/stream/b%20c?x=1", fork_offset="7", fork_sub_offset=0)
    [request], _ = play(op, Response(201, {}))
    assert request.headers == {
        "stream-forked-from": "/v1/stream/b%20c",
        "stream-fork-offset": "7",
        "stream-fork-sub-offset": "0",
    }
    assert request.body is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"ttl_seconds": -1},
        {"ttl_seconds": True},
        {"ttl_seconds": 1.5},
        {"ttl_seconds": 1, "expires_at": "2030-01-01T00:00:00Z"},
        {"content_type": "text/plain\r\nx: y"},
        {"source": URL, "fork_sub_offset": -1},
    ],
)
def test_create_refuses_what_no_server_takes(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        next(operations.create(URL, **arguments))


def test_append_asks_for_an_unknown_content_type_first() -> None:
    requests, (result, known) = play(
        operations.append(URL, {"a": 1}, seq="5"),
        Response(200, {"content-type": "application/json; charset=utf-8"}),
        Response(204, {"stream-next-offset": "9"}),
    )
    assert [request.method for request in requests] == ["HEAD", "POST"]
    assert requests[1].headers == {"content-type": "application/json; charset=utf-8", "stream-seq": "5"}
    assert requests[1].body == b'[{"a":1}]'
    assert requests[1].idempotent  # a sequence makes the server refuse a repetition
    assert (result.next_offset, known) == ("9", "application/json; charset=utf-8")


def test_a_success_without_offset_is_no_success() -> None:
    op = operations.append(URL, b"x", content_type="text/plain")
    with pytest.raises(StreamParseError, match="Stream-Next-Offset"):
        play(op, Response(204, {}))


def test_close_is_idempotent_only_without_data() -> None:
    [request], _ = play(operations.close_stream(URL), Response(204, {"stream-next-offset": "1"}))
    assert request.idempotent
    assert request.headers == {"stream-closed": "true"}
    op = operations.close_stream(URL, b"end", content_type="text/plain")
    [request], _ = play(op, Response(204, {"stream-next-offset": "1"}))
    assert not request.idempotent
    assert request.body == b"end"


def test_delete_after_a_lost_answer_takes_404_for_done() -> None:
    play(operations.delete(URL), Response(404, {}, after_doubt=True))
    with pytest.raises(StreamNotFoundError):
        play(operations.delete(URL), Response(404, {}))


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ({"b": 1, "a": [None, True]}, b'[{"b":1,"a":[null,true]}]'),
        ([1, 2], b"[[1,2]]"),
        ([], b"[[]]"),
        (None, b"[null]"),
        (2**70, b"[1180591620717411303424]"),
        ({"n": 2**64, "s": "é"}, '[{"n":18446744073709551616,"s":"é"}]'.encode()),
        ('{"message":"hello"}', b'[{"message":"hello"}]'),
        (b" [1, 2]\n", b"[[1, 2]]"),
        ("1e400", b"[1e400]"),
        ("12345678901234567890123", b"[12345678901234567890123]"),
        (Point(1), b'[{"x":1}]'),
        (
            {"a": "x\ud800"},
            rb'[{"a":"x\ud800"}]',
        ),  # as the standard library does: what a reader gives can be appended
    ],
)
def test_json_values_are_serialised_and_json_text_is_taken_as_it_is(value: object, encoded: bytes) -> None:
    assert operations.encode_payload(value, "application/json") == encoded


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("hello", ValueError),
        (b"\xff", ValueError),
        (b'"\xff"', ValueError),
        ("", ValueError),
        ("1 2", ValueError),
        ("[1,]", ValueError),
        ("NaN", ValueError),
        ("[" * 100_000, ValueError),
        (float("nan"), ValueError),
        ({"a": [1, float("inf")]}, ValueError),
        (object(), TypeError),
    ],
)
def test_json_that_is_none_is_refused(value: object, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        operations.encode_payload(value, "application/json")


def test_bytes_streams_take_bytes_and_text() -> None:
    def encode(data: object) -> bytes:
        return operations.encode_payload(data, "text/plain")

    assert [encode("é"), encode(b"x"), encode(bytearray(b"y")), encode(memoryview(b"z"))] == [
        b"\xc3\xa9",
        b"x",
        b"y",
        b"z",
    ]
    with pytest.raises(ValueError, match="at least one byte"):
        encode(b"")
    with pytest.raises(TypeError, match="application/json"):
        encode({"a": 1})


def test_decoding_keeps_big_integers_and_takes_numbers_beyond_a_double() -> None:
    assert operations.decode_json(b"[12345678901234567890123]") == [12345678901234567890123]
    assert operations.decode_json(b'[1e400,{"a":"\xc3\xa9"}]') == [float("inf"), {"a": "é"}]


@pytest.mark.parametrize("body", [b"[1", b'["\xff"]', b"", b"[1e400", b"[NaN,1e400]", b"[" * 100_000])
def test_malformed_json_names_the_safe_offset(body: bytes) -> None:
    with pytest.raises(StreamParseError) as caught:
        operations.decode_json(body, "42")
    assert caught.value.offset == "42"


def test_a_stream_that_was_there_is_not_called_new() -> None:
    for response, created in [
        (Response(201, {}), True),
        (Response(200, {}), False),
        (Response(200, {}, after_doubt=True), None),  # an attempt without an answer may have made it
    ]:
        _, result = play(operations.create(URL), response)
        assert result.created is created


def test_an_end_and_a_fork_without_a_place_in_a_batch_are_said_as_they_are() -> None:
    op = operations.create(URL, source=URL + "/b", fork_offset="7", expires_at="2030-01-01T00:00:00Z")
    [request], result = play(
        op, Response(201, {"stream-expires-at": "2030-01-01T00:00:00Z", "stream-ttl": "x"})
    )
    assert request.headers == {
        "stream-forked-from": "/v1/stream/a/b",
        "stream-fork-offset": "7",
        "stream-expires-at": "2030-01-01T00:00:00Z",
    }
    assert (result.expires_at, result.ttl_seconds) == ("2030-01-01T00:00:00Z", None)


@pytest.mark.parametrize(
    ("op", "status", "kind"),
    [
        (operations.create(URL), 409, StreamExistsError),
        (operations.head(URL), 404, StreamNotFoundError),
        (operations.append(URL, b"x", content_type="text/plain"), 413, DurableStreamError),
        (operations.close_stream(URL), 404, StreamNotFoundError),
        (operations.delete(URL), 404, StreamNotFoundError),
        (operations.delete(URL), 500, DurableStreamError),
    ],
)
def test_a_refusal_is_raised(op: Op[Any], status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        play(op, Response(status, {}))
    assert caught.value.status == status  # type: ignore[attr-defined]


def test_a_close_may_carry_data_under_a_sequence() -> None:
    op = operations.close_stream(URL, b"end", content_type="text/plain", seq="7")
    [request], result = play(op, Response(204, {"stream-next-offset": "9"}))
    assert (request.body, request.headers["stream-seq"], result.final_offset) == (b"end", "7", "9")


def test_a_delete_is_done_where_the_server_says_so() -> None:
    [request], result = play(operations.delete(URL), Response(202, {}))
    assert (request.method, result) == ("DELETE", None)


def test_an_offset_that_is_none_is_refused() -> None:
    with pytest.raises(StreamParseError, match="Stream-Next-Offset") as caught:
        play(
            operations.append(URL, b"x", content_type="text/plain"),
            Response(204, {"stream-next-offset": "now"}),
        )
    assert caught.value.code == "BAD_OFFSET"


def test_json_text_may_come_in_any_kind_of_bytes() -> None:
    for kind in (bytes, bytearray, memoryview, msgspec.Raw):
        assert operations.encode_json_message(kind(b' {"a":1}\n')) == b'{"a":1}'
    with pytest.raises(ValueError, match="no UTF-8 from character 2 on: write a lone surrogate as an escape"):
        operations.encode_json_message('["\ud800"]')
