"""What the server counts beside its store: plain integers, one addition where something happens."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Counts", "PrefixCounts"]

_OTHER = "OTHER"
_MOST_CODES = 64


class PrefixCounts:
    """What was done with the streams whose paths begin with a text.

    Attributes:
        prefix: The text.
        appends: Appends that this server stored.
        bytes: Their bytes, as they came.
        reads: Reads of all modes.
    """

    __slots__ = ("appends", "bytes", "prefix", "reads")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.appends = 0
        self.bytes = 0
        self.reads = 0


class Counts:
    """The counters of one server since its start.

    Attributes:
        catch_up: Reads to the tail.
        long_poll: Long-polls.
        sse: Event streams.
        duplicates: Appends of producers that were stored already, and recognised.
        refusals: How often each code was the answer. A bounded number of codes.
        prefixes: What is counted apart; a stream counts for the first one that its path begins with.

    Args:
        prefixes: The beginnings of paths whose streams are counted apart.
    """

    __slots__ = ("catch_up", "duplicates", "long_poll", "prefixes", "refusals", "sse")

    def __init__(self, prefixes: Sequence[str] = ()) -> None:
        self.prefixes = [PrefixCounts(prefix) for prefix in prefixes]
        self.catch_up = 0
        self.long_poll = 0
        self.sse = 0
        self.duplicates = 0
        self.refusals: dict[str, int] = {}

    def stored(self, path: str, size: int) -> None:
        """Count an append of some bytes for its prefix."""
        counts = self._of(path)
        if counts is not None:
            counts.appends += 1
            counts.bytes += size

    def _of(self, path: str) -> PrefixCounts | None:
        return next((one for one in self.prefixes if path.startswith(one.prefix)), None)

    def read(self, live: str | None, path: str) -> None:
        """Count a read in its mode, and for its prefix."""
        if self.prefixes and (counts := self._of(path)) is not None:
            counts.reads += 1
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
