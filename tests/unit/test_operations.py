from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from durable_streams.errors import (
    DurableStreamError,
    RetentionGoneError,
    StreamExistsError,
    StreamNotFoundError,
    StreamParseError,
)
from durable_streams.protocol import operations
from durable_streams.protocol.request import Op, Request, Response
from durable_streams.types import RetentionResult

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


# -- what a stream keeps


def test_create_may_say_how_much_is_kept() -> None:
    op = operations.create(URL, retention_max_age=60, retention_max_bytes=1000)
    [request], result = play(
        op, Response(201, {"stream-retention-max-age": "60", "stream-earliest-offset": "3"})
    )
    assert request.headers == {"stream-retention-max-age": "60", "stream-retention-max-bytes": "1000"}
    assert (result.retention_max_age, result.retention_max_bytes, result.earliest_offset) == (60, None, "3")
    [request], _ = play(operations.create(URL, retention_max_bytes=1), Response(201, {}))
    assert request.headers == {"stream-retention-max-bytes": "1"}


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "60"])
@pytest.mark.parametrize("name", ["retention_max_age", "retention_max_bytes"])
def test_a_limit_of_what_is_kept_is_a_whole_number_of_something(name: str, limit: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number from 1, not {limit!r}\.$"):
        next(operations.create(URL, **{name: limit}))


KEPT = b'{"earliest_offset":"3","next_offset":"9","max_age":60}'
BESIDE = "http://host/v1/stream/__ds/streams/a"


@pytest.mark.parametrize(
    ("asked", "body"),
    [
        ({"before": "3"}, b'{"before":"3"}'),
        ({"max_bytes": 0}, b'{"max_bytes":0}'),
        ({"max_age": 1}, b'{"max_age":1}'),
    ],
)
def test_a_trim_is_asked_for_beside_the_stream(asked: dict[str, Any], body: bytes) -> None:
    [request], result = play(operations.trim(URL, **asked), Response(200, {}, KEPT))
    assert (request.method, request.url, request.body) == ("POST", f"{BESIDE}/trim", body)
    assert request.headers == {"content-type": "application/json"}
    assert request.idempotent
    assert result == RetentionResult("3", "9", max_age=60)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "takes one of before, max_bytes and max_age"),
        ({"before": "3", "max_bytes": 5}, "takes one of before, max_bytes and max_age"),
        ({"max_bytes": -1}, "max_bytes must be a whole number from 0, not -1"),
        ({"max_age": 0}, "max_age must be a whole number from 1, not 0"),
    ],
)
def test_a_trim_that_makes_no_sense_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(operations.trim(URL, **asked))


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        ({}, b"{}"),
        ({"max_age": 60}, b'{"max_age":60}'),
        ({"max_age": 60, "max_bytes": 1}, b'{"max_age":60,"max_bytes":1}'),
    ],
)
def test_another_retention_is_asked_for_beside_the_stream(limits: dict[str, Any], body: bytes) -> None:
    op = operations.set_retention("https://host:8/root/v1/stream/a/b%20c?key=1", **limits)
    [request], result = play(op, Response(200, {}, KEPT))
    # What the caller put into the URL's query, a token perhaps, goes along.
    assert request.url == "https://host:8/root/v1/stream/__ds/streams/a/b%20c/retention?key=1"
    assert (request.method, request.body) == ("POST", body)
    assert (result.earliest_offset, result.max_bytes) == ("3", None)


def test_a_retention_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes must be a whole number from 1, not 0"):
        next(operations.set_retention(URL, max_bytes=0))


@pytest.mark.parametrize("op", [operations.trim, operations.set_retention])
def test_only_what_is_below_the_root_of_streams_can_be_trimmed(op: Callable[..., Op[Any]]) -> None:
    with pytest.raises(ValueError, match=r"http://host/s is not below /v1/stream/, where") as caught:
        next(op("http://user:secret@host/s?token=secret", max_age=5))
    assert "secret" not in str(caught.value)


def test_a_refused_trim_is_raised() -> None:
    answer = Response(409, {}, b'{"error":{"code":"CONFLICT","message":"it does not know how old"}}')
    with pytest.raises(
        DurableStreamError, match=f"POST {BESIDE}/trim answered 409: it does not know"
    ) as caught:
        play(operations.trim(URL, max_age=5), answer)
    assert caught.value.code == "CONFLICT"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"earliest_offset":"3"}', b'{"earliest_offset":3}']
)
def test_an_answer_that_does_not_say_what_is_kept_is_no_success(body: bytes) -> None:
    with pytest.raises(StreamParseError, match="succeeded without saying what the stream keeps") as caught:
        play(operations.set_retention(URL, max_age=5), Response(200, {}, body))
    assert (caught.value.status, caught.value.url) == (200, f"{BESIDE}/retention")


# -- where an append has to begin


def test_an_append_that_expects_the_tail_cannot_be_stored_twice() -> None:
    op = operations.append(URL, b"x", content_type="text/plain", expected_offset="7")
    [request], _ = play(op, Response(204, {"stream-next-offset": "8"}))
    assert request.headers == {"content-type": "text/plain", "if-match": '"7"'}
    assert request.idempotent
    op = operations.close_stream(URL, seq="2", expected_offset="8")
    [request], result = play(op, Response(204, {"stream-next-offset": "8"}))
    assert request.headers == {"stream-closed": "true", "stream-seq": "2", "if-match": '"8"'}
    assert result.final_offset == "8"


@pytest.mark.parametrize(
    ("expected", "kind", "message"),
    [
        ("now", ValueError, "must be an offset from an answer, not 'now'"),
        ("-1", ValueError, "must be an offset from an answer, not '-1'"),
        ("", ValueError, "must be an offset from an answer, not ''"),
        ('7"', ValueError, "must be an offset from an answer"),
        ("7\r\nx: y", ValueError, "'if-match' contains a character that headers cannot carry"),
        (7, TypeError, "expected_offset must be text, not int"),
    ],
)
def test_what_cannot_be_the_tail_is_not_sent(expected: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        next(operations.append(URL, b"x", content_type="text/plain", expected_offset=expected))


def test_a_delete_that_finds_what_its_lost_attempt_left_for_forks_is_done() -> None:
    play(operations.delete(URL), Response(410, {}, after_doubt=True))
    with pytest.raises(RetentionGoneError):
        play(operations.delete(URL), Response(410, {}))
    with pytest.raises(DurableStreamError, match="answered 500"):
        play(operations.delete(URL), Response(500, {}, after_doubt=True))
