"""A data folder that goes away under a running server: nothing is acknowledged from then on, nobody else is harmed."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durable_streams.protocol.commands import Append, Create
from durable_streams.stores.base import StoreError, StoreLostError
from durable_streams.stores.sqlite import SqliteStore

BYTES = "application/octet-stream"
FILES = ["streams.db", "streams.db-wal", "streams.db-shm", "lock"]
NOTICED_WITHIN = 20.0  # seconds; it takes two


def moved(folder: Path) -> Path:
    aside = folder.with_name("aside")
    folder.rename(aside)
    return aside


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def renamed(folder: Path) -> None:
    moved(folder)


def replaced_by_an_empty_one(folder: Path) -> None:
    moved(folder)
    folder.mkdir()


def replaced_by_a_copy(folder: Path) -> None:
    """As a backup that is restored while the server runs."""
    shutil.copytree(moved(folder), folder)


def replaced_by_a_file(folder: Path) -> None:
    moved(folder)
    folder.write_bytes(b"")


def parent_renamed(folder: Path) -> None:
    folder.parent.rename(folder.parent.with_name("elsewhere"))


def link_retargeted(folder: Path) -> None:
    """The path leads through a symbolic link, as to the present one of several versions."""
    other = folder.parent.with_name("other")
    other.mkdir()
    shutil.copytree(folder, other / folder.name)
    link = folder.parent.with_name("link")
    link.unlink()
    link.symlink_to(other)


def file_removed(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()

    damage.__name__ = f"{name}_removed"
    return damage


def file_replaced(name: str) -> Callable[[Path], None]:
    """With the same content: only the file is another one."""

    def damage(folder: Path) -> None:
        copy = folder / "copy"
        shutil.copyfile(folder / name, copy)
        copy.replace(folder / name)

    damage.__name__ = f"{name}_replaced"
    return damage


DAMAGES = [
    removed,
    renamed,
    replaced_by_an_empty_one,
    replaced_by_a_copy,
    replaced_by_a_file,
    parent_renamed,
    link_retargeted,
    *map(file_removed, FILES),
    *map(file_replaced, FILES),
]
every_damage = pytest.mark.parametrize("damage", DAMAGES, ids=[damage.__name__ for damage in DAMAGES])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The path to serve: it leads through a symbolic link, and nothing is there yet."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    return tmp_path / "link" / "data"


def real(place: Path) -> Path:
    return place.parent.with_name("real") / "data"


def health(server) -> int:
    return server.request("GET", "/health", absolute=True).status


def expect_refusals(server) -> None:
    """Nothing is stored, created, deleted or read any more, however often it is asked for."""
    for _ in range(2):
        assert server.append("s", b"lost").status == 503
        assert (
            server.append("s", b"lost", producer_id="p", producer_epoch="0", producer_seq="0").status == 503
        )
        assert server.request("PUT", "new", content_type=BYTES).status == 503
        assert server.request("DELETE", "t").status == 503
        assert health(server) == 503
        for read in ("s", "s?offset=-1&live=sse", "s?offset=now&live=long-poll"):
            assert server.request("GET", read).status == 503
        assert server.request("HEAD", "s").status == 503
    assert server.request("GET", "/health/live", absolute=True).status == 200


@pytest.mark.parametrize("size", [0, 4096])
def test_f2_nothing_is_acknowledged_once_the_log_was_shortened(start_server, place: Path, size: int) -> None:
    """As by ``> streams.db-wal``: the same file, without what was acknowledged."""
    server = start_server(place)
    for name in ("s", "t"):
        server.create(name)
    assert server.append("s", bytes(100_000)).status == 204
    with (real(place) / "streams.db-wal").open("r+b") as log:
        log.truncate(size)
    assert server.append("s", b"lost").status == 503
    expect_refusals(server)
    assert server.terminate() == 1


def test_f2_a_checkpoint_by_another_program_is_no_damage(start_server, place: Path) -> None:
    """A tool for backups may empty the log: all of it is in the database then."""
    server = start_server(place)
    server.create("s")
    for number in range(3):
        assert server.append("s", bytes([number]) * 100_000).status == 204
        with contextlib.closing(sqlite3.connect(real(place) / "streams.db")) as other:
            assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        assert (real(place) / "streams.db-wal").stat().st_size == 0
        assert health(server) == 200
        assert server.append("s", b"-").status == 204
    server.kill()
    server = start_server(place)
    assert server.read_all("s") == b"".join(bytes([number]) * 100_000 + b"-" for number in range(3))


@every_damage
@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_f2_nothing_is_acknowledged_once_the_folder_is_gone(
    start_server, place: Path, damage: Callable[[Path], None], interface: str
) -> None:
    server = start_server(place, interface=interface)
    server.create("s")
    server.create("t")
    assert server.append("s", b"before").status == 204
    damage(real(place))
    first = server.append("s", b"lost")
    assert first.status == 503
    assert str(place.parent.parent) not in first.body.decode(), (
        "clients are told where the server has its files"
    )
    expect_refusals(server)
    code = server.terminate()
    assert code == (1 if interface == "rsgi" else -signal.SIGTERM)  # Uvicorn ends with the signal itself
    if interface == "rsgi":
        lines = server.error_output.decode().splitlines()
        assert lines[-1].startswith("Error: ")
        assert "Traceback" not in server.error_output.decode()
        assert str(place) in lines[-1]


@every_damage
def test_f2_an_idle_server_notices_too(start_server, place: Path, damage: Callable[[Path], None]) -> None:
    server = start_server(place, sse_max_age=300.0, long_poll_timeout=300.0)
    server.create("s")
    ended: dict[str, int] = {}

    def follow(mode: str) -> None:
        ended[mode] = server.request("GET", f"s?offset=-1&live={mode}", timeout=NOTICED_WITHIN * 2).status

    readers = [threading.Thread(target=follow, args=(mode,)) for mode in ("sse", "long-poll")]
    for reader in readers:
        reader.start()
    damage(real(place))
    until = time.monotonic() + NOTICED_WITHIN
    while server.request("GET", "s").status != 503:
        assert time.monotonic() < until, "nothing was noticed without a write"
        time.sleep(0.1)
    for reader in readers:
        reader.join(NOTICED_WITHIN)
    assert ended == {"sse": 200, "long-poll": 503}, "live reads go on"


@pytest.mark.parametrize(
    "damage", [removed, replaced_by_an_empty_one, replaced_by_a_copy, file_replaced("lock")]
)
def test_f2_writers_under_way_get_nothing_acknowledged_afterwards(
    start_server, place: Path, damage: Callable[[Path], None]
) -> None:
    server = start_server(place)
    acknowledged: list[float] = []  # when their requests began
    stop = threading.Event()
    for number in range(4):
        server.create(f"s{number}")

    def write(number: int) -> None:
        with contextlib.closing(server.connection()) as connection:
            while not stop.is_set():
                began = time.monotonic()
                connection.request("POST", f"/v1/stream/s{number}", b"x" * 100, {"Content-Type": BYTES})
                response = connection.getresponse()
                response.read()
                assert response.status in {204, 503}
                if response.status == 204:
                    acknowledged.append(began)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    time.sleep(0.3)
    damage(real(place))
    gone = time.monotonic()
    time.sleep(0.3)
    stop.set()
    for writer in writers:
        writer.join(20)
    assert acknowledged
    assert not [began for began in acknowledged if began > gone]


@every_damage
def test_f2_a_second_server_on_the_path_does_no_harm(
    start_server, run_server, server_command, place: Path, damage: Callable[[Path], None]
) -> None:
    """It is refused, or the first one does nothing more: also at its end, when SQLite would tidy up."""
    first = start_server(place)
    first.create("s")
    first.append("s", b"before")
    damage(real(place))
    second = run_server(server_command(place))
    if not second.becomes_ready():
        assert second.wait(20) == 1
        assert len(second.error_output.decode().strip().splitlines()) == 1
        assert first.append("s", b"lost").status == 503
        return
    put = second.request("PUT", "s", content_type=BYTES).status
    assert put in {200, 201}
    assert second.append("s", b"second").status == 204
    assert first.append("s", b"lost").status == 503
    assert first.terminate() == 1
    assert second.append("s", b"after").status == 204
    assert health(second) == 200
    second.kill()  # nothing but the log has what it stored
    third = start_server(place)
    assert third.read_all("s") == (b"before" if put == 200 else b"") + b"secondafter"
    assert health(third) == 200


@pytest.mark.parametrize("damage", [renamed, parent_renamed, file_removed("streams.db-wal")])
@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_f2_what_was_acknowledged_is_there_after_the_repair(
    start_server, place: Path, damage: Callable[[Path], None], end: str
) -> None:
    server = start_server(place)
    server.create("s")
    for number in range(50):
        assert server.append("s", b"%06d" % number).status == 204
    damage(real(place))
    until = time.monotonic() + NOTICED_WITHIN
    while server.append("s", b"999999").status != 503:
        assert time.monotonic() < until
    server.append("s", b"999999")
    if end == "kill":
        server.kill()
    else:
        assert server.terminate() == 1
    if damage is renamed:
        place.with_name("aside").rename(place)
    if damage is parent_renamed:
        place.parent.with_name("elsewhere").rename(real(place).parent)
    again = start_server(place)
    content = again.read_all("s")
    assert content[:300] == b"".join(b"%06d" % number for number in range(50))
    assert content[300:] in {b"", b"999999"}  # what was in doubt
    assert again.append("s", b"more").status == 204
    assert health(again) == 200
    assert again.terminate() == 0


def test_f2_a_log_without_its_file_is_not_thrown_away(
    start_server, run_server, server_command, tmp_path: Path
) -> None:
    server = start_server(tmp_path / "data")
    server.create("s")
    server.append("s", b"only in the log")
    server.kill()
    file = tmp_path / "data" / "streams.db"
    file.rename(tmp_path / "kept")
    for missing in (True, False):
        refused = run_server(server_command(tmp_path / "data"))
        assert refused.wait(20) == 1
        assert "streams.db" in refused.error_output.decode()
        assert len(refused.error_output.decode().strip().splitlines()) == 1
        if missing:
            file.touch()
    (tmp_path / "kept").replace(file)
    assert start_server(tmp_path / "data").read_all("s") == b"only in the log"


def test_f2_another_program_that_looks_into_the_file_takes_nothing_away(start_server, tmp_path: Path) -> None:
    """It finds the locks of the server: else it would take itself for the last one, and remove the log at its end."""
    server = start_server(tmp_path / "data")
    server.create("s")
    for number in range(3):
        server.append("s", b"%d" % number)
        program = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); print(*db.execute(sys.argv[2])); db.close()"
        command = [
            sys.executable,
            "-c",
            program,
            tmp_path / "data" / "streams.db",
            "SELECT count(*) FROM stream",
        ]
        assert subprocess.run(command, check=True, capture_output=True).stdout == b"(1,)\n"
    assert server.append("s", b"3").status == 204
    server.kill()
    assert start_server(tmp_path / "data").read_all("s") == b"0123"


@pytest.fixture
def mount_over() -> Iterator[Callable[[Path], None]]:
    """Give a function that mounts an empty file system over a folder."""
    mounted: list[Path] = []

    def mount(folder: Path) -> None:
        command = ["mount", "-t", "tmpfs", "tmpfs", str(folder)]
        with contextlib.suppress(OSError):
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                mounted.append(folder)
                return
        pytest.skip("mounting needs more rights than this process has; the other tests replace the folder")

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("where", ["folder", "parent"])
def test_f2_a_file_system_mounted_over_the_folder(
    start_server, place: Path, mount_over: Callable[[Path], None], where: str
) -> None:
    server = start_server(place)
    server.create("s")
    server.create("t")
    mount_over(real(place) if where == "folder" else real(place).parent)
    expect_refusals(server)
    second = start_server(place)
    second.create("s")
    assert server.terminate() == 1
    assert second.append("s", b"x").status == 204
    assert second.read_all("s") == b"x"


def test_f2_the_folder_of_the_process_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means what it meant when the store was made."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        store = SqliteStore(Path("data"))
        await store.open()
        await store.create(Create("s", BYTES, payload=b"abc"))
        monkeypatch.chdir(tmp_path / "elsewhere")
        state = (await store.append("s", Append(BYTES, b"def"))).state
        assert (await store.read(state, 0, 100)).payload == b"abcdef"
        await store.check()
        await store.close()

    asyncio.run(main())
    assert (tmp_path / "data" / "streams.db").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())


@every_damage
def test_f2_an_embedded_store_leaves_alone_what_is_at_its_path(
    place: Path, damage: Callable[[Path], None]
) -> None:
    def present() -> list[str] | None:
        return sorted(path.name for path in place.iterdir()) if place.is_dir() else None

    def copy_without_index() -> None:
        kept = place.rename(place.with_name("kept"))
        shutil.copytree(kept, place, ignore=shutil.ignore_patterns("*-shm"))

    async def main() -> None:
        store = SqliteStore(place)
        await store.open()
        await store.create(Create("s", BYTES, payload=b"abc"))
        damage(real(place))
        there = present()
        with pytest.raises(StoreError):
            await store.append("s", Append(BYTES, b"lost"))
        with pytest.raises(StoreLostError):
            await store.append("s", Append(BYTES, b"lost"))
        with pytest.raises(StoreLostError):
            await store.get("s")
        with pytest.raises(StoreLostError, match=str(place)):
            await store.close()
        assert present() == there
        if there != ["lock", "streams.db", "streams.db-shm", "streams.db-wal"]:
            return
        # What is there now can be opened by the same process, and again.
        if damage.__name__ == "streams.db-wal_replaced":
            # Not in its place: as long as this process lives, its index of the log is that of the other log.
            copy_without_index()
        for _ in range(2):
            await store.open()
            await store.check()
            await store.close()

    asyncio.run(main())
