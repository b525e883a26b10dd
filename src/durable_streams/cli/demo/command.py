"""The command: its options, its temporary folder, its signals, its report and its exit code."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from durable_streams.cli.demo.firehose import FirehoseDemo
from durable_streams.cli.demo.processes import Signals
from durable_streams.cli.demo.run import Demo
from durable_streams.cli.demo.sample import load
from durable_streams.cli.demo.workers import WorkersDemo
from durable_streams.cli.help import Command
from durable_streams.cli.options import Settings, emit, json_option

__all__ = ["demo"]


@click.command(
    cls=Command,
    examples=["durable-streams demo", "durable-streams demo --firehose", "durable-streams demo --workers"],
)
@click.option(
    "--input",
    "input_",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="NDJSON to write. Default: the 20,000 flight records of a checkout, or 5,000 made-up ones.",
)
@click.option(
    "--firehose",
    is_flag=True,
    help="The second act: a feed that cuts its connections, relayed; the relay is killed too.",
)
@click.option(
    "--workers",
    is_flag=True,
    help="The third act: three workers of one subscription, which are killed too.",
)
@click.option(
    "--kills",
    type=click.IntRange(min=0),
    metavar="COUNT",
    default=3,
    show_default=True,
    help="Server crashes.",
)
@json_option
@click.pass_obj
def demo(settings: Settings, *, input_: Path | None, firehose: bool, workers: bool, kills: int) -> int:
    """Write thousands of records through a server that is killed again and again, and count them.

    Starts a server on SQLite in a temporary folder, a writer, one reader by SSE and one by long-poll; kills
    the server and a reader halfway (SIGKILL) and starts them again. Exits 0 if nothing was lost or
    duplicated. With --firehose the records come from a feed that fails, through a relay that is killed too; with
    --workers they go to a pool of workers.
    """
    if firehose and workers:
        raise click.UsageError("--firehose and --workers are two acts: run one after the other")
    messages = load(input_)
    console = _Console(quiet=settings.json_output)
    with contextlib.ExitStack() as stack:
        signals = Signals()
        stack.enter_context(signals.handled())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="durable-streams-demo-")))
        act = FirehoseDemo if firehose else WorkersDemo if workers else Demo
        run = act(messages, folder, console, signals)
        stack.callback(run.kill_all)
        stack.callback(signals.ignore)
        report = run.run(kills)
    if settings.json_output:
        emit(settings, "", **report.fields())
    else:
        report.show(console)
    return 0 if report.good else 1


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave it to the command line's one boundary, for which this is no failure."""
        raise BrokenPipeError
