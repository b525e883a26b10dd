"""What a worker gives up: how failures are counted, what a letter says, and that it is stored once."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest

from durable_streams.errors import DurableStreamError
from durable_streams.protocol.dead_letters import Failures, Letter, send
from durable_streams.protocol.request import Request, Response

URL = "http://server/v1/stream/dead"


def letter(items: tuple[bytes, ...] = (b"1e2", b'"a"'), data: bytes = b"", path: str = "o/1") -> Letter:
    return Letter.of(
        [msgspec.Raw(item) for item in items],
        data,
        error=KeyError("x"),
        failures=3,
        subscription="orders",
        path=path,
        since="-1",
        offset="9",
        worker="w",
    )


def sent(one: Letter, *statuses: int) -> list[Request]:
    """Send a letter to a server that answers so, and return the requests."""
    requests = []
    work = send(URL, one)
    try:
        request = next(work)
        for status in statuses:
            requests.append(request)
            request = work.send(Response(status, {}))
    except StopIteration:
        assert len(requests) == len(statuses)
        return requests
    raise AssertionError("it asks for more")


def test_the_last_failure_of_a_batch() -> None:
    failures = Failures(3)
    assert [failures.failed("a", "-1") for _ in range(4)] == [(1, False), (2, False), (3, True), (1, False)]
    failures.processed("a", "-1")
    failures.processed("a", "other")
    assert failures.failed("a", "-1") == (1, False)
    assert failures.failed("a", "5") == (1, False)
    assert Failures(1).failed("a", "-1") == (1, True)


def test_what_is_remembered_is_bounded() -> None:
    failures = Failures(2)
    for number in range(1001):
        assert failures.failed("a", str(number)) == (1, False)
    assert failures.failed("a", "1000") == (2, True)
    assert failures.failed("a", "0") == (1, False)


def test_pauses_double_up_to_a_minute() -> None:
    assert [Failures.pause(count) for count in (1, 2, 3, 7, 5000)] == [1, 2, 4, 60, 60]


def test_a_letter_of_json_has_the_messages_as_they_were() -> None:
    (request,) = sent(letter(), 200)
    assert request.url == URL
    assert request.body == (
        b'[{"subscription":"orders","path":"o/1","from":"-1","offset":"9","worker":"w","failures":3,'
        b'"error":"KeyError: \'x\'","items":[1e2,"a"]}]'
    )
    assert (request.headers["producer-epoch"], request.headers["producer-seq"]) == ("0", "0")
    assert request.headers["producer-id"] == letter().name


def test_a_letter_of_bytes() -> None:
    (request,) = sent(letter((), b"\xff"), 204)
    (said,) = json.loads(request.body or b"")
    assert base64.b64decode(said["data"]) == b"\xff"
    assert "items" not in said


def test_its_name_says_what_is_in_it() -> None:
    assert letter().name == letter().name
    others = [letter((b"1",)), letter((), b"1"), letter(path="o/2")]
    assert len({one.name for one in [letter(), *others]}) == 4


def test_the_stream_is_created_when_it_is_not_there() -> None:
    methods = [request.method for request in sent(letter(), 404, 201, 200)]
    assert methods == ["POST", "PUT", "POST"]
    assert len(sent(letter(), 404, 200, 200)) == 3
    with pytest.raises(DurableStreamError, match="409"):
        sent(letter(), 404, 409)
    with pytest.raises(DurableStreamError, match="403"):
        sent(letter(), 403)


def test_data_that_are_too_large_are_left_where_they_are() -> None:
    whole, without = sent(letter(), 413, 200)
    assert whole.headers == without.headers
    (said,) = json.loads(without.body or b"")
    assert said["is_too_large"] is True
    assert not {"items", "data"} & said.keys()
    assert (said["path"], said["from"], said["offset"]) == ("o/1", "-1", "9")
