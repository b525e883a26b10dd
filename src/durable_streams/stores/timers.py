"""Time-outs of many waits for the price of few timers.

Invariants: nobody is called early, nobody later than a tick after its time; all that are due in one tick share one
timer of the event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

__all__ = ["Timers"]

_TICK = 0.1  # seconds


class Timers:
    """Calls back at about a time; a callback is its own key to cancel it."""

    def __init__(self) -> None:
        self._ticks: dict[int, dict[Callable[[], None], None]] = {}

    def call_at(self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], None]) -> int:
        """Call back at ``when`` (the loop's clock) or up to a tick later; return the tick, to cancel it with."""
        tick = math.ceil(when / _TICK)
        due = self._ticks.get(tick)
        if due is None:
            due = self._ticks[tick] = {}
            loop.call_at(tick * _TICK, self._due, tick)
        due[callback] = None
        return tick

    def cancel(self, tick: int, callback: Callable[[], None]) -> None:
        """Call back no more."""
        due = self._ticks.get(tick)
        if due is not None:
            due.pop(callback, None)

    def _due(self, tick: int) -> None:
        for callback in list(self._ticks.pop(tick)):
            callback()
