"""Reads from servers and over networks that misbehave: nothing lost, nothing twice, nothing endless."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import (
    DurableStreamError,
    FetchError,
    RetentionGoneError,
    RetryPolicy,
    SSENotSupportedError,
    StreamNotFoundError,
    StreamParseError,
)
from durable_streams.client.transports import limits
from durable_streams.protocol.sse import encode_control, encode_data

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
TAIL = {"stream_next_offset": "5", "stream_up_to_date": "true", "content_type": "text/plain"}
END = {**TAIL, "stream_next_offset": "6", "stream_closed": "true"}
JSON_TAIL = {**TAIL, "content_type": "application/json"}  # a type that live=True follows over SSE
A, B = encode_data(b"a", text=True), encode_data(b"b", text=True)


@pytest.mark.every_transport
def test_a_body_cut_in_the_middle_is_read_again_and_delivered_once(
    facade: Facade, scripted: ScriptedServer
) -> None:
    """Pitfall 5."""
    scripted.replies = [
        scripted.send(scripted.response(200, b"he", length=5, **TAIL), close=True),
        scripted.send(scripted.response(200, b"hello", **TAIL)),
    ]
    reading = facade.stream(scripted.root + "/s", live=False, retry=QUICK)
    assert list(reading) == [b"hello"]
    assert reading.offset == "5"


@pytest.mark.every_transport
def test_a_chunked_body_cut_in_the_middle_is_read_again(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 5."""
    head = b"HTTP/1.1 200 OK\r\nstream-next-offset: 5\r\nstream-up-to-date: true\r\ntransfer-encoding: chunked\r\n\r\n"
    scripted.replies = [
        scripted.send(head + b"2\r\nhe\r\n", close=True),
        scripted.send(head + b"2\r\nhe\r\n3\r\nl", close=True),
        scripted.send(head + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    ]
    assert list(facade.stream(scripted.root + "/s", live=False, retry=QUICK)) == [b"hello"]


@pytest.mark.every_transport
def test_an_event_stream_cut_in_the_middle_goes_on_from_its_last_control(
    facade: Facade, scripted: ScriptedServer
) -> None:
    """Pitfalls 3, 4, 5 and 13: reconnects, drops what was not committed, delivers nothing twice; keeps the query."""
    first = A + encode_control("1", cursor="9") + B + encode_control("2")[:20]
    scripted.replies = [
        scripted.send(scripted.events(first), close=True),
        scripted.send(scripted.events(B + encode_control("2", closed=True)), close=True),
    ]
    with facade.stream(scripted.root + "/s?x=1&x=2", live="sse", retry=QUICK) as reading:
        assert list(reading) == [b"a", b"b"]
        assert reading.stream_closed
    assert [request.target for request in scripted.requests] == [
        "/s?live=sse&offset=-1&x=1&x=2",
        "/s?cursor=9&live=sse&offset=1&x=1&x=2",
    ]


@pytest.mark.parametrize("live", [False, True, "long-poll", "sse"])
@pytest.mark.every_transport
def test_repeated_query_keys_are_kept(facade: Facade, scripted: ScriptedServer, live: Any) -> None:
    """Pitfall 13: in reads of every mode and in writes, the caller's parameters beside them."""
    closed = scripted.response(200, b"x", **END)
    events = scripted.events(encode_control("6", closed=True))
    scripted.replies = [scripted.send(events if live == "sse" else closed, close=True)]
    if live == "long-poll":  # its first answer is one of a catch-up
        first = scripted.response(200, b"w", stream_next_offset="5", stream_up_to_date="true")
        scripted.replies.insert(0, scripted.send(first))
    url = scripted.root + "/s?tag=b&tag=a%20c&offset=7"
    list(facade.stream(url, live=live, retry=QUICK, params={"z": "1"}))
    live_part = f"live={live}&" if isinstance(live, str) else ""
    offset = "5" if live == "long-poll" else "-1"
    assert scripted.requests[0].query["offset"] == "-1"
    assert scripted.requests[-1].target == f"/s?{live_part}offset={offset}&tag=b&tag=a%20c&z=1"
    scripted.replies = [scripted.send(scripted.response(204, **END), close=True)]
    facade.DurableStream(url, params={"z": "1"}).close_stream()
    assert scripted.requests[-1].target.replace("+", "%20").endswith("tag=b&tag=a%20c&z=1")


@pytest.mark.every_transport
def test_a_silent_connection_is_given_up_and_read_again(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 9: the watchdog counts bytes, and the read goes on elsewhere."""
    scripted.replies = [
        scripted.stall(),
        scripted.stall(scripted.response(200, b"he", length=5, **TAIL)),
        scripted.send(scripted.response(200, b"hello", **TAIL)),
    ]
    assert list(facade.stream(scripted.root + "/s", live=False, retry=QUICK, timeout=0.2)) == [b"hello"]


@pytest.mark.parametrize("live", [False, "long-poll", "sse"])
def test_silence_has_a_limit_by_default(
    facade: Facade, scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch, live: Any
) -> None:
    """Pitfall 8: no call waits forever because no timeout was given."""
    assert 0 < limits.READ_TIMEOUT < limits.LIVE_READ_TIMEOUT < float("inf")
    monkeypatch.setattr(limits, "READ_TIMEOUT" if live is False else "LIVE_READ_TIMEOUT", 0.2)
    scripted.replies = [scripted.stall()]
    with pytest.raises(FetchError) as caught:
        facade.stream(scripted.root + "/s", live=live, retry=RetryPolicy(max_retries=0))
    assert caught.value.code == "TIMEOUT"


@pytest.mark.every_transport
def test_heartbeats_count_as_life(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 9: a server that only sends comments is not stalled."""

    def beating(connection: Any) -> None:
        connection.sendall(scripted.events(A + encode_control("1")))
        for _ in range(8):
            time.sleep(0.1)
            connection.sendall(b": beat\n\n")
        connection.sendall(B + encode_control("2", closed=True))
        raise ConnectionAbortedError

    scripted.replies = [beating]
    assert list(facade.stream(scripted.root + "/s", live="sse", retry=QUICK, timeout=0.5)) == [b"a", b"b"]
    assert len(scripted.requests) == 1


@pytest.mark.every_transport
def test_a_silent_event_stream_turns_to_long_polling(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 9: a proxy that buffers shows as silence from the first byte on."""
    scripted.replies = [
        scripted.send(scripted.response(200, b"hello", **JSON_TAIL)),
        scripted.stall(scripted.events(b"")),
        scripted.send(scripted.response(200, b"!", **END)),
    ]
    assert list(facade.stream(scripted.root + "/s", retry=QUICK, timeout=0.2)) == [b"hello", b"!"]
    assert scripted.requests[2].query["live"] == "long-poll"


def test_event_streams_that_a_proxy_cuts_turn_to_long_polling(
    facade: Facade, scripted: ScriptedServer
) -> None:
    """Pitfall 3: closed by a proxy again and again before anything came."""
    cut = scripted.send(scripted.events(b""), close=True)
    scripted.replies = [
        scripted.send(scripted.response(200, b"hello", **JSON_TAIL)),
        *[cut] * 3,
        scripted.send(scripted.response(200, b"!", **END)),
    ]
    assert list(facade.stream(scripted.root + "/s", retry=QUICK)) == [b"hello", b"!"]
    assert [request.query.get("live") for request in scripted.requests] == [None, *["sse"] * 3, "long-poll"]


@pytest.mark.parametrize("status", [405, 406, 501])
def test_a_server_without_event_streams(facade: Facade, scripted: ScriptedServer, status: int) -> None:
    scripted.replies = [
        scripted.send(scripted.response(200, b"hello", **JSON_TAIL)),
        scripted.send(scripted.response(status)),
        scripted.send(scripted.response(200, b"!", **END)),
    ]
    assert list(facade.stream(scripted.root + "/s", retry=QUICK)) == [b"hello", b"!"]
    scripted.replies = [scripted.send(scripted.response(status))]
    with pytest.raises(SSENotSupportedError):
        facade.stream(scripted.root + "/s", live="sse", retry=QUICK)


@pytest.mark.every_transport
def test_a_reset_between_and_inside_answers(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 3: whatever breaks, the next request starts where the last certain data ended."""
    middle = {**TAIL, "stream_next_offset": "2"}
    del middle["stream_up_to_date"]
    scripted.replies = [
        scripted.reset,
        scripted.send(scripted.response(200, b"he", **middle), close=True),
        scripted.reset,
        scripted.send(scripted.response(503)),
        scripted.send(scripted.response(200, b"llo", **TAIL)),
        scripted.reset,
        scripted.send(scripted.response(204, **{**TAIL, "stream_cursor": "3"})),
        scripted.send(scripted.response(200, b"!", **END)),
    ]
    reading = facade.stream(scripted.root + "/s", live="long-poll", retry=QUICK)
    assert list(reading) == [b"he", b"llo", b"!"]
    offsets = [request.query["offset"] for request in scripted.requests]
    assert offsets == ["-1", "-1", "2", "2", "2", "5", "5", "5"]
    assert scripted.requests[-1].query["cursor"] == "3"


@pytest.mark.parametrize("live", [False, True, "long-poll", "sse"])
@pytest.mark.every_transport
def test_the_end_of_a_stream_ends_the_read_at_once(
    facade: Facade, scripted: ScriptedServer, live: Any
) -> None:
    """Pitfall 1: no request after the one that said that the stream is closed, however the read is made."""
    closed = scripted.response(200, b"x", **END)
    events = scripted.events(encode_data(b"x", text=True) + encode_control("6", closed=True))
    # The event stream stays open behind its last event: the read must not wait for its end.
    scripted.replies = [scripted.stall(events) if live == "sse" else scripted.send(closed)]
    reads = (
        list,
        lambda response: response.read_bytes(),
        lambda response: list(response.iter_events(mode="text")),
    )
    for read in reads:
        before = len(scripted.requests)
        with facade.stream(scripted.root + "/s", live=live, retry=QUICK) as response:
            read(response)
            assert response.stream_closed
            assert response.closed
        assert len(scripted.requests) == before + 1
    scripted.replies = [scripted.send(scripted.response(204, **END))]
    before = len(scripted.requests)
    if live != "sse":
        assert list(facade.stream(scripted.root + "/s", live=live, offset="6")) == []
        assert len(scripted.requests) == before + 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.every_transport
def test_what_may_succeed_later_is_asked_again(facade: Facade, scripted: ScriptedServer, status: int) -> None:
    """Pitfall 12."""
    scripted.replies = [
        scripted.send(scripted.response(status, b"not now", retry_after="0")),
        scripted.send(scripted.response(200, b"hello", **TAIL)),
    ]
    assert facade.stream(scripted.root + "/s", live=False, retry=QUICK).read_bytes() == b"hello"
    assert len(scripted.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 418, 501])
def test_what_will_not_succeed_is_reported_at_once(
    facade: Facade, scripted: ScriptedServer, status: int
) -> None:
    """Pitfall 12."""
    scripted.replies = [scripted.send(scripted.response(status))]
    with pytest.raises(DurableStreamError) as caught:
        facade.stream(scripted.root + "/s", live=False, retry=QUICK)
    assert caught.value.status == status
    assert len(scripted.requests) == 1
    assert isinstance(caught.value, StreamNotFoundError) == (status == 404)
    assert isinstance(caught.value, RetentionGoneError) == (status == 410)


def test_retry_after_is_waited_for_and_reported(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 12."""
    scripted.replies = [
        scripted.send(scripted.response(429, retry_after="1")),
        scripted.send(scripted.response(200, b"hello", **TAIL)),
    ]
    before = time.monotonic()
    assert facade.stream(scripted.root + "/s", live=False, retry=QUICK).read_bytes() == b"hello"
    assert time.monotonic() - before >= 1.0
    scripted.replies = [scripted.send(scripted.response(429, retry_after="7", x_limit="3"))]
    with pytest.raises(DurableStreamError) as caught:
        facade.stream(scripted.root + "/s", live=False, retry=RetryPolicy(max_retries=0))
    assert (caught.value.code, caught.value.retry_after) == ("RATE_LIMITED", 7.0)
    assert caught.value.headers["x-limit"] == "3"


def test_retries_end(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 11: the last error is raised, with its cause."""
    scripted.replies = [scripted.reset]
    with pytest.raises(FetchError) as caught:
        facade.stream(scripted.root + "/s", live=False, retry=QUICK)
    assert caught.value.original is not None
    assert len(scripted.requests) == 6


def test_only_progress_resets_the_back_off(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 11: a server that accepts, answers 200 and drops is not hammered; one that gives data is forgiven."""
    accepts = scripted.send(scripted.events(b": hello\n\n"), close=True)
    scripted.replies = [accepts]
    with pytest.raises(FetchError):
        list(facade.stream(scripted.root + "/s", live="sse", retry=QUICK))
    assert len(scripted.requests) == 6
    scripted.requests.clear()
    progress = [
        scripted.send(scripted.events(A + encode_control(str(number))), close=True) for number in range(1, 4)
    ]
    last = scripted.send(scripted.events(encode_control("9", closed=True)), close=True)
    scripted.replies = [step for one in progress for step in (*[accepts] * 4, one)] + [*[accepts] * 4, last]
    assert list(facade.stream(scripted.root + "/s", live="sse", retry=QUICK)) == [b"a"] * 3


def test_empty_answers_keep_a_distance(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 11: a long-poll that ends at once with nothing is no reason for a hot loop."""
    scripted.replies = [scripted.send(scripted.response(204, **TAIL))]
    reading = facade.stream(scripted.root + "/s", live="long-poll", offset="5")
    threading.Timer(0.7, reading.close).start()
    assert list(reading) == []
    assert len(scripted.requests) < 20


@pytest.mark.every_transport
def test_a_server_that_gives_no_position_or_broken_control_data(
    facade: Facade, scripted: ScriptedServer
) -> None:
    scripted.replies = [scripted.send(scripted.response(200, b"hello"))]
    with pytest.raises(StreamParseError, match="Stream-Next-Offset"):
        facade.stream(scripted.root + "/s", live=False).read_bytes()
    wire = A + encode_control("1") + b"event: control\ndata: {\n\n"
    scripted.replies = [scripted.send(scripted.events(wire), close=True)]
    with facade.stream(scripted.root + "/s", live="sse", retry=QUICK) as reading:
        pieces = iter(reading)
        assert next(pieces) == b"a"
        with pytest.raises(StreamParseError) as caught:
            next(pieces)
    assert caught.value.offset == reading.offset == "1"


def test_malformed_json_names_the_last_safe_position(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 4: what came before it is handed over, and the position is right behind that."""
    first = encode_data(b"[1,2]", text=True) + encode_control("2")
    broken = encode_data(b"[3,", text=True) + encode_control("3")
    scripted.replies = [scripted.send(scripted.events(first + broken), close=True)]
    seen: list[Any] = []
    reading = facade.stream(scripted.root + "/s", live="sse", retry=QUICK)
    with pytest.raises(StreamParseError) as caught:
        seen.extend(reading.iter_json())
    assert seen == [1, 2]
    assert caught.value.offset == reading.offset == "2"
