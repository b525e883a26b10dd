"""The Store contract on NATS JetStream.

Invariants: a gateway keeps only a cache, so that killing it loses no data; every decision is made by `protocol.rules`
on the state that NATS holds at the moment of the publish.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from durable_streams.protocol import retention, rules
from durable_streams.protocol.commands import (
    Append,
    Appended,
    Create,
    Created,
    Rejection,
    SetRetention,
    Trim,
)
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.backlog import MAX_BYTES, MAX_COMMANDS, Backlog
from durable_streams.stores.base import Chunk, Listed, StoreError, StoreLostError, StoreUnavailableError
from durable_streams.stores.batch import CommitBatch, LoadedProducer, NotLoadedError
from durable_streams.stores.commits import copied
from durable_streams.stores.figures import StoreFigures
from durable_streams.stores.jetstream.catchup import CatchUp
from durable_streams.stores.jetstream.committer import PATIENCE, Committer
from durable_streams.stores.jetstream.config import JetStreamConfig
from durable_streams.stores.jetstream.live import LiveRecords
from durable_streams.stores.jetstream.nats.bus import Bus
from durable_streams.stores.jetstream.paths import PathIndex
from durable_streams.stores.jetstream.reader import LogReader
from durable_streams.stores.jetstream.records import decode_record
from durable_streams.stores.jetstream.slots import JetSlot
from durable_streams.stores.jetstream.snapshots import Snapshots
from durable_streams.stores.jetstream.subscriptions import JetStreamSubscriptions
from durable_streams.stores.jetstream.sweeper import Sweeper
from durable_streams.stores.lineage import boundary_in_lineage, read_lineage, read_piece_of_lineage
from durable_streams.stores.pace import MINUTE
from durable_streams.stores.producers import first_producers
from durable_streams.stores.slots import Recent, Slot, SlotCache, SlotWatch, Timers
from durable_streams.stores.subscriptions import SubscriptionStore

__all__ = ["JetStreamStore"]

T = TypeVar("T")

_QUESTIONS = 64  # at a time, of one listing
_LARGEST_RECORDS = 980  # of one append; an atomic batch has at most 1000 messages


class JetStreamStore:
    """Streams in a JetStream cluster, shared with any number of other gateways.

    Attributes:
        bus: The bucket.
        identity: The name of the history that the bucket holds; known once the store is open.
        subscriptions: The subscriptions in the bucket; another object after each ``open``.

    Args:
        config: The cluster and the bucket.
        max_streams: The most streams whose state is cached.
        clock: Returns the seconds since 1970.
        max_queued_bytes: The most bytes that may wait to be stored.
        max_queued_commands: The most commands that may wait to be stored.
    """

    def __init__(
        self,
        config: JetStreamConfig,
        *,
        max_streams: int = 200_000,
        clock: Callable[[], float] = time.time,
        max_queued_bytes: int = MAX_BYTES,
        max_queued_commands: int = MAX_COMMANDS,
    ) -> None:
        self._queued = max_queued_bytes, max_queued_commands
        self.bus = Bus(config)
        self._clock = clock
        self._slots: SlotCache[JetSlot] = SlotCache(max_streams)
        self._closed = True
        self.identity = ""
        self._prepare()

    def _prepare(self) -> None:
        self._slots.clear()
        self._timers = Timers()
        self._recent = Recent()
        self._reader = LogReader(self.bus)
        self._paths = PathIndex(self.bus)
        self._catchup = CatchUp(self.bus, self._clock)
        self._snapshots = Snapshots(self.bus, self._catchup)
        self._committer = Committer(
            self.bus, self._catchup, self._clock, self._changed, Backlog(*self._queued)
        )
        self._live_records = LiveRecords(self.bus, self._catchup, self._committer.is_own, self._touch)
        self._sweeper = Sweeper(self.bus, self._clock, self._expire_at, self._cut_log)
        self.subscriptions: SubscriptionStore | None = JetStreamSubscriptions(self.bus)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the contract

    async def open(self) -> None:
        """Connect; a closed store may be opened again.

        Raises:
            StoreError: NATS cannot be used; one sentence says why.
        """
        self._prepare()  # everything belongs to one event loop
        await self.bus.open()
        try:
            self.identity = await self.bus.identity()
            await self._sweeper.start()
        except BaseException:
            await self.bus.close()
            raise
        self._live_records.start()
        self.bus.on_turn = self._turn
        self.bus.guard.on_lost = self._lose
        self._closed = False

    async def close(self) -> None:
        """Finish the accepted commands, then disconnect.

        Raises:
            StoreLostError: The bucket was deleted.
        """
        self._closed = True
        await self._sweeper.stop()
        await self._committer.drain()
        await self._live_records.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()
        if self.bus.guard.lost is not None:
            raise copied(self.bus.guard.lost)

    def _lose(self, loss: StoreLostError) -> None:
        for slot in self._slots.watched():
            if slot.audience is not None:
                slot.audience.end(loss)

    @property
    def largest_append(self) -> int:
        """The largest append, in bytes: its records fit one atomic batch."""
        return _LARGEST_RECORDS * self.bus.max_message

    async def get(self, path: str) -> StreamState | None:
        """Return the state at a path; nothing that any gateway acknowledged before this call is missing.

        Args:
            path: The path of the stream.

        Returns:
            The state, a soft-deleted one too; None if there is no stream, or it expired.

        Raises:
            StoreUnavailableError: The current state cannot be read.
        """
        slot = self._slot(path)
        await self._catchup.current(slot)
        return self._live(slot)

    async def glance(self, path: str) -> StreamState | None:
        """Return the known state at a path; the leader is asked only if nothing is known.

        Args:
            path: The path of the stream.

        Returns:
            The state as far as it is known; None if there is no stream, or it expired.

        Raises:
            StoreUnavailableError: Nothing is known of the path, and nothing can be read.
        """
        slot = self._slot(path)
        if slot.state is None:
            await self._catchup.glance(slot)
        return self._live(slot)

    async def create(self, command: Create) -> Created:
        """Create a stream, or find the equal one.

        Args:
            command: The path, the configuration and the first data.

        Returns:
            The state, and whether the stream is new.

        Raises:
            Rejection: Another stream is at the path, or the fork point is not possible.
            StoreError: The stream was not created.
        """
        source = None if command.fork is None else self._slot(command.fork.path)
        slot = self._slot(command.path)
        slots = (slot,) if source is None or source is slot else (slot, source)

        async def ready() -> Callable[[CommitBatch], Created]:
            if slot.state is not None and slot.expired(slot.state, self._clock()):
                await self._expire(slot)
            return lambda batch: batch.create(slot, source, command)

        return await self._decide(ready, lambda: slots, size=len(command.payload))

    async def append(self, path: str, command: Append) -> Appended:
        """Append to a stream, close it, or both.

        Args:
            path: The path of the stream.
            command: The payload in stored form, and what the request says of it.

        Returns:
            The state after the append, and whether the append had been stored before.

        Raises:
            Rejection: The rules refuse the append.
            StoreError: The append was not stored, or, for StoreUncertainError, may have been stored.
        """
        slot, stamp = self._slot(path), command.producer
        header = 12 if stamp is None else 52 + 2 * len(stamp.id)
        return await self._submit(
            partial(_append, slot=slot, command=command),
            (slot,),
            size=len(command.payload),
            header=header,
            stamped=stamp is not None,
            repeatable=stamp is not None,
        )

    async def delete(self, path: str) -> None:
        """Delete a stream; one with forks becomes soft-deleted.

        Args:
            path: The path of the stream.

        Raises:
            Rejection: There is no stream at the path.
            StoreError: The stream was not deleted.
        """
        slot = self._slot(path)
        chain = [slot]

        async def ready() -> Callable[[CommitBatch], None]:
            chain[1:] = ancestors = await self._ancestors(slot)
            return lambda batch: batch.delete(slot, list[Slot](ancestors))

        await self._decide(ready, lambda: tuple(chain))

    async def retain(self, path: str, command: Trim | SetRetention) -> StreamState:
        """Change what a stream keeps.

        Args:
            path: The path of the stream.
            command: The position to begin at, or the policy.

        Returns:
            The state after the command.

        Raises:
            Rejection: There is no stream at the path.
            StoreError: Nothing was changed.
        """
        slot = self._slot(path)

        def retain(batch: CommitBatch) -> StreamState:
            return batch.retain(slot, command)

        return await self._submit(retain, (slot,), single=True, repeatable=True)

    def touch(self, path: str) -> None:
        """Restart the sliding window of a stream; the stored one follows once it lags too far behind.

        Args:
            path: The path of the stream.
        """
        slot = self._slots.peek(path)
        if slot is not None:
            self._touch(slot)

    async def read(self, state: StreamState, start: int, limit: int) -> Chunk:
        """Return whole appends from ``start``, inherited bytes from the streams that own them.

        Args:
            state: The stream, as ``get`` or ``glance`` returned it.
            start: The position to read from.
            limit: About how many bytes to return; at least one append is returned.

        Returns:
            The bytes. The chunk begins before ``start`` where that is inside an append; at the tail it is empty.

        Raises:
            Rejection: The bytes are gone: with the stream (404), or given up since ``state`` (410).
            StoreUnavailableError: The bytes cannot be read now.
        """
        try:
            return await read_lineage(self._reader.read_appends, state, start, limit)
        except Rejection:
            await self._check_retained(state, start)
            raise

    async def read_piece(self, state: StreamState, start: int, limit: int, *, aligned: bool = False) -> Chunk:
        """Return some bytes from ``start``, wherever appends end.

        Args:
            state: The stream, as ``get`` or ``glance`` returned it.
            start: The position to read from.
            limit: The most bytes to return; at least one byte is returned.
            aligned: Whether to begin at the start of the append that holds ``start``.

        Returns:
            The bytes; at the tail the chunk is empty.

        Raises:
            Rejection: The bytes are gone: with the stream (404), or given up since ``state`` (410).
            StoreUnavailableError: The bytes cannot be read now.
        """
        try:
            return await read_piece_of_lineage(self._reader.read_piece, state, start, limit, aligned=aligned)
        except Rejection:
            await self._check_retained(state, start)
            raise

    async def _check_retained(self, state: StreamState, position: int) -> None:
        """Raise the 410 of bytes that were given up since ``state``; return if they went with their stream."""
        now = await self.get(state.path)
        if now is not None and now.id == state.id:
            retention.check_retained(now, position)

    async def boundary(self, state: StreamState, position: int) -> int:
        """Return where the first append at or after ``position`` begins, or the tail.

        Args:
            state: The stream, as ``get`` or ``glance`` returned it.
            position: The position to search from.

        Returns:
            The position.

        Raises:
            StoreUnavailableError: The position cannot be read now.
        """
        return await boundary_in_lineage(self._reader.boundary, state, position)

    async def watch(self, path: str) -> JetWatch:
        """Return a live view of the stream at a path.

        Args:
            path: The path of the stream; there may be no stream yet.

        Returns:
            The view, to be entered as a context manager.

        Raises:
            StoreUnavailableError: The stream cannot be watched now.
        """
        slot = self._slot(path)
        await self._live_records.join(slot)
        return JetWatch(slot, self._touch, self._timers, self._recent, self._live_records)

    async def list_streams(self, prefix: str, after: str, limit: int) -> Listed:
        """Return a part of the list of streams, in the order of their paths.

        Args:
            prefix: The text that their paths begin with; "" for all.
            after: The path to go on after, "" for the beginning.
            limit: The most streams to return. Fewer may be returned before the end, even none.

        Returns:
            The streams, and where to go on.

        Raises:
            StoreUnavailableError: The list cannot be read now.
        """
        paths = await self._paths.page(prefix, after, limit)
        states: list[StreamState] = []
        for at in range(0, len(paths), _QUESTIONS):
            found = await asyncio.gather(*map(self._listed, paths[at : at + _QUESTIONS]))
            states += [state for state in found if state is not None and not state.deleted]
        return Listed(states, paths[-1] if len(paths) == limit else None)

    async def list_producers(
        self, state: StreamState, after: str, limit: int
    ) -> list[tuple[str, ProducerState]]:
        """Return producers of a stream in the order of their ids, each with its last accepted request.

        Args:
            state: The stream, as ``get`` returned it.
            after: The id to go on after, "" for the beginning.
            limit: How many to return; fewer only at the end.

        Returns:
            The ids and the states; none of a stream that was deleted meanwhile.

        Raises:
            StoreUnavailableError: They cannot be read now.
        """
        slot = self._slot(state.path)
        await self._catchup.current(slot)
        await self._catchup.producers(slot)
        if slot.state is None or slot.state.id != state.id:
            return []
        return first_producers(slot.producers, after, limit)

    async def _listed(self, path: str) -> StreamState | None:
        """Return the current state at a path; a listing moves nothing out of the cache of states."""
        slot = self._slots.peek(path) or JetSlot(path)
        await self._catchup.current(slot)
        if slot.state is None and not slot.revision:
            self._paths.drop(path)
        return self._live(slot)

    async def records_per_second(self, state: StreamState) -> float | None:
        """Return how many appends came a second during the last minute, through all gateways.

        Args:
            state: The stream, as ``get`` returned it.

        Returns:
            The appends a second, None of a stream whose appends are not counted, or were removed already.

        Raises:
            StoreUnavailableError: NATS does not answer.
        """
        if state.records is None:
            return None
        moment = self._clock() - MINUTE
        if state.created is not None and state.created > moment:
            return state.records / MINUTE
        last = await self.bus.last_before(self.bus.layout.log(state.id), moment)
        before = None if last is None else decode_record(last.record).records
        return None if before is None else (state.records - before) / MINUTE

    async def figures(self) -> StoreFigures:
        """Return what the store counts, now; while NATS does not answer without the size of the bucket."""
        sizes: dict[str, int] = {}
        with contextlib.suppress(StoreUnavailableError):
            sizes["bucket"] = (await self.bus.info()).bytes
        return StoreFigures(
            self._committer.figures,
            self._committer.backlog.commands,
            self._committer.backlog.size,
            len(self._slots),
            sizes,
            connected=self.bus.connected,
            reconnects=self.bus.reconnects,
        )

    async def check(self) -> None:
        """Store an empty probe.

        Raises:
            StoreError: The store cannot commit.
        """

        def probe(batch: CommitBatch) -> None:
            batch.probe = True

        await self._submit(probe, (), repeatable=True)

    # -- commands

    def _submit(
        self, decide: Callable[[CommitBatch], T], slots: tuple[JetSlot, ...], **options: Any
    ) -> asyncio.Future[T]:
        if self._closed:
            raise StoreUnavailableError("the server is stopping; none of this request was stored")
        return self._committer.submit(decide, slots, **options)

    async def _decide(
        self,
        ready: Callable[[], Awaitable[Callable[[CommitBatch], T]]],
        slots: Callable[[], tuple[JetSlot, ...]],
        size: int = 0,
    ) -> T:
        clock = asyncio.get_running_loop().time
        until = clock() + PATIENCE
        while True:
            try:
                decide = await ready()
                return await self._submit(decide, slots(), size=size, single=True)
            except NotLoadedError as error:
                if clock() > until:
                    raise StoreUnavailableError(
                        "the streams that this one was forked from keep changing; none of this request was stored"
                    ) from error
                for slot in slots():
                    self._catchup.distrust(slot)
                await self._catchup.all_current(slots())

    async def _ancestors(self, slot: JetSlot) -> list[JetSlot]:
        ancestors: list[JetSlot] = []
        if not slot.checked:
            await self._catchup.current(slot)
        state = slot.state
        while state is not None and state.forked_from is not None:
            parent = self._slot(state.forked_from)
            if not parent.checked:
                await self._catchup.current(parent)
            ancestors.append(parent)
            state = parent.state
        return ancestors

    def _touch(self, slot: JetSlot | Slot) -> None:
        state, now = slot.state, self._clock()
        if not isinstance(slot, JetSlot) or state is None or state.ttl is None or slot.expired(state, now):
            return
        slot.touched = now
        if rules.decide_touch(state, now) is not None and not self._closed:
            with contextlib.suppress(StoreError):  # a later touch is stored instead
                self._submit(lambda batch: batch.touch(slot), (slot,), repeatable=True)

    # -- expiry

    async def _expire(self, slot: JetSlot) -> None:
        chain = [slot]

        async def ready() -> Callable[[CommitBatch], None]:
            await self._catchup.current(slot)  # another gateway may have touched it
            chain[1:] = ancestors = await self._ancestors(slot)
            return lambda batch: batch.expire(slot, list[Slot](ancestors))

        await self._decide(ready, lambda: tuple(chain))

    async def _expire_at(self, path: str) -> None:
        slot = self._slot(path)
        if slot.audience is not None:
            self._touch(slot)
        await self._catchup.current(slot)
        state, now = slot.state, self._clock()
        if state is not None and state.retention is not None:
            await self._submit(lambda batch: batch.trim_due(slot), (slot,), single=True, repeatable=True)
        if state is not None and slot.expired(state, now):
            await self._expire(slot)
        elif state is not None and rules.is_expired(state, None, now):
            await self._sweeper.note(path, now)  # it lives on because of a touch that is not stored

    async def _cut_log(self, path: str, stream_id: int) -> None:
        """Remove the records of a log that a stream gave up. Its last one stays, and all that tell of producers."""
        slot = self._slot(path)
        await self._catchup.current(slot)
        state = slot.state
        if state is None or state.id != stream_id:
            return  # it was deleted: all of its log goes
        kept: int | None = slot.seq
        if state.floor < state.tail:
            kept = await self._reader.record_at(stream_id, state.floor)
        if kept is None or kept > slot.seq:
            return
        if slot.base is not None and slot.base.seq + 1 < kept:
            await self._snapshots.write(slot)
        if slot.base is not None and slot.base.seq + 1 < kept:
            raise StoreUnavailableError(f"the producers of {path} are not safe yet")
        await self.bus.purge(self.bus.layout.log(stream_id), before=kept)

    # -- what is in memory

    def _turn(self, question: bytes) -> None:
        self._committer.take_turn(question, self._slots.peek)

    def _slot(self, path: str) -> JetSlot:
        slot = self._slots.find(path)
        if slot is None:
            slot = JetSlot(path)
            self._slots.hold(slot)
        return slot

    def _live(self, slot: JetSlot) -> StreamState | None:
        state = slot.state
        return None if state is None or slot.expired(state, self._clock()) else state

    def _changed(self, slot: JetSlot) -> None:
        if self._snapshots.is_due(slot) and not self._closed:
            task = asyncio.create_task(self._snapshots.write(slot))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class JetWatch(SlotWatch):
    """A live reader of a stream that other gateways write, too."""

    __slots__ = ("_jet_slot", "_live")

    def __init__(
        self, slot: JetSlot, touch: Callable[[Slot], None], timers: Timers, recent: Recent, live: LiveRecords
    ) -> None:
        super().__init__(slot, touch, timers, recent)
        self._jet_slot = slot
        self._live = live

    def __enter__(self) -> JetWatch:
        super().__enter__()
        self._live.enter(self._jet_slot)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._jet_slot.audience is None:
            self._live.leave(self._jet_slot)


def _append(batch: CommitBatch, slot: JetSlot, command: Append) -> Appended:
    # All producers are in memory, or the command would still wait: an unknown one never wrote.
    loaded = None if command.producer is None else LoadedProducer(None, slot.forgets)
    return batch.append(slot, command, loaded)
