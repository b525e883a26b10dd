"""Each fault, as the public client sees it."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import closing
from typing import Any

import pytest

from durable_streams import (
    DurableStream,
    DurableStreamError,
    FetchError,
    RetryPolicy,
    StreamNotFoundError,
    SyncIdempotentProducer,
    stream,
)
from durable_streams.testing import InMemoryStreamServer

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
NEVER = RetryPolicy(max_retries=0)


@pytest.fixture
def handle(server: InMemoryStreamServer) -> DurableStream:
    """Give the stream /test, which is empty."""
    return DurableStream.create(server.url("/test"), content_type="text/plain", retry=QUICK)


def content(server: InMemoryStreamServer, path: str = "/test") -> bytes:
    return stream(server.url(path), live=False, retry=QUICK).read_bytes()


def test_an_answer_in_the_servers_place_is_retried(
    server: InMemoryStreamServer, handle: DurableStream
) -> None:
    server.faults.respond(503, retry_after=0, times=2, path="/test")
    assert server.faults.pending == 2
    handle.append(b"x")
    assert server.faults.pending == 0
    assert content(server) == b"x"


def test_an_answer_in_the_servers_place_reaches_the_caller(server: InMemoryStreamServer) -> None:
    url = server.url("/test")
    server.faults.respond(429, retry_after=7, headers={"X-Request-Id": "42"})
    with pytest.raises(DurableStreamError) as caught:
        DurableStream(url, retry=NEVER).head()
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "RATE_LIMITED", 7.0)
    assert caught.value.headers["x-request-id"] == "42"
    server.faults.respond(404)
    with pytest.raises(StreamNotFoundError, match="a fault that a test asked for"):
        stream(url)


def test_an_answers_headers_are_those_of_the_server(server: InMemoryStreamServer) -> None:
    with closing(http.client.HTTPConnection(server.base_url.removeprefix("http://"))) as connection:

        def names() -> tuple[int, set[str]]:
            connection.request("GET", "/v1/stream/none?offset=-1")
            response = connection.getresponse()
            response.read()
            return response.status, {name.lower() for name, _ in response.getheaders()}

        real = names()
        server.faults.respond(404)
        assert (real[0], real[1] - {"server"}) == names()
        assert real == names()  # the same connection still


def test_an_answer_to_head_has_no_body(server: InMemoryStreamServer, handle: DurableStream) -> None:
    with closing(http.client.HTTPConnection(server.base_url.removeprefix("http://"))) as connection:
        for status in (503, 200):
            if status == 503:
                server.faults.respond(503)
            connection.request("HEAD", "/v1/stream/test")
            response = connection.getresponse()
            response.read()
            assert response.status == status


def test_faults_find_their_requests(server: InMemoryStreamServer, handle: DurableStream) -> None:
    other = DurableStream.create(server.url("/a%20b/c"), content_type="text/plain", retry=NEVER)
    server.faults.respond(500, path="a b/c", method="post")
    handle.append(b"x")
    other.head()
    assert server.faults.pending == 1
    with pytest.raises(DurableStreamError) as caught:
        other.append(b"x")
    assert caught.value.status == 500


def test_faults_come_in_the_order_they_were_armed(server: InMemoryStreamServer) -> None:
    for status in (500, 404, 503):
        server.faults.respond(status)
    seen = []
    for _ in range(3):
        with pytest.raises(DurableStreamError) as caught:
            DurableStream(server.url("/test"), retry=NEVER).head()
        seen.append(caught.value.status)
    assert seen == [500, 404, 503]


def test_a_fault_for_every_request_lasts_until_cleared(
    server: InMemoryStreamServer, handle: DurableStream
) -> None:
    server.faults.respond(503, times=None)
    for _ in range(3):
        with pytest.raises(DurableStreamError):
            DurableStream(server.url("/test"), retry=NEVER).head()
    assert server.faults.pending == 1
    server.faults.clear()
    assert server.faults.pending == 0
    handle.head()


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", [0, 1, 4, 999])
def test_a_read_survives_a_cut(
    server: InMemoryStreamServer, handle: DurableStream, after: int, reset: bool
) -> None:
    handle.append(b"hello")
    server.faults.cut(after, reset=reset, path="/test", method="GET")
    assert content(server) == b"hello"
    assert server.faults.pending == 0


@pytest.mark.parametrize("reset", [False, True])
def test_an_append_whose_answer_is_cut_off_was_executed(
    server: InMemoryStreamServer, handle: DurableStream, reset: bool
) -> None:
    server.faults.cut(reset=reset, method="POST")
    with pytest.raises(FetchError) as caught:
        handle.append(b"hello")
    assert caught.value.may_have_been_sent
    assert content(server) == b"hello"


def test_an_event_stream_survives_cuts(server: InMemoryStreamServer, handle: DurableStream) -> None:
    with SyncIdempotentProducer(server.url("/test"), "p", linger_ms=0, max_batch_bytes=1) as producer:
        for number in range(20):
            producer.append(f"{number} ")
        producer.flush()
        producer.close_stream()
    for after in (0, 10, 100, 300):
        server.faults.cut(after, reset=after > 50)
    expected = b"".join(b"%d " % number for number in range(20))
    assert b"".join(stream(server.url("/test"), live="sse", retry=QUICK)) == expected
    assert server.faults.pending == 0


def test_a_delayed_append_arrives_after_its_sender_gave_up(
    server: InMemoryStreamServer, handle: DurableStream
) -> None:
    server.faults.delay(0.3)
    with pytest.raises(FetchError) as caught:
        DurableStream(server.url("/test"), content_type="text/plain", timeout=0.05).append(b"late")
    assert (caught.value.code, caught.value.may_have_been_sent) == ("TIMEOUT", True)
    assert content(server) == b""
    assert next(iter(stream(server.url("/test"), live="long-poll", retry=QUICK))) == b"late"


@pytest.mark.parametrize("after", [None, 0, 2])
def test_a_stalled_read_is_given_up_and_read_again(
    server: InMemoryStreamServer, handle: DurableStream, after: int | None
) -> None:
    handle.append(b"hello")
    server.faults.stall(after)
    assert list(stream(server.url("/test"), live=False, timeout=0.1, retry=QUICK)) == [b"hello"]


@pytest.mark.parametrize("after", [None, 0, 2])
def test_a_stall_may_pass(server: InMemoryStreamServer, handle: DurableStream, after: int | None) -> None:
    handle.append(b"hello")
    server.faults.stall(after, seconds=0.1)
    assert list(stream(server.url("/test"), live=False, retry=NEVER)) == [b"hello"]


def test_a_reset_request_is_not_executed(server: InMemoryStreamServer, handle: DurableStream) -> None:
    server.faults.reset()
    with pytest.raises(FetchError) as caught:
        handle.append(b"x")
    assert caught.value.may_have_been_sent
    assert content(server) == b""


def test_a_plain_append_that_is_delivered_twice_is_there_twice(
    server: InMemoryStreamServer, handle: DurableStream
) -> None:
    server.faults.duplicate(method="POST")
    result = handle.append(b"x")
    assert content(server) == b"xx"
    assert stream(server.url("/test"), live=False, offset=result.next_offset).read_bytes() == b"x"


@pytest.mark.parametrize("answer", ["first", "second"])
def test_a_producers_append_that_is_delivered_twice_is_there_once(
    server: InMemoryStreamServer, handle: DurableStream, answer: Any
) -> None:
    with SyncIdempotentProducer(server.url("/test"), "p", retry=QUICK) as producer:
        producer.append(b"x")
        producer.flush()
        server.faults.duplicate(answer=answer, method="POST")
        result = producer.submit(b"y").result(10)
    assert result.duplicate is (answer == "second")
    assert content(server) == b"xy"


@pytest.mark.parametrize("kind", ["respond", "cut", "reset", "stall", "delay", "duplicate"])
def test_a_producer_survives_every_fault(
    server: InMemoryStreamServer, handle: DurableStream, kind: str
) -> None:
    with SyncIdempotentProducer(
        server.url("/test"), "p", linger_ms=0, max_batch_bytes=8, timeout=0.2, retry=QUICK
    ) as producer:
        producer.append(b"0 ")
        producer.flush()
        arm = getattr(server.faults, kind)
        arm(*{"respond": (503,), "delay": (0.3,)}.get(kind, ()), times=3, method="POST")
        for number in range(1, 50):
            producer.append(f"{number} ")
        producer.flush()
        assert server.faults.pending == 0
    assert content(server) == b"".join(b"%d " % number for number in range(50))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("respond", {"status": 99}),
        ("respond", {"status": 101}),
        ("respond", {"status": "503"}),
        ("respond", {"status": 503, "times": 0}),
        ("respond", {"status": 503, "headers": {"x": "a\r\nb: c"}}),
        ("cut", {"after": -1}),
        ("cut", {"times": True}),
        ("stall", {"after": 1.5}),
        ("stall", {"seconds": float("inf")}),
        ("delay", {"seconds": -1.0}),
        ("delay", {"seconds": float("nan")}),
        ("duplicate", {"answer": "third"}),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    server: InMemoryStreamServer, kind: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"must|contains"):
        getattr(server.faults, kind)(**arguments)
    assert server.faults.pending == 0


def test_faults_may_be_armed_from_any_thread(server: InMemoryStreamServer, handle: DurableStream) -> None:
    def arm() -> None:
        for _ in range(50):
            server.faults.respond(503, retry_after=0, method="HEAD")

    threads = [threading.Thread(target=arm) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.faults.pending == 400
    patient = DurableStream(server.url("/test"), retry=RetryPolicy(max_retries=400, initial_delay=0))
    patient.head()
    assert server.faults.pending == 0


def test_stopping_ends_what_is_stalled(handle: DurableStream, server: InMemoryStreamServer) -> None:
    server.faults.stall()
    failed: list[Exception] = []

    def read() -> None:
        try:
            stream(server.url("/test"), live=False, retry=NEVER)
        except FetchError as error:
            failed.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    while server.faults.pending:
        time.sleep(0.005)
    server.stop()
    reading.join(20)
    assert len(failed) == 1
