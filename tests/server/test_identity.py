"""ETags of a folder that was copied, or restored from a backup: other content is never "not modified"."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Restore = Callable[[Path, Path], None]


def afresh(backup: Path, folder: Path) -> None:
    """Remove the folder and put the backup in its place."""
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)


def renamed(backup: Path, folder: Path) -> None:
    """Put the backup itself where the folder was."""
    folder.rename(folder.with_name("away"))
    backup.rename(folder)


def over_it(backup: Path, folder: Path) -> None:
    """Write over the files that are there, as ``cp -a`` does: inodes and modification times are those of before."""
    for file in folder.iterdir():
        if not (backup / file.name).exists():
            file.unlink()
    for file in backup.iterdir():
        shutil.copyfile(file, folder / file.name)
        shutil.copystat(file, folder / file.name)


def database_alone(backup: Path, folder: Path) -> None:
    """Write over the database, and leave the rest; its log is not its own any more."""
    shutil.copyfile(backup / "streams.db", folder / "streams.db")
    shutil.copystat(backup / "streams.db", folder / "streams.db")
    for name in ("streams.db-wal", "streams.db-shm"):
        (folder / name).unlink(missing_ok=True)


def test_f8_a_backup_of_a_server_that_runs_over_one_that_crashed(start_server, tmp_path: Path) -> None:
    """All files are the same inodes, and as they would be after the crash."""
    folder, backup = tmp_path / "data", tmp_path / "backup"
    server = start_server(folder)
    server.create("s")
    server.append("s", b"abc")
    shutil.copytree(folder, backup)
    server.append("s", b"one", stream_closed="true")
    tag = server.request("GET", "s").headers["etag"]
    server.kill()
    time.sleep(0.5)  # more than writing the note may take
    over_it(backup, folder)
    server = start_server(folder)
    server.append("s", b"two", stream_closed="true")
    answer = server.request("GET", "s", if_none_match=tag)
    assert (answer.status, answer.body) == (200, b"abctwo")


@pytest.mark.parametrize("ends", ["terminate", "kill"])
@pytest.mark.parametrize("restore", [afresh, renamed, over_it, database_alone])
def test_f8_a_restored_backup(start_server, tmp_path: Path, restore: Restore, ends: str) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    server = start_server(folder)
    server.create("s")
    server.append("s", b"abc")
    server.terminate()
    shutil.copytree(folder, backup)
    server = start_server(folder)
    server.append("s", b"one", stream_closed="true")
    tags = {query: server.request("GET", f"s{query}").headers["etag"] for query in ("", "?offset=-1")}
    getattr(server, ends)()
    restore(backup, folder)
    server = start_server(folder)
    assert server.read_all("s") == b"abc"
    server.append("s", b"two", stream_closed="true")
    for query, tag in tags.items():
        answer = server.request("GET", f"s{query}", if_none_match=tag)
        assert (answer.status, answer.body) == (200, b"abctwo")
        assert answer.headers["etag"] != tag
    assert server.request("HEAD", "s").headers["etag"] not in tags.values()


def test_f8_a_copy(start_server, tmp_path: Path) -> None:
    """Two that go on from the same state, the copy of one that runs included."""
    server = start_server(tmp_path / "one")
    server.create("s")
    server.append("s", b"abc")
    (tmp_path / "three").mkdir()
    source = sqlite3.connect(tmp_path / "one" / "streams.db")
    target = sqlite3.connect(tmp_path / "three" / "streams.db")
    source.backup(target)
    source.close()
    target.close()
    server.terminate()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    tags = set()
    for name in ("one", "two", "three"):
        other = start_server(tmp_path / name)
        assert other.read_all("s") == b"abc"
        tags.add(other.request("GET", "s").headers["etag"])
        other.terminate()
    assert len(tags) == 3


@pytest.mark.parametrize("ends", ["terminate", "kill"])
def test_f8_a_server_that_comes_back(start_server, tmp_path: Path, ends: str) -> None:
    """Neither a restart nor a crash costs caches anything; nor does a folder that is moved."""
    folder = tmp_path / "data"
    server = start_server(folder)
    server.create("s")
    server.append("s", b"abc")
    tag = server.request("GET", "s").headers["etag"]
    for number in range(3):
        getattr(server, ends)()
        if number == 1:
            folder = folder.rename(tmp_path / "elsewhere")
        server = start_server(folder)
        assert server.request("GET", "s", if_none_match=tag).status == 304, number
        server.append("s", b"d" * (number + 1))
        tag = server.request("GET", "s").headers["etag"]


def test_f8_a_folder_that_was_removed(start_server, tmp_path: Path) -> None:
    """In one second, another folder with another stream of the same number."""
    tags = set()
    for content in (b"abc", b"xyz"):
        server = start_server(tmp_path / "data")
        server.create("s")
        server.append("s", content)
        tags.add(server.request("GET", "s").headers["etag"])
        server.kill()
        shutil.rmtree(tmp_path / "data")
    assert len(tags) == 2


def test_f8_a_folder_of_an_older_version(start_server, tmp_path: Path) -> None:
    server = start_server(tmp_path / "data")
    server.create("s")
    server.append("s", b"abc")
    server.terminate()
    for content in (b"", b"nonsense", b'{"identity": 1}'):
        (tmp_path / "data" / "lock").write_bytes(content)
        server = start_server(tmp_path / "data")
        tag = server.request("GET", "s").headers["etag"]
        server.terminate()
        server = start_server(tmp_path / "data")
        assert server.request("GET", "s", if_none_match=tag).status == 304
        server.terminate()
