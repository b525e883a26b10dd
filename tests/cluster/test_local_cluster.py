"""`make cluster`: everything starts, works together, heals, and is gone after Ctrl-C."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import local_cluster
import pytest

from durable_streams import DurableStream, RetryPolicy, SyncIdempotentProducer, stream

LINE_WITHIN = 60.0  # seconds
PATIENT = RetryPolicy(max_retries=60, max_delay=1.0)


class Cluster:
    """The command, what it has printed so far, and the processes that it has named."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, local_cluster.__file__, *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.output = ""

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until it has printed something; return the match."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + LINE_WITHIN
        while not (found := re.search(pattern, self.output)):
            assert select.select([self.process.stdout], [], [], deadline - time.monotonic())[0], self.output
            part = os.read(self.process.stdout.fileno(), 65536)
            assert part, self.output
            self.output += part.decode()
        return found

    @property
    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"\(process (\d+)\)", self.output)]

    @property
    def roots(self) -> list[str]:
        return re.findall(r"^gateway g\d: (\S+)", self.output, re.MULTILINE)

    def end(self, number: int = signal.SIGINT) -> int:
        """Send the signal to the whole group, as a terminal does; return the exit code."""
        os.killpg(self.process.pid, number)
        output, _ = self.process.communicate(timeout=60)
        self.output += output.decode()
        return self.process.returncode


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def run_cluster() -> Iterator[Callable[..., Cluster]]:
    started: list[Cluster] = []

    def run(*arguments: str) -> Cluster:
        started.append(Cluster(*arguments))
        return started[-1]

    yield run
    for cluster in started:
        if cluster.process.poll() is None:
            os.killpg(cluster.process.pid, signal.SIGKILL)
        cluster.process.communicate()


def test_it_starts_heals_and_leaves_nothing_behind(
    run_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = run_cluster("--folder", str(tmp_path), "--restart-after", "0")
    cluster.until("Ctrl-C stops everything")
    assert len(cluster.pids) == 5
    one, other = cluster.roots
    DurableStream.create(f"{one}/x", content_type="text/plain", body="written through one")
    assert stream(f"{other}/x", live=False).read_text() == "written through one"

    os.kill(cluster.pids[0], signal.SIGKILL)
    cluster.until("n0 was ended by SIGKILL")
    cluster.until(r"n0 is started again \(process \d+\)")
    os.kill(cluster.pids[3], signal.SIGKILL)
    cluster.until(r"g0 is started again \(process \d+\)")
    with SyncIdempotentProducer(f"{other}/x", "writer", retry=PATIENT) as producer:
        producer.append(", and through the other")
    assert stream(f"{one}/x", live=False, retry=PATIENT).read_text().endswith("the other")

    assert cluster.end() == 0, cluster.output
    assert "Traceback" not in cluster.output
    assert len(cluster.pids) == 7
    assert not any(is_running(pid) for pid in cluster.pids)


def test_a_folder_keeps_what_is_in_it(run_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    arguments = ("--folder", str(tmp_path), "--servers", "1", "--gateways", "1")
    cluster = run_cluster(*arguments)
    cluster.until("Ctrl-C stops everything")
    DurableStream.create(f"{cluster.roots[0]}/x", content_type="text/plain", body="kept")
    second = run_cluster(*arguments)
    assert second.process.wait(60) == 1
    second.until(f"Error: the folder {re.escape(str(tmp_path))} belongs to a cluster that is running\n$")
    assert cluster.end(signal.SIGTERM) == 0

    cluster = run_cluster(*arguments)
    cluster.until("Ctrl-C stops everything")
    assert stream(f"{cluster.roots[0]}/x", live=False).read_text() == "kept"
    assert cluster.end(signal.SIGHUP) == 0


def test_e8_it_prints_lines_to_copy(run_cluster: Callable[..., Cluster]) -> None:
    cluster = run_cluster("--servers", "1", "--gateways", "1")
    cluster.until("Ctrl-C stops everything")
    export, create, tail = re.findall(r"^  (.*)$", cluster.output, re.MULTILINE)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    created = subprocess.run(
        f"{export}\n{create}", shell=True, capture_output=True, env=environment, check=True
    )
    assert created.stdout == f"created {cluster.roots[0]}/hello (text/plain)\n".encode()
    with subprocess.Popen(f"exec {tail}", shell=True, stdout=subprocess.PIPE, env=environment) as following:
        assert following.stdout is not None
        assert following.stdout.read(12) == b"Hello, world"
        following.terminate()
    assert cluster.end() == 0


def test_a_gateway_that_does_not_start_is_named(run_cluster: Callable[..., Cluster]) -> None:
    cluster = run_cluster("--servers", "1", "--", "--no-such-option")
    assert cluster.process.wait(60) == 1
    cluster.until("^Error: the gateway g0 is not ready: .*--no-such-option")
