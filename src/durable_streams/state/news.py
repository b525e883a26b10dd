"""Waiting for what a follower does: for a task, and for a thread.

Invariant: a condition is looked at after every `ring`, so that no news is missed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

__all__ = ["AsyncNews", "News"]


class AsyncNews:
    """Wakes tasks of one event loop."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Have all conditions looked at."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait_for(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Return True once a condition holds, False after some seconds; None waits forever."""
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while not condition():
            if end is not None and loop.time() >= end:
                return False
            future = loop.create_future()
            self._waiting.add(future)
            try:
                await asyncio.wait([future], timeout=None if end is None else end - loop.time())
            finally:
                self._waiting.discard(future)
        return True


class News:
    """Wakes threads."""

    def __init__(self) -> None:
        self._condition = threading.Condition()

    def ring(self) -> None:
        """Have all conditions looked at."""
        with self._condition:
            self._condition.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Return True once a condition holds, False after some seconds; None waits forever."""
        with self._condition:
            return self._condition.wait_for(condition, timeout)
