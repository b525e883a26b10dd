"""Live reads: SSE to 500 readers of one stream, and what an idle SSE connection costs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

from processes import HERE, MEMORY, PEER_FILES, PEER_MEMORY, SQLITE, BenchmarkError, Server, serving
from results import Plan, Results

READERS = 500
IDLE = 5000
PATH = "/v1/stream/live"
PADDING = "x" * 60  # makes a message of about 100 bytes
PACE = 5
WRITERS = 8  # connections that append one after another where deliveries are measured
JSON = "application/json"


def measure(plan: Plan, results: Results) -> None:
    for name in plan.servers(SQLITE, PEER_FILES, MEMORY, PEER_MEMORY):
        with plan.folder() as folder, serving(name, folder) as server:
            server.request("PUT", PATH, content_type=JSON)
            results.add(f"sse latency ms|{name}", paced(server, plan.seconds))
            results.add(f"sse deliveries/s|{name}", full_speed(server, plan.seconds))


def measure_idle(plan: Plan, results: Results) -> None:
    for name in plan.servers(SQLITE, PEER_FILES):
        with plan.folder() as folder, serving(name, folder) as server:
            server.request("PUT", PATH, content_type=JSON)
            with crowd(server, 50):
                pass
            before = server.rss()
            with crowd(server, IDLE):
                time.sleep(2)
                results.add(f"idle sse KB|{name}", (server.rss() - before) / IDLE / 1000)


@contextmanager
def crowd(server: Server, count: int, streams: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run readers in a process of their own; yields when all of them are connected."""
    command = [sys.executable, str(HERE / "readers.py"), str(server.port), PATH, str(count), str(streams)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline().strip() != "ready":
                raise BenchmarkError(f"{server.name}: {count} SSE readers could not connect")
            yield process
        finally:
            process.kill()


def finish(
    process: subprocess.Popen[str], server: Server, sent: int, readers: int = READERS
) -> dict[str, float]:
    """Tell the readers how much was sent; return their report.

    No reader may have got a message twice, and of ours each must have got all of them; what the peer has not
    delivered half a minute after the last append does not count for it.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"expect {sent}\n")
    process.stdin.flush()
    report: dict[str, float] = json.loads(process.stdout.readline())
    complete = report["complete"] == readers or server.name in (PEER_FILES, PEER_MEMORY)
    if report["most"] > sent or not complete or not report["delivered"]:
        raise BenchmarkError(f"{server.name}: not every reader got each of {sent} messages once: {report}")
    return report


def paced(
    server: Server, seconds: float, *, to: Server | None = None, readers: int = READERS, pace: int = PACE
) -> float:
    """Append at a moderate, fixed pace; return the median latency in milliseconds from before the append.

    ``to`` is the server that takes the appends if it is another than the one that is read from.
    """
    sent = max(10, round(pace * seconds))
    with crowd(server, readers) as process:
        writer = Writer(to or server)
        start = time.monotonic()
        for number in range(sent):
            time.sleep(max(0.0, start + number / pace - time.monotonic()))
            writer.append()
        return finish(process, server, sent, readers)["p50_ms"]


def full_speed(server: Server, seconds: float) -> float:
    """Append as fast as a few connections can; return messages delivered per second, up to the last one."""
    with crowd(server, READERS) as process:
        start = time.monotonic_ns()
        stop = start + round(seconds * 1e9)
        writers = [Writer(server) for _ in range(WRITERS)]
        threads = [threading.Thread(target=writer.append_until, args=(stop,)) for writer in writers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sent = sum(writer.sent for writer in writers)
        report = finish(process, server, sent)
        return report["delivered"] / (report["last_at"] - start) * 1e9


class Writer:
    """A connection that appends messages which say when they were sent."""

    def __init__(self, server: Server) -> None:
        self.connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        self.sent = 0

    def append(self, path: str = PATH) -> None:
        body = f'{{"t":{time.monotonic_ns()},"pad":"{PADDING}"}}'.encode()
        self.connection.request("POST", path, body, {"Content-Type": JSON})
        answer = self.connection.getresponse()
        answer.read()
        if answer.status != 204:
            raise BenchmarkError(f"an append was answered {answer.status}")
        self.sent += 1

    def append_until(self, stop: int) -> None:
        while time.monotonic_ns() < stop:
            self.append()
