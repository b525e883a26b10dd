"""The same work several times at once, in tasks or in threads: all of it ends before the call does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

__all__ = ["Turns", "in_tasks", "in_threads"]

T = TypeVar("T")


class Turns(Generic[T]):
    """What is to be done, for several that take one after the other.

    Args:
        all_of_it: What is to be done.
    """

    def __init__(self, all_of_it: Iterable[T]) -> None:
        self._waiting = deque(all_of_it)
        self.stopped = False
        """Whether one of them has failed, so that the others end with what they have begun."""

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> T | None:
        """Return the next one, None if there is none."""
        try:
            return None if self.stopped else self._waiting.popleft()
        except IndexError:
            return None


async def in_tasks(work: Callable[[], Awaitable[None]], count: int) -> None:
    """Do work in several tasks; the first failure cancels the others, and is raised.

    Args:
        work: The work, called once for each task.
        count: How many.
    """
    if count <= 1:
        await work()
        return
    tasks = [asyncio.ensure_future(work()) for _ in range(count)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def in_threads(work: Callable[[], None], count: int, turns: Turns[T]) -> None:
    """Do work in several threads; the first failure stops the turns, and is raised once all have ended.

    Args:
        work: The work, called once in each thread.
        count: How many.
        turns: What they share.
    """
    if count <= 1:
        work()
        return
    with ThreadPoolExecutor(count, "durable-streams-worker") as threads:
        working = [threads.submit(work) for _ in range(count)]
        try:
            done, _ = wait(working, return_when=FIRST_EXCEPTION)
            for one in done:
                one.result()
        finally:
            turns.stopped = True
