"""Permanent failures, and how they are reported: the server's own words, one tree of errors, a remedy."""

from __future__ import annotations

import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import (
    DurableStreamError,
    FetchError,
    RetryPolicy,
    StreamNotFoundError,
)
from durable_streams.protocol.sse import encode_control, encode_data

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
TAIL = {"stream_next_offset": "5", "stream_up_to_date": "true", "content_type": "text/plain"}
END = {**TAIL, "stream_next_offset": "6", "stream_closed": "true"}
A, B = encode_data(b"a", text=True), encode_data(b"b", text=True)


def test_on_error_may_fix_the_cause_and_go_on(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [
        scripted.send(scripted.response(401)),
        scripted.send(scripted.response(200, b"hello", **TAIL)),
        scripted.send(scripted.response(404)),
    ]
    seen: list[str] = []

    def on_error(error: DurableStreamError) -> dict[str, object] | None:
        seen.append(error.code)
        return {"headers": {"authorization": "Bearer new"}} if error.status == 401 else None

    reading = iter(facade.stream(scripted.root + "/s", live="long-poll", retry=QUICK, on_error=on_error))
    assert next(reading) == b"hello"
    with pytest.raises(StreamNotFoundError):
        next(reading)
    assert seen == ["UNAUTHORIZED", "NOT_FOUND"]
    assert "authorization" not in scripted.requests[0].headers
    assert scripted.requests[1].headers["authorization"] == "Bearer new"


def test_on_error_fixes_a_broken_event_without_passing_anything_on(
    facade: Facade, scripted: ScriptedServer
) -> None:
    broken = A + b"event: control\ndata: {\n\n" + B
    whole = A + encode_control("1", closed=True)
    scripted.replies = [
        scripted.send(scripted.events(broken), close=True),
        scripted.send(scripted.events(whole), close=True),
    ]
    reading = facade.stream(scripted.root + "/s", live="sse", retry=QUICK, on_error=lambda _: {})
    assert list(reading) == [b"a"]
    assert reading.stream_closed


@pytest.mark.every_transport
def test_credentials_are_fresh_for_every_attempt(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [
        scripted.send(scripted.response(503)),
        scripted.send(scripted.response(200, b"hello", **TAIL)),
    ]
    tokens = iter(["one", "two"])
    headers = {"Authorization": facade.callable(lambda: next(tokens))}
    assert list(facade.stream(scripted.root + "/s", live=False, retry=QUICK, headers=headers)) == [b"hello"]
    assert [request.headers["authorization"] for request in scripted.requests] == ["one", "two"]


@pytest.mark.every_transport
def test_a_refused_stream_gives_the_servers_sentence_and_headers(
    facade: Facade, scripted: ScriptedServer
) -> None:
    """Pitfall 12."""
    body = b'{"error":{"code":"FORBIDDEN","message":"this token may not read"}}'
    scripted.replies = [scripted.send(scripted.response(403, body, x_request_id="42"))]
    with pytest.raises(DurableStreamError, match="this token may not read") as caught:
        facade.stream(scripted.root + "/s")
    assert caught.value.headers["x-request-id"] == "42"
    assert caught.value.details["error"]["code"] == "FORBIDDEN"


@pytest.mark.parametrize(
    "wire",
    [
        b"\x00\x01garbage\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"",
    ],
    ids=["garbage", "no-status", "no-length", "nothing"],
)
@pytest.mark.every_transport
def test_what_is_no_http_is_an_error_of_ours(facade: Facade, scripted: ScriptedServer, wire: bytes) -> None:
    """Pitfall 15: in reads and in writes."""
    scripted.replies = [scripted.send(wire, close=True)]
    once = RetryPolicy(max_retries=0)
    handle = facade.DurableStream(scripted.root + "/s", retry=once, content_type="text/plain")
    for use in (lambda: handle.append(b"x"), lambda: handle.stream(live=False).read_bytes()):
        with pytest.raises(DurableStreamError):
            use()


@pytest.mark.every_transport
def test_tls_with_a_server_that_speaks_none_is_an_error_of_ours(facade: Facade, url: str) -> None:
    """Pitfall 15."""
    handle = facade.DurableStream(url.replace("http:", "https:"), retry=RetryPolicy(max_retries=0))
    with pytest.raises(FetchError) as caught:
        handle.head()
    assert caught.value.code in {"TLS", "NETWORK", "CONNECT"}
    assert not caught.value.may_have_been_sent


@pytest.mark.every_transport
def test_redirects_are_not_followed(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(307, location="http://elsewhere.invalid/"))]
    with pytest.raises(DurableStreamError) as caught:
        facade.DurableStream(scripted.root + "/s").head()
    assert (caught.value.status, caught.value.code) == (307, "UNEXPECTED_STATUS")
