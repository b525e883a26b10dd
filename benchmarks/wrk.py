"""Run wrk with our request script and return what it measured."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from processes import BenchmarkError, Server

SCRIPT = Path(__file__).parent / "wrk" / "requests.lua"


@dataclass(frozen=True)
class Load:
    """One run of wrk: answers, seconds, latencies in milliseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    p999: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def require_wrk() -> None:
    if shutil.which("wrk") is None:
        raise BenchmarkError("wrk was not found; install it, on Debian with: apt-get install wrk")


def wrk(server: Server, *, connections: int, seconds: float, **request: object) -> Load:
    """Send requests as described in ``wrk/requests.lua`` for some seconds; every answer must be a success."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    command += ["-s", str(SCRIPT), server.origin, "--", *(f"{key}={value}" for key, value in request.items())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        if "limit" in request and process.stderr.readline().startswith("limit reached"):
            process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise BenchmarkError(f"wrk failed against {server.name}: {output}{errors}")
    measured = json.loads(lines[-1])
    if measured["bad_status"] or measured["bad_socket"] or not measured["requests"]:
        raise BenchmarkError(f"{server.name} did not answer every request: {measured}")
    return Load(
        measured["requests"],
        measured["seconds"],
        measured["p50_us"] / 1000,
        measured["p99_us"] / 1000,
        measured["p999_us"] / 1000,
    )
