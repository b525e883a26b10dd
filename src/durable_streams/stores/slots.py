"""The streams that a store has in memory: one Slot a stream, its live readers, and the cache of slots.

Invariants:
* there is at most one Slot per path, as long as anything refers to it, so that eviction is always safe;
* ``state`` is the state that was committed last; commits reach watches in order, on the event loop;
* all who wait for a path share one load and go on in order of arrival; paths that are asked for during a load are
  loaded together after it;
* no wait ends before its time-out, or later than one tick after it.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping
from operator import attrgetter
from types import MappingProxyType, TracebackType
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from durable_streams.protocol import rules
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import Chunk, StoreError, as_store_error
from durable_streams.stores.pace import Pace

__all__ = ["Audience", "LoadingCache", "Recent", "Slot", "SlotCache", "SlotWatch", "Timers"]

_TICK = 0.1  # seconds


class Timers:
    """Calls back at an approximate time; a callback is the key to cancel itself."""

    def __init__(self) -> None:
        self._ticks: dict[int, dict[Callable[[], None], None]] = {}

    def call_at(self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], None]) -> int:
        """Call back at ``when`` (the loop's clock) or up to one tick later; return the tick, for ``cancel``."""
        tick = math.ceil(when / _TICK)
        due = self._ticks.get(tick)
        if due is None:
            due = self._ticks[tick] = {}
            loop.call_at(tick * _TICK, self._due, tick)
        due[callback] = None
        return tick

    def cancel(self, tick: int, callback: Callable[[], None]) -> None:
        """Withdraw a callback."""
        due = self._ticks.get(tick)
        if due is not None:
            due.pop(callback, None)

    def _due(self, tick: int) -> None:
        for callback in list(self._ticks.pop(tick)):
            callback()


_RECENT_BYTES = 256 << 10  # of a stream; its last commit may be larger, since all readers want it at once
_ALL_RECENT_BYTES = 8 << 20  # of all streams
_MAX_PRODUCERS = 1024
_NOBODY: Mapping[str, ProducerState] = MappingProxyType({})


class Slot:
    """One path: its committed state, the producers that are loaded, and its audience.

    Attributes:
        path: The path.
        state: The committed state, None if there is no stream.
        touched: When the sliding window was restarted last, in seconds since 1970; None if never.
        producers: The loaded producers, by id.
        forgets: How often ``producers`` was cleared: a producer loaded before the last time may be stale.
        audience: The live readers, None if there are none.
        pace: How fast the stream grows, None if it did not since it is in memory.
    """

    # Few objects per stream: with a hundred thousand in memory, each one costs every full garbage collection.
    __slots__ = ("__weakref__", "audience", "forgets", "pace", "path", "producers", "state", "touched")

    def __init__(self, path: str, state: StreamState | None) -> None:
        self.path = path
        self.state = state
        self.touched: float | None = None
        self.producers: Mapping[str, ProducerState] = _NOBODY
        self.forgets = 0
        self.audience: Audience | None = None
        self.pace: Pace | None = None

    def expired(self, state: StreamState, now: float) -> bool:
        """Whether a state of this slot has expired; never while it has an audience."""
        return self.audience is None and rules.is_expired(state, self.touched, now)

    def publish(self, state: StreamState | None) -> None:
        """Show a committed state to readers."""
        if self.state is not None and (state is None or state.id != self.state.id):
            self._forget_producers()
            self.pace = None
            if self.audience is not None:
                self.audience.forget()
        self.state = state

    def learn_producer(self, producer_id: str, state: ProducerState) -> None:
        """Keep a producer; drop all others first if there are too many: they can be loaded again."""
        if len(self.producers) >= _MAX_PRODUCERS:
            self._forget_producers()
        producers = self.producers
        if not isinstance(producers, dict):
            self.producers = producers = {}
        producers[producer_id] = state

    def _forget_producers(self) -> None:
        self.producers = _NOBODY
        self.forgets += 1


class Recent:
    """The bound on recent bytes of all audiences: the one written to longest ago drops its bytes first."""

    __slots__ = ("_audiences", "_bytes")

    def __init__(self) -> None:
        self._audiences: dict[Audience, int] = {}  # the last written to is the last in it
        self._bytes = 0

    def count(self, audience: Audience, size: int) -> None:
        """Record that an audience keeps ``size`` bytes now."""
        self._bytes += size - self._audiences.pop(audience, 0)
        if size:
            self._audiences[audience] = size
        while self._bytes > _ALL_RECENT_BYTES:
            next(iter(self._audiences)).forget()


class Audience:
    """The live readers of a slot, and the bytes that were committed lately during their watch."""

    __slots__ = ("_all", "_recent", "_recent_bytes", "ended", "watches")

    def __init__(self, recent: Recent) -> None:
        self.ended: StoreError | None = None
        self.watches: set[SlotWatch] = set()
        self._all = recent
        self._recent: list[Chunk] = []
        self._recent_bytes = 0

    def publish(self, start: int, payload: bytes) -> None:
        """Keep bytes that were just committed, within a bound; drop all bytes before a gap."""
        if self._recent and self._recent[-1].end != start:
            self.forget()
        self._recent.append(Chunk(start, start + len(payload), payload))
        self._recent_bytes += len(payload)
        while self._recent_bytes > _RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= len(self._recent.pop(0).payload)
        self._all.count(self, self._recent_bytes)

    def forget(self) -> None:
        """Drop all bytes: there is no room, or the stream is gone."""
        self._recent.clear()
        self._recent_bytes = 0
        self._all.count(self, 0)

    def notify(self) -> None:
        """Wake all readers."""
        for watch in self.watches:
            watch.wake()

    def end(self, reason: StoreError) -> None:
        """Make every watch raise ``reason`` from now on."""
        self.ended = reason
        self.forget()
        self.notify()

    def since(self, position: int) -> Chunk | None:
        """Return the recent bytes from ``position`` to the tail, None if they do not reach back to it."""
        recent = self._recent
        if not recent or position < recent[0].start or position >= recent[-1].end:
            return None
        if position == recent[-1].start:  # a reader that keeps up
            return recent[-1]
        first = bisect_left(recent, position, key=_start)
        if first == len(recent) or recent[first].start != position:
            return None  # inside an append: only the store knows where it begins
        return Chunk(position, recent[-1].end, b"".join([chunk.payload for chunk in recent[first:]]))


_start = attrgetter("start")


class SlotWatch:
    """A live reader of a slot (the Watch contract)."""

    __slots__ = (
        "_audience",
        "_deadline",
        "_recent",
        "_slot",
        "_tick",
        "_tick_at",
        "_timers",
        "_touch",
        "_waiter",
        "_woken",
    )

    def __init__(self, slot: Slot, touch: Callable[[Slot], None], timers: Timers, recent: Recent) -> None:
        self._slot = slot
        self._recent = recent
        self._touch = touch
        self._timers = timers
        self._audience: Audience | None = None
        self._woken = False
        self._deadline = 0.0
        self._tick: int | None = None
        self._tick_at = 0.0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def state(self) -> StreamState | None:
        """The committed state, None once the stream is gone; raises StoreError once the store is lost."""
        audience = self._audience
        if audience is not None and audience.ended is not None:
            raise type(audience.ended)(*audience.ended.args)
        return self._slot.state

    def recent(self, position: int) -> Chunk | None:
        """Return what was committed from ``position`` to the tail, if still in memory."""
        return None if self._audience is None else self._audience.since(position)

    def wake(self) -> None:
        """End the present wait, or the next one if there is none."""
        self._woken = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def changed(self, timeout: float) -> bool:
        """Wait for a commit or ``wake``; False after ``timeout`` seconds."""
        if not self._woken:
            loop = asyncio.get_running_loop()
            self._deadline = deadline = loop.time() + timeout
            if self._tick is None or self._tick_at > deadline:
                self._set_timer(loop, deadline)
            self._waiter = waiter = loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None
        woken, self._woken = self._woken, False
        return woken

    def _set_timer(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        self._cancel_timer()
        self._tick_at = deadline
        self._tick = self._timers.call_at(loop, deadline, self.time_up)

    def _cancel_timer(self) -> None:
        if self._tick is not None:
            self._timers.cancel(self._tick, self.time_up)
            self._tick = None

    def time_up(self) -> None:
        """End the present wait if its time is up; called by Timers."""
        # One timer serves many waits: a timer for each would cost more than the rest of a wake-up.
        self._tick = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        loop = waiter.get_loop()
        if loop.time() < self._deadline:
            self._set_timer(loop, self._deadline)
        else:
            waiter.set_result(None)

    def __enter__(self) -> SlotWatch:
        audience = self._slot.audience
        if audience is None:
            audience = self._slot.audience = Audience(self._recent)
        audience.watches.add(self)
        self._audience = audience
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel_timer()
        audience, self._audience = self._audience, None
        if audience is not None:
            audience.watches.discard(self)
            if not audience.watches:
                # The window restarts when the last reader leaves; without the touch the stream could expire at once.
                self._touch(self._slot)
                self._slot.audience = None
                audience.forget()


S = TypeVar("S", bound=Slot)

_LOAD_STREAMS = 256


class SlotCache(Generic[S]):
    """The slots of a store.

    Args:
        max_streams: About how many slots to keep that nothing else refers to.
    """

    def __init__(self, max_streams: int) -> None:
        self._half = max(1, max_streams // 2)
        self.clear()

    def clear(self) -> None:
        """Drop everything, for a store that is opened again, maybe on another event loop."""
        # Two generations instead of a linked list, so that a hit costs one dictionary look-up.
        self.young: dict[str, S] = {}
        self._old: dict[str, S] = {}
        self._all: WeakValueDictionary[str, S] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._all)

    def peek(self, path: str) -> S | None:
        """Return the slot of a path if it is in memory."""
        return self.young.get(path) or self._all.get(path)

    def find(self, path: str) -> S | None:
        """Return the slot of a path if it is in memory, and keep it longer."""
        slot = self.young.get(path)
        if slot is None:
            slot = self._all.get(path)
            if slot is not None:
                self._keep(slot)
        return slot

    def hold(self, slot: S) -> None:
        """Add the slot of a path that has none."""
        self._all[slot.path] = slot
        self._keep(slot)

    def watched(self) -> list[S]:
        """Return the slots that have an audience."""
        return [slot for slot in self._all.values() if slot.audience is not None]

    def _keep(self, slot: S) -> None:
        if len(self.young) >= self._half:
            self._old = self.young
            self.young = {}
        self.young[slot.path] = slot


class LoadingCache(SlotCache[S]):
    """A cache that loads missing slots.

    Args:
        load: Returns a slot for each of some paths; its exceptions reach the waiters as StoreError.
        max_streams: About how many slots to keep that nothing else refers to.
    """

    def __init__(self, load: Callable[[list[str]], Awaitable[Mapping[str, S]]], max_streams: int) -> None:
        self._load_slots = load
        super().__init__(max_streams)

    def clear(self) -> None:
        """Drop everything, for a store that is opened again, maybe on another event loop."""
        super().clear()
        self._loading: dict[str, asyncio.Future[S]] = {}
        self._to_load: list[str] = []
        self._loader: asyncio.Task[None] | None = None

    async def get(self, path: str) -> S:
        """Return the slot of a path; hot callers check ``young`` first, which saves the coroutine."""
        slot = self.find(path)
        if slot is not None:
            return slot
        loading = self._loading.get(path)
        if loading is None:
            loading = self._loading[path] = asyncio.get_running_loop().create_future()
            self._to_load.append(path)
            if self._loader is None:
                self._loader = asyncio.create_task(self._load())
        # Shielded: a reader that leaves must not fail the others that wait for the same stream.
        return await asyncio.shield(loading)

    async def _load(self) -> None:
        while self._to_load:
            paths, self._to_load = self._to_load[:_LOAD_STREAMS], self._to_load[_LOAD_STREAMS:]
            try:
                self._loaded(paths, await self._load_slots(paths))
            except Exception:  # noqa: BLE001 - one unreadable stream must not fail its neighbours
                await self._load_one_by_one(paths)
        self._loader = None

    async def _load_one_by_one(self, paths: list[str]) -> None:
        for path in paths:
            try:
                self._loaded([path], await self._load_slots([path]))
            except Exception as error:  # noqa: BLE001 - any failure must reach the waiters
                loading = self._loading.pop(path)
                loading.set_exception(as_store_error(error))
                loading.exception()  # retrieved, in case nothing waits any more

    def _loaded(self, paths: list[str], slots: Mapping[str, S]) -> None:
        for path in paths:
            self.hold(slots[path])
            self._loading.pop(path).set_result(slots[path])
