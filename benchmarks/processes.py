"""Servers as processes of their own: ours, the peer, and the HTTP server alone."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from durable_streams.testing.program import Program, ProgramError, clean_environment

HERE = Path(__file__).resolve().parent
READY = re.compile(rb"serving http://127\.0\.0\.1:(\d+)")
READY_WITHIN = 60.0

SQLITE, MEMORY = "ours, SQLite", "ours, memory"
PEER_FILES, PEER_MEMORY = "peer, files", "peer, memory"
BARE = "bare Granian"


class BenchmarkError(Exception):
    """A measurement cannot be made; one sentence says why."""


def install_pinned(what: str, pins: Path, venv: Path) -> Path:
    """Install a peer into a venv of its own, unless the one there has these pins; return its interpreter."""
    python, marker = venv / "bin" / "python", venv / "installed"
    if marker.exists() and marker.stat().st_mtime >= pins.stat().st_mtime:
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(venv)], [*pip, "-r", str(pins)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"{what} cannot be installed: {done.stderr}")
    marker.touch()
    return python


@dataclass(frozen=True)
class Server:
    """A running server; ``started`` is how many seconds it took until its ready line."""

    name: str
    port: int
    pid: int
    started: float

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rss(self) -> int:
        """Return the resident memory in bytes."""
        return resident(self.pid)

    def peak(self) -> int:
        """Return the largest resident memory since ``reset_peak``."""
        return _status(self.pid, "VmHWM")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def request(
        self, method: str, path: str, body: bytes | None = None, content_type: str | None = None
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Send one request on a connection of its own; the answer must be 2xx."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {} if content_type is None else {"Content-Type": content_type}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise BenchmarkError(f"{self.name}: {method} {path} was answered {answer.status} {data[:200]!r}")
        return answer.headers, data


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return _status(pid, "VmRSS")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(f"/proc has no {name} for process {pid}")


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """Yield a folder for data; it is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="durable-streams-bench-", dir=parent) as folder:
        yield Path(folder)


@contextmanager
def serving(
    name: str, data: Path | None = None, options: Sequence[str] = (), **headers: str
) -> Iterator[Server]:
    """Start a server on a free port and end it afterwards; ``data`` is its folder, kept as it is."""
    command = [*_command(name, data, headers), *options]
    program = Program(name, command, environment=clean_environment(), folder=HERE, listen=True)
    before = time.perf_counter()
    program.start()
    try:
        found = READY.search(program.first_line(READY_WITHIN))
        if found is None:
            raise BenchmarkError(f"{name} does not say where it serves: {program.last_words}")
        yield Server(name, int(found[1]), program.pid, time.perf_counter() - before)
    except ProgramError as error:
        raise BenchmarkError(f"{error}.") from error
    finally:
        program.stop(within=20)


def _command(name: str, data: Path | None, headers: dict[str, str]) -> list[str]:
    if name in (SQLITE, PEER_FILES) and data is None:
        raise BenchmarkError(f"{name} needs a folder")
    if name == SQLITE:
        return [sys.executable, "-m", "durable_streams.cli", "serve", "--port", "0", "--data-dir", str(data)]
    if name == MEMORY:
        return [sys.executable, "-m", "durable_streams.cli", "serve", "--port", "0", "--memory"]
    if name == BARE:
        return [sys.executable, "bare_granian.py", json.dumps(list(headers.items()))]
    return ["node", "peer/start.mjs", *([str(data)] if name == PEER_FILES else [])]


def install_peer() -> None:
    """Install the peer's pinned packages when there are none or the lock file is newer."""
    folder = HERE / "peer"
    if shutil.which("npm") is None:
        raise BenchmarkError("the peer needs Node.js 18 or newer with npm; --no-peer measures without it")
    marker = folder / "node_modules" / ".package-lock.json"
    if marker.exists() and marker.stat().st_mtime >= (folder / "package-lock.json").stat().st_mtime:
        return
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"npm ci failed: {done.stderr}")
    marker.touch()
