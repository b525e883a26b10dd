"""How long a transport waits, in seconds, where neither the call nor the caller's client says so."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from durable_streams.protocol.request import SLOWEST, Request

__all__ = [
    "CONNECT_TIMEOUT",
    "LIVE_READ_TIMEOUT",
    "READ_TIMEOUT",
    "Deadline",
    "TrickledError",
    "head_limit",
    "silence_of",
]

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
LIVE_READ_TIMEOUT = 90.0
"""Of silence on a live read: longer than the minute after which servers end a connection (section 5)."""


def silence_of(request: Request, timeout: float | None) -> float | None:
    """Return the seconds of silence after which an answer is given up; None for never."""
    if timeout is None:
        return LIVE_READ_TIMEOUT if request.streaming else READ_TIMEOUT
    return None if timeout == float("inf") else timeout


def head_limit(request: Request, silence: float | None) -> float | None:
    """Return the seconds within which a request must be sent and its answer's head be complete; None for no limit.

    ``silence``: the seconds of silence that are allowed. Without a limit on those there is none on the whole.
    """
    if silence is None:
        return None
    limit = silence + request.trickle + len(request.body or b"") / SLOWEST
    return None if limit == float("inf") else limit


class TrickledError(OSError):
    """The head of an answer took too long."""


class Deadline:
    """Around an await: raises TrickledError in its place when the time is up."""

    __slots__ = ("_limit", "_passed", "_task", "_timer")

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._passed = False
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._limit is not None:
            self._task = asyncio.current_task()
            self._timer = asyncio.get_running_loop().call_later(self._limit, self._pass)

    def _pass(self) -> None:
        if self._task is not None:
            self._passed = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._passed:
            return
        # Python 3.10 does not count cancellations.
        uncancel = getattr(self._task, "uncancel", None)
        others = uncancel() if uncancel is not None else 0
        if isinstance(error, asyncio.CancelledError) and not others:
            raise TrickledError("the head of the answer trickles in") from None
