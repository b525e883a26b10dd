"""How fast streams grow: appends a second during the last minute, for those who look at one of them.

Invariants: a stream costs a comparison for each commit and at most six samples, and only while it is in memory.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from durable_streams.protocol.state import StreamState

__all__ = ["MINUTE", "Pace", "Paced"]

MINUTE = 60.0
"""Seconds that a pace is about."""
_STEP = 15.0  # seconds between two samples
_SAMPLES = int(MINUTE / _STEP) + 2


class Pace:
    """The lately counted appends of one stream."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []

    def note(self, before: StreamState, after: StreamState) -> None:
        """Note the commit of an append, which changes the state at a path from ``before`` to ``after``."""
        if before.id != after.id or before.records is None or after.appended is None:
            return
        samples, moment = self._samples, after.appended
        if not samples or not 0 <= moment - samples[-1][0] < _STEP:
            samples.append((moment, before.records))
            del samples[:-_SAMPLES]

    def per_second(self, records: int, now: float) -> float:
        """Return how many appends came a second during about the last minute.

        Args:
            records: How many there are.
            now: The present time, in seconds since 1970, by the clock of the noted states.
        """
        for moment, before in self._samples:
            if 0 <= now - moment < MINUTE + _STEP:
                return (records - before) / max(MINUTE, now - moment)
        return 0.0


@runtime_checkable
class Paced(Protocol):
    """A store that knows how fast a stream grows."""

    async def records_per_second(self, state: StreamState) -> float | None:
        """Return how many appends came a second during about the last minute.

        Args:
            state: The stream, as ``get`` returned it.

        Returns:
            The appends a second, None where that is not known.

        Raises:
            StoreUnavailableError: It cannot be found out now.
        """
