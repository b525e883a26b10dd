"""The processes of the demo: the real command line, started, fed, killed, and never left behind.

Invariants: every process is a session of its own, so that Ctrl-C reaches the demo alone, which then ends
them all; each keeps its last words in a file, to be quoted when something goes wrong.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from durable_streams.cli.demo.feed import FlakyFeed

__all__ = ["Process", "Reader", "RelayWriter", "Server", "Signals", "Writer"]

_READY_WITHIN = 30.0  # seconds
_END_WITHIN = 10.0


class Process:
    """One ``durable-streams`` command; its standard error goes to ``<name>.log`` in the demo's folder."""

    def __init__(
        self, name: str, folder: Path, *arguments: str, feed: bool = False, listen: bool = False
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(  # noqa: S603 - this very program
                [sys.executable, "-m", "durable_streams.cli", *arguments],
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.PIPE if listen else subprocess.DEVNULL,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )

    def failure(self) -> str | None:
        """Return how the process failed, None while it runs or when it ended well."""
        code = self.popen.poll()
        return f"the {self.name} ended with exit code {code}: {self.last_words()}" if code else None

    def last_words(self) -> str:
        """Return the last line of the process's standard error."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "(it said nothing)"

    def kill(self) -> None:
        """End the process with SIGKILL: no handler runs, nothing is flushed."""
        self.popen.kill()
        self.popen.wait()
        self._close_pipes()

    def end(self) -> int:
        """End the process with SIGTERM, and return its exit code."""
        self.popen.terminate()
        try:
            code = self.popen.wait(_END_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            raise click.ClickException(
                f"the {self.name} did not end within {_END_WITHIN:g} seconds of SIGTERM."
            ) from None
        self._close_pipes()
        return code

    def _close_pipes(self) -> None:
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _environment() -> Mapping[str, str]:
    # The user's own settings are for the user's own server.
    return {name: value for name, value in os.environ.items() if not name.startswith("DURABLE_STREAMS_")}


class Server:
    """A server on SQLite that can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0
        self._process: Process | None = None
        self.root = ""

    def start(self) -> None:
        """Start it and wait until it is ready; raises ClickException where it does not become so."""
        process = self._process = Process(
            "server",
            self._folder,
            "serve",
            "--json",
            "--port",
            str(self._port),
            "--data-dir",
            str(self._folder / "data"),
            listen=True,
        )
        self.root = msgspec.json.decode(_first_line(process))["url"]
        self._port = int(self.root.split("/")[2].rpartition(":")[2])

    def failure(self) -> str | None:
        """Return how the server failed, None while it is well."""
        return self._process.failure() if self._process is not None else None

    def kill(self) -> None:
        """Kill it with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> int:
        """End it with SIGTERM, and return its exit code."""
        return self._process.end() if self._process is not None else 0


def _first_line(process: Process) -> bytes:
    pipe = process.popen.stdout
    assert pipe is not None  # noqa: S101 - for the type checker: it was opened with listen=True
    received = b""
    deadline = time.monotonic() + _READY_WITHIN
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not received.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise click.ClickException(f"the {process.name} was not ready in {_READY_WITHIN:g} seconds.")
            chunk = os.read(pipe.fileno(), 65536)
            if not chunk:
                process.popen.wait()
                raise click.ClickException(f"the {process.name} did not start: {process.last_words()}")
            received += chunk
    return received


class Reader:
    """``tail`` into a file, with a checkpoint: what is killed here goes on where it was."""

    def __init__(self, name: str, live: str, url: str, folder: Path) -> None:
        self.name = name
        self.live = live
        self._url = url
        self._folder = folder
        self._process: Process | None = None
        self.output = folder / f"{live}.ndjson"
        self.checkpoint = folder / f"{live}.checkpoint"

    def start(self) -> None:
        """Start reading, or go on."""
        self._process = Process(
            self.name,
            self._folder,
            "tail",
            self._url,
            "--ndjson",
            "--live",
            self.live,
            "--output",
            str(self.output),
            "--checkpoint",
            str(self.checkpoint),
        )

    def kill(self) -> None:
        """Kill it with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()

    def failure(self) -> str | None:
        """Return how the reader failed, None while it is well."""
        if self._process is None or self._process.popen.returncode == -signal.SIGKILL:
            return None  # that was us
        return self._process.failure()

    @property
    def received(self) -> int:
        """The bytes written to the output so far."""
        try:
            return self.output.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def finished(self) -> bool:
        """Whether it read the stream to its closure."""
        return self._process is not None and self._process.popen.poll() == 0


class Writer:
    """``append --ndjson``: the exactly-once path. Fed through its standard input, as far as it may go."""

    def __init__(self, url: str, folder: Path, lines: bytes, batch_bytes: int) -> None:
        self._lines = memoryview(lines)
        self.fed = 0
        self._process = Process(
            "writer",
            folder,
            "append",
            url,
            "--ndjson",
            "--close",
            "--json",
            "--batch-bytes",
            str(batch_bytes),
            feed=True,
            listen=True,
        )
        self._pipe = self._process.popen.stdin
        assert self._pipe is not None  # noqa: S101 - for the type checker: it was opened with feed=True
        os.set_blocking(self._pipe.fileno(), False)

    def feed(self, limit: int) -> None:
        """Give it more of the input, up to ``limit`` bytes from the start, without waiting."""
        if self._pipe is None or self.fed >= limit:
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            self.fed += os.write(self._pipe.fileno(), self._lines[self.fed : min(limit, self.fed + 65536)])
        if self.fed == len(self._lines):
            self._pipe.close()
            self._pipe = None

    def kill(self) -> None:
        """Kill it, if it runs."""
        self._process.kill()

    def failure(self) -> str | None:
        """Return how the writer failed, None while it is well."""
        return self._process.failure()

    @property
    def finished(self) -> bool:
        """Whether everything was acknowledged and the stream closed."""
        return self._process.popen.poll() == 0

    def report(self) -> dict[str, float]:
        """Return what it says it did, once it is finished."""
        assert self._process.popen.stdout is not None  # noqa: S101 - as above
        result: dict[str, float] = msgspec.json.decode(self._process.popen.stdout.read())
        return result


class RelayWriter:
    """``relay`` from a feed that can be held back: what is killed here goes on where the stream ends.

    ``ends``: where each record ends, in bytes of the input; the writer's progress is measured in them.
    """

    def __init__(self, url: str, folder: Path, feed: FlakyFeed, ends: Sequence[int]) -> None:
        self._url, self._folder, self._feed, self._ends = url, folder, feed, ends
        self._process: Process | None = None

    def start(self) -> None:
        """Start relaying, or go on; raises ClickException where it does not start."""
        state = str(self._folder / "relay.json")
        options = ("--id-field", "id", "--backoff", "0.1", "--state", state, "--json")
        self._process = Process(
            "relay", self._folder, "relay", self._feed.url, self._url, *options, listen=True
        )
        _first_line(self._process)  # from here on it can be told to stop

    @property
    def fed(self) -> int:
        """How much of the input the feed has sent, in bytes."""
        return self._ends[self._feed.furthest]

    def feed(self, limit: int) -> None:
        """Let the feed go on, up to ``limit`` bytes from the start."""
        self._feed.allow(bisect_right(self._ends, limit) - 1)

    def kill(self) -> None:
        """Kill it with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> int:
        """End it with SIGTERM, and return its exit code."""
        return self._process.end() if self._process is not None else 0

    def failure(self) -> str | None:
        """Return how the relay failed, None while it is well."""
        if self._process is None or self._process.popen.returncode == -signal.SIGKILL:
            return None  # that was us
        return self._process.failure()


class Signals:
    """Ctrl-C, SIGTERM and a lost terminal as exceptions in the main thread, but at no bad moment."""

    def __init__(self) -> None:
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        self._numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
        self._held = False
        self._waiting: int | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Take over the signals for a while."""
        before = {number: signal.signal(number, self._take) for number in self._numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put off a signal that arrives now: between a process's start and its entry in the books."""
        self._held = True
        yield
        self._held = False
        if self._waiting is not None:
            self._take(self._waiting)

    def ignore(self) -> None:
        """Let nothing disturb what comes now: cleaning up."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def _take(self, number: int, _frame: object = None) -> None:
        self._waiting = number
        if self._held:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
