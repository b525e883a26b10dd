"""How long a transport waits, in seconds, where neither the call nor the caller's client says so."""

from __future__ import annotations

from durable_streams.protocol.request import Request

__all__ = ["CONNECT_TIMEOUT", "LIVE_READ_TIMEOUT", "READ_TIMEOUT", "silence_of"]

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
LIVE_READ_TIMEOUT = 90.0
"""Of silence on a live read: longer than the minute after which servers end a connection (section 5)."""


def silence_of(request: Request, timeout: float | None) -> float | None:
    """Return the seconds of silence after which an answer is given up; None for never."""
    if timeout is None:
        return LIVE_READ_TIMEOUT if request.streaming else READ_TIMEOUT
    return None if timeout == float("inf") else timeout
