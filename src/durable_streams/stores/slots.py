"""What a local store keeps in memory of one stream, and who watches it.

Invariants: there is at most one Slot per path at a time; ``state`` is what was committed last; commits are published
to watches in order, on the event loop.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType, TracebackType

from durable_streams.protocol import rules
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import Chunk, StoreError
from durable_streams.stores.timers import Timers

__all__ = ["Audience", "Recent", "Slot", "SlotWatch"]

_RECENT_BYTES = 256 << 10  # of a stream; its last commit may be larger, all readers want it at once
_ALL_RECENT_BYTES = 8 << 20  # of all streams
_MAX_PRODUCERS = 1024
_NOBODY: Mapping[str, ProducerState] = MappingProxyType({})


class Slot:
    """One path: its committed state, its producers as far as they are known, its audience."""

    # Few objects per stream: with a hundred thousand in memory, each one costs every full garbage collection.
    __slots__ = ("__weakref__", "audience", "forgets", "path", "producers", "state", "touched")

    def __init__(self, path: str, state: StreamState | None) -> None:
        self.path = path
        self.state = state
        self.touched: float | None = None
        self.producers: Mapping[str, ProducerState] = _NOBODY
        self.forgets = (
            0  # how often producers were forgotten: what was loaded before the last time may be stale
        )
        self.audience: Audience | None = None

    def expired(self, state: StreamState, now: float) -> bool:
        """Whether a state of this slot is past its end; never while somebody watches."""
        return self.audience is None and rules.is_expired(state, self.touched, now)

    def publish(self, state: StreamState | None) -> None:
        """Make a committed state the one that readers see."""
        if self.state is not None and (state is None or state.id != self.state.id):
            self._forget_producers()
            if self.audience is not None:
                self.audience.forget()
        self.state = state

    def learn_producer(self, producer_id: str, state: ProducerState) -> None:
        """Remember a producer, forgetting all others when they are too many: they can be loaded again."""
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
    """How much all audiences of a store keep: the ones that were written to longest ago forget theirs first."""

    __slots__ = ("_audiences", "_bytes")

    def __init__(self) -> None:
        self._audiences: dict[Audience, int] = {}  # the last written to is the last in it
        self._bytes = 0

    def count(self, audience: Audience, size: int) -> None:
        """Note that an audience keeps ``size`` bytes now."""
        self._bytes += size - self._audiences.pop(audience, 0)
        if size:
            self._audiences[audience] = size
        while self._bytes > _ALL_RECENT_BYTES:
            next(iter(self._audiences)).forget()


class Audience:
    """Who watches a slot, and what was committed lately while they did."""

    __slots__ = ("_all", "_recent", "_recent_bytes", "ended", "watches")

    def __init__(self, recent: Recent) -> None:
        self.ended: StoreError | None = None
        self.watches: set[SlotWatch] = set()
        self._all = recent
        self._recent: list[Chunk] = []
        self._recent_bytes = 0

    def publish(self, start: int, payload: bytes) -> None:
        """Keep what was just committed, within a bound, and nothing from before a gap."""
        if self._recent and self._recent[-1].end != start:
            self.forget()
        self._recent.append(Chunk(start, start + len(payload), payload))
        self._recent_bytes += len(payload)
        while self._recent_bytes > _RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= len(self._recent.pop(0).payload)
        self._all.count(self, self._recent_bytes)

    def forget(self) -> None:
        """Keep nothing: there is no room, or the stream is gone."""
        self._recent.clear()
        self._recent_bytes = 0
        self._all.count(self, 0)

    def notify(self) -> None:
        """Wake everybody."""
        for watch in self.watches:
            watch.wake()

    def end(self, reason: StoreError) -> None:
        """Have every watch raise, from now on, instead of showing a state."""
        self.ended = reason
        self.forget()
        self.notify()

    def since(self, position: int) -> Chunk | None:
        """Return the recent bytes from ``position`` to the tail, None if they do not reach back so far."""
        recent = self._recent
        if not recent or position < recent[0].start or position >= recent[-1].end:
            return None
        if position == recent[-1].start:  # a reader that keeps up
            return recent[-1]
        first = bisect_left(recent, position, key=_start)
        if first == len(recent) or recent[first].start != position:
            return None  # inside an append: the store knows whether that may be
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
        """The committed state, None once the stream is gone; raises StoreError once the store has nothing any more."""
        audience = self._audience
        if audience is not None and audience.ended is not None:
            raise type(audience.ended)(*audience.ended.args)
        return self._slot.state

    def recent(self, position: int) -> Chunk | None:
        """Return what was committed from ``position`` to the tail, if still in memory."""
        return None if self._audience is None else self._audience.since(position)

    def wake(self) -> None:
        """End the present wait, or the next one if nobody waits now."""
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
        """End the present wait if it has lasted long enough; for Timers."""
        # One timer outlives many waits: setting one for each would cost more than the rest of a wake-up.
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
                # The window starts anew when the last reader leaves; touched first, or it would be past its end.
                self._touch(self._slot)
                self._slot.audience = None
                audience.forget()
