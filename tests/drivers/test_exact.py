"""Reads that return every byte as it was written, whatever the content type, the mode and the size of an answer."""

from __future__ import annotations

import pytest
from facade import Facade
from scripted import Received, ScriptedServer

from durable_streams import RetryPolicy
from durable_streams.protocol.sse import encode_control, encode_data

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
LINES = [b"one\r\n", b"two\r", b"\nthree\rfour", b"\xff\xfe\x00 no UTF-8 \xc3", b"\xa9 torn \n\r\n", b" end"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/csv; charset=utf-8", "TEXT/Event-Stream", "application/x-yaml"]
)
@pytest.mark.every_transport
def test_a1_live_true_returns_every_byte_of_any_type(facade: Facade, url: str, content_type: str) -> None:
    handle = facade.DurableStream.create(url, content_type=content_type, body=LINES[0])
    seen = b""
    with handle.stream(live=True) as response:
        for number, piece in enumerate(response):
            seen += piece
            if number + 1 < len(LINES):
                assert handle.append(LINES[number + 1]).next_offset > response.offset
            else:
                handle.close_stream()
        assert response.stream_closed
    assert seen == b"".join(LINES)
    assert response.offset == handle.head().offset


def test_a1_live_sse_on_text_stays_possible_and_loses_what_the_docs_say(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="text/plain", body=b"one\r\ntwo\r\xff")
    handle.close_stream()
    assert facade.stream(url, live="sse").read_bytes() == "one\ntwo\n\ufffd".encode()


@pytest.mark.parametrize(
    ("content_type", "mode"),
    [
        ("application/json", "sse"),
        ("Application/JSON ; charset=utf-8", "sse"),
        ("application/octet-stream", "sse"),
        ("application/vnd.api+json", "sse"),
        ("image/png", "sse"),
        ("text/plain", "long-poll"),
        ("Text/Html; charset=latin-1", "long-poll"),
        ("text/event-stream", "long-poll"),
        (None, "long-poll"),
    ],
)
def test_a1_live_true_follows_over_sse_only_where_it_is_lossless(
    facade: Facade, scripted: ScriptedServer, content_type: str | None, mode: str
) -> None:
    typed = {} if content_type is None else {"content_type": content_type}

    def answer(request: Received) -> bytes:
        if "live" not in request.query:
            return scripted.response(200, b"[1]", stream_next_offset="5", stream_up_to_date="true", **typed)
        if request.query["live"] == "sse":
            binary = (
                {}
                if content_type and "/json" in content_type.lower()
                else {"stream_sse_data_encoding": "base64"}
            )
            wire = encode_data(b"[2]", text=not binary) + encode_control("6", closed=True)
            return scripted.events(wire, **binary)
        return scripted.response(200, b"[2]", stream_next_offset="6", stream_closed="true", **typed)

    scripted.answer = answer
    assert b"".join(facade.stream(scripted.root + "/s", retry=QUICK)) == b"[1][2]"
    assert [request.query.get("live") for request in scripted.requests] == [None, mode]


def test_a1_an_event_stream_that_carries_bytes_as_text_is_not_taken(
    facade: Facade, scripted: ScriptedServer
) -> None:
    def answer(request: Received) -> bytes:
        live = request.query.get("live")
        if live == "sse":
            return scripted.events(encode_data(b"a\r\nb", text=True) + encode_control("6", closed=True))
        end = {"stream_next_offset": "6", "stream_closed": "true"} if live else {"stream_next_offset": "5"}
        body = b"a\r\nb" if live else b"first "
        return scripted.response(200, body, stream_up_to_date="true", content_type="image/x", **end)

    scripted.answer = answer
    assert b"".join(facade.stream(scripted.root + "/s", retry=QUICK)) == b"first a\r\nb"
    assert [request.query.get("live") for request in scripted.requests] == [None, "sse", "long-poll"]
