"""The demo's second act: a feed that fails, a relay that is killed, a server that is killed, and two readers.

Invariants: at each connection the feed repeats enough of its past for a relay that was away, and far too much for one
that was not; only the relay keeps repetitions out of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from durable_streams import DurableStream
from durable_streams.cli.demo.feed import FlakyFeed
from durable_streams.cli.demo.processes import RelayWriter, Signals
from durable_streams.cli.demo.report import Report
from durable_streams.cli.demo.run import Demo

__all__ = ["FirehoseDemo"]

_CUTS = 12  # in the whole run, about
_BACKFILL = 0.4  # of the records: more than can be under way at any moment
_AFTER = 0.15  # of the way to the next crash of the server the relay is killed


@dataclass
class FirehoseReport(Report):
    """The additional events of the second act; ``replayed`` counts the records that the feed sent again."""

    relay_kills: int = 0
    cuts: int = 0
    refusals: int = 0
    replayed: int = 0

    def fields(self) -> dict[str, Any]:
        """Return everything for machines."""
        left_out = {"requests", "repeated", "appends_per_second"}
        return {name: value for name, value in super().fields().items() if name not in left_out}

    def rows(self) -> list[tuple[str, str]]:
        """Return what the run went through."""
        rows = super().rows()
        mine = [
            ("feed cut in the middle of a record", f"{self.cuts} times"),
            ("feed refused a connection (503)", f"{self.refusals} times"),
            ("relay killed (SIGKILL), started again", f"{self.relay_kills} times"),
            ("records that the feed sent again, not stored again", f"{self.replayed:,}"),
        ]
        kept = [row for row in rows if "appends" not in row[0] and "per second" not in row[0]]
        return mine + kept


class FirehoseDemo(Demo):
    """As the first act, with a feed and a relay in place of the writer."""

    def __init__(self, messages: Sequence[bytes], folder: Path, console: Console, signals: Signals) -> None:
        # Only ids distinguish a record from its repetitions: each record gets one.
        numbered = [b'{"id":%d,"data":%s}' % (number, message) for number, message in enumerate(messages)]
        super().__init__(numbered, folder, console, signals)
        count = len(numbered)
        self._feed = FlakyFeed(
            numbered, seed=count, replay=max(1, int(count * _BACKFILL)), cut_every=max(1, count // _CUTS)
        )
        self._report = self._story = FirehoseReport(sent=count, sha256=self._report.sha256)
        self._relay: RelayWriter | None = None

    def _start_writer(self, url: str) -> RelayWriter:
        relay = self._relay = RelayWriter(url, self._folder, self._feed, self._ends)
        relay.start()
        self._say(f"a feed that fails on {self._feed.url}, relayed")
        return relay

    def _crash(self, number: int, kills: int) -> None:
        super()._crash(number, kills)
        relay = self._relay
        assert relay is not None  # noqa: S101 - for the type checker: _start made it
        self._reach((number + _AFTER) / (kills + 1))
        relay.kill()
        self._story.relay_kills += 1
        self._say(f"relay killed at record {self._records(self._received):,}, starting it again")
        with self._signals.held():
            relay.start()

    def _finish(self) -> None:
        relay = self._relay
        assert relay is not None  # noqa: S101 - as above
        self._limit = len(self._lines)
        self._wait(lambda: all(reader.received >= self._limit for reader in self._readers), "the last record")
        code = relay.end()
        if code:
            raise click.ClickException(f"the relay ended with exit code {code} after SIGTERM.")
        self._writer = None
        DurableStream(f"{self._server.root}/demo").close_stream()
        self._wait(lambda: all(reader.finished for reader in self._readers), "the readers to finish")
        story, feed = self._story, self._feed
        story.cuts, story.refusals, story.replayed = feed.cuts, feed.refusals, feed.replayed

    def kill_all(self) -> None:
        """End whatever still runs."""
        super().kill_all()
        self._feed.stop()
