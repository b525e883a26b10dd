"""A disk that does not answer: bounded in time and memory, distinguished from a dead process, ended by SIGTERM."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BYTES = "application/octet-stream"
WITHIN = 30.0  # seconds
QUEUED = 8 << 20  # bytes
PATIENT = {"disk_timeout": 60.0}
IMPATIENT = {"disk_timeout": 2.0, "max_queued_bytes": QUEUED}

# SQLite as it is, but what touches the disk waits while somebody else has the lock on a file: "writes", or "all".
DISK = """
import fcntl, sqlite3, sys
gate = open(sys.argv.pop(1), "rb")
what = sys.argv.pop(1)
WRITES = ("BEGIN", "INSERT", "DELETE", "COMMIT", "PRAGMA wal_checkpoint")

class Connection(sqlite3.Connection):
    def execute(self, sql, *arguments):
        if what == "all" or sql.strip().startswith(WRITES):
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(gate, fcntl.LOCK_UN)
        return super().execute(sql, *arguments)

connect = sqlite3.connect
sqlite3.connect = lambda *arguments, **options: connect(*arguments, **options, factory=Connection)
"""


class Disk:
    """A folder for data on a disk that can be made to hang; ``lets_go``: whether a process can be ended meanwhile."""

    lets_go = True

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self._gate = os.open(folder / "gate", os.O_RDWR | os.O_CREAT)

    def command(self, command: list[str], what: str) -> list[str]:
        """Return the command for a server whose disk this is."""
        python, option, program, settings = command
        return [python, option, DISK + program, str(self.data.with_name("gate")), what, settings]

    def hang(self) -> None:
        fcntl.flock(self._gate, fcntl.LOCK_EX)

    def answer(self) -> None:
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._gate)


class FrozenDisk(Disk):
    """A file system of its own, frozen by the kernel."""

    lets_go = False

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "mount"
        self.data = self.mount / "data"
        self._frozen = False

    def command(self, command: list[str], what: str) -> list[str]:  # noqa: ARG002 - nothing can be written to it
        return command

    def hang(self) -> None:
        subprocess.run(["fsfreeze", "--freeze", str(self.mount)], check=True)
        self._frozen = True

    def answer(self) -> None:
        if self._frozen:
            subprocess.run(["fsfreeze", "--unfreeze", str(self.mount)], check=True)
            self._frozen = False


@contextmanager
def frozen_disk(folder: Path) -> Iterator[FrozenDisk]:
    if not all(map(shutil.which, ("fsfreeze", "mkfs.ext4", "mount"))):
        pytest.skip("there is no fsfreeze or mkfs.ext4; see the variant whose SQLite waits")
    disk, image = FrozenDisk(folder), folder / "image"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    disk.mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mount = ["mount", "-o", "loop", str(image), str(disk.mount)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs more rights than this process has; see the variant whose SQLite waits")
    try:
        yield disk
    finally:
        disk.answer()
        subprocess.run(["umount", "--lazy", str(disk.mount)], check=True)


@contextmanager
def waiting_disk(folder: Path) -> Iterator[Disk]:
    disk = Disk(folder)
    try:
        yield disk
    finally:
        disk.close()


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Disk]:
    with waiting_disk(tmp_path) as disk:
        yield disk


@pytest.fixture(params=["waiting", "frozen"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "frozen":
        with frozen_disk(tmp_path) as frozen:
            yield frozen
        return
    with waiting_disk(tmp_path) as waiting:
        yield waiting


@pytest.fixture
def begin(run_server, server_command) -> Callable[..., Any]:
    """Give a function that starts a server on a disk, and does not wait for it."""

    def begin(disk: Disk, what: str = "writes", **settings: object) -> Any:
        # One setting that the command line does not have: it is the program then, and not the command.
        return run_server(disk.command(server_command(disk.data, sse_heartbeat=15.0, **settings), what))

    return begin


@pytest.fixture
def start(begin, disk: Disk) -> Iterator[Callable[..., Any]]:
    """Give a function that starts a server on the disk; the disk answers again before the server is killed."""

    def start(**settings: object) -> Any:
        return begin(disk, **settings).wait_until_ready()

    yield start
    disk.answer()


def health(server, path: str = "/health") -> int:
    return server.request("GET", path, absolute=True).status


def in_background(*calls: Callable[[], Any]) -> list[Any]:
    """Begin calls in threads of their own; return the lists that their results come into."""
    results: list[list[Any]] = []
    for call in calls:
        result: list[Any] = []
        threading.Thread(target=lambda call=call, result=result: result.append(call()), daemon=True).start()
        results.append(result)
    return results


def result_of(results: list[Any]) -> Any:
    until = time.monotonic() + WITHIN
    while not results:
        assert time.monotonic() < until, "nothing was answered"
        time.sleep(0.01)
    return results[0]


def recovers(server) -> None:
    until = time.monotonic() + WITHIN
    while health(server) != 200:
        assert time.monotonic() < until, "it does not go on"
        time.sleep(0.05)


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_g5_everybody_is_answered_and_it_goes_on(disk: Disk, start, interface: str) -> None:
    server = start(interface=interface, **IMPATIENT)
    for name in ("s", "p", "t"):
        server.create(name)
    server.append("s", b"before")
    stamp = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}
    disk.hang()
    first, queued, produced, creation = in_background(
        lambda: server.append("s", b"[in doubt]"),
        lambda: server.append("t", b"x"),
        lambda: server.append("p", b"once", **stamp),
        lambda: server.request("PUT", "new", content_type=BYTES),
    )
    assert health(server, "/health/live") == 200
    assert health(server) == 503
    for answer in map(result_of, (first, queued, produced, creation)):
        assert answer.status == 503
        unknown = answer.json["error"]["code"] == "OUTCOME_UNKNOWN"
        assert ("retry-after" in answer.headers) != unknown
    assert result_of(produced).headers["retry-after"], "a producer may repeat it in any case"
    for _ in range(3):  # from now on at once, and nothing of it is stored
        refused = server.append("s", b"refused")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert health(server) == 503
    assert health(server, "/health/live") == 200
    assert server.request("HEAD", "t").status == 200
    read = server.request("GET", "s")
    if (
        disk.lets_go or read.status != 503
    ):  # a read marks its place in shared memory, which is a frozen file then
        assert (read.status, read.body) == (200, b"before")
    disk.answer()
    recovers(server)
    assert server.append("p", b"once", **stamp).status in {200, 204}
    assert server.read_all("p") == b"once"
    assert server.append("s", b"after").status == 204
    content = server.read_all("s")
    assert content in {b"beforeafter", b"before[in doubt]after"}
    server.kill()
    server = start(interface=interface)
    assert server.read_all("s") == content
    assert server.read_all("p") == b"once"
    assert server.append("p", b"once", **stamp).status == 204


def test_g5_what_waits_is_bounded(disk: Disk, start) -> None:
    """Long before their time is up, excess requests are asked to come again."""
    server = start(max_queued_bytes=QUEUED, **PATIENT)
    server.create("s")
    server.append("s", b"x" * (1 << 20))
    before = server.resident()
    disk.hang()
    size = 1 << 20
    body = b"x" * size
    calls = in_background(*[lambda: server.append("s", body)] * 40)
    until = time.monotonic() + WITHIN
    while sum(map(len, calls)) < 40 - QUEUED // size:
        assert time.monotonic() < until, "all of it waits"
        time.sleep(0.05)
    time.sleep(0.2)
    refused = [call[0] for call in calls if call]
    assert len(refused) == 40 - QUEUED // size
    assert {(answer.status, answer.headers.get("retry-after")) for answer in refused} == {(503, "1")}
    for _ in range(100):
        assert server.append("s", body).status == 503
    assert server.resident() - before < 2 * QUEUED + (40 << 20)
    assert health(server, "/health/live") == 200
    disk.answer()
    stored = [answer for answer in map(result_of, calls) if answer.status == 204]
    assert len(stored) == QUEUED // size
    assert len(server.read_all("s")) == (1 + len(stored)) * size
    assert server.append("s", body).status == 204


def test_g5_the_number_of_those_who_wait_is_bounded(disk: Disk, start) -> None:
    server = start(max_queued_appends=10, **PATIENT)
    server.create("s")
    disk.hang()
    calls = in_background(*[lambda: server.append("s", b"x")] * 30)
    until = time.monotonic() + WITHIN
    while sum(map(len, calls)) < 20:
        assert time.monotonic() < until, "all of them wait"
        time.sleep(0.05)
    disk.answer()
    statuses = sorted(result_of(call).status for call in calls)
    assert statuses == [204] * 10 + [503] * 20
    assert server.read_all("s") == b"x" * 10


def test_g5_one_append_may_be_larger_than_what_may_wait(start) -> None:
    server = start(max_queued_bytes=1000)
    server.create("s")
    assert server.append("s", b"x" * 100_000).status == 204


def is_gone(pid: int) -> bool:
    """Whether nothing of a process runs any more but what the kernel does not let go."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    return True


def ended(disk: Disk, server) -> int:
    """Send SIGTERM and wait until it took effect; return the exit code."""
    server.process.send_signal(signal.SIGTERM)
    if disk.lets_go:
        return server.wait(WITHIN)
    until = time.monotonic() + WITHIN
    while not is_gone(server.pid):
        assert time.monotonic() < until, "SIGTERM does not end it"
        time.sleep(0.05)
    disk.answer()
    return server.wait(WITHIN)


@pytest.mark.parametrize("settings", [IMPATIENT, PATIENT], ids=["noticed", "not noticed yet"])
@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_g5_sigterm_ends_it(disk: Disk, start, interface: str, settings: dict[str, Any]) -> None:
    server = start(interface=interface, **settings)
    server.create("s")
    assert server.append("s", b"acknowledged").status == 204
    disk.hang()
    in_background(*[lambda: server.append("s", b"waits")] * 5)
    time.sleep(0.3)
    if settings is IMPATIENT:
        assert health(server) == 503
    code = ended(disk, server)
    assert code in ({1} if interface == "rsgi" else {-signal.SIGTERM, 3, 0})  # Uvicorn has its own idea of it
    disk.answer()
    server = start()
    assert server.read_all("s").startswith(b"acknowledged")


def test_g5_sigterm_ends_an_idle_one(disk: Disk, start) -> None:
    """What is left to do at its end is to move the log into the file: it is there after the next start."""
    server = start()
    server.create("s")
    assert server.append("s", b"acknowledged").status == 204
    disk.hang()
    assert ended(disk, server) == 0
    disk.answer()
    assert start().read_all("s") == b"acknowledged"


def test_g5_sigterm_ends_one_that_cannot_start(waiting: Disk, begin) -> None:
    disk = waiting
    disk.hang()
    server = begin(disk, "all")
    until = time.monotonic() + WITHIN
    while not (disk.data / "lock").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.3)
    assert server.terminate() == 0
    disk.answer()


def test_g5_a_disk_that_reads_nothing_either(waiting: Disk, begin) -> None:
    disk = waiting
    server = begin(disk, "all", disk_timeout=2.0, max_streams_in_memory=2).wait_until_ready()
    for number in range(10):
        server.create(f"s{number}")
        server.append(f"s{number}", b"abc")
    disk.hang()
    calls = in_background(
        *[lambda number=number: server.request("GET", f"s{number}") for number in range(10)],
        *[lambda number=number: server.request("HEAD", f"s{number}") for number in range(10)],
    )
    assert health(server, "/health/live") == 200
    assert health(server) == 503
    assert {result_of(call).status for call in calls} <= {200, 503}
    assert 503 in {result_of(call).status for call in calls}
    assert health(server, "/health/live") == 200
    disk.answer()
    recovers(server)
    until = time.monotonic() + WITHIN
    for number in range(10):
        while server.request("GET", f"s{number}").body != b"abc":
            assert time.monotonic() < until
            time.sleep(0.05)
    disk.hang()
    in_background(*[lambda number=number: server.request("GET", f"s{number}") for number in range(10)])
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait(WITHIN) in {0, 1}


def test_g5_liveness_takes_no_store(start_server) -> None:
    server = start_server(None)
    assert server.request("GET", "/health/live", absolute=True).json == {"status": "ok"}
    assert server.request("HEAD", "/health/live", absolute=True).body == b""
    assert server.request("POST", "/health/live", absolute=True).status == 405
    assert server.request("OPTIONS", "/health/live", absolute=True).status == 204
