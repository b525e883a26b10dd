"""Servers that misbehave meet a bound: of memory, of time, of requests."""

from __future__ import annotations

import socket

import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import RetryPolicy, StreamParseError
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
