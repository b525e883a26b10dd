"""Live reads that begin where nothing is to be read yet."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams.client.transports.httpclient import _watched

JSON = "application/json"


@pytest.mark.parametrize("live", [True, "long-poll", "sse"])
@pytest.mark.parametrize("start", ["now", "tail"])
def test_b1_a_live_read_at_the_tail_can_be_closed_at_once(
    live: Any, start: str, facade: Facade, url: str
) -> None:
    handle = facade.DurableStream.create(url, content_type=JSON, body=1)
    offset = start if start == "now" else handle.head().offset
    began = time.monotonic()
    with facade.stream(url, offset=offset, live=live) as response:
        assert time.monotonic() - began < 10.0, "less than a poll"
        handle.append(2)
        assert next(iter(response.iter_json())) == 2


@pytest.mark.parametrize("start", ["now", "tail", "-1"])
@pytest.mark.parametrize("live", ["long-poll", "sse", True])
def test_b2_silence_within_a_poll_is_no_failure(facade: Facade, url: str, live: Any, start: str) -> None:
    handle = facade.DurableStream.create(url, content_type=JSON)
    offset = handle.head().offset if start == "tail" else start
    with facade.stream(url, offset=offset, live=live, timeout=0.5) as response:
        timer = threading.Timer(2.5, handle.append, [1])
        timer.start()
        assert next(iter(response.iter_json())) == 1
        timer.join()


@pytest.mark.every_transport
def test_b13_a_header_that_is_sent_twice(facade: Facade, scripted: ScriptedServer) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 4\r\nStream-Up-To-Date: true\r\n"
    twice = b"Stream-Next-Offset: 1_0\r\nstream-next-offset: 1_0\r\nVary: a\r\nVary: b\r\n\r\ndata"
    scripted.replies = [scripted.send(head + twice)]
    with facade.stream(scripted.root + "/s", live=False) as response:
        assert response.read_bytes() == b"data"
        assert (response.offset, response.headers["vary"]) == ("1_0", "a, b")


def test_b13_a_header_that_is_sent_twice_through_requests(scripted: ScriptedServer) -> None:
    from durable_streams import stream

    requests = pytest.importorskip("requests")
    wire = scripted.response(200, b"data", stream_next_offset="1_0", stream_up_to_date="true")
    scripted.replies = [scripted.send(wire.replace(b"\r\n\r\n", b"\r\nstream-next-offset: 1_0\r\n\r\n"))]
    with requests.Session() as session, stream(scripted.root + "/s", live=False, client=session) as response:
        assert response.read_bytes() == b"data"
        assert response.offset == "1_0"


def test_b14_connections_take_what_their_library_passes(scripted: ScriptedServer) -> None:
    import http.client

    class Connection(http.client.HTTPConnection):
        """As in urllib3-future, whose pool names the answer that it wants."""

        def getresponse(self, *, promise: Any = None) -> http.client.HTTPResponse:
            assert promise == "promise"
            return super().getresponse()

    scripted.replies = [scripted.send(scripted.response(200, b"data"))]
    connection = _watched(Connection)(scripted.root.removeprefix("http://"))
    connection.request("GET", "/s")
    assert connection.getresponse(promise="promise").read() == b"data"
    connection.close()
