"""Live reads on NATS: records of watched streams, whichever gateway committed them.

Invariants: one subscription for each watched stream, for any number of readers, cancelled when the last one left; a
record that follows the known log is applied, anything else is a question to the leader; records that a subscription may
have missed (while it spread, over a reconnect or an election) are found by checks.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

from durable_streams.stores.base import StoreError
from durable_streams.stores.jetstream.catchup import CatchUp
from durable_streams.stores.jetstream.nats.bus import Bus
from durable_streams.stores.jetstream.nats.messages import NatsSubscription, Stored
from durable_streams.stores.jetstream.records import decode_record
from durable_streams.stores.jetstream.slots import JetSlot

__all__ = ["LiveRecords"]

_LINGER = 2.0  # seconds that an unwatched stream stays subscribed: a long-poll returns at once
_AGAIN = 1.0  # seconds until a failed subscription is retried
_TURN = 0.25  # seconds between searches for due checks
_SOON = (0.1, 1.0)  # seconds after subscribing: interest takes a moment to reach the other servers
_EVERY = 10.0  # seconds between checks of a watched stream
_CHECKS_AT_ONCE = 32
_CHECKS_A_SECOND = 400  # of all watched streams: with more than 4,000 streams, checks are delayed


class _WatchedStream:
    """A watched stream."""

    __slots__ = ("check_at", "checks", "slot", "stream_id", "subscribing")

    def __init__(self, slot: JetSlot, stream_id: int, subscribing: asyncio.Task[NatsSubscription]) -> None:
        self.slot = slot
        self.stream_id = stream_id
        self.subscribing = subscribing
        self.checks = 0
        self.check_at = 0.0  # on the loop's clock

    @property
    def is_renewed(self) -> bool:
        """Whether the stream has a time to live and an audience."""
        state = self.slot.state
        return state is not None and state.ttl is not None and self.slot.audience is not None


class LiveRecords:
    """Keeps watched slots up to date.

    Args:
        bus: The bucket.
        catchup: Brings slots up to date.
        is_own: Whether this gateway wrote the record with a nonce.
        touch: Restarts the sliding window of a stream.
    """

    def __init__(
        self, bus: Bus, catchup: CatchUp, is_own: Callable[[str], bool], touch: Callable[[JetSlot], None]
    ) -> None:
        self._bus = bus
        self._catchup = catchup
        self._is_own = is_own
        self._touch = touch
        self._entries: dict[int, _WatchedStream] = {}
        self._renewed: dict[int, _WatchedStream] = {}  # streams with a time to live
        self._count = itertools.count()  # entries do not compare
        self._due: list[tuple[float, int, _WatchedStream]] = []  # a heap: when to check which stream
        self._looks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the periodic checks."""
        self._bus.on_restored.append(self._restored)
        self._looking = asyncio.create_task(self._look_again())

    async def stop(self) -> None:
        """Cancel every subscription."""
        if self._restored in self._bus.on_restored:
            self._bus.on_restored.remove(self._restored)
        tasks: list[asyncio.Task[Any]] = [*self._looks, *([] if self._looking is None else [self._looking])]
        self._looking = None
        tasks += [entry.subscribing for entry in self._entries.values() if not entry.subscribing.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for entry in list(self._entries.values()):
            self._drop(entry)

    @property
    def streams(self) -> int:
        """The number of subscriptions."""
        return len(self._entries)

    async def join(self, slot: JetSlot) -> None:
        """Bring a slot up to date, and keep it so; raises StoreUnavailableError."""
        await self._catchup.current(slot)
        while slot.state is not None and not slot.state.deleted:
            entry = self._entries.get(slot.state.id)
            if entry is not None and entry.subscribing.done():
                return
            if entry is None:
                entry = self._subscribe(slot, slot.state.id)
            await asyncio.shield(entry.subscribing)
            await self._catchup.current(slot)  # what was committed before the subscription

    def enter(self, slot: JetSlot) -> None:
        """Subscribe to a slot that has an audience now, if the subscription of `join` has ended."""
        state = slot.state
        if state is not None and not state.deleted and state.id not in self._entries:
            self._subscribe(slot, state.id)

    def leave(self, slot: JetSlot) -> None:
        """End the subscription of a slot soon, unless it has an audience again by then."""
        entry = None if slot.state is None else self._entries.get(slot.state.id)
        if entry is not None:
            asyncio.get_running_loop().call_later(_LINGER, self._drop_if_unwatched, entry)

    def _subscribe(self, slot: JetSlot, stream_id: int) -> _WatchedStream:
        def deliver(stored: Stored) -> None:
            self._deliver(entry, stored)

        subscribing = asyncio.create_task(self._bus.subscribe(self._bus.layout.live(stream_id), deliver))
        entry = self._entries[stream_id] = _WatchedStream(slot, stream_id, subscribing)
        if slot.state is not None and slot.state.ttl is not None:
            self._renewed[stream_id] = entry
        subscribing.add_done_callback(lambda task: self._subscribed(entry, task))
        return entry

    def _subscribed(self, entry: _WatchedStream, task: asyncio.Task[NatsSubscription]) -> None:
        loop = asyncio.get_running_loop()
        if task.cancelled() or task.exception() is not None:
            self._forget(entry)
            if not task.cancelled() and self._looking is not None:
                loop.call_later(_AGAIN, self._subscribe_again, entry.slot)
            return
        self._look_at(entry, loop.time() + _SOON[0])
        loop.call_later(_LINGER, self._drop_if_unwatched, entry)  # the reader may have left already

    def _subscribe_again(self, slot: JetSlot) -> None:
        """Retry the subscription of a slot that has an audience without one."""
        if slot.audience is not None and self._looking is not None:
            self.enter(slot)

    def _drop_if_unwatched(self, entry: _WatchedStream) -> None:
        if self._entries.get(entry.stream_id) is entry and entry.slot.audience is None:
            self._drop(entry)

    def _forget(self, entry: _WatchedStream) -> None:
        if self._entries.get(entry.stream_id) is entry:
            del self._entries[entry.stream_id]
            self._renewed.pop(entry.stream_id, None)

    def _drop(self, entry: _WatchedStream) -> None:
        self._forget(entry)
        task = entry.subscribing
        if task.done() and not task.cancelled() and task.exception() is None:
            task.result().cancel()

    def _deliver(self, entry: _WatchedStream, stored: Stored) -> None:
        slot, record = entry.slot, decode_record(stored.record)
        if slot.state is None or slot.state.id != entry.stream_id or self._is_own(record.nonce):
            return  # own records are known by their acknowledgement
        if slot.busy:
            slot.behind = True
        elif not slot.follow(stored.seq, record, stored.data):
            self._look(entry)

    def _look(self, entry: _WatchedStream) -> None:
        task = asyncio.create_task(self._check(entry))
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _check(self, entry: _WatchedStream) -> None:
        async with self._room:
            try:
                await self._catchup.current(entry.slot)
            except StoreError:
                self._look_at(entry, asyncio.get_running_loop().time() + _TURN)
                return
        state = entry.slot.state
        if state is None or state.id != entry.stream_id:
            self._drop(entry)

    def _look_at(self, entry: _WatchedStream, when: float) -> None:
        entry.check_at = when
        heapq.heappush(self._due, (when, next(self._count), entry))

    def _restored(self) -> None:
        now = asyncio.get_running_loop().time()
        for entry in self._entries.values():
            entry.checks = 0
            self._look_at(entry, now)

    def renew(self) -> None:
        """Touch watched streams with a time to live: other gateways do not know of the audience."""
        for entry in self._renewed.values():
            if entry.is_renewed:
                self._touch(entry.slot)

    async def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TURN)
            self.renew()
            now, checks = loop.time(), 0
            while self._due and self._due[0][0] <= now and checks < _CHECKS_A_SECOND * _TURN:
                when, _, entry = heapq.heappop(self._due)
                if when != entry.check_at or self._entries.get(entry.stream_id) is not entry:
                    continue  # it was postponed, or is not watched any more
                checks += 1
                entry.checks += 1
                self._look_at(entry, now + (_SOON[1] if entry.checks < len(_SOON) else _EVERY))
                self._look(entry)
