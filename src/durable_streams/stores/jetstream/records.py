"""The stored form of a stream on NATS: log records, the meta beside the log, and snapshots of producers.

Pure. Invariants:
* the header of a record holds the small state of its stream after it, so that the last record is enough to open one;
* ``n`` counts the records of a log without a gap, and ``start`` is where the record before ended;
* producers are the only unbounded state: their table is a snapshot and a fold over the records behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from durable_streams.protocol.state import ProducerStamp, ProducerState, StreamState

__all__ = [
    "Base",
    "LogRecord",
    "Snapshot",
    "after",
    "cut_snapshot",
    "decode_meta",
    "decode_record",
    "decode_snapshot",
    "encode_meta",
    "encode_record",
    "same_meta",
    "with_meta",
    "with_tail",
]

_PRODUCER_BYTES = 50  # about how many bytes an entry of a snapshot has beside its id
_SNAPSHOT_BYTES = 1 << 20


class Base(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A record of a log: its sequence, its number and its end. A snapshot holds the producers up to it.

    If the log has no snapshot of this base or a later one, no producer wrote up to it.
    """

    seq: int
    n: int
    position: int


class LogRecord(msgspec.Struct, array_like=True, gc=False):
    """The header of a log message, whose data are stored bytes from a position on.

    Attributes:
        nonce: The gateway that wrote the record, and the number of its write.
        n: The number of the record in the log, from 1.
        start: The position of the first byte.
        lengths: The lengths of the appends inside, if there are several.
        closed: Whether the stream is closed after the record.
        closed_by: The producer that closed it.
        last_seq: The last Stream-Seq of the stream after the record.
        producers: Id, epoch and sequence number of the producers that wrote the record.
        more: Whether the append continues in the next record.
        end: Whether the log ends: the stream was deleted.
        base: Where the fold of producers begins, None while no producer has written.
        trims: How often what the stream keeps was changed, the record included: the meta tells the last change.
        records: How many appends the stream has after the record, None if that is not known.
        appended: When the last of them came, in seconds since 1970.
    """

    nonce: str
    n: int
    start: int
    lengths: list[int] = []
    closed: bool = False
    closed_by: ProducerStamp | None = None
    last_seq: str | None = None
    producers: list[tuple[str, int, int]] = []
    more: bool = False
    end: bool = False
    base: Base | None = None
    trims: int = 0
    records: int | None = None
    appended: float | None = None


class Snapshot(msgspec.Struct, array_like=True, gc=False):
    """One of the ``parts`` of the producers of a log after the record of ``base``."""

    base: Base
    parts: int
    producers: list[tuple[str, int, int]]


_encode = msgspec.json.Encoder().encode
decode_record = msgspec.json.Decoder(LogRecord).decode
decode_meta = msgspec.json.Decoder(StreamState).decode
decode_snapshot = msgspec.json.Decoder(Snapshot).decode


def encode_record(record: LogRecord) -> str:
    """Return the value of the header of a log message."""
    return _encode(record).decode()


def encode_meta(state: StreamState) -> bytes:
    """Return the meta of a stream: all state that the last record does not hold."""
    return _encode(
        replace(state, tail=0, closed=False, closed_by=None, last_seq=None, records=None, appended=None)
    )


def same_meta(one: StreamState, other: StreamState) -> bool:
    """Whether two states of one stream have the same changeable meta."""
    return (
        one.deadline == other.deadline
        and one.forks == other.forks
        and one.deleted is other.deleted
        and one.trims == other.trims
        and one.floor == other.floor
    )


def with_meta(state: StreamState, meta: StreamState) -> StreamState:
    """Return the state with the changeable meta of another one of the same stream."""
    return replace(
        state,
        deadline=meta.deadline,
        forks=meta.forks,
        deleted=meta.deleted,
        earliest=meta.earliest,
        floor=meta.floor,
        retention=meta.retention,
        trims=meta.trims,
    )


def with_tail(meta: StreamState, record: LogRecord, size: int) -> StreamState:
    """Return the state of a stream whose last record carries ``size`` bytes."""
    return replace(
        meta,
        tail=record.start + size,
        closed=record.closed,
        closed_by=record.closed_by,
        last_seq=record.last_seq,
        records=record.records,
        appended=record.appended,
    )


def after(state: StreamState, n: int, record: LogRecord, size: int) -> StreamState | None:
    """Return the state after one more record, None if the record does not follow a log of ``n`` records."""
    if record.end or record.n != n + 1 or record.start != state.tail:
        return None
    return with_tail(state, record, size)


def cut_snapshot(base: Base, producers: Mapping[str, ProducerState], room: int) -> Sequence[bytes]:
    """Return the producers of a log in parts for messages of ``room`` bytes; at least one part."""
    parts: list[list[tuple[str, int, int]]] = [[]]
    left = room = min(room, _SNAPSHOT_BYTES)
    for name, producer in producers.items():
        size = 6 * len(name) + _PRODUCER_BYTES  # as if JSON had to escape all of it
        if size > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1].append((name, producer.epoch, producer.seq))
        left -= size
    return [_encode(Snapshot(base, len(parts), part)) for part in parts]
