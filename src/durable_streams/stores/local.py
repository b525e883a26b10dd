"""The machine that every store in one process shares: group commit, lazy states, expiry and wake-ups over a Backend.

Invariants: one batch is being committed at a time; states change only when their batch is committed; all of it runs
on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from durable_streams.protocol import rules
from durable_streams.protocol.commands import Append, Appended, Create, Created
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import Chunk, StoreError, StoreUnavailableError, as_store_error
from durable_streams.stores.batch import Batch, LoadedProducer, NotLoadedError
from durable_streams.stores.cache import LoadingCache
from durable_streams.stores.lineage import boundary_in_lineage, read_lineage, read_piece_of_lineage
from durable_streams.stores.slots import Recent, Slot, SlotWatch
from durable_streams.stores.timers import Timers

__all__ = ["Backend", "LocalStore"]

T = TypeVar("T")
Committed = Callable[["StoreError | None"], None]

_BATCH_COMMANDS = 1024
_BATCH_BYTES = 16 << 20
_SWEEP_INTERVAL = 2.0  # seconds between looks for expired streams
_SWEEP_STREAMS = 1000


class Backend(Protocol):
    """Where a LocalStore keeps its bytes. Called from the event loop; knows no rule.

    ``identity``: which history it holds, as ``Store.identity`` says.
    """

    identity: str

    async def open(self) -> int:
        """Get ready; return a number that is not less than any stream id ever used."""

    async def close(self) -> None:
        """Let go of everything; nothing is being committed any more."""

    async def load(self, paths: list[str]) -> dict[str, StreamState]:
        """Return the committed states at those paths that have one."""

    async def load_producer(self, stream_id: int, producer_id: str) -> ProducerState | None:
        """Return what was committed of a producer on a stream."""

    def commit(self, batch: Batch, committed: Committed) -> None:
        """Write a batch, all or nothing, then call ``committed`` on the event loop, now or later."""

    async def read(self, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
        """Return whole appends from the one that holds ``start`` (it may begin before), nothing past ``stop``.

        None if they are gone.
        """

    async def read_piece(
        self, stream_id: int, start: int, stop: int, limit: int, aligned: bool
    ) -> Chunk | None:
        """Return at most ``limit`` bytes from ``start``, or from the append that holds it; None if they are gone."""

    async def boundary(self, stream_id: int, position: int, stop: int) -> int | None:
        """Return where the first append at or after ``position`` begins; None, or past ``stop``, if none."""

    async def expired(self, now: float, limit: int) -> list[str]:
        """Return paths whose stored deadline has passed."""


class LocalStore:
    """The Store contract over a Backend.

    ``max_streams`` bounds how many streams are kept in memory; ``clock`` tells the seconds since 1970.
    """

    def __init__(
        self, backend: Backend, *, max_streams: int = 200_000, clock: Callable[[], float] = time.time
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._slots = LoadingCache(self._load, max_streams)
        self._timers = Timers()
        self._recent = Recent()
        self._loading_producers: dict[tuple[str, str], asyncio.Task[LoadedProducer]] = {}
        self._queue: deque[tuple[Callable[[Batch], Any], asyncio.Future[Any], int]] = deque()
        self._committing = False
        self._last_id = 0
        self._sweeper: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    # -- the contract

    async def open(self) -> None:
        """Open the backend and start to look for expired streams; a closed store may be opened again."""
        self._slots.clear()
        self._timers = Timers()
        self._idle = asyncio.Event()  # belongs to one event loop
        self._idle.set()
        self._closed = False
        self._last_id = await self._backend.open()
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """Commit what was accepted, then close the backend."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._idle.wait()
        await self._backend.close()

    async def get(self, path: str) -> StreamState | None:
        """Return the committed state at a path, None if there is none or it expired."""
        slot = self._slots.young.get(path) or await self._slots.get(path)
        state = slot.state
        if state is None or (state.deadline is not None and slot.expired(state, self._clock())):
            return None
        return state

    @property
    def identity(self) -> str:
        """Which history this store holds."""
        return self._backend.identity

    glance = get  # nobody else writes here: what is in memory is current

    async def create(self, command: Create) -> Created:
        """Create a stream, or find the equal one."""
        source = None if command.fork is None else await self._slots.get(command.fork.path)

        async def ready() -> Callable[[Batch], Created]:
            slot = await self._slots.get(command.path)
            if slot.state is not None and slot.expired(slot.state, self._clock()):
                await self._expire(slot)
            return lambda batch: batch.create(slot, source, command)

        return await self._decide(ready, len(command.payload))

    async def append(self, path: str, command: Append) -> Appended:
        """Append to a stream, close it, or both."""
        slot = self._slots.young.get(path) or await self._slots.get(path)
        stamp = command.producer
        loaded = None
        if stamp is not None and stamp.id not in slot.producers:
            loaded = await self._producer(slot, stamp.id)
        while True:
            try:
                return await self._submit(
                    partial(Batch.append, slot=slot, command=command, loaded=loaded), len(command.payload)
                )
            except NotLoadedError:
                if stamp is not None:
                    loaded = await self._producer(slot, stamp.id)

    async def delete(self, path: str) -> None:
        """Delete a stream; one with forks becomes soft-deleted."""
        slot = await self._slots.get(path)

        async def ready() -> Callable[[Batch], None]:
            ancestors = await self._ancestors(slot)
            return lambda batch: batch.delete(slot, ancestors)

        await self._decide(ready, 0)

    def touch(self, path: str) -> None:
        """Restart a stream's sliding window; what is stored follows when it lags too far behind."""
        slot = self._slots.peek(path)
        if slot is not None:
            self._touch(slot)

    def _touch(self, slot: Slot) -> None:
        state, now = slot.state, self._clock()
        if state is None or state.ttl is None or slot.expired(state, now):
            return
        slot.touched = now
        if rules.decide_touch(state, now) is not None and not self._closed:
            future = self._submit(lambda batch: batch.touch(slot))
            future.add_done_callback(_ignore)

    async def read(self, state: StreamState, start: int, limit: int) -> Chunk:
        """Return whole appends from ``start``, inherited bytes from whoever owns them."""
        return await read_lineage(self._backend.read, state, start, limit)

    async def read_piece(self, state: StreamState, start: int, limit: int, *, aligned: bool = False) -> Chunk:
        """Return some bytes from ``start``, wherever appends end."""
        return await read_piece_of_lineage(self._backend.read_piece, state, start, limit, aligned=aligned)

    async def boundary(self, state: StreamState, position: int) -> int:
        """Return where the first append at or after ``position`` begins, or the tail."""
        return await boundary_in_lineage(self._backend.boundary, state, position)

    async def watch(self, path: str) -> SlotWatch:
        """Return a live view of the stream at a path."""
        return SlotWatch(await self._slots.get(path), self._touch, self._timers, self._recent)

    async def check(self) -> None:
        """Commit an empty probe."""

        def probe(batch: Batch) -> None:
            batch.probe = True

        await self._submit(probe)

    # -- group commit

    def _submit(self, decide: Callable[[Batch], T], size: int = 0) -> asyncio.Future[T]:
        if self._closed:
            raise StoreUnavailableError("the server is stopping; nothing of this request was stored")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.append((decide, future, size))
        if not self._committing:
            self._committing = True
            self._idle.clear()
            # Whatever else arrives in this turn of the loop shares the commit.
            loop.call_soon(self._next_batch)
        return future

    async def _decide(self, ready: Callable[[], Awaitable[Callable[[Batch], T]]], size: int) -> T:
        while True:
            try:
                return await self._submit(await ready(), size)
            except NotLoadedError:
                continue

    def _next_batch(self) -> None:
        batch = Batch(self._clock(), self._new_id)
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        queue, size = self._queue, 0
        while queue and size < _BATCH_BYTES and len(outcomes) < _BATCH_COMMANDS:
            decide, future, cost = queue.popleft()
            if future.cancelled():
                continue
            try:
                outcomes.append((future, decide(batch), None))
                size += cost
            except Exception as refusal:  # noqa: BLE001 - whatever it is, it is this command's, not the batch's
                outcomes.append((future, None, refusal))
        if not batch:
            self._committed(batch, outcomes, None)
            return
        try:
            self._backend.commit(batch, lambda error: self._committed(batch, outcomes, error))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it, and the next batch must go
            self._committed(batch, outcomes, as_store_error(error))

    def _committed(
        self,
        batch: Batch,
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]],
        error: StoreError | None,
    ) -> None:
        if error is None:
            self._publish(batch)
        if self._queue:
            # The next commit is on its way before anybody is answered: disk and answers overlap.
            self._next_batch()
        else:
            self._committing = False
            self._idle.set()
        for future, outcome, refusal in outcomes:
            if future.done():
                continue
            if error is not None:
                future.set_exception(type(error)(*error.args))
            elif refusal is not None:
                future.set_exception(refusal)
            else:
                future.set_result(outcome)

    def _publish(self, batch: Batch) -> None:
        for slot, state in batch.changed.items():
            slot.publish(state)
        # What went to a stream that was deleted in this very batch is not the present stream's at its path.
        for (stream_id, producer_id), (producer, slot) in batch.producers.items():
            if slot.state is not None and slot.state.id == stream_id:
                slot.learn_producer(producer_id, producer)
        for stream_id, start, payload, slot in batch.records:
            if slot.audience is not None and slot.state is not None and slot.state.id == stream_id:
                slot.audience.publish(start, payload)
        for slot in batch.changed:
            if slot.audience is not None:
                slot.audience.notify()

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    # -- what is in memory

    async def _load(self, paths: list[str]) -> dict[str, Slot]:
        states = await self._backend.load(paths)
        return {path: Slot(path, states.get(path)) for path in paths}

    async def _producer(self, slot: Slot, producer_id: str) -> LoadedProducer:
        # One load for all who wait: they go on in the order in which they came, as pipelined requests need.
        key = (slot.path, producer_id)
        task = self._loading_producers.get(key)
        if task is None:
            task = self._loading_producers[key] = asyncio.create_task(self._load_producer(slot, producer_id))
            task.add_done_callback(lambda _: self._loading_producers.pop(key))
        return await asyncio.shield(task)

    async def _load_producer(self, slot: Slot, producer_id: str) -> LoadedProducer:
        forgets, state = slot.forgets, slot.state
        if state is None:
            return LoadedProducer(None, forgets)
        return LoadedProducer(await self._backend.load_producer(state.id, producer_id), forgets)

    async def _ancestors(self, slot: Slot) -> list[Slot]:
        ancestors = []
        state = slot.state
        while state is not None and state.forked_from is not None:
            parent = await self._slots.get(state.forked_from)
            ancestors.append(parent)
            state = parent.state
        return ancestors

    # -- expiry

    async def _expire(self, slot: Slot) -> None:
        async def ready() -> Callable[[Batch], None]:
            ancestors = await self._ancestors(slot)
            return lambda batch: batch.expire(slot, ancestors)

        await self._decide(ready, 0)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL)
            try:
                for path in await self._backend.expired(self._clock(), _SWEEP_STREAMS):
                    slot = await self._slots.get(path)
                    if slot.audience is not None:
                        self.touch(path)
                    else:
                        await self._expire(slot)
            except StoreError:
                continue  # the store cannot write now; whoever asks for an expired stream gets 404 all the same


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
