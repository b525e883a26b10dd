"""Servers that misbehave meet a bound: of memory, of time, of requests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests
import urllib3
from facade import Facade
from scripted import Received, ScriptedServer

from durable_streams import (
    DurableStreamError,
    FetchError,
    RetryPolicy,
    StreamNotFoundError,
    StreamParseError,
    stream,
)
from durable_streams.protocol.lines import DEFAULT_LIMIT
from durable_streams.protocol.sse import encode_control, encode_data

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
MIB = 1 << 20
FLOODS = {
    "data without a control event": encode_data(b"x" * MIB, text=True),
    "small events": encode_data(b"x" * 1000, text=True) * 1000,
    "lines of one event": (b"data:" + b"x" * 1000 + b"\n") * 1000,
    "a line without an end": b"x" * MIB,
    "base64 without a control event": encode_data(b"x" * MIB, text=False),
}


class Flood:
    """Sends an event stream without an end, and counts its bytes until the client leaves."""

    def __init__(self, start: bytes, again: bytes) -> None:
        self.start, self.again, self.sent = start, again, 0

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(self.start)
        while True:
            connection.sendall(self.again)
            self.sent += len(self.again)


@pytest.mark.parametrize("kind", list(FLOODS))
def test_g2_what_waits_for_a_control_event_is_bounded(
    facade: Facade, scripted: ScriptedServer, kind: str
) -> None:
    binary = {"stream_sse_data_encoding": "base64"} if "base64" in kind else {}
    first = encode_data(b"first", text=not binary) + encode_control("5")
    flood = Flood(scripted.events(first, **binary), FLOODS[kind])
    scripted.replies = [flood]
    seen = []
    with facade.stream(scripted.root + "/s", live="sse", retry=QUICK) as response:
        with pytest.raises(StreamParseError, match="limit") as caught:
            seen += list(response)
        assert (caught.value.code, caught.value.offset, response.offset) == ("TOO_LARGE", "5", "5")
    assert flood.sent < 4 * DEFAULT_LIMIT
    assert len(scripted.requests) == 1


def test_g2_comments_and_unknown_events_are_not_kept(facade: Facade, scripted: ScriptedServer) -> None:
    chatter = (b": " + b"x" * 1000 + b"\n") * 1000 + (b"event: other\ndata: " + b"y" * 1000 + b"\n\n") * 1000
    wire = chatter * 40 + encode_data(b"a", text=True) + encode_control("5", closed=True)
    scripted.replies = [scripted.send(scripted.events(wire))]
    assert list(facade.stream(scripted.root + "/s", live="sse", retry=QUICK)) == [b"a"]


def at(offset: str, *, tail: bool = True, body: bytes = b"") -> bytes:
    """An answer without data, or with some, that ends at an offset."""
    headers = {"stream_next_offset": offset, "content_type": "application/octet-stream"}
    if tail:
        headers["stream_up_to_date"] = "true"
    return ScriptedServer.response(200, body, **headers)


@pytest.mark.parametrize("live", [False, True, "long-poll", "sse"])
@pytest.mark.every_transport
def test_g8_offsets_that_go_back_are_an_error(facade: Facade, scripted: ScriptedServer, live: Any) -> None:
    """Ping-pong between two offsets ends at the first way back, with or without data."""

    def answer(request: Received) -> bytes:
        back = request.query["offset"] == "2"
        if live == "sse":
            return scripted.events(encode_control("1" if back else "2", up_to_date=True))
        return at("1" if back else "2", tail=False, body=b"x")

    scripted.replies = [lambda connection: _answer_and_close(connection, scripted, answer)]
    with (
        pytest.raises(StreamParseError, match="went back to 1") as caught,
        facade.stream(scripted.root + "/s", offset="0", live=live, retry=QUICK) as response,
    ):
        for _ in response:
            pass
    assert (caught.value.code, caught.value.offset) == ("BAD_OFFSET", "2")
    assert len(scripted.requests) == 2


def _answer_and_close(
    connection: socket.socket, scripted: ScriptedServer, answer: Callable[[Received], bytes]
) -> None:
    connection.sendall(answer(scripted.requests[-1]))
    raise ConnectionAbortedError


@pytest.mark.parametrize("live", [False, "long-poll", "sse"])
def test_g8_a_position_that_moves_without_data_is_no_progress(
    facade: Facade, scripted: ScriptedServer, live: Any
) -> None:
    """Offsets that only ever grow, and never data: the pauses grow as in any empty round."""
    numbers = iter(range(10, 10**6))

    def answer(_: Received) -> bytes:
        offset = f"{next(numbers):07}"
        return (
            scripted.events(encode_control(offset, up_to_date=True))
            if live == "sse"
            else at(offset, tail=live is not False, body=b"")
        )

    scripted.replies = [lambda connection: _answer_and_close(connection, scripted, answer)]
    slow = RetryPolicy(max_retries=5, initial_delay=0.01, max_delay=60, multiplier=2, jitter=0)
    response = facade.stream(scripted.root + "/s", live=live, retry=slow)
    closing = threading.Timer(2.0, response.close)
    closing.start()
    assert list(response) == []
    closing.join()
    # 0.01 + 0.02 + ... + 0.64 are 1.3 seconds; at full speed there would be thousands.
    assert len(scripted.requests) < 20


@pytest.mark.parametrize("given", ["", " ", "now"])
@pytest.mark.parametrize("live", [False, "long-poll"])
def test_g8_an_offset_that_is_no_position_is_an_error(
    facade: Facade, scripted: ScriptedServer, live: Any, given: str
) -> None:
    scripted.replies = [scripted.send(at("7", tail=False, body=b"a")), scripted.send(at(given))]
    seen = []
    with facade.stream(scripted.root + "/s", live=live, retry=QUICK) as response:
        with pytest.raises(StreamParseError, match="not an offset") as caught:
            seen += list(response)
        assert response.offset == "7"
    assert (caught.value.code, caught.value.offset) == ("BAD_OFFSET", "7")


def test_g8_an_empty_offset_is_an_error_of_every_operation(facade: Facade, scripted: ScriptedServer) -> None:
    empty = {"stream_next_offset": "", "content_type": "text/plain"}
    scripted.replies = [scripted.send(scripted.response(200, **empty))]
    url = scripted.root + "/s"
    handle = facade.DurableStream(url, content_type="text/plain", retry=QUICK)
    for operation in (handle.head, handle.close_stream, lambda: handle.append(b"x"), handle.create_stream):
        with pytest.raises(StreamParseError, match="Stream-Next-Offset ''") as caught:
            operation()
        assert caught.value.code == "BAD_OFFSET"
    producer = facade.Producer(url, "p", content_type="text/plain", retry=QUICK)
    producer.append(b"x")
    with pytest.raises(StreamParseError, match="Stream-Next-Offset ''"):
        producer.flush()
    with pytest.raises(StreamParseError):
        producer.close()


def later(seconds: int) -> bytes:
    return ScriptedServer.response(429, retry_after=str(seconds))


@pytest.mark.parametrize("live", [False, "long-poll", "sse"])
def test_g8_a_very_long_retry_after_is_reported_and_may_be_cut_short(
    facade: Facade, scripted: ScriptedServer, live: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """`on_error` is called with the refusal; what it returns goes on at once, with fresh headers."""
    end = {"stream_next_offset": "5", "stream_closed": "true"}
    data = scripted.response(200, b"a", **end)
    if live == "sse":
        data = scripted.events(encode_data(b"a", text=True) + encode_control("5", closed=True))
    scripted.replies = [scripted.send(later(3000)), scripted.send(data)]
    told = []

    def on_error(error: DurableStreamError) -> dict[str, Any]:
        told.append((error.code, error.retry_after))
        return {"headers": {"x-token": "fresh"}}

    response = facade.stream(scripted.root + "/s", live=live, retry=QUICK, on_error=on_error)
    assert list(response) == [b"a"]
    assert told == [("RATE_LIMITED", 3000.0)]
    assert [request.headers.get("x-token") for request in scripted.requests] == [None, "fresh"]
    assert "3000 seconds" in caplog.text


def test_g8_a_very_long_retry_after_is_waited_for_where_nobody_objects(
    facade: Facade, scripted: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    end = {"stream_next_offset": "5", "stream_up_to_date": "true"}
    scripted.replies = [scripted.send(scripted.response(200, b"a", **end)), scripted.send(later(3000))]
    told = threading.Event()

    def on_error(_: DurableStreamError) -> None:
        told.set()

    response = facade.stream(scripted.root + "/s", live="long-poll", retry=QUICK, on_error=on_error)
    pieces = iter(response)
    assert next(pieces) == b"a"
    closing = threading.Thread(target=lambda: told.wait(30) and response.close())
    closing.start()
    assert list(pieces) == []
    closing.join()
    assert told.is_set()
    assert len(scripted.requests) == 2
    assert "3000 seconds" in caplog.text


def test_g8_an_on_error_that_raises_ends_the_wait(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(later(3000))]

    def on_error(error: DurableStreamError) -> None:
        raise error

    with pytest.raises(DurableStreamError) as caught:
        facade.stream(scripted.root + "/s", live=False, retry=QUICK, on_error=on_error)
    assert (caught.value.code, caught.value.retry_after) == ("RATE_LIMITED", 3000.0)


def test_g8_operations_and_producers_log_a_very_long_retry_after(
    facade: Facade, scripted: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.replies = [scripted.send(later(3000))]
    once = RetryPolicy(max_retries=0)
    url = scripted.root + "/s?token=secret"
    with pytest.raises(DurableStreamError):
        facade.DurableStream(url, retry=once).head()
    assert "HEAD" in caplog.text
    producer = facade.Producer(url, "p", content_type="text/plain", retry=once)
    producer.append(b"x")
    with pytest.raises(DurableStreamError):
        producer.close()
    assert "POST" in caplog.text
    assert caplog.text.count("3000 seconds") == 2
    assert "secret" not in caplog.text


class Trickle:
    """Sends a beginning, then one byte after the other, forever: never silent, never done."""

    def __init__(self, start: bytes, byte: bytes = b"x", pause: float = 0.05) -> None:
        self.start, self.byte, self.pause = start, byte, pause

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(self.start)
        while True:
            time.sleep(self.pause)
            connection.sendall(self.byte)


IMPATIENT: dict[str, Any] = {"timeout": 1.0, "trickle_timeout": 0.5, "retry": RetryPolicy(max_retries=0)}
BEGINNINGS = [
    b"HTTP/1.1 200 O",
    b"HTTP/1.1 200 OK\r\nstream-next-offset: 1",
    b"HTTP/1.1 200 OK\r\nx: y\r\nz: ",
]


@pytest.mark.parametrize("live", [False, "long-poll", "sse"])
@pytest.mark.every_transport
def test_g8_a_head_that_trickles_is_given_up(facade: Facade, scripted: ScriptedServer, live: Any) -> None:
    for start in BEGINNINGS:
        scripted.replies = [Trickle(start)]
        with pytest.raises(FetchError, match="too slowly") as caught:
            facade.stream(scripted.root + "/s", live=live, **IMPATIENT)
        assert (caught.value.code, caught.value.may_have_been_sent) == ("TOO_SLOW", True)


@pytest.mark.every_transport
def test_g8_a_head_that_trickles_ends_operations_and_producers(
    facade: Facade, scripted: ScriptedServer
) -> None:
    scripted.replies = [Trickle(b"HTTP/1.1 200 OK\r\nx-y: ")]
    handle = facade.DurableStream(scripted.root + "/s", content_type="text/plain", **IMPATIENT)
    for operation in (handle.head, handle.delete, lambda: handle.append(b"x")):
        with pytest.raises(FetchError) as caught:
            operation()
        assert (caught.value.code, caught.value.may_have_been_sent) == ("TOO_SLOW", True)
    producer = facade.Producer(scripted.root + "/s", "p", content_type="text/plain", **IMPATIENT)
    producer.append(b"x")
    with pytest.raises(FetchError) as caught:
        producer.close()
    assert caught.value.code == "TOO_SLOW"


@pytest.mark.parametrize("kind", ["PoolManager", "Session"])
def test_g8_a_head_that_trickles_is_given_up_over_clients_of_the_caller(
    scripted: ScriptedServer, kind: str
) -> None:
    scripted.replies = [Trickle(BEGINNINGS[1])]
    client = urllib3.PoolManager(timeout=1.0) if kind == "PoolManager" else requests.Session()
    own = {name: value for name, value in IMPATIENT.items() if kind == "Session" or name != "timeout"}
    with pytest.raises(FetchError) as caught:
        stream(scripted.root + "/s", live=False, client=client, **own)
    assert caught.value.code == "TOO_SLOW"


@pytest.mark.parametrize("live", [False, "long-poll"])
@pytest.mark.every_transport
def test_g8_a_body_that_trickles_is_given_up(facade: Facade, scripted: ScriptedServer, live: Any) -> None:
    """What came of it is not handed over as if it were whole; the next attempt may be quicker."""
    headers = {"stream_next_offset": "5", "stream_closed": "true"}
    slow = scripted.response(200, b"abc", length=1000, **headers)
    scripted.replies = [Trickle(slow), scripted.send(scripted.response(200, b"whole", **headers))]
    patient = {**IMPATIENT, "retry": QUICK}
    assert list(facade.stream(scripted.root + "/s", live=live, **patient)) == [b"whole"]
    scripted.replies = [Trickle(slow)]
    response = facade.stream(scripted.root + "/s", live=live, **IMPATIENT)
    with pytest.raises(FetchError, match="trickles") as caught:
        list(response)
    assert caught.value.code == "TOO_SLOW"


@pytest.mark.every_transport
def test_g8_the_body_of_an_error_that_trickles_hides_no_error(
    facade: Facade, scripted: ScriptedServer
) -> None:
    scripted.replies = [Trickle(scripted.response(404, b"no", length=60_000))]
    handle = facade.DurableStream(scripted.root + "/s", content_type="text/plain", **IMPATIENT)
    for operation in (
        lambda: facade.stream(scripted.root + "/s", live=False, **IMPATIENT),
        lambda: facade.stream(scripted.root + "/s", live="sse", **IMPATIENT),
        lambda: handle.append(b"x"),
    ):
        with pytest.raises(StreamNotFoundError):
            operation()


@pytest.mark.every_transport
def test_g8_an_event_stream_may_trickle(facade: Facade, scripted: ScriptedServer) -> None:
    def beating(connection: socket.socket) -> None:
        connection.sendall(scripted.events(b""))
        for byte in b": beat\n" * 5 + encode_data(b"a", text=True) + encode_control("1", closed=True):
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    scripted.replies = [beating]
    assert list(facade.stream(scripted.root + "/s", live="sse", **IMPATIENT)) == [b"a"]


def test_g8_a_consumer_that_takes_its_time_is_no_trickle(facade: Facade, scripted: ScriptedServer) -> None:
    """Only the time that is spent waiting for the server counts."""
    messages = b"[" + b",".join(b'{"n":%d,"t":"%s"}' % (n, b"x" * 1000) for n in range(4000)) + b"]"
    headers = {"stream_next_offset": "5", "stream_closed": "true", "content_type": "application/json"}
    scripted.replies = [scripted.send(scripted.response(200, messages, **headers))]
    count = 0
    for item in facade.stream(scripted.root + "/s", live=False, **IMPATIENT).iter_json():
        if item["n"] in {0, 3000}:
            time.sleep(1)
        count += 1
    assert (count, len(scripted.requests)) == (4000, 1)


@pytest.mark.parametrize("trickle", [0, -1, float("nan")])
def test_g8_a_trickle_timeout_that_makes_no_sense(facade: Facade, trickle: float) -> None:
    with pytest.raises(ValueError, match="trickle_timeout"):
        facade.DurableStream("http://host/s", trickle_timeout=trickle)
