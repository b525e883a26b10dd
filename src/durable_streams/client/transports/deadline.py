"""A time limit around one await of a task, on every Python. Its own module: the sync transports do without asyncio."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from durable_streams.client.transports.limits import TrickledError

__all__ = ["Deadline"]


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
