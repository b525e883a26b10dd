"""The SQLite file of a data folder: its schema, how it is opened, and the SQL that more than one module needs.

Invariants: a connection waits for the disk at every commit; a file of another program, or of a newer format, is refused
and left as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from durable_streams.protocol.state import StreamState
from durable_streams.stores.base import StoreError
from durable_streams.stores.private import create_file

__all__ = [
    "FILE_NAME",
    "FILE_NAMES",
    "INSERT_RECORD",
    "LARGE",
    "LARGEST_APPEND",
    "LOG_NAME",
    "SIZE",
    "STATE",
    "UPSERT_PRODUCERS",
    "UPSERT_STREAMS",
    "check_whole",
    "connect",
    "decode_states",
    "insert_records",
    "keep_open",
    "large_statements",
    "opening",
    "payload_of",
    "prepare",
    "purge",
    "read_large",
    "settle",
    "size_of",
    "stream_row",
]

FILE_NAME = "streams.db"
LOG_NAME = FILE_NAME + "-wal"
FILE_NAMES = (FILE_NAME, LOG_NAME, FILE_NAME + "-shm")
"""All that SQLite keeps open while a server runs; none of them is ever replaced meanwhile, except from outside."""

_FORMAT = 2
_APPLICATION_ID = 0x64757261  # "dura"
# What is large is beside the records: SQLite reads a whole record for each comparison of its key with another one, so
# that a record of 60 MB would cost everybody whose search comes past it, be it for a record of another stream.
_LARGE = "CREATE TABLE large (id INTEGER PRIMARY KEY, data BLOB NOT NULL);"
_SCHEMA = f"""
CREATE TABLE stream (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, deadline REAL, state TEXT NOT NULL
);
CREATE INDEX stream_deadline ON stream (deadline) WHERE deadline IS NOT NULL;
CREATE TABLE record (
    stream INTEGER NOT NULL, start INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (stream, start)
) WITHOUT ROWID;
{_LARGE}
CREATE TABLE producer (
    stream INTEGER NOT NULL, id TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (stream, id)
) WITHOUT ROWID;
CREATE TABLE garbage (stream INTEGER PRIMARY KEY);
CREATE TABLE probe (id INTEGER PRIMARY KEY, at REAL NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
"""

# Of format 1, which had large records among the others: they stay there.
_UPGRADES = {1: f"BEGIN IMMEDIATE; {_LARGE} PRAGMA user_version = 2; COMMIT;"}

LARGEST_APPEND = 1_000_000_000
"""Bytes of the largest payload: as much as SQLite takes as one value, which a large one was in format 1."""

LARGE = 256 << 10
"""Bytes of a payload from which on it is in ``large``, in parts of so many bytes under consecutive ids; its record has
an integer instead: ``first id << 32 | size``."""
INSERT_RECORD = "INSERT INTO record VALUES (?, ?, ?)"
_INSERT_LARGE = "INSERT INTO large (data) VALUES (?)"
_INSERT_LARGE_RECORD = "INSERT INTO record VALUES (?, ?, (last_insert_rowid() - ?) << 32 | ?)"
UPSERT_PRODUCERS = """
INSERT INTO producer SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
json_extract(value, '$[3]') FROM json_each(?1) WHERE true
ON CONFLICT (stream, id) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq"""
UPSERT_STREAMS = """
INSERT INTO stream SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
json_extract(value, '$[3]') FROM json_each(?1) WHERE true
ON CONFLICT (id) DO UPDATE SET deadline = excluded.deadline, state = excluded.state"""
_PURGED_LARGE = """
SELECT data FROM record WHERE stream = ?1 AND typeof(data) = 'integer' AND start IN
(SELECT start FROM record WHERE stream = ?1 ORDER BY start LIMIT ?2)"""
_PURGE_LARGE = "DELETE FROM large WHERE id BETWEEN ? AND ?"
_PURGE_RECORDS = """
DELETE FROM record WHERE stream = ?1
AND start IN (SELECT start FROM record WHERE stream = ?1 ORDER BY start LIMIT ?2)"""
_PURGE_PRODUCERS = """
DELETE FROM producer WHERE stream = ?1 AND id IN (SELECT id FROM producer WHERE stream = ?1 ORDER BY id LIMIT ?2)"""
SIZE = "CASE typeof(data) WHEN 'integer' THEN data & 4294967295 ELSE length(data) END"
"""Of a row of ``record``: the bytes of its payload. Reads none of them."""
STATE = f"""json_array(path, json(state),
(SELECT start + {SIZE} FROM record WHERE record.stream = stream.id ORDER BY start DESC LIMIT 1))"""  # noqa: S608
"""Of a row of ``stream``: all that ``decode_states`` needs, which takes an array of them."""

_PARTS = "SELECT data FROM large WHERE id BETWEEN ? AND ? ORDER BY id"
_PURGE_ROWS = 2000
_SIZE_BITS = 0xFFFFFFFF
_CHECKPOINT_PAGES = 4000

_decode_rows = msgspec.json.Decoder(list[tuple[str, StreamState, int | None]]).decode


def connect(folder: Path, cache_kib: int) -> sqlite3.Connection:
    """Return a connection to a folder's file, which is made if it is not there; transactions are the caller's."""
    path = folder / FILE_NAME
    create_file(path)  # with its own mode, which SQLite gives to the log, too
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    return connection


def keep_open(connection: sqlite3.Connection) -> None:
    """Keep SQLite from closing a connection until the process ends.

    It would remove the log at the path of its own, which may be another server's by now, or wait for a thread that
    the disk does not let go.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def check_whole(folder: Path) -> None:
    """Raise StoreError for a log without its file: SQLite would take it for rubbish, and remove it."""
    try:
        log = (folder / LOG_NAME).stat().st_size
    except OSError:
        return
    file = folder / FILE_NAME
    if log and not (file.exists() and file.stat().st_size):
        raise StoreError(
            f"{file} is missing, and its log {LOG_NAME} is there: restore both, or remove the log to begin again"
        )


@contextlib.contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Make one sentence of what SQLite says while a folder's file is opened."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"cannot open the streams in {folder}: {error}; restore the folder or choose another one"
        ) from error


def prepare(connection: sqlite3.Connection, folder: Path) -> int:
    """Write the schema if the file is new; return the last id that was used. Raises StoreError for another's file."""
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    empty = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
    if (application, version) == (0, 0) and empty:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    elif application != _APPLICATION_ID:
        raise StoreError(f"{folder / FILE_NAME} is another program's database; choose another folder")
    elif version in _UPGRADES:
        connection.executescript(_UPGRADES[version])
    elif version != _FORMAT:
        raise StoreError(
            f"the streams in {folder} have format {version}, this version reads {_FORMAT}; "
            "run the version of durable-streams that wrote them"
        )
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'stream'").fetchone()
    # A new file starts at the clock, so that caches never take a new stream for one of a deleted folder.
    return int(time.time()) if row is None else int(row[0])


def settle(connection: sqlite3.Connection) -> None:
    """Move all of the log into the file, which closing the last connection leaves as it is then."""
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def decode_states(rows: str) -> dict[str, StreamState]:
    """Return states by path, from a JSON array of ``STATE``: their tails are where the last records end."""
    return {
        path: state if tail is None else msgspec.structs.replace(state, tail=tail)
        for path, state, tail in _decode_rows(rows)
    }


def large_statements(stream: int, start: int, payload: bytes) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield what stores a payload of at least ``LARGE`` bytes, to be executed in one transaction."""
    view = memoryview(payload)
    parts = range(0, len(view), LARGE)
    for at in parts:
        yield _INSERT_LARGE, (view[at : at + LARGE],)
    yield _INSERT_LARGE_RECORD, (stream, start, len(parts) - 1, len(view))


def large_parts(data: int, begin: int, end: int) -> tuple[int, int, int]:
    """Return the ids of the first and the last part that hold ``[begin, end)`` of a payload, and where those begin."""
    first = begin // LARGE
    return (data >> 32) + first, (data >> 32) + (end - 1) // LARGE, first * LARGE


def read_large(connection: sqlite3.Connection, data: int, begin: int, end: int) -> bytes | None:
    """Return ``[begin, end)`` of a payload whose record holds ``data``; None if a part of it is missing."""
    first, last, at = large_parts(data, begin, end)
    parts = [memoryview(row[0]) for row in connection.execute(_PARTS, (first, last))]
    if at + sum(map(len, parts)) < end:
        return None
    parts[-1] = parts[-1][: end - at - (last - first) * LARGE]
    parts[0] = parts[0][begin - at :]
    return b"".join(parts)


def size_of(data: int) -> int:
    """Return the size of a payload in ``large`` whose record holds ``data``."""
    return data & _SIZE_BITS


def payload_of(connection: sqlite3.Connection, data: bytes | int) -> bytes | None:
    """Return the payload of a record that holds ``data``; None if a part of it is missing."""
    return data if isinstance(data, bytes) else read_large(connection, data, 0, size_of(data))


def insert_records(connection: sqlite3.Connection, records: Sequence[tuple[int, int, bytes]]) -> None:
    """Insert records, given as stream, start and payload."""
    connection.executemany(INSERT_RECORD, [record for record in records if len(record[2]) < LARGE])
    for record in records:
        if len(record[2]) >= LARGE:
            for statement in large_statements(*record):
                connection.execute(*statement)


def stream_row(state: StreamState) -> tuple[int, str, float | None, StreamState]:
    """Return what ``UPSERT_STREAMS`` takes, in a JSON array, for a stream."""
    return state.id, state.path, None if state.deleted else state.deadline, state


def purge(connection: sqlite3.Connection) -> bool:
    """Delete a part of what deleted streams left behind; true while there is more."""
    row = connection.execute("SELECT stream FROM garbage LIMIT 1").fetchone()
    if row is None:
        return False
    stream = row[0]
    connection.execute("BEGIN IMMEDIATE")
    try:
        for (data,) in connection.execute(_PURGED_LARGE, (stream, _PURGE_ROWS)).fetchall():
            connection.execute(_PURGE_LARGE, large_parts(data, 0, size_of(data))[:2])
        purged = connection.execute(_PURGE_RECORDS, (stream, _PURGE_ROWS)).rowcount
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.rollback()
        raise
    if purged or connection.execute(_PURGE_PRODUCERS, (stream, _PURGE_ROWS)).rowcount:
        return True
    connection.execute("DELETE FROM garbage WHERE stream = ?", (stream,))
    return True
