"""What a store counts of itself, for those who watch it.

Invariants: counted once for each commit, never for each append, in plain integers; everything else is looked up when
it is asked for. Counters begin at zero when the store is opened.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

__all__ = ["CommitFigures", "Histogram", "Measured", "StoreFigures"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)
_COMMANDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Histogram:
    """How often values were up to each of some bounds.

    Attributes:
        bounds: The bounds, ascending.
        counts: How many values are up to each bound and above the one before it; the last is of those above all.
        sum: The sum of all values.

    Args:
        bounds: The bounds, ascending.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value.

        Args:
            value: The value.
        """
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class CommitFigures:
    """What was committed.

    Attributes:
        appends: Appends that were stored, closures with data included.
        bytes: Their bytes, in stored form.
        seconds: How long commits took, the sync to disk (or the answer of NATS) included.
        commands: How many commands each commit answered.
        failed: Commits that failed.
    """

    __slots__ = ("appends", "bytes", "commands", "failed", "seconds")

    def __init__(self) -> None:
        self.appends = 0
        self.bytes = 0
        self.seconds = Histogram(_SECONDS)
        self.commands = Histogram(_COMMANDS)
        self.failed = 0

    def stored(self, commands: int, seconds: float) -> None:
        """Count a commit that succeeded.

        Args:
            commands: How many commands it answers.
            seconds: How long it took.
        """
        self.commands.observe(commands)
        self.seconds.observe(seconds)


class StoreFigures(msgspec.Struct):
    """A store at one moment.

    Attributes:
        commits: What was committed since the store was opened.
        queued_commands: Commands that wait to be stored, or are being stored.
        queued_bytes: Their bytes.
        streams_in_memory: Streams whose state is in memory.
        sizes: Bytes of each part of the store, by name.
        purge_backlog: Deleted streams whose bytes are not removed yet; None where that is not known.
        connected: Whether the servers behind the store answer; None of a store without such.
        reconnects: How often the connection to them was made again.
    """

    commits: CommitFigures
    queued_commands: int
    queued_bytes: int
    streams_in_memory: int
    sizes: dict[str, int] = {}
    purge_backlog: int | None = None
    connected: bool | None = None
    reconnects: int = 0


@runtime_checkable
class Measured(Protocol):
    """A store that can be watched."""

    async def figures(self) -> StoreFigures:
        """Return what the store counts, now; what cannot be found out within about a second is left out."""
