"""A disk without room, or a read-only one: refused clearly, nothing acknowledged is lost, goes on with room again."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BODY = b"x" * 20_000
REFUSALS = {503, 507}
ROOM = 6 << 20


def mounted(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


@pytest.fixture
def larger_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that has room for a whole log, and a reserve of that size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted(folder, "size=160m"):
        pytest.skip("mounting a small file system needs more rights than this process has")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted(folder, f"size={ROOM}"):
        pytest.skip(
            "mounting a small file system needs more rights than this process has; see the test with a limit"
        )
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def append_until_refused(server) -> list[int]:  # noqa: ANN001
    """Fill the disk; returns the numbers of the appends that were acknowledged."""
    acknowledged = []
    for number in range(2000):
        answer = server.append("s", b"%06d" % number + BODY)
        if answer.status == 204:
            acknowledged.append(number)
            continue
        assert answer.status in REFUSALS, answer
        assert answer.headers["retry-after"]
        assert answer.json["error"]["message"].count("\n") == 0
        return acknowledged
    raise AssertionError("the disk does not fill up")


def check(server, acknowledged: list[int]) -> None:  # noqa: ANN001
    content = server.read_all("s")
    size = 6 + len(BODY)
    assert len(content) % size == 0
    assert [int(content[at : at + 6]) for at in range(0, len(content), size)] == acknowledged


def fill_and_go_on(server, restart: Callable, make_room: Callable[[], None]) -> None:  # noqa: ANN001
    server.create("s")
    server.create("t")
    assert server.request("GET", "/health", absolute=True).status == 200
    acknowledged = append_until_refused(server)
    assert acknowledged
    # Still refusing, still serving.
    assert server.append("s", b"000000" + BODY * 20).status in REFUSALS
    assert server.request("PUT", "new", BODY * 20, content_type="application/octet-stream").status in REFUSALS
    assert server.request("GET", "new").status == 404
    check(server, acknowledged)
    producer = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}
    assert server.append("t", BODY * 20, **producer).status in REFUSALS
    assert server.alive
    make_room()
    assert server.append("t", BODY * 20, **producer).status == 200, "with room it goes on"
    assert server.append("t", BODY * 20, **producer).status == 204
    assert server.append("s", b"%06d" % 2001 + BODY).status == 204
    acknowledged.append(2001)
    assert server.request("GET", "/health", absolute=True).status == 200
    check(server, acknowledged)
    server.kill()
    server = restart()
    check(server, acknowledged)
    assert server.read_all("t") == BODY * 20
    assert server.terminate() == 0


def test_a_full_disk(small_disk: Path, start_server: Callable) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(ROOM // 2))
    folder = small_disk / "data"
    fill_and_go_on(start_server(folder), lambda: start_server(folder), ballast.unlink)


def test_on_a_full_disk_streams_can_be_deleted_closed_and_trimmed(
    larger_disk: Path, start_server: Callable
) -> None:
    """Faults F1 and G6: the room comes back without anybody's help, and is used again."""
    folder, data = larger_disk / "data", BODY * 100
    server = start_server(folder, disk_reserve=18 << 20)
    for name in ("s", "closed", "trimmed", "deleted"):
        server.create(name)
        assert server.append(name, data).status == 204
    size = 1
    while server.append("s", data).status == 204:
        size += 1
    for _ in range(3):
        assert server.append("s", data).status == 507
        assert server.request("GET", "/health", absolute=True).status == 507
        assert server.request("PUT", "new", content_type="text/plain").status == 507
    assert not (folder / "reserve").exists()
    assert server.request("POST", "closed", stream_closed="true").status == 204
    assert server.request("POST", "__ds/streams/trimmed/trim", b'{"before": "now"}').status == 200
    assert server.request("DELETE", "deleted").status == 204
    assert server.read_all("s") == data * size
    assert server.request("DELETE", "s").status == 204
    # The pages of what was deleted are free soon after.
    until = time.monotonic() + 20
    while server.request("PUT", "new", content_type="text/plain").status != 201:
        assert time.monotonic() < until, "the room does not come back"
    for _ in range(20):
        assert server.append("new", data, "text/plain").status == 204
    assert server.request("GET", "/health", absolute=True).status == 200
    server.kill()
    server = start_server(folder, disk_reserve=18 << 20)
    assert server.read_all("new") == data * 20
    assert server.request("HEAD", "s").status == server.request("HEAD", "deleted").status == 404
    assert server.request("HEAD", "closed").headers["stream-closed"] == "true"
    assert server.read_all("trimmed") == b""


def test_a_reserve_is_taken_again(small_disk: Path, start_server: Callable) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(ROOM // 2))
    server = start_server(small_disk / "data", disk_reserve=1 << 18)
    server.create("s")
    reserve = small_disk / "data" / "reserve"
    assert reserve.stat().st_size == 1 << 18
    acknowledged = append_until_refused(server)
    assert not reserve.exists()
    ballast.unlink()
    assert server.append("s", b"%06d" % 2001 + BODY).status == 204
    assert reserve.stat().st_size == 1 << 18
    check(server, [*acknowledged, 2001])


def test_a_full_disk_at_a_restart(
    small_disk: Path, start_server: Callable, run_server: Callable, server_command: Callable
) -> None:
    folder = small_disk / "data"
    server = start_server(folder)
    server.create("s")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(ROOM // 2))
    acknowledged = append_until_refused(server)
    with contextlib.suppress(OSError), (small_disk / "more").open("wb", buffering=0) as more:
        while more.write(bytes(4096)):  # until not a byte is left
            pass
    server.kill()
    again = run_server(server_command(folder))
    if again.becomes_ready():
        check(again, acknowledged)
        assert again.append("s", BODY).status in REFUSALS
        ballast.unlink()
        server = again
    else:
        assert again.wait(20) == 1
        assert len(again.error_output.decode().strip().splitlines()) == 1
        ballast.unlink()
        server = start_server(folder)
    check(server, acknowledged)
    assert server.append("s", b"%06d" % 2001 + BODY).status == 204
    check(server, [*acknowledged, 2001])


def test_a_limit_on_files(tmp_path: Path, start_server: Callable) -> None:
    """No file of the server may grow beyond a limit: works without any rights."""
    server = start_server(tmp_path / "data")
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY))

    def make_room() -> None:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    fill_and_go_on(server, lambda: start_server(tmp_path / "data"), make_room)


def test_a_read_only_disk_at_the_start(
    tmp_path: Path, start_server: Callable, run_server: Callable, server_command: Callable
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for folder in (disk / "new", disk / "filled"):
        is_root = os.geteuid() == 0
        if is_root and not mounted(disk, "size=4m"):
            pytest.skip("root may write anywhere, and this process may not mount a read-only file system")
        try:
            if folder.name == "filled":
                server = start_server(folder)
                server.create("s")
                assert server.terminate() == 0
            if is_root:
                subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            else:
                for each in (folder, disk):
                    if each.exists():
                        each.chmod(0o555)
            server = run_server(server_command(folder))
            assert server.wait(20) == 1
            lines = server.error_output.decode().strip().splitlines()
            assert len(lines) == 1
            assert str(folder) in lines[0]
        finally:
            if is_root:
                subprocess.run(["umount", "--lazy", str(disk)], check=True)
            else:
                for each in (disk, folder):
                    if each.exists():
                        each.chmod(0o755)
