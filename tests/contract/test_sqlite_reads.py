"""Reads of a SQLite store: dropped without a waiter, and no more expensive than their bytes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from durable_streams.protocol.commands import Append, Create, ForkPoint
from durable_streams.protocol.state import ProducerStamp, StreamState
from durable_streams.stores import sqlite as module
from durable_streams.stores.base import Chunk, StoreError, StoreUnavailableError
from durable_streams.stores.local import StoreLimits
from durable_streams.stores.sqlite import LARGE, SqliteStore, read_appends

BYTES = "application/octet-stream"
WITHIN = 60.0  # seconds; everything here takes a fraction of one
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT begun() UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(folder, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def stored(state: StreamState | None) -> StreamState | None:
    """Return a state without the time of the last append, which a file has to a few seconds only."""
    return None if state is None else replace(state, appended=None)


def run(main: Callable[[], Any]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(main(), WITHIN)

    asyncio.run(limited())


class Gate:
    """Stands in for the reading of records: it waits until ``open`` is set, and counts."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = 0
        self.entered = threading.Semaphore(0)

    def __call__(self, connection: sqlite3.Connection, lookup: Any, **question: Any) -> Chunk | None:
        self.begun += 1
        self.entered.release()
        assert self.open.wait(WITHIN)
        return read_appends(connection, lookup, **question)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(module, "read_appends", gate)
    yield gate
    gate.open.set()


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Reads from position 0 never end by themselves; the semaphore counts those that have begun."""
    begun = threading.Semaphore(0)

    def read(connection: sqlite3.Connection, lookup: Any, *, start: int, **question: Any) -> Chunk | None:
        if start == 0:
            connection.create_function("begun", 0, lambda: begun.release() or 0)
            connection.execute(ENDLESS).fetchone()
        return read_appends(connection, lookup, start=start, **question)

    monkeypatch.setattr(module, "read_appends", read)
    return begun


async def begun(semaphore: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert await asyncio.to_thread(semaphore.acquire, timeout=WITHIN)


async def filled(store: SqliteStore, path: str = "s", appends: int = 100) -> StreamState:
    await store.create(Create(path, BYTES))
    for number in range(appends):
        state = (await store.append(path, Append(BYTES, b"%04d" % number))).state
    return state


def test_f3_states_and_producers_are_loaded_beside_reads_that_do_not_end(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(tmp_path, max_streams=2) as store:
            state = await filled(store)
            for number in range(20):
                await store.create(Create(f"s{number}", BYTES, payload=b"abc"))
            reads = [asyncio.ensure_future(store.read(state, at, 1)) for at in range(0, 40, 4)]
            await begun(gate.entered, 2)
            for number in range(20):
                assert (await store.get(f"s{number}")).tail == 3
                stamp = ProducerStamp("p", 0, 0)
                assert not (await store.append(f"s{number}", Append(BYTES, b"d", producer=stamp))).duplicate
            await store.delete("s1")
            await store.check()
            assert not any(read.done() for read in reads)
            gate.open.set()
            assert [(await read).payload for read in reads] == [b"%04d" % number for number in range(10)]

    run(main)


def test_f3_reads_that_nobody_waits_for_are_not_done(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            state = await filled(store)
            reads = [asyncio.ensure_future(store.read(state, at, 1)) for at in range(0, 400, 4)]
            await begun(gate.entered, 2)
            for read in reads[2:-1]:
                read.cancel()
            await asyncio.gather(*reads[2:-1], return_exceptions=True)
            gate.open.set()
            assert (await reads[-1]).payload == b"0099"
            assert [(await read).payload for read in reads[:2]] == [b"0000", b"0001"]
            assert gate.begun == 3

    run(main)


def test_f3_who_reads_the_same_at_the_same_time_shares_one_read(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            state = await filled(store)
            reads = [asyncio.ensure_future(store.read(state, 40, 8)) for _ in range(50)]
            await begun(gate.entered, 1)
            for read in reads[:-2]:
                read.cancel()
            await asyncio.sleep(0)
            gate.open.set()
            assert [(await read).payload for read in reads[-2:]] == [b"00100011"] * 2
            assert all(read.cancelled() for read in reads[:-2])
            assert gate.begun == 1
            assert (await store.read(state, 40, 8)).payload == b"00100011"
            assert gate.begun == 2, "the bytes of a read that is over are kept"

    run(main)


def test_f3_a_read_that_runs_is_interrupted_with_the_last_one_who_waits(
    tmp_path: Path, endless: threading.Semaphore
) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            state = await filled(store)
            for _ in range(20):
                stuck = [asyncio.ensure_future(store.read(state, 0, limit)) for limit in (1, 2, 1, 2)]
                behind = asyncio.ensure_future(store.read(state, 40, 4))
                await begun(endless, 2)
                stuck[0].cancel()
                stuck[1].cancel()
                await asyncio.sleep(0.01)
                assert not behind.done()
                assert not stuck[2].done()
                stuck[2].cancel()
                assert (await behind).payload == b"0010"
                assert not stuck[3].done()
                stuck[3].cancel()
                await asyncio.gather(*stuck, return_exceptions=True)
            assert (await store.read(state, 40, 400)).payload == b"".join(b"%04d" % n for n in range(10, 100))

    run(main)


def test_f3_the_end_of_a_store_interrupts_what_is_read(tmp_path: Path, endless: threading.Semaphore) -> None:
    async def main() -> None:
        store = SqliteStore(tmp_path)
        await store.open()
        state = await filled(store)
        reads = [asyncio.ensure_future(store.read(state, 0, limit)) for limit in range(1, 60)]
        await begun(endless, 2)
        await store.close()
        for read in reads:
            with pytest.raises(StoreUnavailableError):
                await read
        async with opened(tmp_path) as again:
            assert (await again.read(state, 4, 4)).payload == b"0001"

    run(main)


def test_f3_the_disk_may_hang_under_reads(tmp_path: Path, gate: Gate) -> None:
    """Waiting reads fail after a while, later ones at once; reads continue once the disk answers."""

    async def main() -> None:
        async with opened(tmp_path, limits=StoreLimits(disk_timeout=3.0)) as store:
            state = await filled(store)
            reads = [asyncio.ensure_future(store.read(state, at, 1)) for at in range(0, 40, 4)]
            for read in reads:
                with pytest.raises(StoreUnavailableError):
                    await read
            with pytest.raises(StoreUnavailableError):
                await store.read(state, 0, 1)
            assert gate.begun == 2
            assert (await store.append("s", Append(BYTES, b"more"))).state.tail == 404
            gate.open.set()
            for _ in range(1000):
                with contextlib.suppress(StoreUnavailableError):
                    assert (await store.read(state, 0, 1)).payload == b"0000"
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("it does not go on")

    run(main)


# -- large and small appends

SIZES = [1, 100, 5000, LARGE - 1, LARGE, LARGE + 1, 2 * LARGE, (1 << 20) + 77]


def same(one: bytes, other: bytes) -> bool:
    """Whether they are equal; megabytes that are not would take pytest minutes to explain."""
    return one == other


def test_f3_a_read_costs_what_was_asked_for_and_one_append_at_most(tmp_path: Path) -> None:
    async def main() -> None:
        chance = random.Random(11)
        async with opened(tmp_path) as store:
            await store.create(Create("s", BYTES))
            content, bounds = b"", [0]
            for _ in range(50):
                payload = chance.randbytes(chance.choice(SIZES))
                content += payload
                bounds.append((await store.append("s", Append(BYTES, payload))).state.tail)
            state = await store.get("s")
            assert state.tail == len(content)
            for _ in range(150):
                start = chance.choice([chance.choice(bounds[:-1]), chance.randrange(len(content))])
                limit = chance.choice([1, 1000, LARGE, 1 << 20, 5 << 20])
                begin = max(bound for bound in bounds if bound <= start)
                chunk = await store.read(state, start, limit)
                assert (chunk.start, chunk.end - chunk.start) == (begin, len(chunk.payload))
                assert same(chunk.payload, content[chunk.start : chunk.end])
                assert chunk.end in bounds
                first = bounds[bounds.index(begin) + 1]
                assert chunk.end == first or chunk.end - begin < limit + (first - begin) + LARGE
                # It is not short without a reason: the next one is large and does not fit, or it is the end.
                following = bounds[min(bounds.index(chunk.end) + 1, len(bounds) - 1)]
                assert chunk.end - begin >= limit or chunk.end == state.tail or following - begin > limit
                for aligned, at in ((False, start), (True, begin)):
                    piece = await store.read_piece(state, start, limit, aligned=aligned)
                    assert (piece.start, piece.end) == (at, min(at + limit, state.tail))
                    assert same(piece.payload, content[piece.start : piece.end])
                assert await store.boundary(state, start) == min(bound for bound in bounds if bound >= start)
        async with opened(tmp_path) as store:
            assert stored(await store.get("s")) == stored(state)

    run(main)


def test_f3_pieces_of_a_large_append_cost_what_they_hold(tmp_path: Path) -> None:
    """Counted in the parts that are read of it: all of it in small pieces is no more than twice all of it."""

    async def main() -> None:
        payload = random.Random(5).randbytes(40 * LARGE + 999)
        async with opened(tmp_path) as store:
            await store.create(Create("s", BYTES, payload=b"before"))
            state = (await store.append("s", Append(BYTES, payload))).state
            statements: list[str] = []
            for connection in store._backend._connections:
                connection.set_trace_callback(statements.append)
            position, parts = 6, 0
            while position < state.tail:
                piece = await store.read_piece(state, position, LARGE)
                assert same(piece.payload, payload[position - 6 : piece.end - 6])
                position = piece.end
            for statement in statements:
                found = re.search(r"FROM large WHERE id BETWEEN (\d+) AND (\d+)", statement)
                parts += int(found[2]) - int(found[1]) + 1 if found else 0
            assert 41 <= parts <= 82
            assert not any("FROM large" in one and "BETWEEN" not in one for one in statements)

    run(main)


def test_f3_large_appends_are_removed_with_their_stream(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            for path in ("gone", "kept"):
                await store.create(Create(path, BYTES, payload=b"a" * LARGE))
                await store.append(path, Append(BYTES, b"b" * 10))
                await store.append(path, Append(BYTES, b"c" * LARGE * 3))
            kept = await store.get("kept")
            await store.create(Create("fork", None, fork=ForkPoint("kept", kept.id, LARGE)))
            gone = await store.get("gone")
            await store.delete("gone")
            with contextlib.closing(sqlite3.connect(tmp_path / "streams.db")) as db:
                for _ in range(1000):
                    left = [db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES]
                    if left == [3, 4, 0]:
                        break
                    await asyncio.sleep(0.01)
                assert left == [3, 4, 0]
            with pytest.raises(Exception, match="stream"):
                await store.read(gone, 0, 1)
            fork = await store.get("fork")
            assert (await store.read(fork, 0, 1)).payload == b"a" * LARGE

    run(main)


TABLES = ("record", "large", "garbage")
FORMAT_1 = """
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
PRAGMA application_id = 0x64757261;
PRAGMA user_version = 1;
"""


def test_f3_a_folder_of_the_format_before_goes_on(tmp_path: Path) -> None:
    """There, large appends are among the others."""

    async def main() -> None:
        content = b""
        async with opened(tmp_path / "new") as store:
            await store.create(Create("s", BYTES))
            for size in SIZES:
                content += (payload := random.Random(size).randbytes(size))
                await store.append("s", Append(BYTES, payload))
            state = await store.get("s")
        (tmp_path / "old").mkdir()
        with contextlib.closing(sqlite3.connect(tmp_path / "old" / "streams.db")) as db:
            db.executescript(FORMAT_1)
            with db:
                db.execute(f"ATTACH '{tmp_path / 'new' / 'streams.db'}' AS new")
            with db:
                db.execute("INSERT INTO stream SELECT id, path, deadline, state FROM new.stream")
                position = 0
                for size in SIZES:
                    db.execute(
                        "INSERT INTO record VALUES (?, ?, ?)",
                        (state.id, position, content[position : position + size]),
                    )
                    position += size
        async with opened(tmp_path / "old") as store:
            assert stored(await store.get("s")) == stored(state)
            grown = (await store.append("s", Append(BYTES, b"z" * LARGE))).state
            whole, position = content + b"z" * LARGE, 0
            while position < grown.tail:
                chunk = await store.read(grown, position, 1 << 20)
                assert same(chunk.payload, whole[position : chunk.end])
                position = chunk.end
            assert position == len(whole)
        async with opened(tmp_path / "old") as store:
            assert (await store.get("s")).tail == len(whole)

    run(main)


@pytest.mark.parametrize("sql", ["DELETE FROM large", "DELETE FROM record WHERE start = 10"])
def test_f3_a_hole_is_an_error_and_not_other_bytes(tmp_path: Path, sql: str) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await store.create(Create("s", BYTES, payload=b"a" * 10))
            await store.append("s", Append(BYTES, b"b" * LARGE))
            await store.append("s", Append(BYTES, b"c" * 10))
            state = await store.get("s")
        with contextlib.closing(sqlite3.connect(tmp_path / "streams.db")) as db, db:
            assert db.execute(sql).rowcount == 1
        async with opened(tmp_path) as store:
            for read in (store.read, store.read_piece):
                with pytest.raises(StoreError, match="damaged"):
                    await read(state, 0, 1 << 20)

    run(main)
