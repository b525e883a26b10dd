"""Data folders are copied while their server is written to, restored, and made smaller."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from subscribing import Api, parsed

from durable_streams.protocol.offsets import format_offset
from durable_streams.worker import SyncWorker

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


def damaged(folder: Path, start_server: Callable) -> None:
    """Fill a folder, end its server, and damage the second append of a stream of three."""
    server = start_server(folder)
    server.create("a")
    for number in range(3):
        assert server.append("a", b"%04d" % number).status == 204
    server.create("b")
    server.append("b", b"whole")
    assert server.terminate() == 0
    with sqlite3.connect(folder / "streams.db") as connection:
        connection.execute("UPDATE record SET data = X'30303039' WHERE start = 4")
    connection.close()


def test_verify_says_what_is_damaged(bare: Any, start_server: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    damaged(folder, start_server)
    for _ in range(2):  # it changes nothing
        ran = bare.run("verify", str(folder))
        assert ran.returncode == 1
        assert ran.stdout.decode().splitlines() == [
            "a: 4 bytes lost, positions 4 to 8: not what was stored",
            f"{folder}: 2 streams, 13 bytes are whole",
        ]
    said = json.loads(bare.run("verify", "--json", str(folder)).stdout)
    assert said["damages"] == [{"name": "a", "begin": 4, "end": 8, "what": "not what was stored"}]


def test_a_damaged_folder_is_repaired(bare: Any, start_server: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    damaged(folder, start_server)
    said = json.loads(bare.ok("verify", "--repair", "--json", str(folder)))
    assert said["kept"] == ["a~0"]
    assert (folder / said["aside"]).stat().st_size
    assert bare.ok("verify", str(folder)).decode().splitlines() == [
        f"{folder}: 3 streams, 13 bytes are whole"
    ]
    server = start_server(folder)
    read = server.request("GET", "a?offset=-1")
    assert (read.status, read.body) == (200, b"0002")
    assert read.headers["stream-next-offset"] == format_offset(12)
    assert server.request("GET", f"a?offset={format_offset(4)}").status == 410
    before = server.request("GET", "a~0")
    assert (before.body, before.headers["stream-closed"]) == (b"0000", "true")
    assert server.request("GET", "b").body == b"whole"
    assert server.append("a", b"more").status == 204
    assert server.request("GET", "/health", absolute=True).status == 200


def test_a_server_names_damage_and_goes_on_with_the_rest(start_server: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    damaged(folder, start_server)
    server = start_server(folder)
    read = server.request("GET", "a")
    assert read.status == 503
    assert "the stream a is damaged at position 4" in read.json["error"]["message"]
    health = server.request("GET", "/health", absolute=True)
    assert health.status == 503
    assert "the stream a is damaged at position 4" in health.json["error"]["message"]
    assert server.append("a", b"more").status == 503
    assert server.append("b", b"more").status == 204
    assert server.request("DELETE", "a").status == 204
    assert server.request("GET", "/health", absolute=True).status == 200


def test_a_folder_without_damage_is_not_repaired(bare: Any, start_server: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    server = start_server(folder)
    server.create("a")
    assert "another server has the folder" in bare.error("verify", str(folder))
    assert server.terminate() == 0
    said = json.loads(bare.ok("verify", "--repair", "--json", str(folder)))
    assert (said["streams"], said["damages"], said["aside"]) == (1, [], None)
    assert "holds no streams" in bare.error("verify", str(tmp_path / "nowhere"))


def test_a_subscription_outlives_a_trim_a_backup_and_a_repair(
    bare: Any, start_server: Callable, tmp_path: Path
) -> None:
    """Its cursor, which is before where the stream begins now, stays; its worker goes on with what is left."""
    one, copy, two = tmp_path / "one", tmp_path / "copy", tmp_path / "two"
    server = start_server(one)
    api = Api(lambda: server.port)
    subscribed = api.pull("jobs/*")
    api.append("jobs/a", "processed")
    first = api.tail("jobs/a")
    with SyncWorker(server.root, subscribed.name, "w") as worker:
        assert next(iter(worker)).items == ["processed"]
    api.append("jobs/a", "given up")
    begins = api.tail("jobs/a")
    api.append("jobs/a", "left")
    trimmed = api.call("POST", "__ds/streams/jobs/a/trim", {"before": begins})
    assert parsed(trimmed)["earliest_offset"] == begins
    cursor = subscribed.links()["jobs/a"]
    assert cursor in {"-1", first}
    bare.ok("backup", "--data-dir", str(one), str(copy))
    assert server.terminate() == 0
    bare.ok("restore", "--data-dir", str(two), str(copy))
    with sqlite3.connect(two / "streams.db") as connection:
        connection.execute("UPDATE producer SET seq = seq + 1")
        connection.execute("DELETE FROM name WHERE stream = (SELECT id FROM stream WHERE path = 'jobs/a')")
    connection.close()
    assert bare.run("verify", "--repair", str(two)).returncode == 0
    server = start_server(two)
    assert subscribed.links()["jobs/a"] == cursor
    with SyncWorker(server.root, subscribed.name, "w") as worker:
        batches = iter(worker)
        assert next(batches).items == ["left"]
        api.append("jobs/a", "more")
        assert next(batches).items == ["more"]
