"""What a local store keeps in memory of one stream, and who watches it.

Invariants: there is at most one Slot per path at a time; ``state`` is what was committed last; commits are published
to watches in order, on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

from durable_streams.protocol import rules
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import Chunk

__all__ = ["Slot", "SlotWatch"]

_RECENT_BYTES = 1 << 20
_MAX_PRODUCERS = 1024


class Slot:
    """One path: its committed state, its producers as far as they are known, its watches."""

    __slots__ = (
        "__weakref__",
        "path",
        "producers",
        "recent",
        "recent_bytes",
        "shared",
        "state",
        "touched",
        "watches",
    )

    def __init__(self, path: str, state: StreamState | None) -> None:
        self.path = path
        self.state = state
        self.touched: float | None = None
        self.producers: dict[str, ProducerState | None] = {}
        self.watches: set[SlotWatch] | None = None
        self.recent: list[Chunk] = []
        self.recent_bytes = 0
        self.shared: dict[Any, Any] = {}

    def expired(self, state: StreamState, now: float) -> bool:
        """Whether a state of this slot is past its end; never while somebody watches."""
        return not self.watches and rules.is_expired(state, self.touched, now)

    def publish(self, state: StreamState | None) -> None:
        """Make a committed state the one that readers see."""
        if self.state is not None and (state is None or state.id != self.state.id):
            self.producers = {}
            self.recent.clear()
            self.recent_bytes = 0
        self.state = state

    def publish_chunk(self, start: int, payload: bytes) -> None:
        """Keep what was just committed for the watches, within a bound."""
        if not self.watches:
            return
        self.recent.append(Chunk(start, start + len(payload), payload))
        self.recent_bytes += len(payload)
        while self.recent_bytes > _RECENT_BYTES:
            self.recent_bytes -= len(self.recent.pop(0).payload)

    def publish_producer(self, producer_id: str, state: ProducerState) -> None:
        """Remember a producer, forgetting all when they are too many: they can be loaded again."""
        if len(self.producers) >= _MAX_PRODUCERS:
            self.producers = {}
        self.producers[producer_id] = state

    def notify(self) -> None:
        """Wake everybody who watches."""
        self.shared.clear()
        if self.watches:
            for watch in self.watches:
                watch.wake()

    def since(self, position: int) -> Chunk | None:
        """Return the recent bytes from ``position`` to the tail, None if they do not reach back so far."""
        recent = self.recent
        if not recent or position < recent[0].start or position > recent[-1].end:
            return None
        if position == recent[-1].start:  # a reader that keeps up
            return recent[-1]
        joined = b"".join([chunk.payload for chunk in recent if chunk.end > position])
        end = recent[-1].end
        return Chunk(position, end, joined[len(joined) - (end - position) :])


class SlotWatch:
    """A live reader of a slot (the Watch contract)."""

    __slots__ = ("_slot", "_waiter", "_woken")

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._woken = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def state(self) -> StreamState | None:
        """The committed state, None once the stream is gone."""
        return self._slot.state

    @property
    def shared(self) -> MutableMapping[Any, Any]:
        """Scratch space of all watches of this stream, emptied by every commit."""
        return self._slot.shared

    def recent(self, position: int) -> Chunk | None:
        """Return what was committed from ``position`` to the tail, if still in memory."""
        return self._slot.since(position)

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
            waiter = self._waiter = loop.create_future()
            timer = loop.call_later(timeout, _expire, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiter = None
        woken, self._woken = self._woken, False
        return woken

    def __enter__(self) -> SlotWatch:
        if self._slot.watches is None:
            self._slot.watches = set()
        self._slot.watches.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slot = self._slot
        if slot.watches is not None:
            slot.watches.discard(self)
            if not slot.watches:
                slot.watches = None
                slot.touched = time.time()
                slot.recent.clear()
                slot.recent_bytes = 0
                slot.shared.clear()


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
