"""What every store in one process shares: lazy states, group commit, expiry and wake-ups over a Backend.

Invariants: states change only when their batch is committed; once the backend has lost its data, every answer is
StoreLostError; everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from operator import methodcaller
from typing import Any, NamedTuple, Protocol, TypeVar

from durable_streams.protocol import retention, rules
from durable_streams.protocol.commands import Append, Appended, Create, Created, Rejection, SetRetention, Trim
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.backlog import MAX_BYTES, MAX_COMMANDS, Backlog
from durable_streams.stores.base import (
    Chunk,
    Listed,
    StoreDamagedError,
    StoreError,
    StoreLostError,
    StoreUnavailableError,
)
from durable_streams.stores.batch import CommitBatch, LoadedProducer, NotLoadedError
from durable_streams.stores.commits import LOST, Committed, GroupCommits, copied
from durable_streams.stores.figures import StoreFigures
from durable_streams.stores.lineage import boundary_in_lineage, read_lineage, read_piece_of_lineage
from durable_streams.stores.pace import MINUTE, Pace
from durable_streams.stores.slots import LoadingCache, Recent, Slot, SlotWatch, Timers
from durable_streams.stores.subscriptions import SubscriptionStore

__all__ = ["Backend", "LocalStore", "StoreLimits"]

T = TypeVar("T")

_SWEEP_INTERVAL = 2.0  # seconds between looks for expired streams
_SWEEP_STREAMS = 1000
_PROBE_SECONDS = 5.0
_CLOSE_SECONDS = 5.0  # for all of it
_MEASURE_SECONDS = 1.0
_MOST_DAMAGES = 1000  # streams; damage of more is noticed again by each request that meets it

_log = logging.getLogger("durable_streams.stores")


class StoreLimits(NamedTuple):
    """Bounds of a local store.

    Attributes:
        disk_timeout: Seconds that a commit or a read may take.
        max_queued_bytes: The most bytes that may wait to be stored.
        max_queued_commands: The most commands that may wait to be stored.
    """

    disk_timeout: float = 15.0
    max_queued_bytes: int = MAX_BYTES
    max_queued_commands: int = MAX_COMMANDS


DEFAULT_LIMITS = StoreLimits()


class Backend(Protocol):
    """The part of a LocalStore that keeps bytes. Called from the event loop; applies no rule.

    Every method but ``commit`` may raise StoreError; docs/write-a-store.md is the guide.

    Attributes:
        identity: The identity of the store, known once it is open.
        largest_append: The largest append, in bytes, known once it is open.
    """

    identity: str
    largest_append: int

    async def open(self) -> int:
        """Prepare to serve.

        Returns:
            A number that is not less than any stream id ever used.
        """

    async def close(self, timeout: float) -> None:
        """Release everything.

        Args:
            timeout: About how many seconds to wait for a commit under way; it is abandoned after that.
        """

    async def verify(self) -> None:
        """Check that the data are where they were opened.

        Raises:
            StoreLostError: They were moved, removed or replaced.
        """

    async def load(self, paths: list[str]) -> dict[str, StreamState]:
        """Load states.

        Args:
            paths: The paths.

        Returns:
            The committed states by path, of those paths that have one.
        """

    async def load_producer(self, stream_id: int, producer_id: str) -> ProducerState | None:
        """Load a producer.

        Args:
            stream_id: The id of the stream.
            producer_id: The id of the producer.

        Returns:
            The committed state, None if the producer never wrote to the stream.
        """

    async def list_producers(self, stream_id: int, after: str, limit: int) -> list[tuple[str, ProducerState]]:
        """Return committed producers of a stream in the order of their ids.

        Args:
            stream_id: The id of the stream.
            after: The id to go on after.
            limit: How many to return; fewer only at the end.

        Returns:
            The ids and the states.
        """

    def commit(self, batch: CommitBatch, committed: Committed) -> None:
        """Write a batch, all or nothing, then report on the event loop, now or later. Raises nothing.

        Args:
            batch: The decisions to store.
            committed: Called with None, or with the StoreError of a batch that was not stored.
        """

    async def read(self, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
        """Return whole appends from the one that holds ``start``; the chunk may begin before ``start``.

        Args:
            stream_id: The id of the stream that owns the bytes.
            start: The position to read from.
            stop: The position to end at; everything before it is committed.
            limit: About how many bytes to return, at least one append.

        Returns:
            The bytes, None if they are gone.
        """

    async def read_piece(
        self, stream_id: int, start: int, stop: int, limit: int, aligned: bool
    ) -> Chunk | None:
        """Return some bytes, wherever appends end.

        Args:
            stream_id: The id of the stream that owns the bytes.
            start: The position to read from.
            stop: The position to end at; everything before it is committed.
            limit: The most bytes to return, at least one.
            aligned: Whether to begin at the start of the append that holds ``start``.

        Returns:
            The bytes, None if they are gone.
        """

    async def boundary(self, stream_id: int, position: int, stop: int) -> int | None:
        """Return where the first append at or after a position begins.

        Args:
            stream_id: The id of the stream that owns the bytes.
            position: The position to search from.
            stop: The position to end at.

        Returns:
            The position; None, or a position past ``stop``, if no append begins before ``stop``.
        """

    async def expired(self, now: float, limit: int) -> list[str]:
        """Return streams that are due: their stored ``retention.due_at`` has passed.

        Args:
            now: The time, in seconds since 1970.
            limit: The most paths to return.

        Returns:
            The paths.
        """

    async def list_states(self, prefix: str, after: str, limit: int) -> list[StreamState]:
        """Return committed states in the order of their paths, however many streams there are.

        Args:
            prefix: The text that their paths begin with.
            after: The path to go on after.
            limit: How many to return; fewer only at the end.

        Returns:
            The states, those of deleted streams that have forks too.
        """


class LocalStore:
    """The Store contract over a Backend.

    Args:
        backend: Keeps the bytes.
        max_streams: The most streams whose state is cached.
        clock: Returns the seconds since 1970.
        limits: Bounds on the disk and on waiting commands.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_streams: int = 200_000,
        clock: Callable[[], float] = time.time,
        limits: StoreLimits = DEFAULT_LIMITS,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._limits = limits
        self._slots = LoadingCache(self._load, max_streams)
        self._loading_producers: dict[tuple[str, str], asyncio.Task[LoadedProducer]] = {}
        self._last_id = 0
        self._sweeper: asyncio.Task[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self._slots.clear()
        self._timers = Timers()
        self._recent = Recent()
        self._lost: StoreLostError | None = None  # for clients
        self._loss: StoreLostError | None = None  # for the operator, with paths
        self._probe: asyncio.Future[None] | None = None
        self._damages: dict[int | None, StoreDamagedError] = {}  # by stream id; None where it is not known
        self._full = False  # whether there is room for deletions only
        self._commits = GroupCommits(
            self._new_batch,
            self._commit,
            self._publish,
            self._lose,
            timeout=self._limits.disk_timeout,
            backlog=Backlog(self._limits.max_queued_bytes, self._limits.max_queued_commands),
        )

    # -- the contract

    async def open(self) -> None:
        """Open the backend, and start the search for expired streams; a closed store may be opened again.

        Raises:
            StoreError: The store cannot be opened; one sentence says why.
        """
        self._begin()  # everything belongs to one event loop
        self._last_id = await self._backend.open()
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """Commit the accepted commands, then close the backend; raises StoreError if the disk did not allow it.

        Raises:
            StoreError: Accepted commands could not be finished, or the data are lost.
        """
        self._commits.stop(StoreUnavailableError("the server is stopping; none of this request was stored"))
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        clock = asyncio.get_running_loop().time
        until = clock() + _CLOSE_SECONDS
        drained = await self._commits.drained(_CLOSE_SECONDS)
        await self._backend.close(max(0.0, until - clock()))
        if self._loss is not None:
            raise self._loss
        if not drained:
            raise StoreUnavailableError(
                "the disk did not answer: requests without an answer may not be stored"
            )

    async def get(self, path: str) -> StreamState | None:
        """Return the committed state at a path, None if there is none or it expired.

        Args:
            path: The path of the stream.

        Returns:
            The state, a soft-deleted one too; None if there is no stream, or it expired.

        Raises:
            StoreUnavailableError: The current state cannot be read.
        """
        if self._lost is not None:
            raise copied(self._lost)
        slot = self._slots.young.get(path) or await self._slots.get(path)
        state = slot.state
        if state is None or (state.deadline is not None and slot.expired(state, self._clock())):
            return None
        return state

    @property
    def largest_append(self) -> int:
        """The largest append that this store takes, in bytes."""
        return self._backend.largest_append

    @property
    def identity(self) -> str:
        """The name of the history that this store holds."""
        return self._backend.identity

    @property
    def subscriptions(self) -> SubscriptionStore | None:
        """The subscriptions of this store; None if its backend keeps none. Another object after each ``open``."""
        kept: SubscriptionStore | None = getattr(self._backend, "subscriptions", None)
        return kept

    glance = get  # no other server writes here: memory is current

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
        if self._full:
            await self._find_room()
        source = None if command.fork is None else await self._slots.get(command.fork.path)

        async def ready() -> Callable[[CommitBatch], Created]:
            slot = await self._slots.get(command.path)
            if slot.state is not None and slot.expired(slot.state, self._clock()):
                await self._expire(slot)
            return lambda batch: batch.create(slot, source, command)

        return await self._decide(ready, len(command.payload))

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
        if self._full and command.payload:
            await self._find_room()
        slot = self._slots.young.get(path) or await self._slots.get(path)
        if self._damages:
            self._check_whole(slot)
        stamp = command.producer
        loaded = None
        if stamp is not None and stamp.id not in slot.producers:
            loaded = await self._producer(slot, stamp.id)

        while True:
            # A partial of C: the frame of a function would be one more for each append.
            decide: Callable[[CommitBatch], Appended] = methodcaller("append", slot, command, loaded)
            try:
                return await self._commits.submit(decide, len(command.payload), repeatable=stamp is not None)
            except NotLoadedError:
                if stamp is not None:
                    loaded = await self._producer(slot, stamp.id)

    async def delete(self, path: str) -> None:
        """Delete a stream; one with forks becomes soft-deleted.

        Args:
            path: The path of the stream.

        Raises:
            Rejection: There is no stream at the path.
            StoreError: The stream was not deleted.
        """
        slot = await self._slots.get(path)

        async def ready() -> Callable[[CommitBatch], None]:
            ancestors = await self._ancestors(slot)
            return lambda batch: batch.delete(slot, ancestors)

        await self._decide(ready, 0)

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
        slot = await self._slots.get(path)
        self._check_whole(slot)
        return await self._commits.submit(lambda batch: batch.retain(slot, command), repeatable=True)

    def touch(self, path: str) -> None:
        """Restart the sliding window of a stream; the stored one follows once it lags too far behind.

        Args:
            path: The path of the stream.
        """
        slot = self._slots.peek(path)
        if slot is not None:
            self._touch(slot)

    def _touch(self, slot: Slot) -> None:
        state, now = slot.state, self._clock()
        if state is None or state.ttl is None or slot.expired(state, now):
            return
        slot.touched = now
        if rules.decide_touch(state, now) is not None:
            with contextlib.suppress(StoreError):  # a later touch is stored instead
                future = self._commits.submit(lambda batch: batch.touch(slot), repeatable=True)
                future.add_done_callback(_ignore)

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
        if self._lost is not None:
            raise copied(self._lost)
        try:
            return await read_lineage(self._backend.read, state, start, limit)
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
        if self._lost is not None:
            raise copied(self._lost)
        try:
            return await read_piece_of_lineage(self._backend.read_piece, state, start, limit, aligned=aligned)
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
        return await boundary_in_lineage(self._backend.boundary, state, position)

    async def watch(self, path: str) -> SlotWatch:
        """Return a live view of the stream at a path.

        Args:
            path: The path of the stream; there may be no stream yet.

        Returns:
            The view, to be entered as a context manager.

        Raises:
            StoreUnavailableError: The stream cannot be watched now.
        """
        if self._lost is not None:
            raise copied(self._lost)
        return SlotWatch(await self._slots.get(path), self._touch, self._timers, self._recent)

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
        if self._lost is not None:
            raise copied(self._lost)
        found = await self._backend.list_states(prefix, after, limit)
        now = self._clock()
        live = [self._newest(state) for state in found if not (state.deleted or self._is_over(state, now))]
        return Listed(live, found[-1].path if len(found) == limit else None)

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
        if self._lost is not None:
            raise copied(self._lost)
        return await self._backend.list_producers(state.id, after, limit)

    def _newest(self, state: StreamState) -> StreamState:
        """Return what is known of a stored state: what is in memory is not older, and exact."""
        slot = self._slots.peek(state.path)
        known = None if slot is None else slot.state
        return known if known is not None and known.id == state.id and known.tail >= state.tail else state

    async def records_per_second(self, state: StreamState) -> float | None:
        """Return how many appends came a second during about the last minute, since the stream is in memory.

        Args:
            state: The stream, as ``get`` returned it.

        Returns:
            The appends a second, None of a stream whose appends are not counted.
        """
        if state.records is None:
            return None
        slot, now = self._slots.peek(state.path), self._clock()
        if state.created is not None and now - state.created < MINUTE:
            return state.records / MINUTE
        if slot is None or slot.pace is None or slot.state is None or slot.state.id != state.id:
            return 0.0
        return slot.pace.per_second(state.records, now)

    def _is_over(self, state: StreamState, now: float) -> bool:
        """Whether a stored state has expired; what touched it since may be in memory only."""
        slot = None if state.deadline is None else self._slots.peek(state.path)
        if slot is None or slot.state is None or slot.state.id != state.id:
            return rules.is_expired(state, None, now)
        return slot.expired(state, now)

    async def figures(self) -> StoreFigures:
        """Return what the store counts, now; while the disk does not answer without sizes."""
        sizes: dict[str, int] = {}
        purge_backlog: int | None = None
        with contextlib.suppress(StoreError, asyncio.TimeoutError):
            sizes, purge_backlog = await asyncio.wait_for(self._measure(), _MEASURE_SECONDS)
        return StoreFigures(
            self._commits.figures,
            self._commits.backlog.commands,
            self._commits.backlog.size,
            len(self._slots),
            sizes,
            purge_backlog,
        )

    async def _measure(self) -> tuple[dict[str, int], int | None]:
        """Return bytes by part of the backend, and how many deleted streams it has not removed yet, if it knows."""
        return {}, None

    async def check(self) -> None:
        """Commit an empty probe, shared by concurrent calls. Raises StoreError after some seconds at most.

        Raises:
            StoreError: The store cannot commit.
        """
        if self._full:
            await self._find_room()
        if self._damages:
            raise copied(next(iter(self._damages.values())))
        if self._probe is None or self._probe.done():
            self._probe = self._commits.submit(_mark_probe, repeatable=True)
            self._probe.add_done_callback(_ignore)
        try:
            await asyncio.wait_for(asyncio.shield(self._probe), _PROBE_SECONDS)
        except asyncio.TimeoutError:
            raise StoreUnavailableError(f"the disk has not answered for {_PROBE_SECONDS:g} seconds") from None

    def _note_damage(self, damage: StoreDamagedError) -> None:
        """Refuse what would write to a damaged stream, and say at each health check that there is one."""
        if damage.stream not in self._damages and len(self._damages) < _MOST_DAMAGES:
            _log.error("%s", damage)
            self._damages[damage.stream] = damage

    def _check_whole(self, slot: Slot) -> None:
        """Raise StoreDamagedError if the stream of a slot is damaged."""
        damage = None if slot.state is None else self._damages.get(slot.state.id)
        if damage is not None:
            raise copied(damage)

    def _lose(self, loss: StoreLostError) -> None:
        """Answer every request with an error from now on; ``loss`` names the path."""
        if self._loss is not None:
            return
        _log.error("%s", loss)
        self._loss = loss
        self._lost = StoreLostError(f"{LOST}; none of this request was stored or read")
        self._commits.stop(self._lost)
        for slot in self._slots.watched():
            if slot.audience is not None:
                slot.audience.end(self._lost)

    async def _find_room(self) -> None:
        """Raise StoreFullError unless there is room for data again."""

    async def _decide(self, ready: Callable[[], Awaitable[Callable[[CommitBatch], T]]], size: int) -> T:
        while True:
            try:
                return await self._commits.submit(await ready(), size)
            except NotLoadedError:
                continue

    def _commit(self, batch: CommitBatch, committed: Committed) -> None:
        self._backend.commit(batch, committed)

    def _new_batch(self) -> CommitBatch:
        return CommitBatch(self._clock(), self._new_id)

    def _publish(self, batch: CommitBatch) -> None:
        for slot, state in batch.changed.items():
            _note_pace(slot, state)
            slot.publish(state)
        # Data of a stream that was deleted in this batch do not belong to the present stream at its path.
        for (stream_id, producer_id), (producer, slot) in batch.producers.items():
            if slot.state is not None and slot.state.id == stream_id:
                slot.learn_producer(producer_id, producer)
        for stream_id, start, payload, slot in batch.records:
            if slot.audience is not None and slot.state is not None and slot.state.id == stream_id:
                slot.audience.publish(start, payload)
        for slot in batch.changed:
            if slot.audience is not None:
                slot.audience.notify()
        if self._damages:
            for stream_id in batch.removed:
                self._damages.pop(stream_id, None)

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    # -- what is in memory

    async def _load(self, paths: list[str]) -> dict[str, Slot]:
        states = await self._backend.load(paths)
        return {path: Slot(path, states.get(path)) for path in paths}

    async def _producer(self, slot: Slot, producer_id: str) -> LoadedProducer:
        # One load for all waiters: they continue in order of arrival, as pipelined requests need.
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
        async def ready() -> Callable[[CommitBatch], None]:
            ancestors = await self._ancestors(slot)
            return lambda batch: batch.expire(slot, ancestors)

        await self._decide(ready, 0)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL)
            try:
                await self._backend.verify()
                while await self._sweep_some():
                    pass
            except StoreLostError as loss:
                self._lose(loss)
                return
            except StoreError:
                continue  # the store cannot write now; an expired stream is a 404 all the same

    async def _sweep_some(self) -> bool:
        """Look at streams that are due, in commits that they share; return whether more may wait."""
        paths = await self._backend.expired(self._clock(), _SWEEP_STREAMS)
        outcomes = await asyncio.gather(*map(self._look_at, paths), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        # Those that a touch in memory keeps alive stay due: they must not be looked at without a pause.
        return len(paths) == _SWEEP_STREAMS and outcomes.count(True) > _SWEEP_STREAMS // 2

    async def _look_at(self, path: str) -> bool:
        """Give up what is too old of a stream, or all of it if it expired; return whether that was needed."""
        slot = await self._slots.get(path)
        state, now = slot.state, self._clock()
        if state is not None and state.retention is not None:
            await self._commits.submit(lambda batch: batch.trim_due(slot), repeatable=True)
        if slot.audience is not None:
            self.touch(path)
        elif state is not None and slot.expired(state, now):
            await self._expire(slot)
            return True
        return state is not slot.state


def _note_pace(slot: Slot, after: StreamState | None) -> None:
    """Note an append that a commit brings to a stream, before it is published."""
    before = slot.state
    if after is not None and before is not None and after.appended is not before.appended:
        if slot.pace is None:
            slot.pace = Pace()
        slot.pace.note(before, after)


def _mark_probe(batch: CommitBatch) -> None:
    batch.probe = True


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
