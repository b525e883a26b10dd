"""Cursors: what keeps a cache from answering a live request with its own last answer (protocol section 5)."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["next_cursor"]

_EPOCH = 1_728_432_000  # 2024-10-09T00:00:00Z, in seconds since 1970
_INTERVAL = 20  # seconds
_MAX_JITTER = 3600  # seconds
_MAX_DIGITS = 1000  # far below what Python converts


def next_cursor(now: float, client_cursor: str | None, random: Callable[[], float]) -> str:
    """Return the cursor for an answer at ``now`` (seconds since 1970), strictly greater than the client's.

    ``random`` gives a number in [0, 1).
    """
    # A clock that is behind the epoch (a board without a battery) counts from nothing: cursors advance all the same.
    current = max(0, int(now - _EPOCH)) // _INTERVAL
    if client_cursor is None or not (client_cursor.isascii() and client_cursor.isdigit()):
        return str(current)
    if len(client_cursor) > _MAX_DIGITS:
        return str(current)  # no cursor of any server
    seen = int(client_cursor)
    if seen < current:
        return str(current)
    return str(seen + 1 + int(random() * _MAX_JITTER) // _INTERVAL)
