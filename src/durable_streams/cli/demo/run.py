"""One run of the demo: records through a server that keeps being killed, and every one of them counted at the end.

Every part is the real program in a process of its own: ``serve`` on SQLite, ``append --ndjson`` as the
writer, two ``tail``s as readers. The input is held back until each crash and never slowed down, so that the
crashes fall in the middle of the writing at any speed of the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from durable_streams import DurableStream
from durable_streams.cli.demo.processes import Process, RelayWriter, Server, Signals, TailReader, Writer
from durable_streams.cli.demo.report import Account, Outage, Report, account

__all__ = ["Demo", "DemoReader"]

_STALL = 30.0  # seconds without any progress that end the demo
_TICK = 0.002  # seconds between two looks
_REQUESTS = 2000  # appends in all, about: enough for a crash to meet some in flight
_AHEAD = 20  # the input may run ahead of the next crash by its 20th part


class DemoReader(Protocol):
    """What follows the stream: killed and started again, it goes on where it was."""

    name: str

    def start(self) -> None:
        """Start it, or go on."""

    def kill(self) -> None:
        """Kill it with SIGKILL, if it runs."""

    def failure(self) -> str | None:
        """Return how it failed, None if it did not."""

    @property
    def received(self) -> int:
        """The bytes that it has."""

    @property
    def finished(self) -> bool:
        """Whether it has everything, and ended."""


class Demo:
    """One run. Progress is measured in bytes of the readers' files: the records as sent, one per line."""

    def __init__(self, messages: Sequence[bytes], folder: Path, console: Console, signals: Signals) -> None:
        self._messages = messages
        self._lines = b"".join(message + b"\n" for message in messages)
        self._ends = list(accumulate((len(message) + 1 for message in messages), initial=0))
        self._folder = folder
        self._console = console
        self._signals = signals
        self._server = Server(folder)
        self._readers: list[DemoReader] = []
        self._writer: Writer | RelayWriter | None = None
        self._limit = 0
        self._report = Report(sent=len(messages), sha256=hashlib.sha256(self._lines).hexdigest())
        self._flowing: Callable[[], None] | None = None
        self._show: Callable[[], None] | None = None
        self._fed = 0

    def run(self, kills: int) -> Report:
        """Run all of it.

        Args:
            kills: How many times the server crashes on the way.

        Returns:
            What was written and read, and how long it took.

        Raises:
            ClickException: A process failed, or made no progress.
        """
        self._start()
        with self._progress() as self._show:
            for number in range(1, kills + 1):
                self._reach(number / (kills + 1))
                # A reader that never reached the server gives up after a few seconds; one that did, never.
                self._wait(lambda: all(reader.received for reader in self._readers), "the readers to start")
                self._crash(number, kills)
                if number == (kills + 1) // 2:
                    self._reach((number + 0.3) / (kills + 1))
                    self._restart_reader(self._readers[0], (number + 0.6) / (kills + 1))
            self._finish()
        self._count()
        return self._report

    def kill_all(self) -> None:
        """Kill every process that still runs."""
        for process in (self._writer, *self._readers, self._server):
            if process is not None:
                process.kill()

    def _start(self) -> None:
        with self._signals.held():
            self._server.start()
        self._say(f"serving {self._server.root} on SQLite in {self._folder}")
        url = f"{self._server.root}/demo"
        DurableStream.create(url, content_type="application/json").close()
        for reader in self._make_readers(url):
            self._readers.append(reader)
            with self._signals.held():
                reader.start()
        with self._signals.held():
            self._writer = self._start_writer(url)

    def _make_readers(self, url: str) -> Sequence[DemoReader]:
        modes = (("SSE reader", "sse"), ("long-poll reader", "long-poll"))
        return [TailReader(name, live, url, self._folder) for name, live in modes]

    def _start_writer(self, url: str) -> Writer | RelayWriter:
        batch = max(1, len(self._lines) // _REQUESTS)
        return Writer(url, self._folder, self._lines, batch)

    def _reach(self, fraction: float) -> None:
        """Release input until a reader has received this fraction of it, and only a little more than that."""
        count = len(self._messages)
        target = int(count * fraction)
        self._limit = self._ends[min(count, target + max(1, count // _AHEAD))]
        self._wait(lambda: self._received >= self._ends[target], f"record {target:,}")

    def _crash(self, number: int, kills: int) -> None:
        outage = Outage(at_record=self._records(self._received))
        began = time.monotonic()
        self._server.kill()
        self._say(f"server killed at record {outage.at_record:,} ({number} of {kills}), starting it again")
        with self._signals.held():
            self._server.start()
        outage.ready = time.monotonic() - began
        self._report.outages.append(outage)
        before = self._received

        def flowing() -> None:
            if self._received > before:
                outage.flowing = time.monotonic() - began
                self._flowing = None

        self._flowing = flowing

    def _restart_reader(self, reader: DemoReader, fraction: float) -> None:
        reader.kill()
        self._say(f"{reader.name} killed at record {self._records(reader.received):,}")
        self._reach(fraction)
        with self._signals.held():
            reader.start()
        there = self._ends[int(len(self._messages) * fraction)]
        self._wait(lambda: reader.received >= there, f"the {reader.name} to resume")
        self._report.reader_kills += 1
        self._say(f"{reader.name} resumed from its checkpoint")

    def _finish(self) -> None:
        self._finish_writing()
        self._wait(lambda: all(reader.finished for reader in self._readers), "the readers to finish")

    def _finish_writing(self) -> None:
        writer = self._writer
        assert isinstance(writer, Writer)  # noqa: S101 - for the type checker: _start made it
        self._limit = len(self._lines)
        self._wait(lambda: writer.finished, "the last acknowledgement")
        summary = writer.report()
        self._report.seconds = summary["seconds"]
        self._report.requests = int(summary["requests"])
        self._report.repeated = int(summary["duplicates"])

    def _count(self) -> None:
        stored = self._folder / "stored.ndjson"
        url = f"{self._server.root}/demo"
        with self._signals.held():
            process = Process("final read", self._folder, "read", url, "--ndjson", "--output", str(stored))
        if process.process.wait():
            raise click.ClickException(process.failure() or "reading the stream back failed.")
        code = self._server.end()
        if code:
            raise click.ClickException(f"the server ended with exit code {code} after SIGTERM.")
        self._report.accounts = self._accounts(stored)

    def _accounts(self, stored: Path) -> list[Account]:
        parties = [("stored", stored)]
        parties += [(one.name, one.output) for one in self._readers if isinstance(one, TailReader)]
        return [account(name, path, self._messages) for name, path in parties]

    # -- waiting and showing

    @property
    def _received(self) -> int:
        return max(reader.received for reader in self._readers)

    def _records(self, length: int) -> int:
        return bisect_right(self._ends, length) - 1

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        """Feed the writer and watch every process until ``done``; raises ClickException if nothing moves."""
        moved, seen = time.monotonic(), -1
        while not done():
            if self._writer is not None:
                self._writer.feed(self._limit)
                self._fed = self._writer.fed
            if self._flowing is not None:
                self._flowing()
            self._check()
            total = sum(reader.received for reader in self._readers)
            if total != seen:
                moved, seen = time.monotonic(), total
                self._show_progress()
            elif time.monotonic() - moved > _STALL:
                raise click.ClickException(f"nothing moved for {_STALL:g} seconds while waiting for {what}.")
            time.sleep(_TICK)
        self._show_progress()

    def _check(self) -> None:
        for process in (self._server, self._writer, *self._readers):
            failure = process.failure() if process is not None else None
            if failure is not None:
                raise click.ClickException(failure)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Callable[[], None]]:
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        visible = self._console.is_terminal and not self._console.quiet
        with Progress(*columns, console=self._console, disable=not visible) as progress:
            total = len(self._messages)
            sent = progress.add_task("sent", total=total)
            received = [progress.add_task(reader.name, total=total) for reader in self._readers]

            def show() -> None:
                tasks: list[tuple[TaskID, int]] = [(sent, self._fed)]
                tasks += zip(received, (reader.received for reader in self._readers), strict=True)
                for task, length in tasks:
                    progress.update(task, completed=self._records(length))

            yield show

    def _show_progress(self) -> None:
        if self._show is not None:
            self._show()

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)
