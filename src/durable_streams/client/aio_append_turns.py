"""Concurrent appends of one handle share requests: `AppendQueue` between tasks; `append_turns` says how.

Its own module, because the sync API does without asyncio: importing it takes longer than a request.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from durable_streams.client.cancellable_wait import running_loop
from durable_streams.client.forks import Origin, leave_alone
from durable_streams.protocol.append_queue import AppendQueue, Entry
from durable_streams.types import AppendResult

__all__ = ["AsyncAppendTurns"]

_Future = asyncio.Future[None]
_Send = Callable[[AppendQueue[Any]], Coroutine[Any, Any, None]]


class AsyncAppendTurns:
    """The appends of one handle, from any task; each event loop has a queue."""

    def __init__(self) -> None:
        self._origin = Origin()
        self._leading: set[asyncio.Task[None]] = set()
        self._renew()

    def _renew(self) -> None:
        leave_alone(self._leading)
        self._queues: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AppendQueue[_Future]] = (
            weakref.WeakKeyDictionary()
        )
        self._leading = set()

    async def append(self, data: Any, send: _Send, *, may_cancel: bool) -> AppendResult:
        """Append one message or piece; return the position after the request that carried it.

        ``send`` runs `AppendQueue.send`: one request. ``may_cancel``: a request that carries this append alone is
        cancelled with its task.
        """
        self._origin.notice(self._renew)
        loop = running_loop()
        queue = self._queues.setdefault(loop, AppendQueue())
        entry: Entry[_Future] = Entry(data)
        if not queue.add(entry):
            entry.waiter = loop.create_future()
            await self._wait_for(entry, entry.waiter, queue)
        if entry.done:
            return entry.outcome()
        if len(queue) == 1 and may_cancel:
            await self._lead(queue, send)
        else:
            leading = loop.create_task(self._lead(queue, send))
            self._leading.add(leading)
            leading.add_done_callback(self._leading.discard)
            await asyncio.shield(leading)
        return entry.outcome()

    @staticmethod
    async def _wait_for(entry: Entry[_Future], waiter: _Future, queue: AppendQueue[_Future]) -> None:
        """Wait until the append is done, or has to lead."""
        try:
            await waiter
        except asyncio.CancelledError:
            _resolve(queue.take_back(entry))
            raise

    async def _lead(self, queue: AppendQueue[_Future], send: _Send) -> None:
        try:
            await send(queue)
        except BaseException as error:
            self._end_turn(queue, error)
            raise
        self._end_turn(queue)

    @staticmethod
    def _end_turn(queue: AppendQueue[_Future], cause: BaseException | None = None) -> None:
        for entry in queue.finish(cause):
            _resolve(entry)
        _resolve(queue.hand_over())


def _resolve(entry: Entry[_Future] | None) -> None:
    if entry is not None and entry.waiter is not None and not entry.waiter.done():
        entry.waiter.set_result(None)
