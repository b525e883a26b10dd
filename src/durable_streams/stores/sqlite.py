"""Streams in one SQLite file: WAL mode, full sync, one writer thread with group commit.

Invariants:
* a batch is one transaction; ``committed`` is called only after SQLite reported the sync to disk;
* every connection syncs at each commit; the folder belongs to this process alone while the store is open;
* a file of another program, or of a newer format, is refused and left unchanged;
* a read returns no gap; reading whole appends costs about ``limit`` bytes and at most one append more, a piece costs
  its own bytes and one part of ``LARGE`` bytes at either end (appends stored by format 1 cost their full size).

A batch goes to SQLite in as few statements as possible, with its rows as one JSON array: each call into SQLite
releases the interpreter lock and has to acquire it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from durable_streams.protocol.listing import prefix_end
from durable_streams.protocol.retention import due_at
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import (
    Chunk,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreLostError,
    StoreUnavailableError,
)
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.checksums import (
    CHECKSUM_TABLES,
    SIZE_BITS,
    Chains,
    Ends,
    after_append,
    check_name,
    damage_text,
    damaged,
    is_damage,
    is_whole,
    name_hash,
    part_sum,
    producer_sum,
    reason,
    seal,
    state_sum,
    unseal,
)
from durable_streams.stores.commit_log import (
    DEFAULT_LOG,
    LOG_TABLES,
    CommitLog,
    Generation,
    LogLimits,
    Sorting,
    Waiting,
    insert_row,
    load_log,
    mark_sorted,
)
from durable_streams.stores.commits import Committed
from durable_streams.stores.folder import FolderLock
from durable_streams.stores.lanes import Lane, Lookup
from durable_streams.stores.local import DEFAULT_LIMITS, LocalStore, StoreLimits
from durable_streams.stores.private import create_file
from durable_streams.stores.producers import first_producers
from durable_streams.stores.purging import PURGE_TABLES, Purge, purge
from durable_streams.stores.reserve import DiskReserve
from durable_streams.stores.sqlite_subscriptions import SqliteSubscriptions
from durable_streams.stores.upgrade import CHECKSUM_COLUMNS, finish_upgrade

__all__ = [
    "FILE_NAME",
    "FILE_NAMES",
    "LARGE",
    "SIZE",
    "STATE",
    "TRIM",
    "SqliteStore",
    "check_file",
    "check_whole",
    "connect",
    "decode_states",
    "is_full",
    "keep_open",
    "opening",
    "payload_of",
    "prepare",
    "producer_statements",
    "purge_step",
    "read_appends",
    "record_statements",
    "settle",
    "state_statements",
    "write_tails",
]

FILE_NAME = "streams.db"
_LOG_NAME = FILE_NAME + "-wal"
FILE_NAMES = (FILE_NAME, _LOG_NAME, FILE_NAME + "-shm")
"""The files that SQLite keeps open while a server runs; only other programs ever replace them."""

_LOG_HEADER, _FRAME_HEADER = 32, 24  # bytes (SQLite's file format, section 4.1)
_FORMAT = 4
_APPLICATION_ID = 0x64757261  # "dura"
# Large payloads are kept apart from the records: SQLite reads a whole record for each comparison of its key, so that a
# record of 60 MB would slow down every search that passes it, even for another stream.
_LARGE = "CREATE TABLE large (id INTEGER PRIMARY KEY, data BLOB NOT NULL{});"
_SCHEMA = f"""
CREATE TABLE stream (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, deadline REAL, state TEXT NOT NULL,
    sum INTEGER, tail INTEGER
);
CREATE INDEX stream_deadline ON stream (deadline) WHERE deadline IS NOT NULL;
CREATE TABLE record (
    stream INTEGER NOT NULL, start INTEGER NOT NULL, data BLOB NOT NULL, sum INTEGER,
    PRIMARY KEY (stream, start)
) WITHOUT ROWID;
{_LARGE.format(", sum INTEGER")}
CREATE TABLE producer (
    stream INTEGER NOT NULL, id TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    sum INTEGER, PRIMARY KEY (stream, id)
) WITHOUT ROWID;
CREATE TABLE garbage (stream INTEGER PRIMARY KEY);
{PURGE_TABLES}
{CHECKSUM_TABLES}
{LOG_TABLES}
CREATE TABLE probe (id INTEGER PRIMARY KEY, at REAL NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
"""

# Format 1 had large payloads among the records: they stay there. Format 2 kept every stream from its beginning. Format
# 3 had no checksums.
_UPGRADES = {1: _LARGE.format(""), 2: PURGE_TABLES, 3: CHECKSUM_COLUMNS + LOG_TABLES}

_LARGEST_APPEND = 1_000_000_000
"""The largest payload, in bytes: the largest value that SQLite takes, since format 1 stored a payload as one value."""

LARGE = 256 << 10
"""Payloads of this many bytes and more are in ``large``, in parts of this size under consecutive ids; the record then
holds an integer: ``first id << 32 | size``."""
_RECORD_COLUMNS, _MOST_ROWS = 4, 128
_INSERT_RECORDS = {
    _RECORD_COLUMNS * count: "INSERT INTO record VALUES " + ", ".join(["(?, ?, ?, ?)"] * count)  # noqa: S608
    for count in (1, 2, 4, 8, 16, 32, 64, _MOST_ROWS)
}
"""By the number of values."""
_INSERT_LARGE = "INSERT INTO large (data, sum) VALUES (?, ?)"
_INSERT_LARGE_RECORD = "INSERT INTO record VALUES (?, ?, (last_insert_rowid() - ?) << 32 | ?, ?)"
_UPSERT_PRODUCERS = """
INSERT INTO producer SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(?1) WHERE true
ON CONFLICT (stream, id) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq, sum = excluded.sum"""
_UPSERT_STREAMS = """
INSERT INTO stream SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]') FROM json_each(?1) WHERE true
ON CONFLICT (id) DO UPDATE SET deadline = excluded.deadline, state = excluded.state, sum = excluded.sum,
tail = excluded.tail"""
SIZE = "CASE typeof(data) WHEN 'integer' THEN data & 4294967295 ELSE length(data) END"
"""SQL: the size of the payload of a row of ``record``, in bytes. Reads none of it."""
STATE = f"""json_array(id, path, state, sum, tail,
(SELECT start + {SIZE} FROM record WHERE record.stream = stream.id ORDER BY start DESC LIMIT 1),
CASE WHEN instr(state, '"records":') AND json_valid(state) THEN (SELECT count(*) FROM record
WHERE record.stream = stream.id AND start >= coalesce(json_extract(state, '$.tail'), 0)) ELSE 0 END)"""  # noqa: S608
"""SQL: an element of the JSON array that ``decode_states`` takes, for a row of ``stream``."""

_LAST_ID = """
SELECT max(id) FROM (SELECT seq AS id FROM sqlite_sequence WHERE name = 'stream' UNION ALL SELECT max(id) FROM stream
UNION ALL SELECT max(stream) FROM record UNION ALL SELECT max(stream) FROM garbage)"""
_PARTS = "SELECT data, sum FROM large WHERE id BETWEEN ? AND ? ORDER BY id"
_SQLITE_FULL = 13  # SQLite's primary result code
_PRIMARY_CODE = 0xFF  # the bits of an extended result code that hold the primary one
_CHECKPOINT_PAGES = 4000
_LONG_LOG = 64 << 20  # bytes: readers have kept it from starting over, and the writer waits for them
_LOG_WAIT = 100  # milliseconds
_LOG_PAUSE = 2.0  # seconds after that was in vain: a backup reads for long

_StateRow = tuple[int, str, str, int, int, int | None, int]
_decode_rows = msgspec.json.Decoder(list[_StateRow]).decode
_decode_state = msgspec.json.Decoder(StreamState).decode


def connect(folder: Path, cache_kib: int) -> sqlite3.Connection:
    """Return a connection to the file of a folder, created if missing; the caller begins and ends transactions."""
    path = folder / FILE_NAME
    create_file(path)  # with its own mode, which SQLite copies to the log
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # What is deleted is not overwritten: some builds of SQLite do that, and write a GB to delete a GB.
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    connection.execute("PRAGMA cell_size_check = ON")  # damage of a page is noticed when it is read
    return connection


def keep_open(connection: sqlite3.Connection) -> None:
    """Keep a connection open until the process ends.

    Closing it would remove the log at its path, which may belong to another server by now, or wait for a thread that
    is blocked by the disk.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def check_whole(folder: Path) -> None:
    """Raise StoreError for a log without its file, which SQLite would remove as garbage."""
    try:
        log = (folder / _LOG_NAME).stat().st_size
    except OSError:
        return
    file = folder / FILE_NAME
    if log and not (file.exists() and file.stat().st_size):
        raise StoreError(
            f"{file} is missing, and its log {_LOG_NAME} is there: restore both, or remove the log to begin again"
        )


@contextlib.contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Turn an error of SQLite while a file is opened into a StoreError of one sentence."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"cannot open the streams in {folder}: {error}; restore the folder or choose another one"
        ) from error


def check_file(connection: sqlite3.Connection, folder: Path) -> None:
    """Raise StoreError for a file that is not of streams, or of another format than the present one."""
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if application != _APPLICATION_ID:
        raise StoreError(f"{folder / FILE_NAME} is another program's database; choose another folder")
    if version not in {*_UPGRADES, _FORMAT}:
        raise StoreError(
            f"the streams in {folder} have format {version}, this version reads {_FORMAT}; "
            "run the version of durable-streams that wrote them"
        )


def prepare(connection: sqlite3.Connection, folder: Path) -> int:
    """Write the schema if the file is new; return the last id used. Raises StoreError for a foreign file."""
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    empty = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
    if (application, version) == (0, 0) and empty:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    else:
        check_file(connection, folder)
        if version in _UPGRADES:
            _upgrade(connection, version)
        finish_upgrade(connection, LARGE)
        _replay(connection)
    # Damage must not let an id be used twice: what has the id is counted too.
    (last,) = connection.execute(_LAST_ID).fetchone()
    # Ids of a new file start at the clock, so that caches never confuse its streams with those of a deleted folder.
    return int(time.time()) if last is None else int(last)


def _replay(connection: sqlite3.Connection) -> None:
    """Sort what a process that ended at once left in the log; it is bounded by what may wait in memory."""
    generation = load_log(connection)
    if generation is None:
        connection.execute("DELETE FROM log_sorted")
        return
    left = partial(_log.error, "%s; what the log holds of the stream stays there")
    sorting = Sorting(partial(_sort_streams, Chains()), left, LogLimits(step_records=_REPLAYED_RECORDS))
    sorting.begin(generation)
    while sorting.pause() is not None:
        sorting.step(connection)


def _upgrade(connection: sqlite3.Connection, version: int) -> None:
    """Change the tables of a file to the present format, in one transaction."""
    changes = "".join([_UPGRADES[old] for old in range(version, _FORMAT)])
    connection.executescript(f"BEGIN IMMEDIATE; {changes} PRAGMA user_version = {_FORMAT}; COMMIT;")


def is_full(error: Exception) -> bool:
    """Whether an error says that there is no room to commit: SQLITE_FULL.

    Args:
        error: What a statement raised.
    """
    code = getattr(error, "sqlite_errorcode", None)  # Python 3.11 and later
    if code is None:
        return isinstance(error, sqlite3.OperationalError) and "full" in str(error)
    return int(code) & _PRIMARY_CODE == _SQLITE_FULL


def settle(connection: sqlite3.Connection) -> None:
    """Move all of the log into the file, so that closing the last connection changes nothing."""
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _shorten_log(connection: sqlite3.Connection) -> bool:
    """Empty the log, if the reads that use it end in a moment; return whether it is empty."""
    with contextlib.suppress(sqlite3.Error):
        connection.execute(f"PRAGMA busy_timeout = {_LOG_WAIT}")
        try:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
        finally:
            connection.execute("PRAGMA busy_timeout = 5000")
    return False


def _log_size(connection: sqlite3.Connection) -> int:
    """Return how many bytes the log has to have at least: those of the frames that SQLite counts in it."""
    try:
        _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        (page,) = connection.execute("PRAGMA page_size").fetchone()
    except sqlite3.Error:
        return sys.maxsize  # it cannot read them
    return int(_LOG_HEADER + frames * (_FRAME_HEADER + page)) if frames > 0 else 0


def decode_states(rows: str) -> dict[str, StreamState]:
    """Return states by path from a JSON array of ``STATE``; raise StoreDamagedError for one that was not stored so."""
    return {row[1]: _checked_state(row) for row in _decode_rows(rows)}


def _checked_state(row: _StateRow) -> StreamState:
    """Return the state of a row of ``STATE``: where its records end, and where they ended once, come last."""
    stream, path, text, checksum, stored, end, count = row
    if state_sum(stream, path, text) != checksum:
        raise _damaged_state(path, stream, 0, "its state is not what was stored")
    state = _decode_state(text)
    # The row may be older than the last record; of a trimmed stream the last record may be gone.
    begin = state.lineage[-1].end if state.lineage else 0
    least = max(state.tail, stored)
    present = max(begin, state.earliest, 0 if end is None else end)
    if present < least:
        raise _damaged_state(path, stream, present, "its end is missing")
    if present <= state.tail:
        return state
    # The records that were appended since the row was written are few: the next milestone writes it again.
    records = None if state.records is None else state.records + count
    return msgspec.structs.replace(state, tail=present, records=records)


def _damaged_state(path: str, stream: int, position: int, what: str) -> StoreDamagedError:
    return StoreDamagedError(damage_text(f"the stream {path}", position, what), stream)


def _large_statements(
    stream: int, start: int, payload: bytes, checksum: int
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the statements that store a payload of at least ``LARGE`` bytes, for one transaction."""
    view = memoryview(payload)
    parts = range(0, len(view), LARGE)
    for at in parts:
        part = view[at : at + LARGE]
        yield _INSERT_LARGE, (part, part_sum(stream, start + at, part))
    yield _INSERT_LARGE_RECORD, (stream, start, len(parts) - 1, len(view), checksum)


def _large_parts(data: int, begin: int, end: int) -> tuple[int, int, int]:
    """Return the ids of the first and last part of ``[begin, end)`` of a payload, and where the first one begins."""
    first = begin // LARGE
    return (data >> 32) + first, (data >> 32) + (end - 1) // LARGE, first * LARGE


def _read_large(
    connection: sqlite3.Connection, stream: int, start: int, data: int, *, begin: int, end: int
) -> bytes | None:
    """Return ``[begin, end)`` of the payload at ``start`` whose record holds ``data``.

    None if a part of it is missing; raises StoreDamagedError if one is not what was stored.
    """
    first, last, at = _large_parts(data, begin, end)
    parts: list[memoryview] = []
    position = at
    for part, checksum in connection.execute(_PARTS, (first, last)):
        if part_sum(stream, start + position, part) != checksum:
            raise damaged(connection, stream, start + position, _NOT_STORED)
        parts.append(memoryview(part))
        position += len(part)
    if position < end:
        return None
    parts[-1] = parts[-1][: end - at - (last - first) * LARGE]
    parts[0] = parts[0][begin - at :]
    return b"".join(parts)


def _size_of(data: int) -> int:
    """Return the size of a payload in ``large`` whose record holds ``data``."""
    return data & SIZE_BITS


def payload_of(
    connection: sqlite3.Connection, stream: int, start: int, data: bytes | int, checksum: int
) -> bytes | None:
    """Return the payload of a row of ``record``; None if a part of it is missing.

    Args:
        connection: A connection.
        stream: The row's stream.
        start: Where it begins, in bytes.
        data: What it holds.
        checksum: Its checksum.

    Raises:
        StoreDamagedError: It is not what was stored.
    """
    if not is_whole(stream, start, data, checksum):
        raise damaged(connection, stream, start, _NOT_STORED)
    if isinstance(data, bytes):
        return data
    return _read_large(connection, stream, start, data, begin=0, end=_size_of(data))


def record_statements(
    connection: sqlite3.Connection, chains: Chains, records: Sequence[tuple[Any, ...]]
) -> tuple[list[tuple[str, Any]], Ends]:
    """Return the statements that store records, and what `Chains.go_on` takes once they are committed.

    Args:
        connection: The connection that is going to run them.
        chains: Where the streams go on.
        records: The stream, the start and the payload of each record, and what the caller keeps with them.

    Raises:
        StoreDamagedError: A stream cannot go on from what is stored.
    """
    statements: list[tuple[str, Any]] = []
    ends: Ends = {}
    values: list[Any] = []
    for stream, start, payload, *_ in records:
        size = len(payload)
        end = ends.get(stream)
        before = chains.before(connection, stream, start) if end is None else end[0]
        after = after_append(payload if size < LARGE else size, before)
        ends[stream] = after, start + size
        checksum = seal(stream, start, before, after)
        if size < LARGE:
            values += (stream, start, payload, checksum)
        else:
            statements.extend(_large_statements(stream, start, payload, checksum))
    at, left = 0, len(values)
    while left:  # all rows in a few statements, of a few texts, which SQLite compiles once
        count = min(
            left, _RECORD_COLUMNS * _MOST_ROWS, _RECORD_COLUMNS << (left // _RECORD_COLUMNS).bit_length() - 1
        )
        statements.append((_INSERT_RECORDS[count], values[at : at + count]))
        at, left = at + count, left - count
    return statements, ends


def state_statements(states: Sequence[StreamState], new: Sequence[StreamState]) -> list[tuple[str, Any]]:
    """Return the statements that store states.

    Args:
        states: The states.
        new: Those of them that are not stored yet.
    """
    statements: list[tuple[str, Any]] = []
    if states:
        statements.append((_UPSERT_STREAMS, (_encode(list(map(_stream_row, states))).decode(),)))
    if new:
        names = [(name_hash(state.path), state.id) for state in new]
        statements.append((_INSERT_NAMES, (_encode(names).decode(),)))
    return statements


def producer_statements(
    producers: Iterable[tuple[int, str, int, int]],
) -> list[tuple[str, Any]]:
    """Return the statements that store producers.

    Args:
        producers: The stream, the id, the epoch and the number of each of them.
    """
    rows = [(*row, producer_sum(*row)) for row in producers]
    return [(_UPSERT_PRODUCERS, (_encode(rows).decode(),))] if rows else []


def _stream_row(state: StreamState) -> tuple[int, str, float | None, str, int, int]:
    """Return the element of the JSON array of ``_UPSERT_STREAMS`` for a stream."""
    text = _encode(state).decode()
    return state.id, state.path, due_at(state), text, state_sum(state.id, state.path, text), state.tail


def write_tails(connection: sqlite3.Connection, chains: Chains) -> bool:
    """Store where some streams end that got appends since that was stored last; return whether there were any."""
    tails = chains.some_tails()
    if not tails:
        return False
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(_TAILS, (_encode(tails).decode(),))
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise
    chains.stored(tails)
    return True


def purge_step(connection: sqlite3.Connection) -> bool:
    """Remove a part of what no stream holds any more; return True while there is more."""
    return purge(connection, LARGE)


# Small payloads come as one value: a row each would release and acquire the interpreter lock a thousand times. A large
# payload adds its number instead, which makes the value too short: that is noticed without a look at each row. The
# checksums of the first and the last row verify all of it.
_RUN = """
SELECT (SELECT max(start) FROM record WHERE stream = ?1 AND start <= ?2), CAST(group_concat(data, '') AS BLOB),
(SELECT min(start) FROM record WHERE stream = ?1 AND start >= ?3),
(SELECT sum FROM record WHERE stream = ?1 AND start <= ?2 ORDER BY start DESC LIMIT 1),
(SELECT json_array(start, sum) FROM record WHERE stream = ?1 AND start < ?3 ORDER BY start DESC LIMIT 1)
FROM (SELECT data FROM record WHERE stream = ?1
AND start >= (SELECT max(start) FROM record WHERE stream = ?1 AND start <= ?2) AND start < ?3 ORDER BY start)"""
_MIXED = """
SELECT CAST(group_concat(small, '') AS BLOB), json_group_array(json(large)) FILTER (WHERE large IS NOT NULL) FROM (
SELECT CASE typeof(data) WHEN 'integer' THEN NULL ELSE data END AS small,
CASE typeof(data) WHEN 'integer' THEN json_array(start, data, sum) END AS large
FROM record WHERE stream = ?1 AND start >= ?2 AND start < ?3 ORDER BY start)"""
_FIRST = "SELECT max(start) FROM record WHERE stream = ? AND start <= ?"
_HELD = "SELECT 1 FROM stream WHERE id = ? AND coalesce(json_extract(state, '$.floor'), 0) <= ?"

_RUN_BYTES = 4 << 20  # between two checks whether the result is still wanted

_ROWS = "SELECT start, data, sum FROM record WHERE stream = ? AND start >= ? AND start < ? ORDER BY start"
_NOT_STORED = "its bytes are not what was stored"

_decode_last = msgspec.json.Decoder(tuple[int, int]).decode
_decode_large = msgspec.json.Decoder(list[tuple[int, int, int]]).decode


def read_appends(
    connection: sqlite3.Connection, lookup: Lookup, *, stream: int, start: int, stop: int, limit: int
) -> Chunk | None:
    """Return whole appends from the one that holds ``start``, nothing past ``stop``; None if they are gone."""
    with _explained(connection, stream, start):
        return _read_appends(_File(connection, stream, stop), lookup, start, limit)


def _read_appends(file: _File, lookup: Lookup, start: int, limit: int) -> Chunk | None:
    stop = file.stop
    parts: list[bytes] = []
    begin = end = start
    while lookup.wanted and end < min(stop, begin + limit):
        run = file.find(end, min(stop, end + min(begin + limit - end, _RUN_BYTES)))
        if run is None:
            break
        if not parts:
            begin = end = run.first
        for append in run.in_order():
            part: bytes | None = None
            if isinstance(append, bytes):
                part = append
            elif lookup.wanted and (not parts or end + _size_of(append) <= begin + limit):
                part = file.large(end, append, 0, _size_of(append))
            if part is None:
                return _chunk(begin, stop, parts)
            parts.append(part)
            end += len(part)
    return _chunk(begin, stop, parts)


def read_piece(
    connection: sqlite3.Connection,
    lookup: Lookup,
    *,
    stream: int,
    start: int,
    stop: int,
    limit: int,
    aligned: bool,
) -> Chunk | None:
    """Return ``limit`` bytes from ``start`` or its append, nothing past ``stop``; None if they are gone."""
    with _explained(connection, stream, start):
        begin: int | None = start
        if aligned:
            (begin,) = connection.execute(_FIRST, (stream, start)).fetchone()
        if begin is None:
            return None
        return _read_piece(_File(connection, stream, stop), lookup, begin, limit)


def _read_piece(file: _File, lookup: Lookup, begin: int, limit: int) -> Chunk | None:
    position, end = begin, min(file.stop, begin + limit)
    parts: list[bytes] = []
    while lookup.wanted and position < end:
        run = file.find(position, min(end, position + _RUN_BYTES))
        if run is None:
            break
        at = run.first
        for append in run.in_order():
            size = _size_of(append) if isinstance(append, int) else len(append)
            low, high = max(0, position - at), min(size, end - at)
            part = append[low:high] if isinstance(append, bytes) else file.large(at, append, low, high)
            if part is None or not lookup.wanted:
                return _chunk(begin, end, parts)
            parts.append(part)
            at, position = at + size, at + high
    return _chunk(begin, end, parts)


def _chunk(begin: int, stop: int, parts: list[bytes]) -> Chunk | None:
    if not parts:
        return None
    payload = parts[0] if len(parts) == 1 else b"".join(parts)
    if begin + len(payload) > stop:
        payload = payload[: stop - begin]
    return Chunk(begin, begin + len(payload), payload)


class _Run(NamedTuple):
    """Appends from ``first`` on: the joined bytes of small ones, and the row of each large one.

    ``before`` and ``after`` are the CRC-32 of the stream at either end.
    """

    first: int
    small: bytes
    large: list[tuple[int, int, int]]
    before: int
    after: int

    def in_order(self) -> Iterator[bytes | int]:
        """Yield the bytes of consecutive small appends, and the record of each large one, in order."""
        at, used = self.first, 0
        for start, data, _ in self.large:
            if start > at:
                yield self.small[used : used + start - at]
                used += start - at
            yield data
            at = start + _size_of(data)
        if used < len(self.small):
            yield self.small[used:]

    def end(self) -> int:
        """Return where the run ends, if nothing is missing."""
        return self.first + len(self.small) + sum([_size_of(data) for _, data, _ in self.large])

    def is_whole(self, stream: int) -> bool:
        """Whether all of it is what was stored."""
        at, used, crc = self.first, 0, self.before
        for start, data, checksum in self.large:
            if start > at:
                crc = after_append(self.small[used : used + start - at], crc)
                used += start - at
            if crc != unseal(stream, start, checksum)[0] or not is_whole(stream, start, data, checksum):
                return False
            crc = unseal(stream, start, checksum)[1]
            at = start + _size_of(data)
        # Without a copy where there are only small ones.
        return after_append(self.small[used:] if used else self.small, crc) == self.after


class _File:
    """The records of a stream, committed up to ``stop``."""

    def __init__(self, connection: sqlite3.Connection, stream: int, stop: int) -> None:
        self._connection = connection
        self._stream = stream
        self.stop = stop

    def find(self, position: int, until: int) -> _Run | None:
        """Return the appends from the one that holds ``position`` to the last that begins before ``until``.

        None if they are gone; raises StoreDamagedError if one is missing, or not what was stored.
        """
        first, small, following, first_sum, last = self._connection.execute(
            _RUN, (self._stream, position, until)
        ).fetchone()
        if first is None or small is None:
            self._explain(position)
            return None
        last_start, last_sum = _decode_last(last)
        before = unseal(self._stream, first, first_sum)[0]
        run = _Run(first, small, [], before, unseal(self._stream, last_start, last_sum)[1])
        end = self.stop if following is None else min(following, self.stop)
        if run.end() < end:
            small, large = self._connection.execute(_MIXED, (self._stream, first, until)).fetchone()
            run = run._replace(small=small or b"", large=_decode_large(large))
            if run.end() < end:
                self._explain(position)
                return None
        if not run.is_whole(self._stream) or (following is not None and run.end() > following):
            raise self._find_damage(first, until)
        return run

    def large(self, at: int, data: int, begin: int, end: int) -> bytes | None:
        """Return ``[begin, end)`` of the large append at ``at``, as ``data`` says; else None or raise, as ``find``."""
        payload = _read_large(self._connection, self._stream, at, data, begin=begin, end=end)
        if payload is None:
            self._explain(at)
        return payload

    def _explain(self, position: int) -> None:
        """Return if what is at a position is being removed; raise the error of a damaged file if it is not."""
        if self._connection.execute(_HELD, (self._stream, position)).fetchone() is not None:
            raise damaged(self._connection, self._stream, position, "its bytes are missing")

    def _find_damage(self, begin: int, end: int) -> StoreDamagedError:
        """Return the error that names the first damaged append of a run that is not whole."""
        at = begin
        for start, data, checksum in self._connection.execute(_ROWS, (self._stream, begin, end)):
            if start != at or not is_whole(self._stream, start, data, checksum):
                break
            at = start + (_size_of(data) if isinstance(data, int) else len(data))
        else:
            at = begin
        return damaged(self._connection, self._stream, at, _NOT_STORED)


@contextlib.contextmanager
def _explained(connection: sqlite3.Connection, stream: int, position: int) -> Iterator[None]:
    """Name the stream and the position where SQLite finds damage."""
    try:
        yield
    except (sqlite3.Error, msgspec.DecodeError, UnicodeDecodeError) as error:
        if is_damage(error):
            raise damaged(
                connection, stream, position, f"the file cannot be read ({reason(error)})"
            ) from error
        raise


@contextlib.contextmanager
def _named(paths: list[str]) -> Iterator[None]:
    """Name the stream that cannot be loaded; those of a list are loaded one by one after that, to find it."""
    try:
        yield
    except (sqlite3.Error, msgspec.DecodeError, UnicodeDecodeError) as error:
        if is_damage(error):
            if len(paths) > 1:
                raise StoreUnavailableError(str(error)) from error
            what = f"its state cannot be read ({reason(error)})"
            raise StoreDamagedError(damage_text(f"the stream {paths[0]}", 0, what)) from error
        raise


T = TypeVar("T")

_INSERT_NAMES = """
INSERT OR IGNORE INTO name SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)"""
_DELETE_NAMES = """
DELETE FROM name
WHERE (hash, stream) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"""
_PATHS = """
SELECT json_group_array(json_array(id, path)) FROM stream WHERE id IN (SELECT value FROM json_each(?))"""
# One statement, so that a thousand tails give up the interpreter lock once.
_TAILS = """
INSERT INTO stream SELECT stream.id, stream.path, deadline, state, sum, json_extract(value, '$[1]')
FROM json_each(?1) CROSS JOIN stream ON stream.id = json_extract(value, '$[0]') WHERE true
ON CONFLICT (id) DO UPDATE SET tail = max(tail, excluded.tail)"""
TRIM = """
INSERT INTO trim SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?1) WHERE true
ON CONFLICT (stream) DO UPDATE SET floor = excluded.floor"""
_BOUNDARY = "SELECT min(start) FROM record WHERE stream = ? AND start >= ?"
# One row, so that loading a hundred streams gives up the interpreter lock once.
_LOAD = f"SELECT json_group_array({STATE}) FROM stream WHERE path IN (SELECT value FROM json_each(?))"  # noqa: S608

# A bound on either side, so that the index of paths is searched; every text is less than a blob.
_LIST, _LIST_AFTER = (
    f"SELECT json_group_array(json(row)) FROM (SELECT {STATE} AS row FROM stream "  # noqa: S608
    f"WHERE path {begin} ?1 AND path < ?2 ORDER BY path LIMIT ?3)"
    for begin in (">=", ">")
)

_MOST_COUNTED = 100_000  # deleted streams
_MEASURE = f"""
SELECT page_size, page_count, freelist_count, (SELECT count(*) FROM (SELECT 1 FROM garbage LIMIT {_MOST_COUNTED}))
FROM pragma_page_size, pragma_page_count, pragma_freelist_count"""  # noqa: S608

_READERS = 2
_REPLAYED_RECORDS = 5000  # of the log, in a transaction
_SORT_SHARE = 0.5  # of the time to close that may go into sorting the log
_LOOK_AFTER = 0.05  # seconds after which the files are checked again before a write
_LAST_WAIT = 0.5  # seconds that the writer's thread always gets
_CACHE_KIB = 16 << 10
_READER_CACHE_KIB = 2 << 10

_encode = msgspec.json.Encoder().encode
_log = logging.getLogger("durable_streams.stores")


class SqliteStore(LocalStore):
    """A durable Store in a folder.

    Args:
        data_dir: The folder; it is created if it is missing.
        max_streams: The most streams whose state is cached.
        clock: Returns the seconds since 1970.
        limits: Bounds on the disk and on waiting commands.
        disk_reserve: Bytes of the disk that are kept free for deletions, closures and trims; 0 for none.
        log: Bounds of the log of commits.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        max_streams: int = 200_000,
        clock: Callable[[], float] = time.time,
        limits: StoreLimits = DEFAULT_LIMITS,
        disk_reserve: int = 0,
        log: LogLimits = DEFAULT_LOG,
    ) -> None:
        self._sqlite = _SqliteBackend(
            data_dir,
            limits.disk_timeout,
            disk_reserve,
            log,
            on_full=self._set_full,
            on_damage=self._note_damage,
        )
        super().__init__(self._sqlite, max_streams=max_streams, clock=clock, limits=limits)

    def _commit(self, batch: CommitBatch, committed: Committed) -> None:
        def ended(error: StoreError | None) -> None:
            if isinstance(error, StoreDamagedError) and (error.stream is not None or len(batch.changed) == 1):
                self._note_damage(_of_batch(error, batch))
            committed(error)

        super()._commit(batch, ended)

    def _set_full(self, full: bool) -> None:
        self._full = full

    async def _find_room(self) -> None:
        await self._sqlite.find_room()

    async def _measure(self) -> tuple[dict[str, int], int | None]:
        return await self._sqlite.measure()


def _of_batch(damage: StoreDamagedError, batch: CommitBatch) -> StoreDamagedError:
    """Return damage that a commit met with the stream that it concerns, where the batch changes one only."""
    slot = next(iter(batch.changed), None)
    if damage.stream is not None or slot is None:
        return damage
    return StoreDamagedError(str(damage), None if slot.state is None else slot.state.id)


class _SqliteBackend:
    def __init__(
        self,
        data_dir: Path,
        timeout: float,
        reserve: int,
        log_limits: LogLimits,
        *,
        on_full: Callable[[bool], None],
        on_damage: Callable[[StoreDamagedError], None],
    ) -> None:
        self._folder = data_dir.absolute()  # the working directory may change
        self._reserve_size = reserve
        self._on_full = on_full
        self._on_damage = on_damage
        self._timeout = timeout
        self._log_limits = log_limits
        self.identity = ""
        self.largest_append = _LARGEST_APPEND
        self.subscriptions = SqliteSubscriptions(self._write_rows, self._look_up, timeout)
        self._begin()

    def _begin(self) -> None:
        # New objects at each open: a thread that is blocked by the disk keeps the old ones.
        self._lock = FolderLock(self._folder)
        self._work: queue.SimpleQueue[Callable[[sqlite3.Connection], None] | None] = queue.SimpleQueue()
        self._connections: list[sqlite3.Connection] = []  # the writer's, then the readers'
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None  # done when the writer's thread has ended
        self._states: Lane | None = None
        self._records: Lane | None = None
        self._purge = Purge(LARGE)
        self._chains = Chains()
        self._sorting = Sorting(
            partial(_sort_streams, self._chains),
            self._tell_damage,
            self._log_limits,
        )
        self._log = CommitLog(self._log_limits, self._sort)
        self._reserve = DiskReserve(self._folder, self._reserve_size)
        self._left: Generation | None = None  # of the log of an earlier process
        self._is_full = False  # as the event loop knows it
        self._lost = False
        self._shorten_at = 0.0
        self._looked = 0.0  # when the files were last found in place
        self.subscriptions.begin()

    async def open(self) -> int:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[int] = loop.create_future()
        ended = self._ended = loop.create_future()
        self._loop = loop
        # A daemon thread opens the files: a disk that does not answer must not keep the process from ending.
        run = partial(self._run, loop, opened, ended)
        threading.Thread(target=run, name="durable-streams-write", daemon=True).start()
        try:
            last_id = await opened
        except BaseException:
            self._work.put(None)
            self._begin()
            raise
        if self._left is not None:
            self._log = CommitLog(self._log_limits, self._sort, self._left)
            self._sort(self._left)  # in vain, which makes the damage known
        lane = partial(Lane, explain=partial(self._explain, loop), timeout=self._timeout)
        self._states = lane("durable-streams-state", self._connections[1:2])
        self._records = lane("durable-streams-read", self._connections[2:])
        return last_id

    async def close(self, timeout: float) -> None:
        if self._ended is None:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        lanes = [lane for lane in (self._states, self._records) if lane is not None]
        closed = await asyncio.gather(*(lane.close(timeout, keep=self._lost) for lane in lanes))
        last = self._log.close()
        self._work.put(partial(self._sort_last, last, time.monotonic() + timeout * _SORT_SHARE))
        self._work.put(None)  # its connection is closed last: that moves the log into the file
        await asyncio.wait([self._ended], timeout=max(_LAST_WAIT, until - loop.time()))
        if self._lost or not self._ended.done() or not all(closed):
            for connection in self._connections:
                keep_open(connection)
        self._begin()

    def _explain(self, loop: asyncio.AbstractEventLoop, error: Exception) -> StoreError:
        found = _store_error(error)
        if isinstance(found, StoreDamagedError):
            _call_soon(loop, self._on_damage, found)
        return found

    # -- in the writer's thread

    def _tell_damage(self, damage: StoreDamagedError) -> None:
        if self._loop is not None:
            _call_soon(self._loop, self._on_damage, damage)

    def _run(
        self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[int], ended: asyncio.Future[None]
    ) -> None:
        lock, connections, work = self._lock, self._connections, self._work
        try:
            lock.acquire()
            last_id = self._open(lock, connections)
        except BaseException as error:  # noqa: BLE001 - any failure must reach the caller of `open`
            for connection in connections:
                connection.close()
            lock.release()
            _call_soon(loop, _fail, opened, error)
        else:
            _call_soon(loop, _finish, opened, last_id)
            self._write(connections[0], work, loop)
            if not self._lost:
                with contextlib.suppress(sqlite3.Error):
                    while write_tails(connections[0], self._chains):
                        pass
                settle(connections[0])
                lock.identity.leave()
                connections[0].close()
            lock.release()
        _call_soon(loop, _finish, ended, None)

    def _open(self, lock: FolderLock, connections: list[sqlite3.Connection]) -> int:
        folder = lock.folder
        with opening(folder):
            check_whole(folder)
            writer = connect(folder, _CACHE_KIB)
            connections.append(writer)
            last_id = prepare(writer, folder)
            self._left = load_log(writer)
            for _ in range(1 + _READERS):
                reader = connect(folder, _READER_CACHE_KIB)
                connections.append(reader)
                reader.execute("PRAGMA query_only = 1")
            self.identity = lock.identity.take()
            self._reserve.open()
        lock.guard(*FILE_NAMES)
        return last_id

    def _write(
        self,
        connection: sqlite3.Connection,
        works: queue.SimpleQueue[Callable[[sqlite3.Connection], None] | None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        while True:
            try:
                pause = None if self._lost else self._pause()
                work = works.get(timeout=pause) if pause else works.get(block=pause is None)
            except queue.Empty:
                if self._sorting.pause() == 0.0 and self._is_there(connection):
                    self._sort_some(connection)
                if self._purge.pause() == 0.0 and self._is_there(connection):
                    self._purge_some(connection, loop)
            else:
                if work is None:
                    break
                work(connection)
            if self._chains.due() and self._is_there(connection):
                self._write_tails(connection)

    def _pause(self) -> float | None:
        """Return in how many seconds there is something to do that is not asked for; None if there is nothing."""
        pauses = (self._sorting.pause(), self._purge.pause(), self._chains.pause())
        return min([pause for pause in pauses if pause is not None], default=None)

    # -- reading

    async def load(self, paths: list[str]) -> dict[str, StreamState]:
        waiting = self._log.states(paths)
        stored = await self._load(paths if not waiting else [path for path in paths if path not in waiting])
        return stored | {path: state for path, state in waiting.items() if state is not None}

    async def _load(self, paths: list[str]) -> dict[str, StreamState]:
        if not paths:
            return {}
        wanted = _encode(paths).decode()

        def load(connection: sqlite3.Connection, _: Lookup) -> dict[str, StreamState]:
            with _named(paths):
                found = decode_states(connection.execute(_LOAD, (wanted,)).fetchone()[0])
                for path in paths:
                    if path not in found:
                        check_name(connection, path)
            return found

        return await self._lane(self._states).run(load)

    async def load_producer(self, stream_id: int, producer_id: str) -> ProducerState | None:
        waiting = self._log.producer(stream_id, producer_id)
        if waiting is not None:
            return waiting

        def load(connection: sqlite3.Connection, _: Lookup) -> ProducerState | None:
            sql = "SELECT epoch, seq, sum FROM producer WHERE stream = ? AND id = ?"
            with _explained(connection, stream_id, 0):
                row = connection.execute(sql, (stream_id, producer_id)).fetchone()
            if row is None:
                return None
            return _producer(connection, stream_id, producer_id, row)

        return await self._lane(self._states).run(load)

    async def list_producers(self, stream_id: int, after: str, limit: int) -> list[tuple[str, ProducerState]]:
        waiting = self._log.producers(stream_id)

        def find(connection: sqlite3.Connection, _: Lookup) -> dict[str, ProducerState]:
            sql = "SELECT id, epoch, seq, sum FROM producer WHERE stream = ? AND id > ? ORDER BY id LIMIT ?"
            with _explained(connection, stream_id, 0):
                rows = connection.execute(sql, (stream_id, after, limit)).fetchall()
            return {name: _producer(connection, stream_id, name, row) for name, *row in rows}

        found = await self._lane(self._records).run(find)
        for name, state in waiting.items():
            stored = found.get(name)
            # What waited may be in the table by now, and newer there.
            if stored is None or (stored.epoch, stored.seq) < (state.epoch, state.seq):
                found[name] = state
        return first_producers(found, after, limit)

    async def read(self, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
        waiting = self._log.records(stream_id)
        if waiting is None or stop <= waiting.begin:
            return await self._read(stream_id, start, stop, limit)
        if start >= waiting.begin:
            return waiting.read(start, stop, limit)
        chunk = await self._read(stream_id, start, waiting.begin, limit)
        if chunk is None or chunk.end < waiting.begin or chunk.end >= chunk.start + limit:
            return chunk
        return _joined(chunk, waiting.read(chunk.end, stop, chunk.start + limit - chunk.end))

    async def _read(self, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
        reading = partial(read_appends, stream=stream_id, start=start, stop=stop, limit=limit)
        # Stored bytes never change, so that concurrent reads of the same range share one query.
        return await self._lane(self._records).run(reading, (stream_id, start, stop, limit))

    async def read_piece(
        self, stream_id: int, start: int, stop: int, limit: int, aligned: bool
    ) -> Chunk | None:
        waiting = self._log.records(stream_id)
        if waiting is None or stop <= waiting.begin:
            return await self._read_piece(stream_id, start, stop, limit, aligned)
        if start >= waiting.begin:
            begin = waiting.holding(start) if aligned else start
            return waiting.piece(begin, min(stop, begin + limit))
        chunk = await self._read_piece(stream_id, start, waiting.begin, limit, aligned)
        if chunk is None or chunk.end < waiting.begin or chunk.end >= chunk.start + limit:
            return chunk
        return _joined(chunk, waiting.piece(chunk.end, min(stop, chunk.start + limit)))

    async def _read_piece(
        self, stream_id: int, start: int, stop: int, limit: int, aligned: bool
    ) -> Chunk | None:
        question = (stream_id, start, stop, limit, aligned)
        reading = partial(read_piece, stream=stream_id, start=start, stop=stop, limit=limit, aligned=aligned)
        return await self._lane(self._records).run(reading, question)

    async def boundary(self, stream_id: int, position: int, stop: int) -> int | None:  # noqa: ARG002 - one signature for all
        waiting = self._log.records(stream_id)
        if waiting is not None and position >= waiting.begin:
            return waiting.boundary(position)

        def find(connection: sqlite3.Connection, _: Lookup) -> int | None:
            with _explained(connection, stream_id, position):
                found: int | None = connection.execute(_BOUNDARY, (stream_id, position)).fetchone()[0]
            return found

        found = await self._lane(self._states).run(find)
        return waiting.begin if found is None and waiting is not None else found

    async def expired(self, now: float, limit: int) -> list[str]:
        def find(connection: sqlite3.Connection, _: Lookup) -> list[str]:
            sql = "SELECT path FROM stream WHERE deadline <= ? LIMIT ?"
            return [row[0] for row in connection.execute(sql, (now, limit))]

        due = self._log.due(now)
        stored = await self._lane(self._states).run(find)
        return list(dict.fromkeys(due + stored))[:limit] if due else stored

    async def _look_up(self, query: Callable[[sqlite3.Connection], T]) -> T:
        return await self._lane(self._states).run(lambda connection, _: query(connection))

    async def list_states(self, prefix: str, after: str, limit: int) -> list[StreamState]:
        begin, sql = (after, _LIST_AFTER) if after >= prefix else (prefix, _LIST)
        end = prefix_end(prefix)
        present = self._log.overlay()

        def find(connection: sqlite3.Connection, _: Lookup) -> list[StreamState]:
            found = connection.execute(sql, (begin, b"" if end is None else end, limit))
            return list(map(present, decode_states(found.fetchone()[0]).values()))

        return await self._lane(self._records).run(find)

    async def measure(self) -> tuple[dict[str, int], int | None]:
        """Return the sizes of the files in bytes, the free part of the first one, and the number of purged streams."""
        folder = self._folder

        def measure(connection: sqlite3.Connection, _: Lookup) -> tuple[dict[str, int], int]:
            page, pages, free, garbage = connection.execute(_MEASURE).fetchone()
            log = (folder / _LOG_NAME).stat().st_size
            return {"file": page * pages, "free": page * free, "log": log}, garbage

        return await self._lane(self._states).run(measure, "measure")

    @staticmethod
    def _lane(lane: Lane | None) -> Lane:
        if lane is None:
            raise StoreUnavailableError("the store is closed")
        return lane

    # -- writing

    def commit(self, batch: CommitBatch, committed: Committed) -> None:
        log = self._log
        if log.takes(batch):
            work, follow = partial(_log_work, batch, log.next_row()), log.logged
        else:
            waiting = log.waiting(batch)
            work, follow = partial(_batch_work, self._chains, batch, waiting, log.last_row), log.settled

        def report(error: StoreError | None) -> None:
            if error is None:
                follow(batch)
            committed(error)

        self._transact(work, report, garbage=bool(batch.removed or batch.trimmed))

    def _sort(self, generation: Generation) -> None:
        self._work.put(lambda _: self._sorting.begin(generation))

    def _write_rows(self, statements: list[tuple[str, Any]], committed: Committed) -> None:
        self._transact(lambda _: _Work(statements, {}), committed)

    def _transact(
        self, work: Callable[[sqlite3.Connection], _Work], committed: Committed, *, garbage: bool = False
    ) -> None:
        """Run statements as one transaction in the writer's thread, then report on the event loop."""
        loop = asyncio.get_running_loop()

        def write(connection: sqlite3.Connection) -> None:
            # Checked before the write, unless it was checked just now: nothing is written to a folder that is gone.
            error = self._loss(connection, all_files=time.monotonic() - self._looked > _LOOK_AFTER)
            if error is None:
                error = _execute(connection, work, self._chains)
                if isinstance(error, StoreFullError) and self._reserve.give_up():
                    _shorten_log(connection)
                    # What is in the batch by now is small enough; what would be appended later is refused.
                    error = _execute(connection, work, self._chains)
            if self._reserve.in_use:
                self._say_if_full(connection, loop)
            if garbage:
                self._purge.pending = True  # set in the writer's thread: a step could clear it otherwise
            if self._lock.log_size > _LONG_LOG and time.monotonic() > self._shorten_at:
                whole = _shorten_log(connection)
                self._shorten_at = time.monotonic() + (0.0 if whole else _LOG_PAUSE)
            if error is None:
                # Checked after the sync too: data in a folder that is gone by now are not acknowledged.
                error = self._loss(connection, written=True)
            if self._lost:
                self._rescue(connection)
            _call_soon(loop, committed, error)

        self._work.put(write)

    def _write_tails(self, connection: sqlite3.Connection) -> None:
        """Store where the streams end: a last append that is missing is noticed by that."""
        try:
            with _unsynced(connection):
                write_tails(connection, self._chains)
        except sqlite3.Error:
            self._chains.wait()  # there is no room, perhaps

    def _sort_some(self, connection: sqlite3.Connection) -> bool:
        """Sort a part of the log into the tables; return whether that ended a generation."""
        try:
            with _unsynced(connection):
                generation = self._sorting.step(connection)
        except (sqlite3.Error, StoreError) as error:
            if (isinstance(error, StoreFullError) or is_full(error)) and self._reserve.give_up():
                self._sorting.resume()
            return False
        self._purge.pending = True  # a floor may have been among it
        if generation is None or self._loop is None:
            return False
        _call_soon(self._loop, self._log.finished, generation)
        return True

    def _sort_last(self, generations: list[Generation], until: float, connection: sqlite3.Connection) -> None:
        """Sort what waits before the end, while there is time; the next start sorts the rest."""
        for generation in generations:
            if generation is not self._sorting.generation:
                self._sorting.begin(generation)
            ended = False
            while not ended and not self._lost and self._sorting.pause() == 0.0 and time.monotonic() < until:
                ended = self._sort_some(connection)
            if not ended:
                return  # what came later must not be sorted before it

    def _purge_some(self, connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with _unsynced(
                connection
            ):  # a step may be repeated; an append that comes would wait for the sync too
                self._purge.step(connection)
        except sqlite3.Error as error:
            if is_full(error) and self._reserve.give_up():
                self._purge.resume()
            elif is_damage(error):
                self._explain(loop, error)
        if self._reserve.in_use and not self._purge.pending:
            _shorten_log(connection)  # what was removed is in it, too

    def _say_if_full(self, connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop) -> None:
        full = not self._reserve.has_room(connection)
        if full != self._is_full:
            self._is_full = full
            _log.warning("the disk is %s", "full: nothing is appended" if full else "no longer full")
            _call_soon(loop, self._on_full, full)

    async def find_room(self) -> None:
        """Raise StoreFullError unless there is room again."""
        loop = asyncio.get_running_loop()
        looked: asyncio.Future[None] = loop.create_future()

        def look(connection: sqlite3.Connection) -> None:
            self._say_if_full(connection, loop)
            if self._is_full:
                _call_soon(loop, _fail, looked, _store_full())
            else:
                _call_soon(loop, _finish, looked, None)

        self._work.put(look)
        await looked

    async def verify(self) -> None:
        loop = asyncio.get_running_loop()
        verified: asyncio.Future[None] = loop.create_future()

        def verify(connection: sqlite3.Connection) -> None:
            error = self._loss(connection)
            if error is None:
                _call_soon(loop, _finish, verified, None)
            else:
                self._rescue(connection)
                _call_soon(loop, _fail, verified, error)

        self._work.put(verify)
        await verified

    def _loss(
        self, connection: sqlite3.Connection, *, written: bool = False, all_files: bool = True
    ) -> StoreError | None:
        try:
            if all_files:
                self._looked = time.monotonic()
                self._lock.check()
            if self._lock.log_shrank():
                self._lock.check_log(_log_size(connection))
        except StoreLostError as loss:
            self._lost = True
            loss.written = written
            return loss
        return None

    def _is_there(self, connection: sqlite3.Connection) -> bool:
        """Look whether the folder is the one that was opened, before anything is written unasked."""
        if not self._lost and self._loss(connection) is not None:
            self._rescue(connection)
        return not self._lost

    def _rescue(self, connection: sqlite3.Connection) -> None:
        """Move the content of a removed log into the file, if nothing else is wrong."""
        if self._lock.lacks_only(_LOG_NAME):
            with contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop is closed: nothing waits
        loop.call_soon_threadsafe(callback, *arguments)


def _finish(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


class _Work(NamedTuple):
    """A transaction: its statements, where the streams' chains end after it, and which streams it removes.

    ``done``: what it takes along of the log, by generation.
    """

    statements: list[tuple[str, Any]]
    ends: Ends
    removed: Collection[int] = ()
    done: Sequence[tuple[Generation, Iterable[int]]] = ()


def _producer(
    connection: sqlite3.Connection, stream: int, producer: str, row: tuple[int, int, int]
) -> ProducerState:
    """Return a stored producer, of its epoch, number and sum; raises StoreDamagedError where they do not agree."""
    epoch, seq, checksum = row
    if producer_sum(stream, producer, epoch, seq) != checksum:
        raise damaged(connection, stream, 0, f"the producer {producer} is not what was stored")
    return ProducerState(epoch, seq)


class _Changes:
    """Rows for the tables, of a batch and of what waits in the log: later ones replace earlier ones."""

    def __init__(self) -> None:
        self.states: dict[int, StreamState] = {}
        self.new: list[StreamState] = []
        self.producers: dict[tuple[int, str], ProducerState] = {}
        self.trimmed: dict[int, int] = {}
        self.records: list[tuple[Any, ...]] = []

    def add_waiting(self, stream: int, waiting: Waiting) -> None:
        if waiting.dirty and waiting.state is not None:
            self.states[stream] = waiting.state
        for producer, state in (waiting.producers or {}).items():
            self.producers[stream, producer] = state
        if waiting.floor:
            self.trimmed[stream] = waiting.floor
        self.records.extend(zip(repeat(stream), waiting.starts, waiting.payloads))

    def add_batch(self, batch: CommitBatch) -> None:
        for slot in batch.dirty:
            state = batch.changed[slot]
            if state is not None:
                self.states[state.id] = state
                if slot.state is None or slot.state.id != state.id:
                    self.new.append(state)
        for key, (producer, _) in batch.producers.items():
            self.producers[key] = producer
        self.trimmed.update(batch.trimmed)
        self.records = self.records + batch.records if self.records else batch.records

    def statements(
        self, connection: sqlite3.Connection, chains: Chains
    ) -> tuple[list[tuple[str, Any]], Ends]:
        found: list[tuple[str, Any]] = []
        if self.trimmed:
            found.append((TRIM, (_encode(list(self.trimmed.items())).decode(),)))
        found.extend(state_statements(list(self.states.values()), self.new))
        if self.producers:
            found.extend(
                producer_statements((*key, one.epoch, one.seq) for key, one in self.producers.items())
            )
        records, ends = record_statements(connection, chains, self.records)
        return found + records, ends


def _log_work(batch: CommitBatch, row: int, _: sqlite3.Connection) -> _Work:
    """Return the transaction that writes a batch to the log."""
    return _Work([insert_row(row, batch), *_probe(batch)], {})


def _batch_work(
    chains: Chains,
    batch: CommitBatch,
    waiting: list[tuple[Generation, dict[int, Waiting]]],
    last_row: int,
    connection: sqlite3.Connection,
) -> _Work:
    """Return the transaction that writes a batch to the tables, and before it what waits of its streams."""
    statements: list[tuple[str, Any]] = []
    if batch.removed:
        ids = _encode(batch.removed).decode()
        paths = msgspec.json.decode(connection.execute(_PATHS, (ids,)).fetchone()[0])
        names = _encode([(name_hash(path), stream) for stream, path in paths]).decode()
        statements.append(("DELETE FROM stream WHERE id IN (SELECT value FROM json_each(?))", (ids,)))
        statements.append((_DELETE_NAMES, (names,)))
        statements.append(("INSERT INTO garbage SELECT value FROM json_each(?)", (ids,)))
    changes = _Changes()
    done: dict[int, None] = {}
    for generation, streams in waiting:
        for stream, one in streams.items():
            if stream not in generation.done:  # else a step sorted it meanwhile
                done[stream] = None
                if stream not in batch.removed:
                    changes.add_waiting(stream, one)
    changes.add_batch(batch)
    changed, ends = changes.statements(connection, chains)
    statements += changed
    if done:
        statements.append(mark_sorted(last_row, list(done)))
    statements += _probe(batch)
    return _Work(statements, ends, batch.removed, [(generation, streams) for generation, streams in waiting])


def _probe(batch: CommitBatch) -> list[tuple[str, Any]]:
    return [("INSERT OR REPLACE INTO probe VALUES (1, ?)", (batch.now,))] if batch.probe else []


def _sort_streams(
    chains: Chains, connection: sqlite3.Connection, generation: Generation, some: dict[int, Waiting]
) -> None:
    """Write what waits of some streams to the tables; raise StoreError if that is not possible."""

    def work(connection: sqlite3.Connection) -> _Work:
        changes = _Changes()
        for stream, waiting in some.items():
            changes.add_waiting(stream, waiting)
        statements, ends = changes.statements(connection, chains)
        statements.append(mark_sorted(generation.last, list(some)))
        return _Work(statements, ends, done=[(generation, some)])

    error = _execute(connection, work, chains)
    if error is not None:
        raise error


@contextlib.contextmanager
def _unsynced(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit without a sync, in the order of the commits: for what another row of the file holds as well."""
    connection.execute("PRAGMA synchronous = NORMAL")
    try:
        yield
    finally:
        connection.execute("PRAGMA synchronous = FULL")


def _joined(first: Chunk, second: Chunk) -> Chunk:
    return Chunk(first.start, second.end, first.payload + second.payload)


def _execute(
    connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], _Work], chains: Chains
) -> StoreError | None:
    """Run the statements as one transaction; a single one is its own."""
    try:
        if connection.in_transaction:  # an earlier rollback failed
            connection.rollback()
        statements, ends, removed, done = work(connection)
        if len(statements) == 1:
            connection.execute(*statements[0])
        else:
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(*statement)
            connection.execute("COMMIT")
        chains.go_on(ends, removed)
        for generation, streams in done:
            generation.done.update(streams)
    except Exception as error:  # noqa: BLE001 - the writer must survive any failure
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.rollback()
        return _store_error(error)
    return None


def _store_full() -> StoreFullError:
    return StoreFullError("the disk is full; none of this request was stored")


def _store_error(error: Exception) -> StoreError:
    if isinstance(error, StoreError):
        return error
    if is_full(error):
        return _store_full()
    if is_damage(error):
        return StoreDamagedError(
            f"the file {FILE_NAME} is damaged: {reason(error)}; durable-streams verify shows what is whole"
        )
    return StoreUnavailableError(f"the store cannot be used now: {error}; none of this request was stored")
