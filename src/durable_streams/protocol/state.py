"""What a server knows of a stream, as immutable values: rules make new ones, stores keep them.

Invariants: ``id`` is never used twice, so bytes at (id, position) never change; ``tail`` only grows; a closed stream
stays closed; a soft-deleted stream exists only for its forks.
"""

from __future__ import annotations

import msgspec

from durable_streams.protocol import headers

__all__ = ["Policy", "ProducerStamp", "ProducerState", "Retention", "Segment", "StreamState"]


class ProducerStamp(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What identifies one request of a producer: the producer's id, its epoch, the request's number (section 4)."""

    id: str
    epoch: int
    seq: int


class ProducerState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The last request accepted from a producer on a stream."""

    epoch: int
    seq: int


class Segment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Inherited bytes: everything before position ``end`` (and after the previous segment) is stream ``id``'s."""

    id: int
    end: int


class Policy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How much of itself a stream keeps: at least one limit.

    Attributes:
        max_age: In seconds.
        max_bytes: In bytes of stored form.
        is_default: Whether it is the server's (``serve --retention``), not the stream's own.
    """

    max_age: int | None = None
    max_bytes: int | None = None
    is_default: bool = False


class Retention(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A policy, and what applying it needs: when (seconds since 1970) the append at a position came."""

    policy: Policy
    marks: tuple[tuple[float, int], ...] = ()


class StreamState(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A stream's configuration and condition; positions in bytes, times in seconds since 1970.

    ``deadline`` is when it expires if nothing touches it; ``lineage`` says whose bytes a fork reads before its own.
    ``earliest`` is where a read can begin, ``floor`` from where the bytes are kept: for forks, that may be before it.
    ``trims`` counts the changes of ``earliest`` and ``retention``.
    ``created`` is None of a stream that an earlier version stored.
    ``records`` counts the appends with data to the stream itself, ``appended`` is when the last one came; both are None
    where an earlier version wrote the stream, ``appended`` also before the first.
    """

    id: int
    path: str
    content_type: str
    tail: int = 0
    closed: bool = False
    closed_by: ProducerStamp | None = None
    last_seq: str | None = None
    ttl: int | None = None
    expires_at: str | None = None
    deadline: float | None = None
    forked_from: str | None = None
    fork_position: int = 0
    lineage: tuple[Segment, ...] = ()
    forks: int = 0
    deleted: bool = False
    earliest: int = 0
    floor: int = 0
    retention: Retention | None = None
    trims: int = 0
    created: float | None = None
    records: int | None = None
    appended: float | None = None

    @property
    def is_json(self) -> bool:
        """Whether the stream holds JSON messages."""
        return headers.is_json(self.content_type)
