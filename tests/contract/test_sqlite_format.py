"""Data folders of earlier formats are brought to the present one; those of later formats are refused."""

from __future__ import annotations

import asyncio
import lzma
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_streams.protocol.commands import Append, Rejection, SetRetention, Trim
from durable_streams.protocol.state import Policy, ProducerStamp, StreamState
from durable_streams.stores import checksums, upgrade
from durable_streams.stores.base import StoreError
from durable_streams.stores.sqlite import SqliteStore

DATA = Path(__file__).with_name("data")
BYTES = "application/octet-stream"


def unpacked(folder: Path, number: int = 2) -> Path:
    """Write the folder that an earlier version wrote, with format 2 or 3."""
    folder.mkdir(exist_ok=True)
    (folder / "streams.db").write_bytes(lzma.decompress((DATA / f"format-{number}.db.xz").read_bytes()))
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


@pytest.mark.parametrize("number", [2, 3])
def test_a_folder_is_upgraded_at_its_first_start(tmp_path: Path, number: int) -> None:
    async def main() -> None:
        for _ in range(2):
            store = SqliteStore(folder)
            await store.open()
            await check_content(store)
            await store.close()

    folder = unpacked(tmp_path, number)
    assert version(folder) == number
    asyncio.run(main())
    assert version(folder) == 4
    assert unsealed(folder) == 0


def unsealed(folder: Path) -> int:
    """Return how many rows have no checksum."""
    with sqlite3.connect(folder / "streams.db") as connection:
        tables = ("stream", "record", "large", "producer")
        counts = [f"(SELECT count(*) FROM {table} WHERE sum IS NULL)" for table in tables]
        return connection.execute(f"SELECT {' + '.join(counts)}").fetchone()[0]


def test_what_format_3_had_given_up_stays_so(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(unpacked(tmp_path, 3))
        await store.open()
        assert await everything(store, "trimmed") == b"00050006000700080009"
        assert (await store.get("trimmed")).retention.policy == Policy(max_bytes=1000)
        assert (await store.get("spent")).tail == 9
        assert (await store.append("spent", Append(BYTES, b"more"))).state.tail == 13
        assert await everything(store, "spent") == b"more"
        await store.close()

    asyncio.run(main())


def test_an_upgrade_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each of its steps, and in the middle of each."""

    async def opened() -> SqliteStore:
        store = SqliteStore(folder)
        await store.open()
        return store

    async def main() -> None:
        monkeypatch.setattr(upgrade, "_ROWS", 7)
        monkeypatch.setattr(upgrade, "_BYTES", 300_000)
        interruptions = 0
        while True:
            fails = Failing(8 + interruptions % 3)
            monkeypatch.setattr(upgrade, "seal", fails(checksums.seal))
            monkeypatch.setattr(upgrade, "state_sum", fails(checksums.state_sum))
            monkeypatch.setattr(upgrade, "producer_sum", fails(checksums.producer_sum))
            try:
                store = await opened()
            except StoreError:
                assert version(folder) == 4
                interruptions += 1
                assert interruptions < 200
                continue
            break
        assert interruptions >= 5
        assert unsealed(folder) == 0
        await check_content(store)
        await store.close()

    folder = unpacked(tmp_path, 3)
    asyncio.run(main())


class Failing:
    """Functions that fail once they were called often enough; a step of the upgrade calls one 7 times."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.left -= 1
            if self.left < 0:
                raise OSError("interrupted")
            return function(*arguments)

        return call


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
        connection.execute("PRAGMA user_version = 5")
    before = (folder / "streams.db").read_bytes()
    with pytest.raises(StoreError, match="have format 5, this version reads 4; run the version"):
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
