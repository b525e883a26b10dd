"""Relays and servers as processes that can be killed and started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_streams import DurableStream, DurableStreamError, RetryPolicy, stream
from durable_streams.testing.program import Program, clean_environment

COMMAND = [sys.executable, "-m", "durable_streams.cli"]
PATIENCE = 60.0  # seconds until a test gives up; nothing is asserted about how long things take


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("relay", "tests that kill relays")
    group.addoption("--relay-kills", type=int, default=4, help="how often to kill the relay (default 4)")
    group.addoption(
        "--relay-seed", type=int, default=None, help="the seed of a run to repeat (default: a new one)"
    )


def wait_until(condition: Callable[[], bool], what: str = "it") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} never happened"
        time.sleep(0.005)


class Command:
    """One command of the command line, with a folder of its own for its state."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.errors = folder / f"{arguments[0]}.log"
        self._program = Program(
            arguments[0],
            [*COMMAND, *arguments],
            self.errors,
            environment={**clean_environment(), "XDG_STATE_HOME": str(folder / "state"), **environment},
            folder=folder,
            feed=True,
            listen=True,
        )
        self._program.start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self._program.process

    def line(self) -> bytes:
        return self._program.first_line(PATIENCE)

    def kill(self) -> None:
        self._program.kill()

    def stop(self, number: int = signal.SIGTERM) -> dict[str, Any]:
        """Ask it to end; return the JSON of its last line."""
        self._program.send(number)
        return self.finish()

    def finish(self) -> dict[str, Any]:
        """Wait for its end; return the JSON of its last line."""
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, self.errors.read_text()
        last: dict[str, Any] = json.loads(output.splitlines()[-1]) if output.strip() else {}
        return last


class Server:
    """``serve`` on SQLite: killed and started again it keeps its port and its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.start()

    def start(self) -> None:
        data = str(self.folder / "data")
        self.program = Command(self.folder, "serve", "--json", "--port", str(self.port), "--data-dir", data)
        self.root = json.loads(self.program.line())["url"]
        self.port = int(self.root.split("/")[2].rpartition(":")[2])

    def kill(self) -> None:
        self.program.kill()


class Home:
    """A folder with a server, and the relays that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server(folder)
        self.programs: list[Command] = []

    def url(self, path: str) -> str:
        return f"{self.server.root}/{path}"

    def relay(self, source: str, target: str, *options: str, **environment: str) -> Command:
        """Start a relay and wait until it has said what it guarantees."""
        program = Command(self.folder, "relay", source, target, "--json", *options, **environment)
        self.programs.append(program)
        assert json.loads(program.line())["event"] == "started"
        return program

    def end(self) -> None:
        for program in self.programs:
            program.kill()
        self.server.kill()


def tail_of(url: str) -> str:
    """Return the offset of a stream's tail; "" while there is none, or no server."""
    try:
        return DurableStream(url, retry=RetryPolicy(max_retries=0)).head().offset or ""
    except DurableStreamError:
        return ""


def messages(url: str) -> list[Any]:
    """Return all messages that a stream holds."""
    with stream(url, live=False) as response:
        return response.read_json()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.end()


@pytest.fixture(scope="session")
def watch() -> Any:
    """Give the helpers that tests share."""

    class Helpers:
        until = staticmethod(wait_until)
        tail = staticmethod(tail_of)
        messages = staticmethod(messages)
        program = Command

    return Helpers


@pytest.fixture
def flaky_feed() -> Iterator[Any]:
    """Give a function that serves records as a feed which cuts its connections and repeats itself."""
    from durable_streams.cli.demo.feed import FlakyFeed

    feeds: list[FlakyFeed] = []

    def serve(records: list[Any], seed: int) -> FlakyFeed:
        encoded = [json.dumps(record).encode() for record in records]
        feeds.append(FlakyFeed(encoded, seed, replay=len(encoded), cut_every=1000))
        return feeds[-1]

    yield serve
    for feed in feeds:
        feed.stop()
