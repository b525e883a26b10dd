"""Request bodies, while they come and while they are used: bounded in memory, in all, and in time.

Invariants: what is held of all bodies together is below ``limit``; a body of which less than a small part comes within
``timeout`` seconds is refused, with whatever there is of it; one that is on its way when the server ends has a moment
to be complete; what was counted is released with the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

from durable_streams.protocol.commands import Rejection

__all__ = ["SMALL_BODY", "Bodies", "Incoming"]

SMALL_BODY = 16 << 10
"""Bytes that have to come within the time limit, for a body to have more time; one of that size is read at once."""

_TICK = 1.0  # seconds between looks at what is late
_LINGER = 10.0  # seconds
_GRACE = 1.0  # seconds that a body has left when the server ends


class Incoming:
    """The body of one request. A context manager around its reading; `release` when the request is answered.

    ``size``: bytes that are about to come, counted as by `count`; at most `SMALL_BODY`.
    """

    __slots__ = ("_bodies", "_charged", "_fresh", "_is_late", "_task", "deadline")

    def __init__(self, bodies: Bodies, size: int = 0) -> None:
        if bodies.used + size > bodies.limit:
            raise _busy()
        bodies.used += size
        self._bodies = bodies
        self._charged = size
        self._fresh = 0  # bytes since the deadline was set
        self._is_late = False
        self._task: asyncio.Task[Any] | None = None
        self.deadline = 0.0

    def count(self, size: int) -> None:
        """Count bytes that came, or are about to; raises the 503 where all bodies together are too large."""
        bodies = self._bodies
        if bodies.used + size > bodies.limit:
            raise _busy()
        bodies.used += size
        self._charged += size
        self._fresh += size
        if self._fresh >= SMALL_BODY:
            self._fresh = 0
            self.deadline = time.monotonic() + bodies.timeout

    def release(self) -> None:
        """Stop counting the body."""
        self._bodies.used -= self._charged
        self._charged = 0

    def end(self) -> None:
        """Give up a body that is late."""
        self._is_late = True
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> None:
        bodies = self._bodies
        self._task = asyncio.current_task(bodies.loop)
        self.deadline = time.monotonic() + (_GRACE if bodies.stopping else bodies.timeout)
        bodies.reading[self] = None
        if not bodies.is_looking:
            bodies.look()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bodies.reading.pop(self, None)
        task, self._task = self._task, None
        if self._is_late and isinstance(error, asyncio.CancelledError):
            if sys.version_info >= (3, 11) and task is not None:
                task.uncancel()
            raise self._refusal() from None

    def _refusal(self) -> Rejection:
        if self._bodies.stopping:
            return Rejection(
                503,
                "UNAVAILABLE",
                "the server ends, and the body was not complete; nothing was stored, send it again",
                {"retry-after": "1", "connection": "close"},
            )
        return Rejection(
            408,
            "REQUEST_TIMEOUT",
            f"the body did not come on for {self._bodies.timeout:g} seconds; nothing was stored, send it again",
            {"connection": "close"},
        )


def _busy() -> Rejection:
    return Rejection(
        503,
        "BUSY",
        "the bodies of all requests together are more than fits in memory; nothing was stored, retry",
        {"retry-after": "1"},
    )


class Bodies:
    """All bodies of a server. ``limit`` in bytes, ``timeout`` in seconds."""

    def __init__(self, limit: int, timeout: float) -> None:
        self.limit = limit
        self.timeout = timeout
        self.used = 0
        self.stopping = False
        """Whether the server ends."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop, known from `start` on: to find it costs each body a system call."""
        self._ending: asyncio.TimerHandle | None = None
        self.reading: dict[Incoming, None] = {}
        self.is_looking = False
        """Whether a timer runs that gives up what is late."""

    async def linger(self, taking: Coroutine[Any, Any, None]) -> None:
        """Take the rest of a body after its answer, for a while: closing at once would lose the answer, too.

        ``taking`` takes the rest of the body, and drops it.
        """
        with contextlib.suppress(Exception), Incoming(self):
            await asyncio.wait_for(taking, _LINGER)

    def start(self) -> None:
        """Begin, also after a `stop`."""
        self.stopping = False
        self.loop = asyncio.get_running_loop()
        if self._ending is not None:
            self._ending.cancel()

    def stop(self) -> None:
        """Give up all bodies that are not complete in a moment."""
        self.stopping = True
        if self.reading:
            self._ending = asyncio.get_running_loop().call_later(_GRACE, self._end_all)

    def _end_all(self) -> None:
        for incoming in list(self.reading):
            incoming.end()

    def look(self) -> None:
        """Give up what is late, now and as long as bodies are being read."""
        now = time.monotonic()
        for incoming in [one for one in self.reading if one.deadline <= now]:
            incoming.end()
        self.is_looking = bool(self.reading)
        if self.is_looking:
            asyncio.get_running_loop().call_later(_TICK, self.look)
