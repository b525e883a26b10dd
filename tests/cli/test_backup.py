"""Data folders are copied while their server is written to, restored, and made smaller."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from durable_streams.protocol.offsets import format_offset

SIZE = 20_000


def write(server, stream: str, acknowledged: list[int], ended: threading.Event) -> None:
    connection = server.connection()
    number = 0
    while not ended.is_set():
        body = b"%06d" % number + bytes(SIZE - 6)
        connection.request("POST", f"/v1/stream/{stream}", body, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        response.read()
        assert response.status == 204
        number += 1
        acknowledged[0] = number
    connection.close()


def test_a_backup_under_load(bare: Any, start_server: Callable, tmp_path: Path) -> None:
    one, copy, two = tmp_path / "one", tmp_path / "copy", tmp_path / "two"
    server = start_server(one)
    streams = ["a", "b", "c"]
    counts: dict[str, list[int]] = {stream: [0] for stream in streams}
    ended = threading.Event()
    threads = []
    for stream in streams:
        server.create(stream)
        threads.append(threading.Thread(target=write, args=(server, stream, counts[stream], ended)))
    for thread in threads:
        thread.start()
    while min(counts.values())[0] < 20:
        ended.wait(0.01)
    before = {stream: counts[stream][0] for stream in streams}
    said = json.loads(bare.ok("backup", "--json", "--data-dir", str(one), str(copy)))
    assert said["bytes"] == (copy / "streams.db").stat().st_size
    after = {stream: counts[stream][0] for stream in streams}
    ended.set()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in copy.iterdir()) == ["streams.db"]
    tags = {stream: server.request("HEAD", stream).headers["etag"] for stream in streams}
    bare.ok("restore", "--data-dir", str(two), str(copy))
    restored = start_server(two)
    for stream in streams:
        head, content = restored.request("HEAD", stream), restored.read_all(stream)
        count = len(content) // SIZE
        assert before[stream] <= count <= after[stream] + 1
        assert content == server.read_all(stream)[: count * SIZE]
        assert head.headers["stream-next-offset"] == format_offset(count * SIZE)
        assert head.headers["etag"].split(".")[0] != tags[stream].split(".")[0]
        assert restored.append(stream, b"it goes on").status == 204


def test_nothing_is_replaced(bare: Any, start_server: Callable, tmp_path: Path) -> None:
    one, copy = tmp_path / "one", tmp_path / "copy"
    server = start_server(one)
    server.create("s")
    server.append("s", b"abc")
    copy.mkdir()
    (copy / "streams.db.part").write_bytes(b"of a copy that was interrupted")
    bare.ok("backup", "--data-dir", str(one), str(copy))
    assert "holds streams already" in bare.error("backup", "--data-dir", str(one), str(copy))
    assert "another server has the folder" in bare.error("restore", "--data-dir", str(one), str(copy))
    assert "another server has the folder" in bare.error("compact", "--data-dir", str(one))
    assert "holds no streams" in bare.error("backup", "--data-dir", str(tmp_path / "no"), str(tmp_path / "x"))
    server.terminate()
    assert "holds streams already" in bare.error("restore", "--data-dir", str(one), str(copy))
    with sqlite3.connect(copy / "streams.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "format 99" in bare.error("restore", "--data-dir", str(tmp_path / "new"), str(copy))
    assert not (tmp_path / "new" / "streams.db").exists()
    assert start_server(one).read_all("s") == b"abc"


def test_a_folder_becomes_smaller(bare: Any, start_server: Callable, tmp_path: Path) -> None:
    server = start_server(tmp_path)
    for name in ("kept", "deleted"):
        server.create(name)
    server.append("kept", b"abc")
    for _ in range(4):
        server.append("deleted", bytes(1 << 20))
    server.request("DELETE", "deleted")
    tag = server.request("HEAD", "kept").headers["etag"]
    server.terminate()
    said = json.loads(bare.ok("compact", "--json", "--data-dir", str(tmp_path)))
    assert said["before"] > 4 << 20
    assert said["after"] == (tmp_path / "streams.db").stat().st_size < 1 << 20
    server = start_server(tmp_path)
    assert server.read_all("kept") == b"abc"
    assert server.request("HEAD", "kept").headers["etag"] == tag
