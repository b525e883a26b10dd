"""Data folders of earlier formats are brought to the present one; those of later formats are refused."""

from __future__ import annotations

import asyncio
import lzma
import sqlite3
from pathlib import Path

import pytest

from durable_streams.protocol.commands import Append, Rejection, SetRetention, Trim
from durable_streams.protocol.state import Policy, ProducerStamp, StreamState
from durable_streams.stores.base import StoreError
from durable_streams.stores.sqlite import SqliteStore

DATA = Path(__file__).with_name("data")
BYTES = "application/octet-stream"


def unpacked(folder: Path) -> Path:
    """Write the folder that version 0.2.0 wrote, with format 2."""
    folder.mkdir(exist_ok=True)
    (folder / "streams.db").write_bytes(lzma.decompress((DATA / "format-2.db.xz").read_bytes()))
    return folder


def version(folder: Path) -> int:
    with sqlite3.connect(folder / "streams.db") as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


async def everything(store: SqliteStore, path: str) -> bytes:
    state = await store.get(path)
    parts, position = [], state.earliest
    while position < state.tail:
        chunk = await store.read(state, position, 1 << 20)
        parts.append(chunk.payload)
        position = chunk.end
    return b"".join(parts)


async def check_content(store: SqliteStore) -> None:
    assert await everything(store, "plain") == b"first second third"
    numbers = b"".join(b'{"n": %d},' % number for number in [1, *range(40)])
    assert await everything(store, "json") == numbers
    assert await everything(store, "fork") == b"first own"
    assert await everything(store, "large") == b"\x07" * 600_000 + b"end"
    assert await everything(store, "mortal") == await everything(store, "child") == b"x"
    assert (await store.get("fork")).closed
    assert (await store.get("gone")).deleted
    assert (await store.get("mortal")).deadline == 7226582400.0
    again = Append("application/json", b'{"n": 39},', producer=ProducerStamp("p", 1, 39))
    assert (await store.append("json", again)).duplicate
    with pytest.raises(Rejection, match="not greater"):
        await store.append("plain", Append("text/plain", b"x", seq="7"))


def test_a_folder_of_format_2_is_upgraded_at_its_first_start(tmp_path: Path) -> None:
    async def main() -> None:
        for _ in range(2):
            store = SqliteStore(folder)
            await store.open()
            await check_content(store)
            await store.close()

    folder = unpacked(tmp_path)
    assert version(folder) == 2
    asyncio.run(main())
    assert version(folder) == 3


def test_an_upgraded_folder_does_what_is_new(tmp_path: Path) -> None:
    async def main() -> StreamState:
        store = SqliteStore(unpacked(tmp_path))
        await store.open()
        state = await store.get("plain")
        await store.retain("plain", Trim(state.id, 13))
        assert await everything(store, "plain") == b"third"
        assert await everything(store, "fork") == b"first own"
        state = await store.retain("large", SetRetention(Policy(max_bytes=5)))
        await store.append("large", Append(BYTES, b"more"))
        assert await everything(store, "large") == b"more"
        await store.close()
        return state

    assert asyncio.run(main()).retention is not None


def test_an_upgrade_that_was_interrupted_changed_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(folder)
        with pytest.raises(StoreError, match="already exists"):
            await store.open()
        assert version(folder) == 2
        with sqlite3.connect(folder / "streams.db") as connection:
            connection.execute("DROP TABLE trim")
        await store.open()
        await check_content(store)
        await store.close()

    folder = unpacked(tmp_path)
    with sqlite3.connect(folder / "streams.db") as connection:
        connection.execute("CREATE TABLE trim (x)")  # what the upgrade makes is in its way
    asyncio.run(main())


def test_a_newer_format_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = unpacked(tmp_path)
    with sqlite3.connect(folder / "streams.db") as connection:
        connection.execute("PRAGMA user_version = 4")
    before = (folder / "streams.db").read_bytes()
    with pytest.raises(StoreError, match="have format 4, this version reads 3; run the version"):
        asyncio.run(SqliteStore(folder).open())
    assert (folder / "streams.db").read_bytes() == before


def test_what_was_given_up_leaves_the_file(tmp_path: Path) -> None:
    """Of streams with forks it leaves with the last fork."""

    async def main() -> None:
        store = SqliteStore(folder)
        await store.open()
        for path in ("plain", "large"):
            state = await store.get(path)
            await store.retain(path, Trim(state.id, state.tail))
        await purged(store)
        assert rows(folder) == {"plain": 3, "large": 0, "parts": 0}
        await store.delete("fork")
        await purged(store)
        assert rows(folder) == {"plain": 0, "large": 0, "parts": 0}
        await store.close()

    async def purged(store: SqliteStore) -> None:
        for _ in range(5000):
            if not store._backend._purge.pending:
                return
            await asyncio.sleep(0.002)

    folder = unpacked(tmp_path)
    asyncio.run(main())


def rows(folder: Path) -> dict[str, int]:
    with sqlite3.connect(folder / "streams.db") as connection:
        counts = {
            path: connection.execute(
                "SELECT count(*) FROM record WHERE stream = (SELECT id FROM stream WHERE path = ?)", (path,)
            ).fetchone()[0]
            for path in ("plain", "large")
        }
        return {**counts, "parts": connection.execute("SELECT count(*) FROM large").fetchone()[0]}
