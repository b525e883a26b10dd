"""What the server counts beside its store: plain integers, one addition where something happens."""

from __future__ import annotations

__all__ = ["Counts"]

_OTHER = "OTHER"
_MOST_CODES = 64


class Counts:
    """The counters of one server since its start.

    Attributes:
        catch_up: Reads to the tail.
        long_poll: Long-polls.
        sse: Event streams.
        duplicates: Appends of producers that were stored already, and recognised.
        refusals: How often each code was the answer. A bounded number of codes.
    """

    __slots__ = ("catch_up", "duplicates", "long_poll", "refusals", "sse")

    def __init__(self) -> None:
        self.catch_up = 0
        self.long_poll = 0
        self.sse = 0
        self.duplicates = 0
        self.refusals: dict[str, int] = {}

    def read(self, live: str | None) -> None:
        """Count a read in its mode."""
        if live is None:
            self.catch_up += 1
        elif live == "sse":
            self.sse += 1
        elif live == "long-poll":
            self.long_poll += 1

    def refused(self, code: str) -> None:
        """Count an answer with this code."""
        refusals = self.refusals
        if code not in refusals and len(refusals) >= _MOST_CODES:
            code = _OTHER
        refusals[code] = refusals.get(code, 0) + 1
