"""The body of a live=sse answer: payloads, each group committed by the control event after it (protocol section 5).

Invariants: a payload without its control event is never given out, and what waits for one is bounded as a sum;
base64 is decoded only where the answer's header says so.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from durable_streams.errors import SSEEncodingError, StreamParseError
from durable_streams.protocol import headers as h
from durable_streams.protocol.jsonparser import MALFORMED
from durable_streams.protocol.sse import SSEDecoder, SSEEvent

__all__ = ["ControlEvent", "EventStream"]


_OVERHEAD = 64  # bytes of memory that a payload takes besides its own


@dataclass(frozen=True, slots=True)
class ControlEvent:
    """A control event, with the payloads that it commits: ``next_offset`` is right after the last of them."""

    payloads: list[bytes]
    next_offset: str
    cursor: str | None
    up_to_date: bool
    closed: bool


class EventStream:
    """Turns chunks of the body into controls.

    ``limit``: the most bytes of data that one event may carry, and all events that wait for one control.

    Raises SSEEncodingError for an encoding that it does not know.
    """

    def __init__(self, headers: Mapping[str, str], limit: int) -> None:
        encoding = headers.get(h.SSE_DATA_ENCODING, "").strip().lower()
        if encoding not in {"", "base64"}:
            raise SSEEncodingError(f"The server sends events in the unknown encoding {encoding!r}.")
        self._base64 = bool(encoding)
        self._decoder = SSEDecoder(limit * 4 // 3 + 4 if self._base64 else limit)
        self._payloads: list[bytes] = []
        self._limit = limit
        self._waiting = 0

    def feed(self, chunk: bytes) -> Iterator[ControlEvent]:
        """Yield the controls that this chunk completes; raises StreamParseError or SSEEncodingError."""
        for event in self._decoder.feed(chunk):
            if event.event == "data":
                self._hold(self._payload(event.data))
            elif event.event == "control":
                yield self._control(event)

    def _hold(self, payload: bytes) -> None:
        # The allowance is for one event of the limit's size.
        self._waiting += len(payload) + _OVERHEAD
        if self._waiting > self._limit + _OVERHEAD:
            raise StreamParseError(
                f"The events since the last control event are more than the limit of {self._limit} bytes; "
                "the server must send a control event after its data.",
                code="TOO_LARGE",
            )
        self._payloads.append(payload)

    def _payload(self, data: bytes) -> bytes:
        if not self._base64:
            return data
        try:
            return base64.b64decode(data.translate(None, b"\r\n"), validate=True)
        except binascii.Error as error:
            raise SSEEncodingError(f"An event's data is not the base64 it should be: {error}.") from None

    def _control(self, event: SSEEvent) -> ControlEvent:
        try:
            control: Any = msgspec.json.decode(event.data)
        except MALFORMED as error:
            raise StreamParseError(f"A control event is not valid JSON: {error}.") from None
        position = control.get("streamNextOffset") if isinstance(control, dict) else None
        if not isinstance(position, str) or not position:
            raise StreamParseError("A control event has no streamNextOffset.")
        cursor = control.get("streamCursor")
        payloads, self._payloads, self._waiting = self._payloads, [], 0
        return ControlEvent(
            payloads,
            position,
            cursor if isinstance(cursor, str) else None,
            control.get("upToDate") is True,
            control.get("streamClosed") is True,
        )
