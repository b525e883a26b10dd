"""Removal of expired streams, and of the bytes of deleted ones.

Invariants: every gateway may sweep at any time, and every step may run twice; a minute is done only when every path
that was due in it was checked; the end of a log outlives its bytes, so that a gateway that knows the
stream sees its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from durable_streams.stores.base import StoreError
from durable_streams.stores.jetstream.layout import EXPECT, ROLLUP
from durable_streams.stores.jetstream.nats.bus import Bus, ConflictError, patiently
from durable_streams.stores.jetstream.nats.messages import Message

__all__ = ["Sweeper"]

_INTERVAL = 2.0  # seconds
_PATIENCE = 5.0
_PAUSE = 0.2
_AT_ONCE = 64
_MINUTE = 60
_CLOCKS_APART = 5  # minutes: a gateway whose clock is late may still write into a past minute


class Sweeper:
    """Searches for work every other second.

    Args:
        bus: The bucket.
        clock: Returns the seconds since 1970.
        expire: Deletes the stream at a path if it has expired.
        cut: Removes the first records of the log of a stream: of its path and its id.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Callable[[], float],
        expire: Callable[[str], Awaitable[None]],
        cut: Callable[[str, int], Awaitable[None]],
    ) -> None:
        self._cut = cut
        self._bus = bus
        self._layout = bus.layout
        self._clock = clock
        self._expire = expire
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to sweep; a new bucket is swept from now on. Raises StoreUnavailableError."""
        await patiently(self._begin, _PATIENCE, _PAUSE)  # a new bucket may change its leader
        self._task = asyncio.create_task(self._run())

    async def _begin(self) -> None:
        if await self._bus.last(self._layout.swept) is None:
            with contextlib.suppress(ConflictError):  # another gateway started at the same time
                await self._mark(self._minute() - _CLOCKS_APART, 0)

    async def note(self, path: str, now: float) -> None:
        """Check a path again a minute later."""
        due = self._layout.due(now + _MINUTE, path)
        await self._bus.publish([Message(due, path.encode(), {ROLLUP: "sub"})])

    async def stop(self) -> None:
        """Stop sweeping."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await self._pass_minutes()
                await self._purge_gone()
                await self._cut_trimmed()
            except (StoreError, ConflictError):
                continue  # NATS is away, or another gateway was faster

    async def _pass_minutes(self) -> None:
        mark = await self._bus.last(self._layout.swept)
        present = self._minute()
        done = present - _CLOCKS_APART if mark is None else int(mark.data)
        for minute in range(done + 1, present):
            await self._sweep_minute(minute)
        if present - _CLOCKS_APART > done:
            await self._mark(present - _CLOCKS_APART, 0 if mark is None else mark.seq)

    def _minute(self) -> int:
        return int(self._clock() // _MINUTE)

    async def _mark(self, minute: int, revision: int) -> None:
        headers = {EXPECT: str(revision), ROLLUP: "sub"}
        await self._bus.publish([Message(self._layout.swept, str(minute).encode(), headers)])

    async def _sweep_minute(self, minute: int) -> None:
        subject, seq = self._layout.due_in(minute), 1
        paths: list[str] = []
        while (due := await self._bus.next(subject, seq)) is not None:
            paths.append(due.data.decode())
            seq = due.seq + 1
            if len(paths) == _AT_ONCE:
                await self._expire_all(paths)
                paths = []
        await self._expire_all(paths)
        if seq > 1:
            await self._bus.purge(subject, before=seq)

    async def _expire_all(self, paths: list[str]) -> None:
        for outcome in await asyncio.gather(*map(self._expire, paths), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _purge_gone(self) -> None:
        seq = 1
        while (gone := await self._bus.next(self._layout.every_gone, seq)) is not None:
            seq = gone.seq + 1
            stream_id = int(gone.subject.rpartition(".")[2], 16)
            end = await self._bus.last(self._layout.log(stream_id))
            if end is not None:
                await self._bus.purge(self._layout.log(stream_id), before=end.seq)
            await self._bus.purge(self._layout.snapshots(stream_id))
            await self._bus.purge(gone.subject)

    async def _cut_trimmed(self) -> None:
        seq = 1
        while (note := await self._bus.next(self._layout.every_trimmed, seq)) is not None:
            seq = note.seq + 1
            await self._cut(note.data.decode(), int(note.subject.rpartition(".")[2], 16))
            await self._bus.purge(note.subject, before=seq)  # a newer note stays
