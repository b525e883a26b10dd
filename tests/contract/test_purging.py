"""What no stream holds any more leaves the file in small steps, however large the streams and the appends were."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from durable_streams.protocol.commands import Append, Create
from durable_streams.protocol.state import ProducerStamp
from durable_streams.stores import sqlite
from durable_streams.stores.purging import purge
from durable_streams.stores.sqlite import LARGE, SqliteStore, connect

BYTES = "application/octet-stream"
STEP = 1 << 20
SIZES = [5 << 20, 100, 200_000, LARGE, LARGE + 1, 10, *[30_000] * 100]


def filled(folder: Path) -> tuple[sqlite3.Connection, list[int]]:
    """Return a connection to a folder with two equal streams, and their ids."""

    async def main() -> list[int]:
        store = SqliteStore(folder)
        await store.open()
        ids = []
        for path in ("a", "b"):
            ids.append((await store.create(Create(path, BYTES))).state.id)
            for number, size in enumerate(SIZES):
                await store.append(path, Append(BYTES, bytes(size), producer=ProducerStamp("p", 0, number)))
        await store.close()
        return ids

    ids = asyncio.run(main())
    return connect(folder, 1024), ids


def held(connection: sqlite3.Connection, table: str = "record", size: str = "length(data)") -> int:
    return connection.execute(f"SELECT coalesce(sum({size}), 0) FROM {table}").fetchone()[0]


def all_held(connection: sqlite3.Connection) -> int:
    return held(connection, size="CASE typeof(data) WHEN 'blob' THEN length(data) ELSE 0 END") + held(
        connection, "large"
    )


def test_a_step_removes_a_bounded_part(tmp_path: Path) -> None:
    connection, (one, other) = filled(tmp_path)
    connection.execute("DELETE FROM stream WHERE id = ?", (one,))
    connection.execute("INSERT INTO garbage VALUES (?)", (one,))
    before, steps = all_held(connection), 0
    while purge(connection, LARGE, STEP):
        after = all_held(connection)
        assert before - after <= STEP + LARGE
        before, steps = after, steps + 1
    assert steps >= sum(SIZES) // STEP
    assert before == sum(SIZES)
    left = connection.execute(
        "SELECT DISTINCT stream FROM record UNION SELECT stream FROM producer"
    ).fetchall()
    assert left == [(other,)]
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_purge_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    connection, (one, _) = filled(tmp_path)
    floor = sum(SIZES[:4])
    connection.execute("INSERT INTO trim VALUES (?, ?)", (one, floor))
    connection.execute("UPDATE stream SET state = json_set(state, '$.floor', ?) WHERE id = ?", (floor, one))
    for _ in range(3):
        purge(connection, LARGE, STEP)
    connection.close()
    connection = connect(tmp_path, 1024)
    while purge(connection, LARGE, STEP):
        pass
    starts = [row[0] for row in connection.execute("SELECT start FROM record WHERE stream = ?", (one,))]
    assert min(starts) == floor
    assert len(starts) == len(SIZES) - 4
    assert all_held(connection) == sum(SIZES) * 2 - floor
    assert connection.execute("SELECT count(*) FROM producer WHERE stream = ?", (one,)).fetchone() == (1,)


def test_readers_do_not_keep_the_log_from_beginning_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault F4."""

    async def read(store: SqliteStore, ended: asyncio.Event) -> None:
        while not ended.is_set():
            state = await store.get("s")
            await store.read(state, 0, 1 << 20)
            await asyncio.sleep(0)

    async def main() -> int:
        store, ended, longest = SqliteStore(tmp_path), asyncio.Event(), 0
        await store.open()
        await store.create(Create("s", BYTES))
        readers = [asyncio.create_task(read(store, ended)) for _ in range(4)]
        for _ in range(200):
            await store.append("s", Append(BYTES, bytes(64 << 10)))
            longest = max(longest, (tmp_path / "streams.db-wal").stat().st_size)
        ended.set()
        await asyncio.gather(*readers)
        await store.close()
        return longest

    monkeypatch.setattr(sqlite, "_LONG_LOG", 1 << 20)
    monkeypatch.setattr(sqlite, "_LOG_PAUSE", 0.0)
    assert asyncio.run(main()) < 8 << 20
