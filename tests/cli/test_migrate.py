"""``migrate`` from folder to folder: everything is copied, through any interruption; no NATS is needed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from migrating import World
from msgspec.structs import replace

from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import StoreError
from durable_streams.stores.checksums import after_append, producer_sum, seal, unseal
from durable_streams.stores.transfer.copy import Transfer
from durable_streams.stores.transfer.sqlite import SqlitePlace


def copied(folder: Path) -> int:
    """Return how many appends a folder holds, 0 if it is not there yet."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{folder}/streams.db?mode=ro", uri=True)) as db,
    ):
        return int(db.execute("SELECT count(*) FROM record").fetchone()[0])
    return 0


def test_everything_is_what_it_was(
    bare: Any, start_server: Callable[..., Any], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    server = start_server(one)
    world = World(server)
    server.terminate()
    said = bare.ok("migrate", "--from", str(one), "--to", str(two)).decode()
    assert "all of it compared by SHA-256" in said
    server = start_server(two)
    world.matches(server)
    world.goes_on(server)
    server.terminate()
    bare.ok("migrate", "--from", str(two), "--to", str(one))  # where an older state of it is
    server = start_server(one)
    world.matches(server)
    world.goes_on(server)
    world.ends(server, eventually)


def test_what_is_there_already_is_left_alone(
    bare: Any, start_server: Callable[..., Any], tmp_path: Path
) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    server = start_server(Path(one))
    server.create("a")
    server.append("a", b"abc")
    server.append("a", b"de")
    server.create("b")
    server.terminate()
    first = json.loads(bare.ok("migrate", "--from", one, "--to", two, "--json"))
    assert (first["copied"], first["known"], first["appends"], first["bytes"], first["verified"]) == (
        2,
        0,
        2,
        5,
        5,
    )
    again = json.loads(bare.ok("migrate", "--json", "--from", one, "--to", two))
    assert (again["copied"], again["known"], again["appends"], again["verified"]) == (0, 2, 2, 5)
    unseen = json.loads(bare.ok("migrate", "--json", "--from", one, "--to", two, "--no-verify"))
    assert (unseen["known"], unseen["verified"]) == (2, 0)


def test_killed_at_any_moment_it_goes_on(bare: Any, start_server: Callable[..., Any], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    server = start_server(one)
    world = World(server, bulk=40)
    server.terminate()
    whole, kills = copied(one), 0
    for part in range(8):
        process = bare.spawn("migrate", "--from", str(one), "--to", str(two))
        while process.poll() is None and copied(two) <= whole * part // 8:
            time.sleep(0.002)
        process.kill()
        kills += process.wait() != 0
    assert kills > 2
    bare.ok("migrate", "--from", str(one), "--to", str(two))
    assert copied(two) == whole
    server = start_server(two)
    world.matches(server)
    world.goes_on(server)


def test_interrupted_by_the_user(bare: Any, start_server: Callable[..., Any], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    server = start_server(one)
    world = World(server, bulk=30)
    server.terminate()
    process = bare.spawn("migrate", "--from", str(one), "--to", str(two))
    while process.poll() is None and not copied(two):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) in [(130, b""), (0, b"")]
    bare.ok("migrate", "--from", str(one), "--to", str(two))
    world.matches(start_server(two))


def test_no_room(bare: Any, start_server: Callable[..., Any], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    server = start_server(one)
    server.create("a")
    for _ in range(10):
        server.append("a", bytes(1 << 20))
    server.terminate()
    process = bare.spawn("migrate", "--from", str(one), "--to", str(two))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.count(b"\n") == 1
    assert b"the same command continues" in errors
    bare.ok("migrate", "--from", str(one), "--to", str(two))
    assert start_server(two).read_all("a") == bytes(10 << 20)


def test_a_second_run_that_breaks_off_takes_nothing_away(
    bare: Any, start_server: Callable[..., Any], tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"

    def stamp(number: int) -> dict[str, str]:
        return {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": str(number)}

    server = start_server(one)
    server.create("a")
    server.append("a", b"first", **stamp(0))
    server.terminate()
    bare.ok("migrate", "--from", str(one), "--to", str(two))
    server = start_server(one)
    for number in range(1, 61):
        server.append("a", bytes([64 + number]) * (1 << 20), **stamp(number))
    server.terminate()
    process = bare.spawn("migrate", "--from", str(one), "--to", str(two))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (16 << 20, resource.RLIM_INFINITY))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"the same command continues" in errors
    server = start_server(two)
    assert server.read_all("a") == b"first"
    server.terminate()
    bare.ok("migrate", "--from", str(one), "--to", str(two))
    server = start_server(two)
    assert len(server.read_all("a")) == 5 + (60 << 20)
    assert server.append("a", b"once more", **stamp(60)).status == 204


class Careless(SqlitePlace):
    """A target that changes what it is given, in some way."""

    def __init__(self, folder: Path, flaw: str) -> None:
        super().__init__(folder, source=False)
        self._flaw = flaw

    async def write(self, state: StreamState, appends: Sequence[bytes]) -> None:
        if self._flaw == "bytes":
            appends = [append.replace(b"7", b"8") for append in appends]
        elif self._flaw == "boundaries":
            appends = [b"".join(appends)[:-2], b"".join(appends)[-2:]]
        elif self._flaw == "missing":
            appends = appends[:-1]
        await super().write(state, appends)

    async def finish(self, state: StreamState, producers: Mapping[str, ProducerState]) -> None:
        if self._flaw == "state":
            state = replace(state, ttl=7)
        await super().finish(state, {} if self._flaw == "producers" else producers)


@pytest.mark.parametrize("flaw", ["", "bytes", "boundaries", "missing", "state", "producers"])
def test_no_difference_is_overlooked(start_server: Callable[..., Any], tmp_path: Path, flaw: str) -> None:
    server = start_server(tmp_path / "one")
    server.create("a")
    for number in range(8, 11):
        stamp = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": str(number - 8)}
        server.append("a", b"%d and 7" % number, **stamp)
    server.terminate()

    async def transfer() -> None:
        source, target = SqlitePlace(tmp_path / "one", source=True), Careless(tmp_path / "two", flaw)
        try:
            await source.open()
            await target.open()
            await Transfer(source, target).run()
        finally:
            await source.close()
            await target.close()

    named = pytest.raises(StoreError, match=r"\ba \(|the stream a ")
    with named if flaw else contextlib.nullcontext():
        asyncio.run(transfer())


class TestRefusals:
    @pytest.fixture
    def folders(self, start_server: Callable[..., Any], tmp_path: Path) -> tuple[str, str]:
        """Two folders: one with streams, and a copy of it."""
        one, two = tmp_path / "one", tmp_path / "two"
        server = start_server(one)
        for name in ("a", "b"):
            server.create(name)
            server.append(name, b"some bytes")
        server.terminate()
        shutil.copytree(one, two)
        return str(one), str(two)

    def test_no_streams_there(self, bare: Any, tmp_path: Path) -> None:
        message = bare.error("migrate", "--from", str(tmp_path / "nothing"), "--to", str(tmp_path / "two"))
        assert "holds no streams" in message
        assert not (tmp_path / "nothing").exists()
        assert not (tmp_path / "two").exists()

    def test_another_programs_file(self, bare: Any, folders: tuple[str, str], tmp_path: Path) -> None:
        (tmp_path / "three").mkdir()
        with contextlib.closing(sqlite3.connect(tmp_path / "three" / "streams.db")) as db:
            db.execute("CREATE TABLE theirs (x)")
        for pair in ((str(tmp_path / "three"), folders[0]), (folders[0], str(tmp_path / "three"))):
            assert "another program's database" in bare.error("migrate", "--from", pair[0], "--to", pair[1])

    def test_a_server_that_runs(
        self, bare: Any, folders: tuple[str, str], start_server: Callable[..., Any]
    ) -> None:
        start_server(Path(folders[0]))
        for pair in (folders, folders[::-1]):
            assert "another server has the folder" in bare.error(
                "migrate", "--from", pair[0], "--to", pair[1]
            )

    def test_one_place(self, bare: Any, folders: tuple[str, str]) -> None:
        bare.error("migrate", "--from", folders[0], "--to", folders[0] + "/", code=2)

    def test_another_stream_at_a_path(
        self, bare: Any, folders: tuple[str, str], start_server: Callable[..., Any]
    ) -> None:
        server = start_server(Path(folders[1]))
        assert server.request("DELETE", "b").status == 204
        server.create("b")
        server.terminate()
        assert "another stream at b:" in bare.error("migrate", "--from", folders[0], "--to", folders[1])

    def test_an_id_that_another_stream_has(self, bare: Any, folders: tuple[str, str]) -> None:
        with contextlib.closing(sqlite3.connect(f"{folders[1]}/streams.db")) as db, db:
            db.execute(
                "UPDATE stream SET path = 'elsewhere', state = json_set(state, '$.path', 'elsewhere') WHERE path = 'b'"
            )
        message = bare.error("migrate", "--from", folders[0], "--to", folders[1])
        assert "the stream elsewhere under the id of b" in message

    @pytest.mark.parametrize("how", ["written", "closed", "forked"])
    def test_a_target_that_went_on(
        self, bare: Any, folders: tuple[str, str], start_server: Callable[..., Any], how: str
    ) -> None:
        server = start_server(Path(folders[1]))
        if how == "written":
            server.append("b", b"more")
        elif how == "closed":
            server.append("b", b"", **{"Stream-Closed": "true"})
        else:
            server.create("c", **{"Stream-Forked-From": "/v1/stream/b"})
        server.terminate()
        message = bare.error("migrate", "--from", folders[0], "--to", folders[1])
        assert "the stream b has gone on in the target" in message

    def test_other_bytes_in_the_target(self, bare: Any, folders: tuple[str, str]) -> None:
        with contextlib.closing(sqlite3.connect(f"{folders[1]}/streams.db")) as db, db:
            [stream] = db.execute("SELECT id FROM stream WHERE path = 'b'").fetchone()
            rows = db.execute(
                "SELECT start, data, sum FROM record WHERE stream = ? ORDER BY start", [stream]
            ).fetchall()
            chain, _ = unseal(stream, rows[0][0], rows[0][2])
            for start, data, _ in rows:  # other bytes, and not damaged ones
                written = b"S" + data[1:]
                before, chain = chain, after_append(written, chain)
                new = written, seal(stream, start, before, chain), stream, start
                db.execute("UPDATE record SET data = ?, sum = ? WHERE stream = ? AND start = ?", new)
        message = bare.error("migrate", "--from", folders[0], "--to", folders[1])
        assert "other bytes of the stream b than the source" in message
        assert bare.ok("migrate", "--from", folders[0], "--to", folders[1], "--no-verify")

    def test_other_producers_in_the_target(self, bare: Any, folders: tuple[str, str]) -> None:
        with contextlib.closing(sqlite3.connect(f"{folders[1]}/streams.db")) as db, db:
            [stream] = db.execute("SELECT id FROM stream WHERE path = 'a'").fetchone()
            row = stream, "p", 0, 0, producer_sum(stream, "p", 0, 0)
            db.execute("INSERT INTO producer VALUES (?, ?, ?, ?, ?)", row)
        assert "stream a has other producers" in bare.error(
            "migrate", "--from", folders[0], "--to", folders[1]
        )

    def test_a_source_with_a_hole(
        self, bare: Any, folders: tuple[str, str], tmp_path: Path, start_server: Callable[..., Any]
    ) -> None:
        server = start_server(Path(folders[0]))
        server.append("a", b"behind the hole")
        server.terminate()
        with contextlib.closing(sqlite3.connect(f"{folders[0]}/streams.db")) as db, db:
            db.execute(
                "DELETE FROM record WHERE start = 0 AND stream = (SELECT id FROM stream WHERE path = 'a')"
            )
        message = bare.error("migrate", "--from", folders[0], "--to", str(tmp_path / "three"))
        assert "the stream a has no whole append at position 0" in message
