"""Streams in one SQLite file: WAL mode, full sync, one writer thread with group commit.

Invariants: a batch is one transaction; ``committed`` is called only after SQLite said that it is on disk; the folder is
ours alone while we run. A batch goes to SQLite in as few statements as possible, its rows as one JSON array: each
call into SQLite gives up the interpreter lock and has to win it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import Chunk, StoreError, StoreFullError, StoreUnavailableError
from durable_streams.stores.batch import Batch
from durable_streams.stores.folder import FolderLock
from durable_streams.stores.local import Committed, LocalStore
from durable_streams.stores.sqlite_file import (
    INSERT_RECORD,
    STATE,
    UPSERT_PRODUCERS,
    UPSERT_STREAMS,
    connect,
    decode_states,
    opening,
    prepare,
    purge,
    settle,
    stream_row,
)

__all__ = ["SqliteStore"]

T = TypeVar("T")

_INSERT_RECORDS = """
INSERT INTO record SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
substr(?1, json_extract(value, '$[2]'), json_extract(value, '$[3]')) FROM json_each(?2)"""
_READ = """
SELECT min(start), CAST(group_concat(data, '') AS BLOB) FROM (SELECT start, data FROM record WHERE stream = ?1
AND start >= coalesce((SELECT max(start) FROM record WHERE stream = ?1 AND start <= ?2), ?2) AND start < ?3
ORDER BY start)"""
_FIRST = "SELECT start, length(data) FROM record WHERE stream = ? AND start <= ? ORDER BY start DESC LIMIT 1"
_PART = "SELECT ?, substr(data, ?, ?) FROM record WHERE stream = ? AND start = ?"
_WHOLE = """
SELECT min(start), CAST(group_concat(data, '') AS BLOB) FROM (SELECT start, data FROM record WHERE stream = ?1
AND start >= ?2 AND start < ?3 AND start + length(data) <= ?3 ORDER BY start)"""
_BOUNDARY = "SELECT min(start) FROM record WHERE stream = ? AND start >= ?"
# One row, so that loading a hundred streams gives up the interpreter lock once.
_LOAD = f"SELECT json_group_array({STATE}) FROM stream WHERE path IN (SELECT value FROM json_each(?))"  # noqa: S608

_SMALL = 16 << 10  # bytes: larger payloads are not worth a copy into the batch's blob
_READERS = 2
_CACHE_KIB = 16 << 10
_READER_CACHE_KIB = 2 << 10

_encode = msgspec.json.Encoder().encode


class SqliteStore(LocalStore):
    """A durable Store in the folder ``data_dir``."""

    def __init__(
        self, data_dir: Path, *, max_streams: int = 200_000, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(_SqliteBackend(data_dir), max_streams=max_streams, clock=clock)


class _SqliteBackend:
    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir
        self._lock = FolderLock(data_dir)
        self._work: queue.SimpleQueue[Callable[[sqlite3.Connection], None] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._garbage = False
        self.identity = ""
        self._begin()

    def _begin(self) -> None:
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="durable-streams-read")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    async def open(self) -> int:
        self._lock.acquire()
        try:
            with opening(self._dir):
                connection = self._connect()
                last_id = prepare(connection, self._dir)
                self._garbage = connection.execute("SELECT 1 FROM garbage LIMIT 1").fetchone() is not None
                self.identity = self._lock.identity.take()
        except StoreError:
            self._lock.release()
            raise
        self._writer = threading.Thread(
            target=self._write, args=(connection,), name="durable-streams-write", daemon=True
        )
        self._writer.start()
        return last_id

    async def close(self) -> None:
        if self._writer is not None:
            self._work.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._writer.join)
        self._readers.shutdown()
        for connection in reversed(self._connections):
            if self._writer is not None and connection is self._connections[0]:
                settle(connection)
                self._lock.identity.leave()
            connection.close()
        self._writer = None
        self._begin()
        self._lock.release()

    # -- reading

    async def load(self, paths: list[str]) -> dict[str, StreamState]:
        wanted = _encode(paths).decode()

        def load(connection: sqlite3.Connection) -> dict[str, StreamState]:
            return decode_states(connection.execute(_LOAD, (wanted,)).fetchone()[0])

        return await self._read_with(load)

    async def load_producer(self, stream_id: int, producer_id: str) -> ProducerState | None:
        def load(connection: sqlite3.Connection) -> ProducerState | None:
            sql = "SELECT epoch, seq FROM producer WHERE stream = ? AND id = ?"
            row = connection.execute(sql, (stream_id, producer_id)).fetchone()
            return None if row is None else ProducerState(*row)

        return await self._read_with(load)

    async def read(self, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
        def read(connection: sqlite3.Connection) -> Chunk | None:
            first, payload = connection.execute(
                _READ, (stream_id, start, min(stop, start + limit))
            ).fetchone()
            if first is None or first > start:
                return None
            if first + len(payload) > stop:
                payload = payload[: stop - first]
            return Chunk(first, first + len(payload), payload)

        return await self._read_with(read)

    async def read_piece(
        self, stream_id: int, start: int, stop: int, limit: int, aligned: bool
    ) -> Chunk | None:
        def read(connection: sqlite3.Connection) -> Chunk | None:
            found = connection.execute(_FIRST, (stream_id, start)).fetchone()
            if found is None:
                return None
            append, size = found
            begin = append if aligned else start
            end = min(stop, begin + limit)
            if begin > append or append + size > end:
                part = (begin, begin - append + 1, min(append + size, end) - begin, stream_id, append)
                row = connection.execute(_PART, part).fetchone()
            else:
                row = connection.execute(_WHOLE, (stream_id, begin, end)).fetchone()
            if row is None or row[0] != begin:
                return None  # it was deleted between the two statements
            return Chunk(begin, begin + len(row[1]), row[1])

        return await self._read_with(read)

    async def boundary(self, stream_id: int, position: int, stop: int) -> int | None:  # noqa: ARG002 - one signature for all
        def find(connection: sqlite3.Connection) -> int | None:
            found: int | None = connection.execute(_BOUNDARY, (stream_id, position)).fetchone()[0]
            return found

        return await self._read_with(find)

    async def expired(self, now: float, limit: int) -> list[str]:
        def find(connection: sqlite3.Connection) -> list[str]:
            sql = "SELECT path FROM stream WHERE deadline <= ? LIMIT ?"
            return [row[0] for row in connection.execute(sql, (now, limit))]

        return await self._read_with(find)

    async def _read_with(self, query: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._query, query)

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None:
                connection = self._local.connection = self._connect()
                connection.execute("PRAGMA query_only = 1")
            return query(connection)
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise _store_error(error) from error

    # -- writing

    def commit(self, batch: Batch, committed: Committed) -> None:
        statements = _statements(batch)
        loop = asyncio.get_running_loop()

        def write(connection: sqlite3.Connection) -> None:
            error = _execute(connection, statements)
            if batch.removed:
                self._garbage = (
                    True  # here, in the writer's thread: set earlier, a purge under way could clear it
                )
            loop.call_soon_threadsafe(committed, error)

        self._work.put(write)

    def _write(self, connection: sqlite3.Connection) -> None:
        while True:
            if self._garbage:
                try:
                    work = self._work.get_nowait()
                except queue.Empty:
                    self._garbage = _purge(connection)
                    continue
            else:
                work = self._work.get()
            if work is None:
                return
            work(connection)

    # -- connections

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self._dir, _CACHE_KIB if self._writer is None else _READER_CACHE_KIB)
        self._connections.append(connection)
        return connection


def _statements(batch: Batch) -> list[tuple[str, Any]]:
    statements: list[tuple[str, Any]] = []
    removed = [(stream_id,) for stream_id in batch.removed]
    if removed:
        ids = _encode(batch.removed).decode()
        statements.append(("DELETE FROM stream WHERE id IN (SELECT value FROM json_each(?))", (ids,)))
        statements.append(("INSERT INTO garbage SELECT value FROM json_each(?)", (ids,)))
    changed = (batch.changed[slot] for slot in batch.dirty)
    rows = [stream_row(state) for state in changed if state is not None]
    if rows:
        statements.append((UPSERT_STREAMS, (_encode(rows).decode(),)))
    if batch.producers:
        producers = [(*key, producer.epoch, producer.seq) for key, (producer, _) in batch.producers.items()]
        statements.append((UPSERT_PRODUCERS, (_encode(producers).decode(),)))
    statements.extend(_record_statements(batch.records))
    if batch.probe:
        statements.append(("INSERT OR REPLACE INTO probe VALUES (1, ?)", (batch.now,)))
    return statements


def _record_statements(records: list[tuple[int, int, bytes, Any]]) -> list[tuple[str, Any]]:
    if len(records) == 1:
        return [(INSERT_RECORD, records[0][:3])]
    statements: list[tuple[str, Any]] = []
    index: list[tuple[int, int, int, int]] = []
    payloads: list[bytes] = []
    position = 1  # SQL counts from one
    for stream_id, start, payload, _ in records:
        size = len(payload)
        if size > _SMALL:
            statements.append((INSERT_RECORD, (stream_id, start, payload)))
        else:
            index.append((stream_id, start, position, size))
            payloads.append(payload)
            position += size
    if index:
        statements.append((_INSERT_RECORDS, (b"".join(payloads), _encode(index).decode())))
    return statements


def _execute(connection: sqlite3.Connection, statements: list[tuple[str, Any]]) -> StoreError | None:
    """Run the statements as one transaction; a single one is its own."""
    try:
        if connection.in_transaction:  # an earlier rollback failed
            connection.rollback()
        if len(statements) == 1:
            connection.execute(*statements[0])
            return None
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(*statement)
        connection.execute("COMMIT")
    except Exception as error:  # noqa: BLE001 - the writer must outlive whatever it is
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.rollback()
        return _store_error(error)
    return None


def _purge(connection: sqlite3.Connection) -> bool:
    try:
        return purge(connection)
    except sqlite3.Error:
        return False  # no room to delete in: the next deletion or start tries again


def _store_error(error: Exception) -> StoreError:
    text = str(error)
    if "full" in text:
        return StoreFullError("the disk is full; nothing of this request was stored")
    return StoreUnavailableError(f"the store cannot be used now: {text}; nothing of this request was stored")
