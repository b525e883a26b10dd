"""How much memory is held for all clients together.

Invariants: ``used`` is what was charged and not released; something larger than the whole budget is let through while
nothing else is held, never beside anything; requests that wait are admitted in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["MemoryBudget"]


class MemoryBudget:
    """Counts bytes against one limit. All calls come from the event loop's thread."""

    __slots__ = ("_waiting", "limit", "reclaim", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.reclaim: Callable[[], None] | None = None
        """Called before anything waits: releases what is only cached."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> int:
        """Bytes that are left; 0 while a request waits, so that none overtakes it."""
        return 0 if self._waiting else max(0, self.limit - self.used)

    @property
    def is_short(self) -> bool:
        """Whether a request for room waits."""
        return bool(self._waiting)

    def charge(self, size: int) -> None:
        """Count ``size`` bytes, without asking whether there is room."""
        self.used += size

    def release(self, size: int) -> None:
        """Take back what was charged, and admit requests that wait for it."""
        self.used -= size
        if self._waiting:
            self._admit()

    def try_charge(self, size: int) -> bool:
        """Charge ``size`` bytes if there is room for them now."""
        if self._waiting or not self._fits(size):
            return False
        self.used += size
        return True

    async def room(self, size: int) -> None:
        """Wait until ``size`` bytes fit, and charge them."""
        if self.try_charge(size):
            return
        if self.reclaim is not None:
            self.reclaim()
        waiting = (size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._admit()
        try:
            await waiting[1]
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._admit()  # a smaller one may have waited behind it
            elif waiting[1].done() and not waiting[1].cancelled():
                self.release(size)
            raise

    def _fits(self, size: int) -> bool:
        return self.used + size <= self.limit or not self.used

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, future = self._waiting.popleft()
            if not future.done():
                self.used += size
                future.set_result(None)
