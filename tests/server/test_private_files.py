"""What is stored is its owner's: nobody else on the machine may look into it."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_private(folder: Path) -> None:
    assert mode(folder) == 0o700
    names = {entry.name for entry in folder.iterdir()}
    assert {"streams.db", "lock"} <= names
    for name in names:
        assert mode(folder / name) == 0o600, name


@pytest.fixture(autouse=True)
def _usual_umask():  # noqa: ANN202
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_g11_a_data_folder(start_server, tmp_path: Path, interface: str) -> None:
    folder = tmp_path / "above" / "data"
    server = start_server(folder, interface=interface)
    server.create("s")
    server.append("s", b"x" * 100_000)
    assert (folder / "streams.db-wal").exists()
    is_private(folder)
    assert mode(tmp_path / "above") == 0o755, "what is above it is not ours"
    server.kill()
    is_private(folder)
    server = start_server(folder, interface=interface)
    is_private(folder)
    server.terminate()
    is_private(folder)


@pytest.mark.parametrize("ends", ["terminate", "kill"])
def test_g11_a_folder_of_an_older_version(start_server, tmp_path: Path, ends: str) -> None:
    folder = tmp_path / "data"
    server = start_server(folder)
    server.create("s")
    getattr(server, ends)()
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    server = start_server(folder)
    server.append("s", b"abc")
    is_private(folder)
    assert server.read_all("s") == b"abc"


def test_g11_a_folder_that_was_there(start_server, tmp_path: Path) -> None:
    empty, shared = tmp_path / "empty", tmp_path / "shared"
    for folder in (empty, shared):
        folder.mkdir(mode=0o755)
    (shared / "index.html").write_text("of somebody else")
    (shared / "index.html").chmod(0o644)
    for folder in (empty, shared):
        start_server(folder).create("s")
    is_private(empty)
    # Not ours alone: closing it could lock others out. What is ours in it is closed all the same.
    assert mode(shared) == 0o755
    assert mode(shared / "index.html") == 0o644
    assert mode(shared / "streams.db") == mode(shared / "streams.db-wal") == mode(shared / "lock") == 0o600
