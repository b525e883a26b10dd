"""What happens by itself, and when: one timer of the event loop for all subscriptions, by wall-clock time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

__all__ = ["DueTimes"]

_LONGEST = 3600.0  # seconds of one timer: the wall clock may be set meanwhile
_SLACK = 1000


class DueTimes:
    """Calls back with an id when its time has come.

    Args:
        clock: Returns the seconds since 1970.
        on_due: Called with an id, on the event loop.
    """

    def __init__(self, clock: Callable[[], float], on_due: Callable[[str], None]) -> None:
        self._clock = clock
        self._on_due = on_due
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # with entries that ``_times`` does not have any more
        self._timer: asyncio.TimerHandle | None = None

    def set(self, name: str, due: float | None) -> None:
        """Call back at ``due`` (seconds since 1970) and not before; None for never."""
        if due is None:
            self._times.pop(name, None)
            return
        if self._times.get(name) == due:
            return
        self._times[name] = due
        heapq.heappush(self._heap, (due, name))
        if len(self._heap) > 2 * len(self._times) + _SLACK:
            self._heap = [(at, one) for one, at in self._times.items()]
            heapq.heapify(self._heap)
        if self._heap[0][0] == due:
            self._arm()

    def stop(self) -> None:
        """Call back no more."""
        self._times.clear()
        self._heap.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            pause = min(max(0.0, self._heap[0][0] - self._clock()), _LONGEST)
            self._timer = asyncio.get_running_loop().call_later(pause, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, name = heapq.heappop(self._heap)
            if self._times.get(name) == due:
                del self._times[name]
                self._on_due(name)
        if self._timer is None:
            self._arm()
