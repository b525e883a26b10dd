"""Token buckets: how much may be done in a second, and how much at once.

Invariants: time is given, and never looked at; a bucket may be overdrawn by one amount that was not known before, and
gives nothing until that is paid off.
"""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """Fills with time, up to a limit.

    Args:
        rate: Units a second.
        capacity: The most units at once.
        now: The time in seconds, on any clock that does not go back.
    """

    __slots__ = ("_capacity", "_level", "_rate", "_seen")

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self._rate = rate
        self._capacity = capacity
        self._level = capacity
        self._seen = now

    def wait(self, amount: float, now: float) -> float:
        """Return in how many seconds ``amount`` can be taken; 0 if that is now."""
        level = self._level + (now - self._seen) * self._rate
        self._level, self._seen = min(level, self._capacity), now
        missing = min(amount, self._capacity) - self._level
        return missing / self._rate if missing > 0 else 0.0

    def take(self, amount: float) -> None:
        """Take an amount, also one that is more than there is."""
        self._level -= amount

    def is_full(self, now: float) -> bool:
        """Whether nothing was taken for so long that a new bucket would be the same."""
        return self._level + (now - self._seen) * self._rate >= self._capacity
