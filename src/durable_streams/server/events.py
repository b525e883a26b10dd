"""Events that were encoded for one reader of a stream and serve all that are at the same place.

Invariants: events that are kept for further readers are below ``_KEPT_BYTES`` in all streams together; one that is not
small counts in the budget of all clients once, from when it was made until it is neither kept nor being sent.
"""

from __future__ import annotations

from typing import Any

from durable_streams.server.budget import MemoryBudget

__all__ = ["Event", "EventCache"]

_KEPT_BYTES = 8 << 20
_SMALL = 64 << 10


class Event:
    """Data and control events.

    ``end``: the position that they commit; ``reached``: the one up to which bytes were read, which is further by
    those of a character that is not complete yet; ``done``: whether the stream ends there.
    """

    __slots__ = ("data", "done", "end", "is_kept", "is_small", "reached", "readers", "size")

    def __init__(self, data: bytes, end: int, reached: int, *, done: bool) -> None:
        self.data = data
        self.end = end
        self.reached = reached
        self.done = done
        self.size = len(data)
        self.is_small = self.size <= _SMALL  # then it counts in no budget
        self.is_kept = False
        self.readers = 0


class EventCache:
    """The events that were encoded last."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._events: dict[Any, Event] = {}
        self._bytes = 0
        budget.reclaim = self.clear

    def get(self, key: Any) -> Event | None:
        """Return an event if it is still there."""
        return self._events.get(key)

    def keep(self, key: Any, event: Event) -> None:
        """Keep a new event for other readers, in place of the oldest ones; ``key`` is all that it depends on."""
        if not event.is_small:
            self._budget.charge(len(event.data))
        if key in self._events or len(event.data) > _KEPT_BYTES:
            return
        event.is_kept = True
        self._events[key] = event
        self._bytes += len(event.data)
        while self._bytes > _KEPT_BYTES:
            self._forget(next(iter(self._events)))

    def take(self, event: Event) -> None:
        """Count a reader that the event is being sent to."""
        event.readers += 1

    def drop(self, event: Event) -> None:
        """Count one reader less, and release what is not used any more."""
        event.readers -= 1
        self._release(event)

    def clear(self) -> None:
        """Forget all events."""
        while self._events:
            self._forget(next(iter(self._events)))

    def _forget(self, key: Any) -> None:
        event = self._events.pop(key)
        self._bytes -= len(event.data)
        event.is_kept = False
        self._release(event)

    def _release(self, event: Event) -> None:
        if not event.readers and not event.is_kept and not event.is_small:
            self._budget.release(len(event.data))
