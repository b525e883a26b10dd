"""Subjects on NATS: one JetStream stream that is a key-value bucket and also holds the logs.

Pure. Invariants: the key of a path is derived from its SHA-256 alone; subjects of different kinds never coincide.
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
"""The header of a message that replaces all messages on its subject."""
RECORD = "Durable"
"""The header of a log message that holds its LogRecord."""
OPERATION = "KV-Operation"
"""The header of a delete marker of key-value clients."""
TTL = "Nats-TTL"
"""The header of a message that expires."""

_RANDOM_BITS = 20


class Layout:
    """The subjects of one bucket.

    Attributes:
        name: The name of the bucket.
        stream: The name of its JetStream stream.
    """

    __slots__ = ("_key", "name", "stream")

    def __init__(self, name: str) -> None:
        self.name = name
        self.stream = f"KV_{name}"
        self._key = f"$KV.{name}"

    def meta(self, path: str) -> str:
        """Return the subject of the meta of a path."""
        return f"{self._key}.meta.{_hash(path)}"

    @property
    def every_meta(self) -> str:
        """The pattern of all metas."""
        return f"{self._key}.meta.>"

    def due(self, deadline: float, path: str) -> str:
        """Return the subject of the note to check a path after ``deadline`` (seconds since 1970)."""
        return f"{self._key}.due.{int(deadline // 60)}.{_hash(path)}"

    def due_in(self, minute: int) -> str:
        """Return the pattern of all notes of a minute (since 1970)."""
        return f"{self._key}.due.{minute}.>"

    def gone(self, stream_id: int) -> str:
        """Return the subject of the note that a log can be removed."""
        return f"{self._key}.gone.{stream_id:x}"

    @property
    def every_gone(self) -> str:
        """The pattern of all notes of logs that can be removed."""
        return f"{self._key}.gone.>"

    def trimmed(self, stream_id: int) -> str:
        """Return the subject of the note that the first records of a log can be removed."""
        return f"{self._key}.trim.{stream_id:x}"

    @property
    def every_trimmed(self) -> str:
        """The pattern of all notes of logs whose first records can be removed."""
        return f"{self._key}.trim.>"

    def snapshot(self, stream_id: int, part: int) -> str:
        """Return the subject of a part of the snapshot of a log."""
        return f"{self._key}.snap.{stream_id:x}.{part}"

    def snapshots(self, stream_id: int) -> str:
        """Return the pattern of all parts of the snapshot of a log."""
        return f"{self._key}.snap.{stream_id:x}.>"

    def log(self, stream_id: int) -> str:
        """Return the subject of the records of a stream."""
        return f"{self.name}.log.{stream_id:x}"

    def live(self, stream_id: int) -> str:
        """Return the subject on which stored records are republished."""
        return f"{self.name}.live.{stream_id:x}"

    @property
    def turn(self) -> str:
        """The subject on which a gateway asks the others to pause a stream; not stored."""
        return f"{self.name}.turn"

    @property
    def probe(self) -> str:
        """The subject of the probe of health checks."""
        return f"{self._key}.probe"

    @property
    def identity(self) -> str:
        """The subject of the identity of the bucket."""
        return f"{self._key}.identity"

    @property
    def swept(self) -> str:
        """The subject of the last minute that was swept."""
        return f"{self._key}.swept"


def _hash(path: str) -> str:
    return sha256(path.encode()).hexdigest()[:32]


def new_id(clock: Callable[[], float] = time.time) -> int:
    """Return an id for a new stream: milliseconds since 1970, then random bits; below 2^63 until the year 2248."""
    return int(clock() * 1000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
