"""The SQLite file of a data folder: its schema, how it is opened, and the SQL that more than one module needs.

Invariants: a connection waits for the disk at every commit; a file of another program, or of another format, is refused
and left as it is.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from durable_streams.protocol.state import StreamState
from durable_streams.stores.base import StoreError
from durable_streams.stores.private import create_file

__all__ = [
    "FILE_NAME",
    "INSERT_RECORD",
    "STATE",
    "UPSERT_PRODUCERS",
    "UPSERT_STREAMS",
    "connect",
    "decode_states",
    "opening",
    "prepare",
    "purge",
    "settle",
    "stream_row",
]

FILE_NAME = "streams.db"

_FORMAT = 1
_APPLICATION_ID = 0x64757261  # "dura"
_SCHEMA = f"""
CREATE TABLE stream (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, deadline REAL, state TEXT NOT NULL
);
CREATE INDEX stream_deadline ON stream (deadline) WHERE deadline IS NOT NULL;
CREATE TABLE record (
    stream INTEGER NOT NULL, start INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (stream, start)
) WITHOUT ROWID;
CREATE TABLE producer (
    stream INTEGER NOT NULL, id TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (stream, id)
) WITHOUT ROWID;
CREATE TABLE garbage (stream INTEGER PRIMARY KEY);
CREATE TABLE probe (id INTEGER PRIMARY KEY, at REAL NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
"""

INSERT_RECORD = "INSERT INTO record VALUES (?, ?, ?)"
UPSERT_PRODUCERS = """
INSERT INTO producer SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
json_extract(value, '$[3]') FROM json_each(?1) WHERE true
ON CONFLICT (stream, id) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq"""
UPSERT_STREAMS = """
INSERT INTO stream SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
json_extract(value, '$[3]') FROM json_each(?1) WHERE true
ON CONFLICT (id) DO UPDATE SET deadline = excluded.deadline, state = excluded.state"""
_PURGE_RECORDS = """
DELETE FROM record WHERE stream = ?1
AND start IN (SELECT start FROM record WHERE stream = ?1 ORDER BY start LIMIT ?2)"""
_PURGE_PRODUCERS = """
DELETE FROM producer WHERE stream = ?1 AND id IN (SELECT id FROM producer WHERE stream = ?1 ORDER BY id LIMIT ?2)"""
STATE = """json_array(path, json(state),
(SELECT start + length(data) FROM record WHERE record.stream = stream.id ORDER BY start DESC LIMIT 1))"""
"""Of a row of ``stream``: all that ``decode_states`` needs, which takes an array of them."""

_PURGE_ROWS = 2000
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


def stream_row(state: StreamState) -> tuple[int, str, float | None, StreamState]:
    """Return what ``UPSERT_STREAMS`` takes, in a JSON array, for a stream."""
    return state.id, state.path, None if state.deleted else state.deadline, state


def purge(connection: sqlite3.Connection) -> bool:
    """Delete a part of what deleted streams left behind; true while there is more."""
    row = connection.execute("SELECT stream FROM garbage LIMIT 1").fetchone()
    if row is None:
        return False
    stream = row[0]
    for sql in (_PURGE_RECORDS, _PURGE_PRODUCERS):
        if connection.execute(sql, (stream, _PURGE_ROWS)).rowcount:
            return True
    connection.execute("DELETE FROM garbage WHERE stream = ?", (stream,))
    return True
