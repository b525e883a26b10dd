"""Streams in a data folder, as the source or the target of a transfer.

Invariants: no server has the folder open during a transfer; waiting rows are written in one transaction, in order; a
complete stream is extended in one transaction, or not at all; a written id is never used for another stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import StoreError, StoreFullError, StoreLostError, StoreUnavailableError
from durable_streams.stores.checksums import Chains
from durable_streams.stores.folder import FolderLock
from durable_streams.stores.sqlite import (
    FILE_NAME,
    FILE_NAMES,
    SIZE,
    STATE,
    TRIM,
    check_whole,
    connect,
    decode_states,
    is_full,
    keep_open,
    opening,
    payload_of,
    prepare,
    producer_statements,
    purge_step,
    record_statements,
    settle,
    state_statements,
    write_tails,
)
from durable_streams.stores.sqlite_subscriptions import SqliteSubscriptions
from durable_streams.stores.subscriptions import SubscriptionStore
from durable_streams.stores.transfer.copy import Held, begins_at, damaged

__all__ = ["SqlitePlace"]

T = TypeVar("T")

_STREAMS = 256  # in a page
_PATIENCE = 60.0  # seconds for a transaction
_PAGE_BYTES = 4 << 20
_PAGE_APPENDS = 10_000
_WAITING_BYTES = 8 << 20
_WAITING_ROWS = 20_000
_CACHE_KIB = 64 << 10

_PAGE = f"""
SELECT json_group_array(json(row)), max(path) FROM
(SELECT {STATE} AS row, path FROM stream WHERE path > ? ORDER BY path LIMIT {_STREAMS})"""  # noqa: S608
_AT = f"SELECT json_group_array({STATE}) FROM stream WHERE path IN (SELECT value FROM json_each(?))"  # noqa: S608
_TAKEN = "SELECT path FROM stream WHERE id = ? AND path != ?"
_TAIL = f"SELECT start + {SIZE} FROM record WHERE stream = ? ORDER BY start DESC LIMIT 1"  # noqa: S608
_APPENDS = "SELECT start, data, sum FROM record WHERE stream = ? AND start >= ? ORDER BY start"
_PRODUCERS = "SELECT id, epoch, seq FROM producer WHERE stream = ?"
_RAISE_IDS = "UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = 'stream'"
_FIRST_IDS = "INSERT INTO sqlite_sequence (name, seq) VALUES ('stream', ?1)"

_encode = msgspec.json.Encoder().encode


class _Rows(NamedTuple):
    """Rows that wait: records, producers and states."""

    records: list[tuple[int, int, bytes]]
    producers: list[tuple[int, str, int, int]]
    states: list[StreamState]


class SqlitePlace:
    """A data folder.

    Args:
        folder: The folder.
        source: Whether streams are read from it; it must hold some then.
    """

    def __init__(self, folder: Path, *, source: bool) -> None:
        self._source = source
        self._lock = FolderLock(folder)
        self._folder = self._lock.folder
        self._identity = self._lock.identity
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="durable-streams-transfer")
        self._connection: sqlite3.Connection | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self.subscriptions: SubscriptionStore = SqliteSubscriptions(self._run, self._look_up, _PATIENCE)
        self._records: list[tuple[int, int, bytes]] = []
        self._producers: list[tuple[int, str, int, int]] = []
        self._states: list[StreamState] = []
        self._size = 0
        self._chains = Chains()
        self._ends: dict[int, int] = {}  # of incomplete streams, by id
        self._complete: set[int] = set()  # of the last `held`; their bytes count once they are committed

    async def open(self) -> None:
        """Lock the folder and open its file; raise StoreError if that is not possible."""
        if self._source and not (self._folder / FILE_NAME).is_file():
            raise StoreError(f"the folder {self._folder} holds no streams: it has no file {FILE_NAME}")
        self._lock.acquire()
        await self._in_thread(self._open)

    def _open(self) -> None:
        with opening(self._folder):
            check_whole(self._folder)
            self._connection = connection = connect(self._folder, _CACHE_KIB)
            prepare(connection, self._folder)
            self._identity.take()
            while not self._source and purge_step(connection):
                pass  # a deleted id may come back with the copy; its old bytes must not
        self._lock.guard(*FILE_NAMES)

    async def close(self) -> None:
        """Release the folder; rows that were not flushed are dropped."""
        await self._in_thread(self._close)
        self._thread.shutdown()
        self._lock.release()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            self._lock.check()
        except StoreLostError:
            keep_open(connection)
            return
        if self._identity.name and not connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                while write_tails(connection, self._chains):
                    pass
            settle(connection)
            self._identity.leave()
        connection.close()

    async def identity(self) -> str:
        """Return the identity of the folder."""
        return self._identity.name

    async def adopt(self, identity: str) -> None:
        """Take the identity of the source."""
        await self._in_thread(lambda: self._identity.adopt(identity))

    def _run(
        self, statements: Sequence[tuple[str, Any]], committed: Callable[[StoreError | None], None]
    ) -> None:
        """Run statements as one transaction, then report."""

        async def write() -> None:
            try:
                await self._in_thread(
                    lambda: self._query(lambda connection: _transact(connection, statements))
                )
            except StoreError as error:
                committed(error)
            else:
                committed(None)

        task = asyncio.ensure_future(write())
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _look_up(self, query: Callable[[sqlite3.Connection], Any]) -> Any:
        return await self._in_thread(lambda: self._query(query))

    # reading

    async def streams(self) -> AsyncIterator[list[StreamState]]:
        """Yield all streams in pages, in the order of their paths."""
        after = ""
        while True:
            rows, last = self._query(lambda connection: connection.execute(_PAGE, (after,)).fetchone())  # noqa: B023
            if last is None:
                return
            yield list(decode_states(rows).values())
            after = last

    async def appends(self, state: StreamState) -> AsyncIterator[list[bytes]]:
        """Yield the appends of a stream in pages."""
        position = begins_at(state)
        while position < state.tail:
            page = self._query(lambda connection: _page(connection, state, position))  # noqa: B023
            if not page:
                raise damaged(state, position)
            position += sum(map(len, page))
            yield page

    async def producers(self, state: StreamState) -> Mapping[str, ProducerState]:
        """Return all producers of a stream."""
        rows = self._query(lambda connection: connection.execute(_PRODUCERS, (state.id,)).fetchall())
        return {name: ProducerState(epoch, seq) for name, epoch, seq in rows}

    async def check_alone(self) -> None:
        """Return if the folder is where it was opened, where its lock excludes others; else raise StoreLostError."""
        self._lock.check()

    # writing

    async def held(self, states: Sequence[StreamState]) -> list[Held]:
        """Return what the folder holds of each stream."""
        found = self._query(lambda connection: _held(connection, self._folder, states))
        self._complete = {one.state.id for one in found if one.state is not None}
        return found

    async def write(self, state: StreamState, appends: Sequence[bytes]) -> None:
        """Write appends behind the present bytes."""
        end = self._ends.get(state.id)
        if end is None:
            tail = self._query(lambda connection: connection.execute(_TAIL, (state.id,)).fetchone())
            end = begins_at(state) if tail is None else tail[0]
        for append in appends:
            self._records.append((state.id, end, append))
            end += len(append)
        self._ends[state.id] = end
        await self._wrote(sum(map(len, appends)))

    async def finish(self, state: StreamState, producers: Mapping[str, ProducerState]) -> None:
        """Write a stream's row and its producers."""
        self._ends.pop(state.id, None)
        self._producers.extend((state.id, name, one.epoch, one.seq) for name, one in producers.items())
        self._states.append(state)
        await self._wrote(0)

    async def _wrote(self, size: int) -> None:
        self._size += size
        rows = len(self._records) + len(self._producers) + len(self._states)
        if self._size >= _WAITING_BYTES or rows >= _WAITING_ROWS:
            await self.flush()

    async def flush(self) -> None:
        """Write the waiting rows, and commit unless a complete stream has been extended in part."""
        rows = _Rows(self._records, self._producers, self._states)
        self._records, self._producers, self._states, self._size = [], [], [], 0
        whole = self._complete.isdisjoint(self._ends)
        await self._in_thread(
            lambda: self._query(lambda connection: _write(connection, self._chains, rows, commit=whole))
        )
        self._lock.check()

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            raise StoreError(f"the folder {self._folder} is not open")
        with _explained(self._folder):
            return query(self._connection)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Run a call that waits for the disk in the thread; reads are short, and do without."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _page(connection: sqlite3.Connection, state: StreamState, position: int) -> list[bytes]:
    page: list[bytes] = []
    end = position
    for start, data, checksum in connection.execute(_APPENDS, (state.id, position)):
        payload = payload_of(connection, state.id, start, data, checksum)
        if start != end or payload is None:
            raise damaged(state, end)
        if end >= state.tail:
            break
        page.append(payload)
        end += len(payload)
        if end - position >= _PAGE_BYTES or len(page) >= _PAGE_APPENDS:
            break
    if end > state.tail:
        raise damaged(state, state.tail)
    return page


def _held(connection: sqlite3.Connection, folder: Path, states: Sequence[StreamState]) -> list[Held]:
    paths = _encode([state.path for state in states]).decode()
    present = decode_states(connection.execute(_AT, (paths,)).fetchone()[0])
    held = []
    for state in states:
        there = present.get(state.path)
        if there is not None and there.id != state.id:
            raise StoreError(
                f"the folder {folder} holds another stream at {state.path}: delete it, or choose another folder"
            )
        taken = connection.execute(_TAKEN, (state.id, state.path)).fetchone()
        if taken is not None:
            raise StoreError(
                f"the folder {folder} holds the stream {taken[0]} under the id of {state.path}: "
                "choose another folder"
            )
        tail = connection.execute(_TAIL, (state.id,)).fetchone()
        held.append(Held(there, begins_at(state) if tail is None else tail[0]))
    return held


def _write(connection: sqlite3.Connection, chains: Chains, rows: _Rows, *, commit: bool) -> None:
    records, producers, states = rows
    try:
        if not connection.in_transaction:
            connection.execute("BEGIN IMMEDIATE")
        statements, ends = record_statements(connection, chains, records)
        # A name that is there already stays.
        statements += [*producer_statements(producers), *state_statements(states, states)]
        for statement in statements:
            connection.execute(*statement)
        # A stream that was there already may begin later now.
        floors = [(state.id, state.floor) for state in states if state.floor]
        connection.execute(TRIM, (_encode(floors).decode(),))
        ids = [record[0] for record in records] + [state.id for state in states]
        if ids and not connection.execute(_RAISE_IDS, (max(ids),)).rowcount:
            connection.execute(_FIRST_IDS, (max(ids),))
        chains.go_on(ends, ())
        if commit:
            connection.execute("COMMIT")
    except BaseException:
        chains.forget()
        if connection.in_transaction:
            connection.rollback()
        raise


def _transact(connection: sqlite3.Connection, statements: Sequence[tuple[str, Any]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            connection.execute(*statement)
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if is_full(error):
            raise StoreFullError(f"there is no room left on the disk of the folder {folder}") from error
        kind = StoreUnavailableError if isinstance(error, sqlite3.OperationalError) else StoreError
        raise kind(f"the streams in {folder} cannot be read or written: {error}") from error
