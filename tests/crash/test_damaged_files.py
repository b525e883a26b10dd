"""Torn logs and corrupt files: recovered up to a whole append, or reported in one sentence, never served wrong."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from durable_streams.protocol.commands import Append, Create
from durable_streams.protocol.offsets import parse_offset
from durable_streams.protocol.state import ProducerStamp
from durable_streams.stores.base import StoreError
from durable_streams.stores.sqlite import SqliteStore

BYTES = "application/octet-stream"
STREAMS = ["a", "b", "c"]
FRAME = 24 + 4096  # bytes of a page in the log, with its header
LOG_HEADER = 32


class Wreck:
    """The folder of a server that was killed, and what it had acknowledged: payloads and ends, by stream."""

    def __init__(self, folder: Path, payloads: dict[str, list[bytes]], ends: dict[str, list[int]]) -> None:
        self.folder = folder
        self.payloads = payloads
        self.ends = ends

    @property
    def log(self) -> bytes:
        return (self.folder / "streams.db-wal").read_bytes()

    def copy(self, target: Path, log: bytes) -> Path:
        shutil.copytree(self.folder, target)
        (target / "streams.db-wal").write_bytes(log)
        return target


def wreck(start_server: Callable, folder: Path, appends: int, sizes: list[int]) -> Wreck:
    server = start_server(folder)
    payloads: dict[str, list[bytes]] = {}
    ends: dict[str, list[int]] = {}
    for name in STREAMS:
        server.create(name)

    def write(name: str) -> None:
        chance = random.Random(name)
        mine, there = [], []
        connection = server.connection()
        for seq in range(appends):
            payload = b"%s%06d" % (name.encode(), seq) + b"." * chance.choice(sizes)
            headers = {
                "Content-Type": BYTES,
                "Producer-Id": "p",
                "Producer-Epoch": "0",
                "Producer-Seq": str(seq),
            }
            connection.request("POST", f"/v1/stream/{name}", payload, headers)
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            mine.append(payload)
            there.append(parse_offset(response.headers["stream-next-offset"]))
        connection.close()
        payloads[name], ends[name] = mine, there

    with ThreadPoolExecutor(len(STREAMS)) as pool:
        list(pool.map(write, STREAMS))
    server.kill()
    assert (folder / "streams.db-wal").stat().st_size > LOG_HEADER
    return Wreck(folder, payloads, ends)


async def recovered(folder: Path, wreck: Wreck) -> list[int] | None:
    """Open a damaged folder; return how many appends of each stream are there, None if it says that it cannot."""
    store = SqliteStore(folder)
    try:
        await store.open()
    except StoreError as error:
        report = str(error)
    else:
        report = ""
    if report:
        assert len(report.splitlines()) == 1
        return None
    try:
        kept = []
        for name in STREAMS:
            state = await store.get(name)
            if state is None:
                kept.append(0)
                continue
            content = b""
            while len(content) < state.tail:
                chunk = await store.read(state, len(content), 100_000)
                assert chunk.start == len(content)
                content += chunk.payload
            ends = [0, *wreck.ends[name]]
            assert state.tail in ends, "a part of an append"
            count = ends.index(state.tail)
            assert content == b"".join(wreck.payloads[name][:count]), "not the bytes that were acknowledged"
            kept.append(count)
            await goes_on(store, name, count)
        await store.check()
    finally:
        await store.close()
    await still_there(folder, kept)
    return kept


async def goes_on(store: SqliteStore, name: str, count: int) -> None:
    """The producer's state is what goes with the data, and new appends land behind it."""
    again = Append(BYTES, b"again", producer=ProducerStamp("p", 0, count - 1))
    if count:
        assert (await store.append(name, again)).duplicate
    following = Append(BYTES, b"following", producer=ProducerStamp("p", 0, count))
    before = (await store.get(name)).tail
    appended = await store.append(name, following)
    assert not appended.duplicate
    assert (await store.read(appended.state, before, 100)).payload == b"following"


async def still_there(folder: Path, kept: list[int]) -> None:
    store = SqliteStore(folder)
    await store.open()
    for name, count in zip(STREAMS, kept, strict=True):
        state = await store.get(name)
        if state is None:
            await store.create(Create(name, BYTES))
        else:
            read = await store.read(state, state.tail - len(b"following"), 100)
            assert read.payload == b"following", count
    await store.close()


def test_an_undamaged_log_is_recovered_whole(start_server: Callable, tmp_path: Path) -> None:
    killed = wreck(start_server, tmp_path / "data", 60, [0, 10, 3000, 9000])
    copy = killed.copy(tmp_path / "copy", killed.log)
    assert asyncio.run(recovered(copy, killed)) == [60, 60, 60]
    without_index = killed.copy(tmp_path / "index", killed.log)
    (without_index / "streams.db-shm").unlink()
    assert asyncio.run(recovered(without_index, killed)) == [60, 60, 60]


def test_a_torn_log(start_server: Callable, tmp_path: Path) -> None:
    killed = wreck(start_server, tmp_path / "data", 60, [0, 10, 3000, 9000])
    log, chance = killed.log, random.Random(1)
    cuts = [0, 1, LOG_HEADER, LOG_HEADER + 24, len(log) - 1, len(log) - FRAME, len(log) - FRAME + 24]
    cuts += [chance.randrange(len(log)) for _ in range(20)]
    total = -1
    for number, cut in enumerate(sorted(cuts)):
        kept = asyncio.run(recovered(killed.copy(tmp_path / f"cut{number}", log[:cut]), killed))
        assert kept is not None, "a log that ends early is no reason not to start"
        assert sum(kept) >= total, "a longer log holds less"
        total = sum(kept)
    assert total > 100


def test_a_damaged_last_page_of_the_log(start_server: Callable, tmp_path: Path) -> None:
    killed = wreck(start_server, tmp_path / "data", 60, [0, 10, 3000, 9000])
    log, chance = killed.log, random.Random(2)
    last = len(log) - FRAME
    damaged = [log[:last] + bytes(FRAME), log[:last] + chance.randbytes(FRAME), log + chance.randbytes(FRAME)]
    damaged += [log + log[-FRAME:], log + log[LOG_HEADER : LOG_HEADER + FRAME]]
    for _ in range(12):
        damaged.append(flipped(log, chance.randrange(last, len(log)), chance))
    for number, content in enumerate(damaged):
        kept = asyncio.run(recovered(killed.copy(tmp_path / f"last{number}", content), killed))
        # One commit at most is gone, and it is gone whole. What a commit brings is one append of each at most.
        assert kept is not None
        assert all(count >= 59 for count in kept), kept


def test_damage_anywhere_in_the_log(start_server: Callable, tmp_path: Path) -> None:
    killed = wreck(start_server, tmp_path / "data", 60, [0, 10, 3000, 9000])
    log, chance = killed.log, random.Random(3)
    for number in range(20):
        content = flipped(log, chance.randrange(len(log)), chance)
        asyncio.run(recovered(killed.copy(tmp_path / f"any{number}", content), killed))


def test_a_log_that_was_begun_again(start_server: Callable, tmp_path: Path) -> None:
    """After a checkpoint, old frames lie behind the new ones: they must not come back."""
    killed = wreck(start_server, tmp_path / "data", 130, [60_000, 30_000])
    log, chance = killed.log, random.Random(4)
    assert (killed.folder / "streams.db").stat().st_size > 1 << 20, "there was no checkpoint"
    assert asyncio.run(recovered(killed.copy(tmp_path / "whole", log), killed)) == [130] * 3
    for number in range(6):
        folder = killed.copy(tmp_path / f"cut{number}", log[: chance.randrange(len(log))])
        kept = asyncio.run(recovered(folder, killed))
        shutil.rmtree(folder)
        assert kept is None or sum(kept) > 100


def flipped(content: bytes, position: int, chance: random.Random) -> bytes:
    return (
        content[:position] + bytes([content[position] ^ chance.randrange(1, 256)]) + content[position + 1 :]
    )


# -- the database file itself


def fails_with_one_line(run_server: Callable, command: list[str]) -> str:
    server = run_server(command)
    assert server.wait(20) == 1
    lines = server.error_output.decode().strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


@pytest.fixture
def filled(start_server: Callable, tmp_path: Path) -> Path:
    """A folder with streams, closed in order, so that all of it is in the database file."""
    folder = tmp_path / "data"
    server = start_server(folder)
    for number in range(40):
        server.create(f"s{number}")
        server.append(f"s{number}", b"%02d" % number * 1000)
    assert server.terminate() == 0
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"this is no database at all" * 100),
        lambda path: path.write_bytes(random.Random(0).randbytes(100) + path.read_bytes()[100:]),
        lambda path: path.write_bytes(b"SQLite format 3\x00" + bytes(84)),
        lambda path: path.write_bytes(path.read_bytes()[:16] + b"\x03\x00" + path.read_bytes()[18:]),
    ],
    ids=["other content", "random header", "empty header", "wrong page size"],
)
def test_a_file_that_is_no_database(
    filled: Path, damage: Callable[[Path], None], run_server: Callable, server_command: Callable
) -> None:
    damage(filled / "streams.db")
    line = fails_with_one_line(run_server, server_command(filled))
    assert str(filled) in line


def test_the_database_of_somebody_else(
    tmp_path: Path, run_server: Callable, server_command: Callable
) -> None:
    connection = sqlite3.connect(tmp_path / "streams.db")
    connection.executescript("CREATE TABLE theirs (x); PRAGMA user_version = 7; PRAGMA application_id = 1;")
    connection.close()
    line = fails_with_one_line(run_server, server_command(tmp_path))
    assert "another program" in line


def test_the_unmarked_database_of_somebody_else(
    tmp_path: Path, run_server: Callable, server_command: Callable
) -> None:
    connection = sqlite3.connect(tmp_path / "streams.db")
    connection.executescript("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1);")
    connection.close()
    fails_with_one_line(run_server, server_command(tmp_path))
    connection = sqlite3.connect(tmp_path / "streams.db")
    assert [row[0] for row in connection.execute("SELECT name FROM sqlite_master")] == ["theirs"]
    connection.close()


def test_a_newer_format(filled: Path, run_server: Callable, server_command: Callable) -> None:
    connection = sqlite3.connect(filled / "streams.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "99" in fails_with_one_line(run_server, server_command(filled))


@pytest.mark.parametrize("seed", range(3))
def test_damaged_pages_are_reported_and_the_server_lives(
    filled: Path, seed: int, run_server: Callable, server_command: Callable
) -> None:
    path = filled / "streams.db"
    pages = path.stat().st_size // 4096
    content = bytearray(path.read_bytes())
    for page in random.Random(seed).sample(range(1, pages), pages // 3):
        content[page * 4096 : (page + 1) * 4096] = b"\xaa" * 4096
    path.write_bytes(content)
    server = run_server(server_command(filled))
    if not server.becomes_ready():
        assert server.wait(20) == 1
        assert len(server.error_output.decode().strip().splitlines()) == 1
        return
    statuses = set()
    for number in range(40):
        read = server.request("GET", f"s{number}")
        statuses.add(read.status)
        assert read.status in {200, 503}, read
        if read.status == 200:
            assert read.body == b"%02d" % number * 1000
        if read.status == 503:
            assert b"Traceback" not in read.body
        assert server.append(f"s{number}", b"more").status in {204, 503}
    assert 503 in statuses
    assert server.request("GET", "/health", absolute=True).status in {200, 503}
    assert server.alive
    assert server.terminate() == 0


def test_a_second_server_on_the_same_folder(
    start_server: Callable, run_server: Callable, server_command: Callable, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    server = start_server(folder)
    server.create("s")
    line = fails_with_one_line(run_server, server_command(folder))
    assert "another server" in line
    assert str(folder) in line
    assert server.append("s", b"x").status == 204


def test_a_second_server_on_the_same_port(
    start_server: Callable, run_server: Callable, tmp_path: Path
) -> None:
    server = start_server(tmp_path / "one")
    command = [sys.executable, "-m", "durable_streams.cli", "serve", "--data-dir", str(tmp_path / "two")]
    line = fails_with_one_line(run_server, [*command, "--port", str(server.port)])
    assert str(server.port) in line
    assert server.request("GET", "/health", absolute=True).status == 200


def test_a_folder_that_is_a_file(tmp_path: Path, run_server: Callable, server_command: Callable) -> None:
    (tmp_path / "file").write_text("x")
    assert str(tmp_path) in fails_with_one_line(run_server, server_command(tmp_path / "file"))
    assert str(tmp_path) in fails_with_one_line(run_server, server_command(tmp_path / "file" / "below"))
