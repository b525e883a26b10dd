"""``top``: the busiest streams of a server, from two looks at its list.

Invariants: nothing but the list is asked for, so that the server counts nothing for it; a bounded number of streams is
looked at; a stream that was deleted and created again between two looks counts from its beginning.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import click
import msgspec

from durable_streams import StreamInfo
from durable_streams.cli.help import Command
from durable_streams.cli.inspect import listed, short_size
from durable_streams.cli.options import Settings, connection_options
from durable_streams.cli.units import Duration

__all__ = ["Busy", "busiest", "top"]

_MOST = 100_000  # streams that are looked at


class Busy(msgspec.Struct, frozen=True):
    """A stream that grew between two looks."""

    path: str
    bytes_per_second: float
    bytes: int
    closed: bool


def busiest(
    before: dict[str, StreamInfo], after: dict[str, StreamInfo], seconds: float, count: int
) -> list[Busy]:
    """Return the streams that grew fastest, the fastest first.

    Args:
        before: The first look, by path.
        after: The second look, by path.
        seconds: The time between the two.
        count: How many to return.
    """
    found = []
    for path, now in after.items():
        then = before.get(path)
        known = 0 if then is None or then.created != now.created or then.bytes > now.bytes else then.bytes
        if now.bytes > known:
            found.append(Busy(path, round((now.bytes - known) / seconds, 1), now.bytes, now.closed))
    found.sort(key=lambda one: (-one.bytes_per_second, one.path))
    return found[:count]


def _look(found: Iterable[StreamInfo], most: int) -> tuple[float, dict[str, StreamInfo]]:
    looked = {one.path: one for one in islice(found, most)}
    return time.monotonic(), looked


@click.command(
    cls=Command,
    examples=[
        "durable-streams top",
        "durable-streams top jobs/ --interval 10s",
        "durable-streams top --once --json",
    ],
)
@click.argument("prefix", default="")
@click.option(
    "--interval",
    type=Duration(above_zero=True),
    default="2s",
    show_default=True,
    help="Time between two looks.",
)
@click.option(
    "--count",
    "-n",
    type=click.IntRange(min=1),
    metavar="COUNT",
    default=20,
    show_default=True,
    help="How many.",
)
@click.option("--once", is_flag=True, help="End after the first result.")
@connection_options
@click.pass_obj
def top(settings: Settings, prefix: str, *, interval: float, count: int, once: bool) -> None:
    """Show which streams grow fastest, in bytes a second; with PREFIX, among those that begin with this text.

    Until Ctrl-C. Each look reads the list of streams, the first hundred thousand: on a server with more, give a
    PREFIX. With --json each result is a line.
    """
    for streams, rows in _results(settings, prefix, interval, count):
        if settings.json_output:
            click.echo(msgspec.json.encode({"streams": streams, "busiest": rows}).decode())
        else:
            _show(streams, rows)
        if once:
            return


def _results(
    settings: Settings, prefix: str, interval: float, count: int
) -> Iterator[tuple[int, list[Busy]]]:
    then, before = _look(listed(settings, prefix), _MOST)
    while True:
        time.sleep(max(0.0, then + interval - time.monotonic()))
        now, after = _look(listed(settings, prefix), _MOST)
        yield len(after), busiest(before, after, now - then, count)
        then, before = now, after


def _show(streams: int, rows: list[Busy]) -> None:
    if sys.stdout is not None and sys.stdout.isatty():
        click.clear()
    at_least = "at least " if streams == _MOST else ""
    click.echo(f"{at_least}{streams} streams, {len(rows)} of them grew")
    for row in rows:
        state = "closed" if row.closed else ""
        click.echo(
            f"{short_size(round(row.bytes_per_second)):>9}/s  {short_size(row.bytes):>9}  {state:<6}  {row.path}"
        )
