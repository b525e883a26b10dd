"""Commits over many streams go to the log of a data folder, and from there to its tables."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from durable_streams.protocol.commands import Append, Create, Trim
from durable_streams.protocol.state import ProducerStamp
from durable_streams.stores.backup import back_up
from durable_streams.stores.base import StoreDamagedError, StoreError, StoreUnavailableError
from durable_streams.stores.commit_log import LogLimits
from durable_streams.stores.sqlite import FILE_NAME, SqliteStore

BYTES = "application/octet-stream"
NEVER = 1e9  # seconds
MANY = [f"s{number}" for number in range(8)]


@asynccontextmanager
async def opened(
    folder: Path, *, quiet: float = NEVER, clock: Callable[[], float] | None = None, **limits: Any
) -> AsyncIterator[SqliteStore]:
    options = {} if clock is None else {"clock": clock}
    store = SqliteStore(folder, log=LogLimits(quiet=quiet, **limits), **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def create(store: SqliteStore, paths: list[str] = MANY, **settings: Any) -> None:
    await asyncio.gather(*[store.create(Create(path, BYTES, **settings)) for path in paths])


async def append(store: SqliteStore, payload: bytes, paths: list[str] = MANY, **settings: Any) -> None:
    await asyncio.gather(*[store.append(path, Append(BYTES, payload, **settings)) for path in paths])


async def content(store: SqliteStore, path: str) -> bytes:
    state = await store.get(path)
    assert state is not None
    found = b""
    while len(found) < state.tail:
        found += (await store.read(state, len(found), 5)).payload
    return found


def rows(folder: Path, table: str) -> int:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


async def until_sorted(folder: Path) -> None:
    for _ in range(2000):
        if not rows(folder, "log"):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the log is not sorted")


def left_by(folder: Path, copy: Path) -> Path:
    """Return a folder with what a process that ends at once would leave now."""
    back_up(folder, copy, lambda *_: None)
    return copy


def test_a_commit_over_many_streams_is_one_row(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await create(store)
            assert rows(tmp_path, "log") == 0, "what creates streams goes to the tables"
            await append(store, b"one.")
            await append(store, b"two.")
            assert (rows(tmp_path, "log"), rows(tmp_path, "record")) == (2, 0)
            assert [await content(store, path) for path in MANY] == [b"one.two."] * 8
        assert (rows(tmp_path, "log"), rows(tmp_path, "log_sorted"), rows(tmp_path, "record")) == (0, 0, 16)
        async with opened(tmp_path) as store:
            assert [await content(store, path) for path in MANY] == [b"one.two."] * 8

    asyncio.run(main())


def test_a_commit_over_few_streams_is_none_and_takes_along_what_waits(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, quiet=0.0) as store, opened(tmp_path / "other") as busy:
            for one in (store, busy):
                await create(one)
            await append(store, b"few.", MANY[:4])
            assert (rows(tmp_path, "log"), rows(tmp_path, "record")) == (0, 4)
            await append(busy, b"many.")
            await append(busy, b"few.", MANY[:2])
            assert rows(tmp_path / "other", "log") == 2, "its streams wait"
            await append(busy, b"free", ["s0"])
            await busy.delete("s0")  # goes to the tables with what waits of the stream
            await append(busy, b"large" * 1000, ["s1"])
            assert rows(tmp_path / "other", "log_sorted") == 2
            assert await busy.get("s0") is None
            assert await content(busy, "s1") == b"many.few." + b"large" * 1000
        async with opened(left_by(tmp_path / "other", tmp_path / "copy")) as store:
            assert await store.get("s0") is None
            assert await content(store, "s1") == b"many.few." + b"large" * 1000
            assert await content(store, "s2") == b"many."

    asyncio.run(main())


def test_what_is_sorted_is_not_sorted_again(tmp_path: Path) -> None:
    """At each step of the sorting a process may end: the next one goes on there."""

    async def main() -> None:
        async with opened(tmp_path / "data", quiet=0.02, step_records=1) as store:
            await create(store)
            for number in range(3):
                producer = ProducerStamp("p", 0, number)
                await append(store, b"%d." % number, producer=producer)
            for number in range(12):
                await asyncio.sleep(0.005)
                copy = left_by(tmp_path / "data", tmp_path / "copy")
                async with opened(copy) as left:
                    assert [await content(left, path) for path in MANY] == [b"0.1.2."] * 8, number
                    await append(left, b"3.", producer=ProducerStamp("p", 0, 3))
                    repeated = await left.append(
                        "s7", Append(BYTES, b"3.", producer=ProducerStamp("p", 0, 3))
                    )
                    assert repeated.duplicate
                shutil.rmtree(copy)
            await until_sorted(tmp_path / "data")

    asyncio.run(main())


def test_the_log_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, max_bytes=60_000) as store:
            await create(store)
            for number in range(30):
                await append(store, b"%02d" % number * 100)
                assert sum(part.size for part in store._sqlite._log.close()) < 80_000
            expected = b"".join(b"%02d" % number * 100 for number in range(30))
            assert [await content(store, path) for path in MANY] == [expected] * 8
            assert rows(tmp_path, "record") > 0

    asyncio.run(main())


def test_what_waits_is_listed_expires_and_can_be_given_up(tmp_path: Path) -> None:
    now = 1000.0

    async def main() -> None:
        nonlocal now
        async with opened(tmp_path, clock=lambda: now) as store:
            await create(store, ttl=100)
            await append(store, b"0123456789")
            await append(store, b"abcde")
            listed = await store.list_streams("", "s2", 3)
            assert [(state.path, state.tail) for state in listed.states] == [(path, 15) for path in MANY[3:6]]
            ids = [(path, state.id) for path in MANY if (state := await store.get(path)) is not None]
            await asyncio.gather(*[store.retain(path, Trim(stream, 10)) for path, stream in ids])
            state = await store.get("s5")
            assert state is not None
            assert state.earliest == 10
            assert (await store.read(state, 10, 100)).payload == b"abcde"
            now += 90
            await append(store, b"later", MANY[:5])
            now += 20
            found = await store._sqlite.expired(now, 100)
            assert set(found) >= set(MANY[5:])
            assert [await store.get(path) for path in MANY[5:]] == [None] * 3
            assert await store.get("s0") is not None

    asyncio.run(main())


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE log SET data = CAST(substr(data, 1, length(data) - 1) || x'ff' AS BLOB) WHERE id = 2",
        "UPDATE log SET data = zeroblob(3) WHERE id = 2",
        "UPDATE log SET data = 7 WHERE id = 2",
        "DELETE FROM log WHERE id = 2",
        "UPDATE log_sorted SET last = 1",
    ],
)
def test_a_damaged_log_is_not_taken_for_less(tmp_path: Path, damage: str) -> None:
    async def main() -> None:
        async with opened(tmp_path / "data") as store:
            await create(store)
            for _ in range(3):
                await append(store, b"data")
            await store.delete("s0")
            copy = left_by(tmp_path / "data", tmp_path / "copy")
        with closing(sqlite3.connect(copy / FILE_NAME, isolation_level=None)) as connection:
            connection.execute(damage)
        with pytest.raises(StoreError, match=r"of the table log.* not what was stored"):
            async with opened(copy):
                pass

    asyncio.run(main())


def test_a_damaged_stream_leaves_the_others_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with opened(tmp_path / "data", streams=0) as store:
            await create(store)
            await append(store, b"x" * 5000)
            await append(store, b"later")
            await append(store, b"again")
            copy = left_by(tmp_path / "data", tmp_path / "copy")
        with closing(sqlite3.connect(copy / FILE_NAME, isolation_level=None)) as connection:
            connection.execute(
                "UPDATE record SET data = zeroblob(5000) WHERE stream = (SELECT max(id) FROM stream)"
            )
        for _ in range(2):
            async with opened(copy) as store:
                for path in MANY[:-1]:
                    assert await content(store, path) == b"x" * 5000 + b"lateragain"
                with pytest.raises(StoreDamagedError, match="s7"):
                    await content(store, "s7")
                with pytest.raises(StoreUnavailableError, match="s7"):
                    await append(store, b"more", ["s7"])
                await append(store, b"", ["s0"], close=True)
                await store.delete("s0")
                await create(store, ["s0"], payload=b"x" * 5000 + b"lateragain")
        assert "what the log holds of the stream stays there" in caplog.text
        assert rows(copy, "log") == 2

    asyncio.run(main())


def test_sorting_waits_for_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await create(store)
            for _ in range(10):
                await append(store, b"x" * 3000)
            writer = store._sqlite._connections[0]
            pages = writer.execute("PRAGMA page_count").fetchone()[0]
            writer.execute(f"PRAGMA max_page_count = {pages}")
            store._sqlite._log._freeze()
            await asyncio.sleep(0.3)
            assert rows(tmp_path, "log") == 10
            assert store._sqlite._sorting.pause(), "it tries again later"
            assert await content(store, "s3") == b"x" * 30_000
            writer.execute("PRAGMA max_page_count = 1000000000")
            await until_sorted(tmp_path)
            assert await content(store, "s3") == b"x" * 30_000
        assert rows(tmp_path, "record") == 80

    asyncio.run(main())
