"""How things are called on NATS: one JetStream stream that is a key-value bucket and holds the logs beside it.

Pure. Invariants: a path becomes a key by its SHA-256 alone; no name of one kind is ever one of another.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from hashlib import sha256

__all__ = ["EXPECT", "OPERATION", "RECORD", "ROLLUP", "TTL", "Layout", "new_id"]

EXPECT = "Nats-Expected-Last-Subject-Sequence"
"""The header that makes a publish conditional: the last sequence of its subject, 0 for none."""
ROLLUP = "Nats-Rollup"
"""The header that lets a message replace what was on its subject."""
RECORD = "Durable"
"""The header of a log message that says what it is."""
OPERATION = "KV-Operation"
"""The header that makes a message a key-value client's delete marker."""
TTL = "Nats-TTL"
"""The header that lets a message vanish by itself."""

_RANDOM_BITS = 20


class Layout:
    """The subjects of one bucket. ``stream`` is the JetStream stream behind it."""

    __slots__ = ("_key", "name", "stream")

    def __init__(self, name: str) -> None:
        self.name = name
        self.stream = f"KV_{name}"
        self._key = f"$KV.{name}"

    def meta(self, path: str) -> str:
        """Return where a path's stream is kept, all but what its log says."""
        return f"{self._key}.meta.{_hash(path)}"

    @property
    def every_meta(self) -> str:
        """What matches what is kept of all streams."""
        return f"{self._key}.meta.>"

    def due(self, deadline: float, path: str) -> str:
        """Return where it is noted to look at a path when ``deadline`` (seconds since 1970) is over."""
        return f"{self._key}.due.{int(deadline // 60)}.{_hash(path)}"

    def due_in(self, minute: int) -> str:
        """Return what matches all that is noted for a minute (since 1970)."""
        return f"{self._key}.due.{minute}.>"

    def gone(self, stream_id: int) -> str:
        """Return where it is noted that a log can be removed."""
        return f"{self._key}.gone.{stream_id:x}"

    @property
    def every_gone(self) -> str:
        """What matches all logs that can be removed."""
        return f"{self._key}.gone.>"

    def snapshot(self, stream_id: int, part: int) -> str:
        """Return where a part of a log's snapshot is."""
        return f"{self._key}.snap.{stream_id:x}.{part}"

    def snapshots(self, stream_id: int) -> str:
        """Return what matches all parts of a log's snapshot."""
        return f"{self._key}.snap.{stream_id:x}.>"

    def log(self, stream_id: int) -> str:
        """Return where a stream's records are."""
        return f"{self.name}.log.{stream_id:x}"

    def live(self, stream_id: int) -> str:
        """Return where a stream's records are heard when they are stored."""
        return f"{self.name}.live.{stream_id:x}"

    @property
    def turn(self) -> str:
        """Where a server asks the others to let it write to a stream for once; this is not kept."""
        return f"{self.name}.turn"

    @property
    def probe(self) -> str:
        """Where a server writes to see that it can."""
        return f"{self._key}.probe"

    @property
    def identity(self) -> str:
        """Where it is kept which history the bucket holds."""
        return f"{self._key}.identity"

    @property
    def swept(self) -> str:
        """Where it is kept up to which minute expired streams were looked for."""
        return f"{self._key}.swept"


def _hash(path: str) -> str:
    return sha256(path.encode()).hexdigest()[:32]


def new_id(clock: Callable[[], float] = time.time) -> int:
    """Return an id for a new stream: milliseconds since 1970, then random bits; below 2^63 until the year 2248."""
    return int(clock() * 1000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
