"""The demo's third act: a pool of workers of one subscription, killed as the server is, and every record counted.

Invariants: a worker handles a batch by a command that keeps it as one file, whole or not at all, so that what is
counted was handled to its end; a batch that a kill kept from being acknowledged is handled again, by another worker.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from durable_streams import DurableStream
from durable_streams.cli.demo.processes import Process, Signals
from durable_streams.cli.demo.report import Account, Report, account
from durable_streams.cli.demo.run import Demo, DemoReader
from durable_streams.client.base import make_options
from durable_streams.client.sync_performer import run
from durable_streams.protocol.subscription_operations import create_subscription

__all__ = ["WorkersDemo"]

_WORKERS = 3
_LEASE_MS = 1000  # how long a worker that was killed keeps the others waiting
_AFTER = 0.15  # of the way to the next crash of the server a worker is killed
_NAME, _WAKES = "pool", "wakes"


@dataclass
class WorkersReport(Report):
    """The additional events of the third act; ``again`` counts the records that were handled more than once."""

    worker_kills: int = 0
    batches: int = 0
    again: int = 0

    def fields(self) -> dict[str, Any]:
        """Return everything for machines."""
        return {name: value for name, value in super().fields().items() if name != "reader_kills"}

    def rows(self) -> list[tuple[str, str]]:
        """Return what the run went through."""
        mine = [
            ("workers killed (SIGKILL), started again", f"{self.worker_kills} times"),
            ("batches that the workers handled", f"{self.batches:,}"),
            ("records handled again, because a kill came before the acknowledgement", f"{self.again:,}"),
        ]
        return mine + [row for row in super().rows() if not row[0].startswith("SSE reader")]


class WorkerPool:
    """Workers of one subscription, and what they handled."""

    name = "worker pool"

    def __init__(self, root: str, folder: Path) -> None:
        self._root = root
        self._folder = folder
        self._processes: list[Process | None] = [None] * _WORKERS
        self._batches = folder / "batches"
        self._batches.mkdir()
        self._sizes: dict[str, int] = {}

    def start(self) -> None:
        """Start the workers that do not run."""
        for number, process in enumerate(self._processes):
            if process is None:
                self._processes[number] = self._worker(number)

    def _worker(self, number: int) -> Process:
        place = shlex.quote(str(self._batches))
        keep = f'file=$(mktemp {place}/XXXXXXXX) && cat >"$file" && mv "$file" "$file.batch"'
        options = ("--exec", keep, "--name", f"worker-{number}")
        return Process(f"worker {number}", self._folder, "--url", self._root, "worker", _NAME, *options)

    def kill_one(self, number: int) -> None:
        """Kill a worker with SIGKILL, in the middle of whatever it does."""
        process, self._processes[number] = self._processes[number], None
        if process is not None:
            process.kill()

    def kill(self) -> None:
        """Kill all of them."""
        for number in range(_WORKERS):
            self.kill_one(number)

    def end(self) -> None:
        """End all of them with SIGTERM."""
        for process in self._processes:
            if process is not None:
                process.end()
        self._processes = [None] * _WORKERS

    def failure(self) -> str | None:
        """Return how a worker failed, None if none did."""
        return next((said for one in self._processes if one is not None and (said := one.failure())), None)

    @property
    def received(self) -> int:
        """The bytes of all batches so far."""
        for path in self._batches.glob("*.batch"):
            if path.name not in self._sizes:
                self._sizes[path.name] = path.stat().st_size
        return sum(self._sizes.values())

    @property
    def batches(self) -> list[list[bytes]]:
        """The records of each batch."""
        return [path.read_bytes().splitlines() for path in self._batches.glob("*.batch")]

    @property
    def finished(self) -> bool:
        """Never by itself: a worker waits for more."""
        return False


class WorkersDemo(Demo):
    """As the first act, with a pool of workers in place of the readers."""

    def __init__(self, messages: Sequence[bytes], folder: Path, console: Console, signals: Signals) -> None:
        # Equal records are kept apart by a number: only what was handled twice is equal.
        numbered = [b'{"id":%d,"data":%s}' % (number, message) for number, message in enumerate(messages)]
        super().__init__(numbered, folder, console, signals)
        self._report = self._story = WorkersReport(sent=len(numbered), sha256=self._report.sha256)

    def _make_readers(self, url: str) -> list[WorkerPool]:
        root = url.rpartition("/")[0]
        DurableStream.create(f"{root}/{_WAKES}", content_type="application/json").close()
        asked = {
            "type": "pull-wake",
            "streams": ["demo"],
            "wake_stream": _WAKES,
            "lease_ttl_ms": _LEASE_MS,
        }
        run(create_subscription(root, _NAME, asked), make_options(None, None, None, None, None))
        self._pool = WorkerPool(root, self._folder)
        self._say(f"{_WORKERS} workers of one subscription")
        return [self._pool]

    def _crash(self, number: int, kills: int) -> None:
        super()._crash(number, kills)
        self._reach((number + _AFTER) / (kills + 1))
        self._kill_worker(number % _WORKERS)

    def _restart_reader(self, reader: DemoReader, fraction: float) -> None:
        """Kill the whole pool: it is the one reader."""
        self._say(f"all workers killed at record {self._records(reader.received):,}, starting them again")
        reader.kill()
        with self._signals.held():
            reader.start()
        self._story.worker_kills += _WORKERS
        self._reach(fraction)

    def _kill_worker(self, number: int) -> None:
        self._say(f"worker {number} killed at record {self._records(self._received):,}, starting it again")
        self._pool.kill_one(number)
        with self._signals.held():
            self._pool.start()
        self._story.worker_kills += 1

    def _finish(self) -> None:
        self._finish_writing()
        self._wait(lambda: len(self._handled()) == len(self._messages), "the workers to handle the rest")
        self._pool.end()

    def _handled(self) -> dict[bytes, int]:
        """Return how often each record was handled; nothing before there can be all of them."""
        if self._pool.received < len(self._lines):
            return {}
        counts: dict[bytes, int] = {}
        for record in (record for batch in self._pool.batches for record in batch):
            counts[record] = counts.get(record, 0) + 1
        return counts

    def _accounts(self, stored: Path) -> list[Account]:
        handled, counts = self._folder / "handled.ndjson", self._handled()
        known = [message for message in self._messages if message in counts]
        strange = counts.keys() - set(self._messages)
        handled.write_bytes(b"".join(record + b"\n" for record in (*known, *strange)))
        self._story.batches = len(self._pool.batches)
        self._story.again = sum(counts.values()) - len(counts)
        return [account("stored", stored, self._messages), account("handled", handled, self._messages)]
