"""Checkpoints: what the file holds, what is refused, and that it is replaced as a whole."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from durable_streams.client.checkpoints import Checkpoint, CheckpointStore, FileCheckpoint, as_store
from durable_streams.errors import DurableStreamError

URL = "http://host/v1/stream/s"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "place.json"


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(DurableStreamError) as caught:
        call(*arguments)
    assert caught.value.code == "CHECKPOINT"
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("stream", [None, URL])
def test_what_was_saved_is_loaded(path: Path, stream: str | None) -> None:
    assert FileCheckpoint(path, stream).load() is None
    FileCheckpoint(str(path), stream).save("1_2")
    FileCheckpoint(path, stream).save("1_3")
    assert FileCheckpoint(path, stream).load() == "1_3"
    assert [entry.name for entry in path.parent.iterdir()] == ["place.json"]
    assert json.loads(path.read_bytes()) == {"offset": "1_3"} | ({"stream": stream} if stream else {})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"stream": URL, "offset": "5", "bytes": 7}, Checkpoint("5", URL, 7)),
        ({"stream": URL, "offset": "5", "bytes": None}, Checkpoint("5", URL)),
        ({"offset": "5", "a_later_version": True}, Checkpoint("5")),
    ],
)
def test_a_file_of_the_command_line_or_another_version_is_read(
    path: Path, content: dict[str, Any], expected: Checkpoint
) -> None:
    path.write_text(json.dumps(content))
    assert FileCheckpoint(path, URL).read() == expected
    assert FileCheckpoint(path).load() == "5"


def test_another_streams_file_is_refused(path: Path) -> None:
    FileCheckpoint(path, URL + "2").save("5")
    message = refused(FileCheckpoint(path, URL).load)
    assert message == f"{path} is the checkpoint of {URL}2, not of {URL}; choose another file."


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"offset":"5"',
        b"5",
        b"[]",
        b"{}",
        b'{"offset":5}',
        b'{"offset":""}',
        b'{"offset":"\xff"}',
        b'{"offset":"5","bytes":-1}',
        b"\0" * 100,
    ],
)
def test_what_is_no_checkpoint_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    message = refused(FileCheckpoint(path).load)
    assert message == f"{path} is not a checkpoint; remove it to start from the beginning."


def test_a_missing_folder_is_reported_at_once(path: Path) -> None:
    missing = path / "place"
    assert (
        refused(FileCheckpoint(missing).load)
        == f"There is no folder {path} for the checkpoint place; create it."
    )
    assert "No such file or directory" in refused(FileCheckpoint(missing).save, "5")


def test_what_the_file_system_refuses_is_reported_in_one_sentence(path: Path) -> None:
    path.mkdir()
    assert refused(FileCheckpoint(path).load).startswith(f"cannot read the checkpoint {path}: ")
    assert refused(FileCheckpoint(path).save, "5").startswith(f"cannot save the checkpoint {path}: ")
    assert [entry.name for entry in path.parent.iterdir()] == ["place.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_checkpoint_of_before(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    file = FileCheckpoint(path)
    file.save("5")

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        target, name = (os, "fsync") if step == "fsync" else (Path, "replace")
        patch.setattr(target, name, fail)
        if isinstance(error, OSError):
            assert "No space left on device" in refused(file.save, "6")
        else:
            with pytest.raises(KeyboardInterrupt):
                file.save("6")
    assert file.load() == "5"
    assert [entry.name for entry in path.parent.iterdir()] == ["place.json"]


def test_what_a_killed_save_left_behind_is_used_up(path: Path) -> None:
    path.with_name(".place.json.tmp").write_bytes(b'{"off')
    FileCheckpoint(path).save("5")
    assert [entry.name for entry in path.parent.iterdir()] == ["place.json"]


def test_a_reader_of_the_file_sees_whole_checkpoints_only(path: Path) -> None:
    file = FileCheckpoint(path, URL)
    file.save("0")
    ended = threading.Event()

    def save() -> None:
        for number in range(100):
            file.save(str(number))
        ended.set()

    thread = threading.Thread(target=save)
    thread.start()
    last = 0
    while not ended.is_set():
        offset = file.load()
        assert offset is not None
        assert int(offset) >= last
        last = int(offset)
    thread.join()


def test_a_store_can_be_anything_that_loads_and_saves(path: Path) -> None:
    class Memory:
        def load(self) -> str | None:
            return None

        def save(self, offset: str) -> None: ...

    memory = Memory()
    assert isinstance(memory, CheckpointStore)
    assert as_store(memory) is memory
    for given in (path, str(path)):
        store = as_store(given, URL)
        assert isinstance(store, FileCheckpoint)
        assert (store.path, store.stream) == (path, URL)
        assert repr(store) == f"FileCheckpoint({str(path)!r}, stream={URL!r})"
    with pytest.raises(
        TypeError, match=r"^A checkpoint is a path, or has load\(\) and save\(offset\), not 5\.$"
    ):
        as_store(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["", "/", "."])
def test_a_path_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="does not name one"):
        FileCheckpoint(path)


def test_g11_a_checkpoint_is_its_owners(path: Path) -> None:
    """It names a stream, and what is in URLs is not for everybody on the machine."""
    before = os.umask(0o022)
    try:
        beside = path.with_name(f".{path.name}.tmp")
        beside.write_bytes(b"left by an older version")
        for _ in range(2):
            FileCheckpoint(path, URL).save("1_2")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            path.chmod(0o644)
    finally:
        os.umask(before)
