"""Server-sent events with their ids, as lines of JSON: what lets the firehose resume a feed by Last-Event-ID.

Invariants: an event becomes one line ``["id","data"]`` when its empty line has come, never before; each byte of its
data is one character of the line's, so that nothing is lost of what is not UTF-8; an id holds for the events after it
too, until the next one; what carries no data still counts as a sign of life.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from durable_streams.client.transports import Exchange, Interrupt, Transport, transport_for
from durable_streams.protocol import headers as h
from durable_streams.protocol.request import Request
from durable_streams.protocol.sse import SSEDecoder

__all__ = ["EventLines", "EventTransport"]

_encode = msgspec.json.Encoder().encode


class EventLines:
    """Turns chunks of an event stream into lines of JSON."""

    def __init__(self, last_id: str = "") -> None:
        self._events = SSEDecoder(last_id=last_id)

    def feed(self, chunk: bytes) -> bytes:
        """Return the lines of the events that this chunk completes, or an empty line."""
        events = self._events.feed(chunk)
        lines = [_encode((event.id, event.data.decode("latin-1"))) + b"\n" for event in events]
        return b"".join(lines) or b"\n"


class EventTransport:
    """A transport whose answers of server-sent events read as lines of JSON; others stay as they are.

    ``events``: whether the last answer was one of events.
    """

    def __init__(self, client: Any = None) -> None:
        self._transport: Transport = transport_for(client)
        self.events = False

    def open(self, request: Request, interrupt: Interrupt, timeout: float | None) -> Exchange:
        """See Transport."""
        exchange = self._transport.open(request, interrupt, timeout)
        self.events = h.media_type(exchange.headers.get("content-type", "")) == h.SSE_CONTENT_TYPE
        if not self.events:
            return exchange
        return _EventExchange(exchange, request.headers.get("last-event-id", ""))


class _EventExchange:
    """An answer of events as one of lines."""

    def __init__(self, exchange: Exchange, last_id: str) -> None:
        self._exchange = exchange
        self._lines = EventLines(last_id)
        self.status = exchange.status
        self.reason = exchange.reason
        self.headers: Mapping[str, str] = {**exchange.headers, "content-type": "application/x-ndjson"}

    def read(self) -> bytes:
        """See Exchange."""
        chunk = self._exchange.read()
        return self._lines.feed(chunk) if chunk else b""

    def close(self) -> None:
        """See Exchange."""
        self._exchange.close()
