"""The processes of the demo: the real command line, started, fed, killed, and never left behind.

Invariants: every process has a session of its own, so that Ctrl-C reaches the demo alone, which then ends
them all; the standard error of each goes to a file, whose last line is quoted when something goes wrong.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import msgspec

from durable_streams.cli.demo.feed import FlakyFeed
from durable_streams.testing.program import Program, ProgramError, clean_environment

__all__ = ["Process", "RelayWriter", "Server", "Signals", "TailReader", "Writer"]

_END_WITHIN = 10.0  # seconds


class Process(Program):
    """One ``durable-streams`` command, started at once; its standard error goes to ``<name>.log``.

    Args:
        name: What it is called in messages.
        folder: The demo's folder.
        *arguments: The command and its options.
        feed: Whether it is given its input by this process.
        listen: Whether this process reads its output.
    """

    def __init__(
        self, name: str, folder: Path, *arguments: str, feed: bool = False, listen: bool = False
    ) -> None:
        super().__init__(
            name,
            [sys.executable, "-m", "durable_streams.cli", *arguments],
            folder / f"{name}.log",
            environment=clean_environment(),
            feed=feed,
            listen=listen,
            own_session=True,
        )
        self.start()

    def failure(self) -> str | None:
        """Return how the process failed, None while it runs or when it ended well."""
        code = self.exit_code
        return f"the {self.name} ended with exit code {code}: {self.last_words}" if code else None

    def ready(self) -> bytes:
        """Return its first line; raises ClickException if there is none."""
        try:
            return self.first_line()
        except ProgramError as error:
            raise click.ClickException(f"{error}.") from None

    def end(self) -> int:
        """End the process with SIGTERM; return its exit code. Raises ClickException if it does not end."""
        code = self.stop(within=_END_WITHIN)
        if code == -signal.SIGKILL:
            raise click.ClickException(
                f"the {self.name} did not end within {_END_WITHIN:g} seconds of SIGTERM."
            )
        return code or 0


class Server:
    """A server on SQLite that can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0
        self._process: Process | None = None
        self.root = ""

    def start(self) -> None:
        """Start it and wait until it is ready; raises ClickException if it does not become ready."""
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
        self.root = msgspec.json.decode(process.ready())["url"]
        self._port = int(self.root.split("/")[2].rpartition(":")[2])

    def failure(self) -> str | None:
        """Return how the server failed, None if it did not."""
        return self._process.failure() if self._process is not None else None

    def kill(self) -> None:
        """Kill it with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> int:
        """End it with SIGTERM, and return its exit code."""
        return self._process.end() if self._process is not None else 0


class TailReader:
    """``tail`` into a file, with a checkpoint: killed and started again, it continues where it was."""

    def __init__(self, name: str, live: str, url: str, folder: Path) -> None:
        self.name = name
        self.live = live
        self._url = url
        self._folder = folder
        self._process: Process | None = None
        self.output = folder / f"{live}.ndjson"
        self.checkpoint = folder / f"{live}.checkpoint"

    def start(self) -> None:
        """Start reading, or continue."""
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
        """Return how the reader failed, None if it did not."""
        if self._process is None or self._process.exit_code == -signal.SIGKILL:
            return None  # the demo killed it
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
        return self._process is not None and self._process.exit_code == 0


class Writer:
    """``append --ndjson``: the exactly-once path, fed through its standard input up to a limit."""

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
        self._pipe = self._process.process.stdin
        assert self._pipe is not None  # noqa: S101 - for the type checker: it was opened with feed=True
        os.set_blocking(self._pipe.fileno(), False)

    def feed(self, limit: int) -> None:
        """Give it more of the input, without waiting.

        Args:
            limit: Up to how many bytes from the start of the input.
        """
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
        """Return how the writer failed, None if it did not."""
        return self._process.failure()

    @property
    def finished(self) -> bool:
        """Whether everything was acknowledged and the stream closed."""
        return self._process.exit_code == 0

    def report(self) -> dict[str, float]:
        """Return its own summary, once it is finished."""
        assert self._process.process.stdout is not None  # noqa: S101 - as above
        result: dict[str, float] = msgspec.json.decode(self._process.process.stdout.read())
        return result


class RelayWriter:
    """``relay`` from a feed that can be held back: killed and started again, it continues where the stream ends.

    ``ends``: where each record ends, in bytes of the input; the writer's progress is measured in them.
    """

    def __init__(self, url: str, folder: Path, feed: FlakyFeed, ends: Sequence[int]) -> None:
        self._url, self._folder, self._feed, self._ends = url, folder, feed, ends
        self._process: Process | None = None

    def start(self) -> None:
        """Start relaying, or continue; raises ClickException if it does not start."""
        state = str(self._folder / "relay.json")
        options = ("--id-field", "id", "--backoff", "0.1", "--state", state, "--json")
        self._process = Process(
            "relay", self._folder, "relay", self._feed.url, self._url, *options, listen=True
        )
        self._process.ready()  # from here on a signal ends it in order

    @property
    def fed(self) -> int:
        """How much of the input the feed has sent, in bytes."""
        return self._ends[self._feed.furthest]

    def feed(self, limit: int) -> None:
        """Let the feed send more.

        Args:
            limit: Up to how many bytes from the start of the input.
        """
        self._feed.allow(bisect_right(self._ends, limit) - 1)

    def kill(self) -> None:
        """Kill it with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> int:
        """End it with SIGTERM, and return its exit code."""
        return self._process.end() if self._process is not None else 0

    def failure(self) -> str | None:
        """Return how the relay failed, None if it did not."""
        if self._process is None or self._process.exit_code == -signal.SIGKILL:
            return None  # the demo killed it
        return self._process.failure()


class Signals:
    """Ctrl-C, SIGTERM and a lost terminal as exceptions in the main thread, put off while a process is started."""

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
        """Put off a signal that arrives between a process's start and its registration."""
        self._held = True
        yield
        self._held = False
        if self._waiting is not None:
            self._take(self._waiting)

    def ignore(self) -> None:
        """Ignore further signals, for the time of cleaning up."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def _take(self, number: int, _frame: object = None) -> None:
        self._waiting = number
        if self._held:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
