"""Kills during trims and purges, upgrades and backups: the next start goes on, and nothing that was done is undone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import maintenance
import pytest

from durable_streams.protocol.commands import Append, Create
from durable_streams.stores.backup import restore
from durable_streams.stores.sqlite import SqliteStore
from durable_streams.stores.verify import verify

BYTES = "application/octet-stream"
WITHIN = 60.0  # seconds for a process to begin, or to end what it does
FORMAT_3 = """
CREATE TABLE stream (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, deadline REAL, state TEXT NOT NULL
);
CREATE INDEX stream_deadline ON stream (deadline) WHERE deadline IS NOT NULL;
CREATE TABLE record (
    stream INTEGER NOT NULL, start INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (stream, start)
) WITHOUT ROWID;
CREATE TABLE large (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE producer (
    stream INTEGER NOT NULL, id TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (stream, id)
) WITHOUT ROWID;
CREATE TABLE garbage (stream INTEGER PRIMARY KEY);
CREATE TABLE trim (stream INTEGER PRIMARY KEY, floor INTEGER NOT NULL);
CREATE TABLE probe (id INTEGER PRIMARY KEY, at REAL NOT NULL);
PRAGMA application_id = 1685418593;
PRAGMA user_version = 3;
"""


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    seed: int | None = request.config.getoption("--crash-seed")
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    print(f"\n--crash-seed {seed}")  # noqa: T201
    return random.Random(seed)


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """Return how many kills each of the four kinds of work gets."""
    kills: int = request.config.getoption("--maintenance-kills")
    return max(1, kills // 3)


def killed(arguments: list[str], seconds: float, *, until: str | None = None) -> list[dict[str, Any]]:
    """Run work, kill it some seconds after its first line or once it is done with something; return its lines."""
    command = [sys.executable, maintenance.__file__, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline()]
        if until is None:
            time.sleep(seconds)
        else:
            while lines[-1] and json.loads(lines[-1]).get("done") != until:
                lines.append(process.stdout.readline())
        process.kill()
        lines += process.stdout.readlines()
        assert b"Traceback" not in process.stderr.read()
    # The last line may be cut off.
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


class Expected:
    """What the folder has to hold, of what was done, and of what was begun."""

    def __init__(self) -> None:
        self.earliest: dict[str, set[int]] = {}  # of complete streams: where each of them may begin
        self.gone: set[str] = set()
        self.perhaps: set[str] = set()  # gone: it was begun

    def take(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            path = line["path"]
            if line.get("done") == "create":
                self.earliest[path] = {0}
            elif line.get("begins") == "trim":
                self.earliest[path].add(line["earliest"])
            elif line.get("done") == "trim":
                self.earliest[path] = {max(self.earliest[path])}
            elif line.get("begins") == "delete":
                self.perhaps.add(path)
            elif line.get("done") == "delete":
                self.gone.add(path)

    async def check(self, store: SqliteStore) -> None:
        for path, places in self.earliest.items():
            state = await store.get(path)
            if path in self.gone:
                assert state is None, path
                continue
            if path in self.perhaps and state is None:
                continue
            assert state is not None, path
            assert state.earliest in places
            content = b"".join(maintenance.payload(path, number) for number in range(maintenance.APPENDS))
            assert await everything(store, path) == content[state.earliest :]


async def everything(store: SqliteStore, path: str) -> bytes:
    state = await store.get(path)
    assert state is not None
    parts, position = [], state.earliest
    while position < state.tail:
        chunk = await store.read(state, position, 1 << 20)
        parts.append(chunk.payload)
        position = chunk.end
    return b"".join(parts)


@contextlib.contextmanager
def whole(folder: Path):  # noqa: ANN201
    """Check after the test of a closed folder that no row is damaged."""
    yield
    assert verify(folder, lambda *_: None).damages == []


@pytest.mark.timeout(1800)
def test_kills_during_trims_and_purges(tmp_path: Path, chance: random.Random, kills: int) -> None:
    expected = Expected()

    async def check() -> None:
        store = SqliteStore(tmp_path)
        await store.open()
        await expected.check(store)
        while store._sqlite._purge.pending:  # noqa: ASYNC110 - in another thread
            await asyncio.sleep(0.005)
        await expected.check(store)
        await store.close()

    for number in range(kills):
        expected.take(killed(["work", str(tmp_path), str(number * 1000)], chance.uniform(0.0, 0.5)))
    with whole(tmp_path):
        asyncio.run(check())
    assert expected.earliest
    with sqlite3.connect(tmp_path / "streams.db") as connection:
        left = connection.execute("SELECT count(*) FROM record WHERE stream NOT IN (SELECT id FROM stream)")
        assert left.fetchone() == (0,)
        held = connection.execute("SELECT sum(length(data)) FROM large").fetchone()[0] or 0
        kept = connection.execute("SELECT sum(data & 4294967295) FROM record WHERE typeof(data) = 'integer'")
        assert held == (kept.fetchone()[0] or 0), "parts of large appends are left"
    connection.close()


async def fill(folder: Path, appends: int) -> None:
    store = SqliteStore(folder)
    await store.open()
    for path in ("a", "b"):
        await store.create(Create(path, BYTES))
        for begin in range(0, appends, 500):
            await asyncio.gather(
                *[store.append(path, Append(BYTES, b"%06d" % number)) for number in range(begin, begin + 500)]
            )
        await store.append(path, Append(BYTES, bytes(3_000_000)))
    await store.close()


def content(appends: int) -> bytes:
    return b"".join(b"%06d" % number for number in range(appends)) + bytes(3_000_000)


async def check_filled(folder: Path, appends: int) -> None:
    store = SqliteStore(folder)
    await store.open()
    for path in ("a", "b"):
        assert await everything(store, path) == content(appends)
        await store.append(path, Append(BYTES, b"more"))
    await store.close()


@pytest.mark.timeout(1800)
def test_kills_during_an_upgrade(tmp_path: Path, chance: random.Random, kills: int) -> None:
    appends = 8000
    new, old, spare = tmp_path / "new", tmp_path / "old", tmp_path / "spare"
    asyncio.run(fill(new, appends))
    old.mkdir()
    with contextlib.closing(sqlite3.connect(old / "streams.db")) as connection:
        connection.executescript(f"{FORMAT_3} ATTACH '{new / 'streams.db'}' AS new;")
        for table, columns in (
            ("stream", "id, path, deadline, state"),
            ("record", "stream, start, data"),
            ("large", "id, data"),
        ):
            connection.execute(f"INSERT INTO {table} SELECT {columns} FROM new.{table}")
        connection.commit()
    shutil.copytree(old, spare)
    began = time.monotonic()
    killed(["start", str(spare)], 0.0, until="open")
    took = time.monotonic() - began
    middle = 0
    for _ in range(kills):
        lines = killed(["start", str(old)], chance.uniform(0.0, took / 4))
        middle += lines[-1] == {"begins": "open"}
    print(f"{middle} of {kills} kills before the upgrade was done")  # noqa: T201
    with whole(old):
        asyncio.run(check_filled(old, appends))
    with contextlib.closing(sqlite3.connect(old / "streams.db")) as connection:
        assert connection.execute("SELECT count(*) FROM record WHERE sum IS NULL").fetchone() == (0,)


@pytest.mark.timeout(1800)
def test_kills_during_a_backup(tmp_path: Path, chance: random.Random, kills: int) -> None:
    appends = 1000
    source, copy = tmp_path / "source", tmp_path / "copy"
    asyncio.run(fill(source, appends))
    done = False
    for number in range(kills):
        lines = killed(["backup", str(source), str(copy)], chance.uniform(0.0, 0.05))
        assert (copy / "streams.db").exists() or {"done": "backup"} not in lines
        if (copy / "streams.db").exists():  # a copy with its name is whole
            done = True
            with whole(copy):
                pass
            copy = tmp_path / f"copy-{number}"
    killed(["backup", str(source), str(copy)], 0.0, until="backup")
    restore(copy, tmp_path / "restored", lambda *_: None)
    with whole(tmp_path / "restored"):
        asyncio.run(check_filled(tmp_path / "restored", appends))
    with whole(source):
        asyncio.run(check_filled(source, appends))
    print(f"a kill after the copy was done: {done}")  # noqa: T201
