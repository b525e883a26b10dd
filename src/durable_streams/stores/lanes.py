"""Queries to a SQLite file in dedicated threads: dropped when no caller waits for them any more, bounded in time.

Invariants: a connection belongs to one thread and runs one query at a time; only the running query is interrupted;
every waiter gets an answer, even while the disk does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

from durable_streams.stores.base import StoreError, StoreUnavailableError

__all__ = ["Lane", "Lookup", "Query"]

T = TypeVar("T")
Query = Callable[[sqlite3.Connection, "Lookup"], T]

_LOOKS = 4  # checks of a query within its time limit
_PAUSE = 0.05  # seconds between interruptions of a query that has to end


class Lookup:
    """One run of a query, and the futures that wait for its result."""

    __slots__ = ("began", "key", "query", "waiters")

    def __init__(self, query: Query[Any], key: Hashable, waiter: asyncio.Future[Any]) -> None:
        self.query = query
        self.key = key
        self.waiters = [waiter]
        self.began = 0.0

    @property
    def wanted(self) -> bool:
        """Whether anything waits for the result; a query of several statements asks between them."""
        return bool(self.waiters)

    def answer(self, found: Any, error: StoreError | None) -> None:
        """Give all waiters the result, or the error."""
        for waiter in self.waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(found)
            else:
                waiter.set_exception(type(error)(*error.args))
        self.waiters.clear()


class Lane:
    """Threads that run queries in the order in which they are asked for, each thread on a connection of its own.

    Queries with the same key that are wanted at the same time run once. A lane belongs to the event loop that it is
    created on.

    Args:
        name: The name of the threads.
        connections: One connection for each thread.
        explain: Turns an exception of a query into a StoreError.
        timeout: Seconds that a query may take.
    """

    def __init__(
        self,
        name: str,
        connections: Sequence[sqlite3.Connection],
        explain: Callable[[Exception], StoreError],
        *,
        timeout: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections = connections
        self._explain = explain
        self._timeout = timeout
        self._queue: queue.SimpleQueue[Lookup | None] = queue.SimpleQueue()
        self._wanted: dict[Hashable, Lookup] = {}
        self._running: list[Lookup | None] = [None] * len(connections)
        self._locks = [threading.Lock() for _ in connections]  # each for one entry of _running
        self._watching = False
        self._closed = False
        self._keep = False
        self._refusal: StoreError | None = None
        self._alive = len(connections)
        self._ended = asyncio.Event()
        for number in range(len(connections)):
            threading.Thread(target=self._work, args=(number,), name=name, daemon=True).start()

    async def run(self, query: Query[T], key: Hashable = None) -> T:
        """Return the result of a query; when its last waiter is cancelled, the query is dropped or interrupted."""
        if self._refusal is not None:
            raise type(self._refusal)(*self._refusal.args)
        waiter: asyncio.Future[Any] = self._loop.create_future()
        lookup = self._wanted.get(key)
        if lookup is not None:
            lookup.waiters.append(waiter)
        else:
            lookup = Lookup(query, object() if key is None else key, waiter)
            self._wanted[lookup.key] = lookup
            self._watch()
            self._queue.put(lookup)
        try:
            return cast("T", await waiter)
        except asyncio.CancelledError:
            if waiter in lookup.waiters:
                lookup.waiters.remove(waiter)
                if not lookup.waiters:
                    self._drop(lookup)
            raise

    async def close(self, timeout: float, *, keep: bool = False) -> bool:
        """End the threads and their queries within ``timeout`` seconds; return whether all of them ended.

        Each thread closes its connection, unless ``keep`` forbids to touch the files.
        """
        self._closed, self._keep = True, keep
        self._fail_all(StoreUnavailableError("the server is stopping"))
        for _ in self._connections:
            self._queue.put(None)
        until = self._loop.time() + timeout
        while self._alive and self._loop.time() < until:
            for number, lookup in enumerate(self._running):
                self._interrupt(number, lookup)  # repeated, since it has no effect between two statements
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _PAUSE)
        return not self._alive

    # -- in the threads

    def _work(self, number: int) -> None:
        connection = self._connections[number]
        while (lookup := self._queue.get()) is not None:
            self._look_up(number, connection, lookup)
            del lookup  # the result may be large, and the next query may be long in coming
        if not self._keep:
            connection.close()
        self._call_soon(self._thread_ended)

    def _look_up(self, number: int, connection: sqlite3.Connection, lookup: Lookup) -> None:
        with self._locks[number]:
            if not lookup.wanted:
                return
            lookup.began = time.monotonic()
            self._running[number] = lookup
        found: Any = None
        error: StoreError | None = None
        try:
            found = lookup.query(connection, lookup)
        except Exception as failure:  # noqa: BLE001 - the thread must survive any failure
            error = self._explain(failure)
        with self._locks[number]:
            self._running[number] = None
        self._call_soon(self._answer, lookup, found, error)

    def _call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nothing waits any more
            self._loop.call_soon_threadsafe(callback, *arguments)

    # -- on the event loop

    def _answer(self, lookup: Lookup, found: Any, error: StoreError | None) -> None:
        self._forget(lookup)
        lookup.answer(found, error)
        if not self._closed:
            self._refusal = None

    def _forget(self, lookup: Lookup) -> None:
        if self._wanted.get(lookup.key) is lookup:
            del self._wanted[lookup.key]

    def _drop(self, lookup: Lookup) -> None:
        self._forget(lookup)
        for number in range(len(self._running)):
            self._interrupt(number, lookup)

    def _interrupt(self, number: int, lookup: Lookup | None) -> None:
        with self._locks[number]:
            if lookup is not None and self._running[number] is lookup:
                self._connections[number].interrupt()

    def _fail_all(self, reason: StoreError) -> None:
        self._refusal = reason
        for lookup in list(self._wanted.values()):
            lookup.answer(None, reason)
        self._wanted.clear()

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.call_later(self._timeout / _LOOKS, self._look)

    def _look(self) -> None:
        """Fail the queries that take too long, and all of them if every thread is stuck."""
        self._watching = False
        if not self._wanted:
            return
        late = time.monotonic() - self._timeout
        stuck = [lookup for lookup in self._running if lookup is not None and lookup.began < late]
        reason = StoreUnavailableError("the disk does not answer: nothing can be read from it now")
        for lookup in stuck:
            self._drop(lookup)
            lookup.answer(None, reason)
        if len(stuck) == len(self._running):
            self._fail_all(reason)
        else:
            self._watch()

    def _thread_ended(self) -> None:
        self._alive -= 1
        if not self._alive:
            self._ended.set()
