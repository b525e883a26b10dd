"""The sync facade against servers and networks that misbehave."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from typing import Any

import pytest

from durable_streams import (
    DurableStream,
    DurableStreamError,
    FetchError,
    RetryPolicy,
    StreamNotFoundError,
    stream,
)
from durable_streams.protocol.sse import encode_control, encode_data

ScriptedServer = Any  # conftest.py has it

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
TAIL = {"stream_next_offset": "5", "stream_up_to_date": "true", "content_type": "text/plain"}


def test_a_body_cut_in_the_middle_is_read_again_and_delivered_once(scripted: ScriptedServer) -> None:
    """Pitfall 5."""
    scripted.replies = [
        scripted.send(scripted.response(200, b"he", length=5, **TAIL), close=True),
        scripted.send(scripted.response(200, b"hello", **TAIL)),
    ]
    reading = stream(scripted.root + "/s", live=False, retry=QUICK)
    assert list(reading) == [b"hello"]
    assert reading.offset == "5"


def test_a_chunked_body_cut_in_the_middle_is_read_again(scripted: ScriptedServer) -> None:
    head = b"HTTP/1.1 200 OK\r\nstream-next-offset: 5\r\nstream-up-to-date: true\r\ntransfer-encoding: chunked\r\n\r\n"
    scripted.replies = [
        scripted.send(head + b"2\r\nhe\r\n", close=True),
        scripted.send(head + b"2\r\nhe\r\n3\r\nl", close=True),
        scripted.send(head + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    ]
    assert list(stream(scripted.root + "/s", live=False, retry=QUICK)) == [b"hello"]


def test_an_event_stream_cut_in_the_middle_goes_on_from_its_last_control(scripted: ScriptedServer) -> None:
    """Pitfalls 3 to 5: reconnects, drops what was not committed, delivers nothing twice."""
    a, b = encode_data(b"a", text=True), encode_data(b"b", text=True)
    scripted.replies = [
        scripted.send(
            scripted.events(a + encode_control("1", cursor="9") + b + encode_control("2")[:20]), close=True
        ),
        scripted.send(scripted.events(b + encode_control("2", closed=True)), close=True),
    ]
    with stream(scripted.root + "/s?x=1&x=2", live="sse", retry=QUICK) as reading:
        assert list(reading) == [b"a", b"b"]
        assert reading.stream_closed
    assert [line.split(" ")[1] for line in scripted.requests] == [
        "/s?live=sse&offset=-1&x=1&x=2",
        "/s?cursor=9&live=sse&offset=1&x=1&x=2",
    ]


def test_a_silent_connection_is_given_up_and_read_again(scripted: ScriptedServer) -> None:
    """Pitfall 9: the watchdog counts bytes, and the read goes on elsewhere."""
    scripted.replies = [
        scripted.stall(),
        scripted.stall(scripted.response(200, b"he", length=5, **TAIL)),
        scripted.send(scripted.response(200, b"hello", **TAIL)),
    ]
    assert list(stream(scripted.root + "/s", live=False, retry=QUICK, timeout=0.2)) == [b"hello"]


def test_a_silent_event_stream_turns_to_long_polling(scripted: ScriptedServer) -> None:
    closed = {**TAIL, "stream_next_offset": "6", "stream_closed": "true"}
    scripted.replies = [
        scripted.send(scripted.response(200, b"hello", **TAIL)),
        scripted.stall(scripted.events(b"")),
        scripted.send(scripted.response(200, b"!", **closed)),
    ]
    assert list(stream(scripted.root + "/s", retry=QUICK, timeout=0.2)) == [b"hello", b"!"]
    assert "live=long-poll" in scripted.requests[2]


def test_a_timeout_of_a_request_says_that_it_may_have_been_executed(scripted: ScriptedServer) -> None:
    """Pitfall 19."""
    scripted.replies = [scripted.stall()]
    handle = DurableStream(scripted.root + "/s", content_type="text/plain", timeout=0.2, retry=QUICK)
    with pytest.raises(FetchError) as caught:
        handle.append(b"x")
    assert caught.value.code == "TIMEOUT"
    assert caught.value.may_have_been_sent
    assert caught.value.original is not None
    assert len(scripted.requests) == 1


def test_a_dropped_append_is_not_repeated(scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.reset]
    with pytest.raises(FetchError) as caught:
        DurableStream(scripted.root + "/s", content_type="text/plain", retry=QUICK).append(b"x")
    assert caught.value.may_have_been_sent
    assert len(scripted.requests) == 1


def test_idempotent_operations_are_repeated(scripted: ScriptedServer) -> None:
    scripted.replies = [
        scripted.reset,
        scripted.send(scripted.response(503)),
        scripted.send(scripted.response(429, retry_after="0")),
        scripted.send(scripted.response(204, stream_next_offset="7")),
    ]
    assert DurableStream(scripted.root + "/s", retry=QUICK).close_stream().final_offset == "7"
    assert len(scripted.requests) == 4


def test_a_delete_whose_answer_was_lost_is_done(scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.reset, scripted.send(scripted.response(404))]
    DurableStream(scripted.root + "/s", retry=QUICK).delete()


def test_redirects_are_not_followed(scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(307, location="http://elsewhere.invalid/"))]
    with pytest.raises(DurableStreamError) as caught:
        DurableStream(scripted.root + "/s").head()
    assert (caught.value.status, caught.value.code) == (307, "UNEXPECTED_STATUS")


@pytest.mark.parametrize(
    "wire",
    [
        b"\x00\x01garbage\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_http_is_an_error_of_ours(scripted: ScriptedServer, wire: bytes) -> None:
    """Pitfall 15."""
    scripted.replies = [scripted.send(wire, close=True)]
    with pytest.raises(DurableStreamError):
        DurableStream(
            scripted.root + "/s", retry=RetryPolicy(max_retries=0), content_type="text/plain"
        ).append(b"x")


def test_tls_with_a_server_that_speaks_none_is_an_error_of_ours(url: str) -> None:
    with pytest.raises(FetchError) as caught:
        DurableStream(url.replace("http:", "https:"), retry=RetryPolicy(max_retries=0)).head()
    assert caught.value.code in {"TLS", "NETWORK"}
    assert not caught.value.may_have_been_sent


def test_close_wakes_a_read_that_waits_for_the_answers_head(scripted: ScriptedServer) -> None:
    """Pitfall 10: a long-poll has no response to shut down yet."""
    scripted.replies = [scripted.send(scripted.response(200, b"hello", **TAIL)), scripted.stall()]
    reading = stream(scripted.root + "/s", live="long-poll")
    seen: list[bytes] = []
    thread = threading.Thread(target=lambda: seen.extend(reading))
    thread.start()
    assert scripted.arrived.acquire(timeout=10)
    assert scripted.arrived.acquire(timeout=10)
    reading.close()
    thread.join(10)
    assert not thread.is_alive()
    assert seen == [b"hello"]
    assert scripted.gone.acquire(timeout=10)


def test_close_wakes_a_pause(scripted: ScriptedServer) -> None:
    scripted.replies = [
        scripted.send(scripted.response(200, b"hello", **TAIL)),
        scripted.send(scripted.response(503, retry_after="3600")),
    ]
    reading = stream(scripted.root + "/s", live="long-poll")
    thread = threading.Thread(target=lambda: list(reading))
    thread.start()
    for _ in range(2):
        assert scripted.arrived.acquire(timeout=10)
    reading.close()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("leave", ["break", "error", "collected", "unused", "with"])
def test_no_way_out_leaves_a_connection_behind(scripted: ScriptedServer, leave: str) -> None:
    """Pitfall 10."""
    scripted.replies = [scripted.stall(scripted.events(encode_data(b"a", text=True) + encode_control("1")))]
    reading = stream(scripted.root + "/s", live="sse")
    if leave == "break":
        for _ in reading:
            break
    elif leave == "error":
        with contextlib.suppress(KeyError):
            for _ in reading:
                raise KeyError
    elif leave == "collected":
        pieces = iter(reading)
        next(pieces)
        del pieces
    elif leave == "with":
        with reading:
            pass
    del reading
    gc.collect()
    assert scripted.gone.acquire(timeout=10)


def test_ctrl_c_ends_a_blocked_read(scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.stall(scripted.events(encode_control("1", up_to_date=True)))]
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with stream(scripted.root + "/s", live="sse") as reading:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            list(reading)
    assert scripted.gone.acquire(timeout=10)


def test_on_error_may_mend_the_cause_and_go_on(scripted: ScriptedServer) -> None:
    scripted.replies = [
        scripted.send(scripted.response(401)),
        scripted.send(scripted.response(200, b"hello", **TAIL)),
        scripted.send(scripted.response(404)),
    ]
    seen: list[str] = []

    def on_error(error: DurableStreamError) -> dict[str, object] | None:
        seen.append(error.code)
        return {"headers": {"authorization": "Bearer new"}} if error.status == 401 else None

    reading = iter(stream(scripted.root + "/s", live="long-poll", retry=QUICK, on_error=on_error))
    assert next(reading) == b"hello"
    with pytest.raises(StreamNotFoundError):
        next(reading)
    assert seen == ["UNAUTHORIZED", "NOT_FOUND"]
    assert "authorization" not in scripted.requests[0]
    assert "authorization: Bearer new" in scripted.requests[1]


def test_on_error_mends_a_broken_event_without_passing_anything_on(scripted: ScriptedServer) -> None:
    broken = encode_data(b"a", text=True) + b"event: control\ndata: {\n\n" + encode_data(b"b", text=True)
    whole = encode_data(b"a", text=True) + encode_control("1", closed=True)
    scripted.replies = [
        scripted.send(scripted.events(broken), close=True),
        scripted.send(scripted.events(whole), close=True),
    ]
    reading = stream(scripted.root + "/s", live="sse", retry=QUICK, on_error=lambda _: {})
    assert list(reading) == [b"a"]
    assert reading.stream_closed


def test_close_releases_a_connection_that_nobody_reads(scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.stall(scripted.events(encode_control("1")))]
    reading = stream(scripted.root + "/s", live="sse")
    reading.close()
    assert scripted.gone.acquire(timeout=10)
    assert list(reading) == []


def test_credentials_are_fresh_for_every_attempt(scripted: ScriptedServer) -> None:
    scripted.replies = [
        scripted.send(scripted.response(503)),
        scripted.send(scripted.response(200, b"hello", **TAIL)),
    ]
    tokens = iter(["one", "two"])
    reading = stream(
        scripted.root + "/s", live=False, retry=QUICK, headers={"Authorization": lambda: next(tokens)}
    )
    assert list(reading) == [b"hello"]
    assert ["authorization: one" in r for r in scripted.requests] == [True, False]
    assert "authorization: two" in scripted.requests[1]


def test_a_refused_stream_gives_the_servers_sentence_and_headers(scripted: ScriptedServer) -> None:
    body = b'{"error":{"code":"FORBIDDEN","message":"this token may not read"}}'
    scripted.replies = [scripted.send(scripted.response(403, body, x_request_id="42"))]
    with pytest.raises(DurableStreamError, match="this token may not read") as caught:
        stream(scripted.root + "/s")
    assert caught.value.headers["x-request-id"] == "42"
    assert caught.value.details["error"]["code"] == "FORBIDDEN"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own_connections(scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(200, stream_next_offset="1"))]
    handle = DurableStream(scripted.root + "/s")
    handle.head()
    child = os.fork()
    if child == 0:
        try:
            handle.head()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    handle.head()
    assert len(scripted.requests) == 3
    assert len(scripted.connections) == 2
