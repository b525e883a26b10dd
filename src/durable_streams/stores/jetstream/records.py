"""What is written to NATS: a stream's log records, what is kept of a stream beside its log, and snapshots.

Pure. Invariants:
* a record's header says the whole small state of its stream after it, so that the last record is enough to open one;
* ``n`` counts the records of a log without a gap, ``start`` continues where the record before ended;
* producers are the only state that is not bounded: the table is a snapshot and a fold over the records behind it.
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
    "with_tail",
]

_PRODUCER_BYTES = 50  # of an entry of a snapshot, about, beside its id
_SNAPSHOT_BYTES = 1 << 20


class Base(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A record of a log: its sequence, its number, where it ends. The producers up to it are in a snapshot.

    Where the log has no snapshot at least as new, no producer had written up to it.
    """

    seq: int
    n: int
    position: int


class LogRecord(msgspec.Struct, array_like=True, gc=False):
    """The header of a log message; the message's data are stored bytes from position ``start``.

    ``nonce``: who wrote it, and which of his writes it is. ``lengths``: of the appends inside, if several. ``more``:
    the append goes on in the next record. ``end``: nothing follows, the stream was deleted. ``closed``, ``closed_by``
    and ``last_seq`` are the stream's after it, ``producers`` (id, epoch, seq) those who wrote it. ``base``: where the
    fold of the producers begins, None while no producer ever wrote.
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


class Snapshot(msgspec.Struct, array_like=True, gc=False):
    """One of the ``parts`` of a log's producers after the record that ``base`` names."""

    base: Base
    parts: int
    producers: list[tuple[str, int, int]]


_encode = msgspec.json.Encoder().encode
decode_record = msgspec.json.Decoder(LogRecord).decode
decode_meta = msgspec.json.Decoder(StreamState).decode
decode_snapshot = msgspec.json.Decoder(Snapshot).decode


def encode_record(record: LogRecord) -> str:
    """Return the value of a log message's header."""
    return _encode(record).decode()


def encode_meta(state: StreamState) -> bytes:
    """Return what is kept of a stream beside its log: all that the last record does not say."""
    return _encode(replace(state, tail=0, closed=False, closed_by=None, last_seq=None))


def same_meta(one: StreamState, other: StreamState) -> bool:
    """Whether two states of one stream differ in nothing that is kept beside its log."""
    return one.deadline == other.deadline and one.forks == other.forks and one.deleted is other.deleted


def with_tail(meta: StreamState, record: LogRecord, size: int) -> StreamState:
    """Return the state of a stream whose last record carries ``size`` bytes."""
    return replace(
        meta,
        tail=record.start + size,
        closed=record.closed,
        closed_by=record.closed_by,
        last_seq=record.last_seq,
    )


def after(state: StreamState, n: int, record: LogRecord, size: int) -> StreamState | None:
    """Return the state after one more record, None if that does not follow on a log of ``n`` records."""
    if record.end or record.n != n + 1 or record.start != state.tail:
        return None
    return with_tail(state, record, size)


def cut_snapshot(base: Base, producers: Mapping[str, ProducerState], room: int) -> Sequence[bytes]:
    """Return the producers of a log in parts that fit messages of ``room`` bytes; at least one."""
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
