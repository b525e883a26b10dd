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
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import (
    Chunk,
    StoreError,
    StoreFullError,
    StoreLostError,
    StoreUnavailableError,
)
from durable_streams.stores.batch import Batch
from durable_streams.stores.commits import Committed
from durable_streams.stores.folder import FolderLock
from durable_streams.stores.lanes import Lane, Lookup
from durable_streams.stores.local import DEFAULT_LIMITS, LocalStore, StoreLimits
from durable_streams.stores.sqlite_file import (
    FILE_NAMES,
    INSERT_RECORD,
    LARGE,
    LARGEST_APPEND,
    LOG_NAME,
    STATE,
    UPSERT_PRODUCERS,
    UPSERT_STREAMS,
    check_whole,
    connect,
    decode_states,
    keep_open,
    large_statements,
    opening,
    prepare,
    purge,
    settle,
    stream_row,
)
from durable_streams.stores.sqlite_read import read_appends, read_piece

__all__ = ["SqliteStore"]

T = TypeVar("T")

_INSERT_RECORDS = """
INSERT INTO record SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
substr(?1, json_extract(value, '$[2]'), json_extract(value, '$[3]')) FROM json_each(?2)"""
_BOUNDARY = "SELECT min(start) FROM record WHERE stream = ? AND start >= ?"
# One row, so that loading a hundred streams gives up the interpreter lock once.
_LOAD = f"SELECT json_group_array({STATE}) FROM stream WHERE path IN (SELECT value FROM json_each(?))"  # noqa: S608

_SMALL = 16 << 10  # bytes: larger payloads are not worth a copy into the batch's blob
_READERS = 2
_LOOK_AFTER = 0.05  # seconds
_LAST_WAIT = 0.5  # seconds that the writer's thread gets in any case
_CACHE_KIB = 16 << 10
_READER_CACHE_KIB = 2 << 10

_encode = msgspec.json.Encoder().encode


class SqliteStore(LocalStore):
    """A durable Store in the folder ``data_dir``."""

    def __init__(
        self,
        data_dir: Path,
        *,
        max_streams: int = 200_000,
        clock: Callable[[], float] = time.time,
        limits: StoreLimits = DEFAULT_LIMITS,
    ) -> None:
        backend = _SqliteBackend(data_dir, limits.disk_timeout)
        super().__init__(backend, max_streams=max_streams, clock=clock, limits=limits)


class _SqliteBackend:
    def __init__(self, data_dir: Path, timeout: float) -> None:
        self._folder = data_dir.absolute()  # the process may change its own folder
        self._timeout = timeout
        self.identity = ""
        self.largest_append = LARGEST_APPEND
        self._begin()

    def _begin(self) -> None:
        # New ones each time: what a disk does not let go is left behind with those that it uses.
        self._lock = FolderLock(self._folder)
        self._work: queue.SimpleQueue[Callable[[sqlite3.Connection], None] | None] = queue.SimpleQueue()
        self._connections: list[sqlite3.Connection] = []  # the writer's, then the readers'
        self._ended: asyncio.Future[None] | None = None  # done when the writer's thread has ended
        self._states: Lane | None = None
        self._records: Lane | None = None
        self._garbage = False
        self._lost = False
        self._looked = 0.0  # when the files were last seen where they should be

    async def open(self) -> int:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[int] = loop.create_future()
        ended = self._ended = loop.create_future()
        # A daemon, and opened in its thread: a disk that does not answer keeps nobody from ending the process.
        run = partial(self._run, loop, opened, ended)
        threading.Thread(target=run, name="durable-streams-write", daemon=True).start()
        try:
            last_id = await opened
        except BaseException:
            self._work.put(None)
            self._begin()
            raise
        lane = partial(Lane, explain=_store_error, timeout=self._timeout)
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
        self._work.put(None)  # closes its own connection last: that moves the log into the file
        await asyncio.wait([self._ended], timeout=max(_LAST_WAIT, until - loop.time()))
        if self._lost or not self._ended.done() or not all(closed):
            for connection in self._connections:
                keep_open(connection)
        self._begin()

    # -- in the writer's thread

    def _run(
        self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[int], ended: asyncio.Future[None]
    ) -> None:
        lock, connections, work = self._lock, self._connections, self._work
        try:
            lock.acquire()
            last_id = self._open(lock, connections)
        except BaseException as error:  # noqa: BLE001 - it goes to the one who waits for the store to be open
            for connection in connections:
                connection.close()
            lock.release()
            _tell(loop, _fail, opened, error)
        else:
            _tell(loop, _finish, opened, last_id)
            self._write(connections[0], work)
            if not self._lost:
                settle(connections[0])
                lock.identity.leave()
                connections[0].close()
            lock.release()
        _tell(loop, _finish, ended, None)

    def _open(self, lock: FolderLock, connections: list[sqlite3.Connection]) -> int:
        folder = lock.folder
        with opening(folder):
            check_whole(folder)
            writer = connect(folder, _CACHE_KIB)
            connections.append(writer)
            last_id = prepare(writer, folder)
            self._garbage = writer.execute("SELECT 1 FROM garbage LIMIT 1").fetchone() is not None
            for _ in range(1 + _READERS):
                reader = connect(folder, _READER_CACHE_KIB)
                connections.append(reader)
                reader.execute("PRAGMA query_only = 1")
            self.identity = lock.identity.take()
        lock.guard(*FILE_NAMES)
        return last_id

    def _write(
        self,
        connection: sqlite3.Connection,
        works: queue.SimpleQueue[Callable[[sqlite3.Connection], None] | None],
    ) -> None:
        while True:
            if self._garbage and not self._lost:
                try:
                    work = works.get_nowait()
                except queue.Empty:
                    self._garbage = _purge(connection)
                    continue
            else:
                work = works.get()
            if work is None:
                break
            work(connection)

    # -- reading

    async def load(self, paths: list[str]) -> dict[str, StreamState]:
        wanted = _encode(paths).decode()

        def load(connection: sqlite3.Connection, _: Lookup) -> dict[str, StreamState]:
            return decode_states(connection.execute(_LOAD, (wanted,)).fetchone()[0])

        return await self._lane(self._states).run(load)

    async def load_producer(self, stream_id: int, producer_id: str) -> ProducerState | None:
        def load(connection: sqlite3.Connection, _: Lookup) -> ProducerState | None:
            sql = "SELECT epoch, seq FROM producer WHERE stream = ? AND id = ?"
            row = connection.execute(sql, (stream_id, producer_id)).fetchone()
            return None if row is None else ProducerState(*row)

        return await self._lane(self._states).run(load)

    async def read(self, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
        reading = partial(read_appends, stream=stream_id, start=start, stop=stop, limit=limit)
        # What was stored stays as it is, so that many who read the same at once may share one read.
        return await self._lane(self._records).run(reading, (stream_id, start, stop, limit))

    async def read_piece(
        self, stream_id: int, start: int, stop: int, limit: int, aligned: bool
    ) -> Chunk | None:
        question = (stream_id, start, stop, limit, aligned)
        reading = partial(read_piece, stream=stream_id, start=start, stop=stop, limit=limit, aligned=aligned)
        return await self._lane(self._records).run(reading, question)

    async def boundary(self, stream_id: int, position: int, stop: int) -> int | None:  # noqa: ARG002 - one signature for all
        def find(connection: sqlite3.Connection, _: Lookup) -> int | None:
            found: int | None = connection.execute(_BOUNDARY, (stream_id, position)).fetchone()[0]
            return found

        return await self._lane(self._states).run(find)

    async def expired(self, now: float, limit: int) -> list[str]:
        def find(connection: sqlite3.Connection, _: Lookup) -> list[str]:
            sql = "SELECT path FROM stream WHERE deadline <= ? LIMIT ?"
            return [row[0] for row in connection.execute(sql, (now, limit))]

        return await self._lane(self._states).run(find)

    @staticmethod
    def _lane(lane: Lane | None) -> Lane:
        if lane is None:
            raise StoreUnavailableError("the store is closed")
        return lane

    # -- writing

    def commit(self, batch: Batch, committed: Committed) -> None:
        statements = _statements(batch)
        loop = asyncio.get_running_loop()

        def write(connection: sqlite3.Connection) -> None:
            # Before, if the last look is not just past, so that nothing is written to where nobody will look for it.
            error: StoreError | None = None
            if time.monotonic() - self._looked > _LOOK_AFTER:
                error = self._loss()
            if error is None:
                error = _execute(connection, statements)
            if batch.removed:
                self._garbage = (
                    True  # here, in the writer's thread: set earlier, a purge under way could clear it
                )
            if error is None:
                # And after the sync: what was stored in a folder that is gone by now is not acknowledged.
                error = self._loss(written=True)
            if self._lost:
                self._rescue(connection)
            _tell(loop, committed, error)

        self._work.put(write)

    async def verify(self) -> None:
        loop = asyncio.get_running_loop()
        verified: asyncio.Future[None] = loop.create_future()

        def verify(connection: sqlite3.Connection) -> None:
            error = self._loss()
            if error is None:
                _tell(loop, _finish, verified, None)
            else:
                self._rescue(connection)
                _tell(loop, _fail, verified, error)

        self._work.put(verify)
        await verified

    def _loss(self, *, written: bool = False) -> StoreLostError | None:
        self._looked = time.monotonic()
        try:
            self._lock.check()
        except StoreLostError as loss:
            self._lost = True
            loss.written = written
            return loss
        return None

    def _rescue(self, connection: sqlite3.Connection) -> None:
        """Save what is in a log that was removed, by moving it into its file, if that is all that is wrong."""
        if self._lock.lacks_only(LOG_NAME):
            with contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop was closed: nobody waits
        loop.call_soon_threadsafe(callback, *arguments)


def _finish(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


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
    if len(records) == 1 and len(records[0][2]) < LARGE:
        return [(INSERT_RECORD, records[0][:3])]
    statements: list[tuple[str, Any]] = []
    index: list[tuple[int, int, int, int]] = []
    payloads: list[bytes] = []
    position = 1  # SQL counts from one
    for stream_id, start, payload, _ in records:
        size = len(payload)
        if size >= LARGE:
            statements.extend(large_statements(stream_id, start, payload))
        elif size > _SMALL:
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
