"""``backup``, ``restore`` and ``compact``: what is done with a data folder as a whole."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from durable_streams.cli.help import Command
from durable_streams.cli.options import Settings, emit, json_option
from durable_streams.cli.units import show_size
from durable_streams.stores.backup import Show, back_up
from durable_streams.stores.backup import compact as compact_folder
from durable_streams.stores.backup import restore as restore_folder
from durable_streams.stores.base import StoreError

__all__ = ["backup", "compact", "restore"]

_FOLDER = click.Path(path_type=Path, file_okay=False)
_DRAW_EVERY = 0.2  # seconds

_data_dir = click.option(
    "--data-dir",
    type=_FOLDER,
    default=Path("durable-streams-data"),
    envvar="DURABLE_STREAMS_DATA_DIR",
    show_default=True,
    show_envvar=True,
    help="Folder of the SQLite store.",
)


@click.command(
    cls=Command,
    examples=["durable-streams backup --data-dir /srv/streams /backups/monday"],
)
@click.argument("target", type=_FOLDER)
@_data_dir
@json_option
@click.pass_obj
def backup(settings: Settings, /, *, target: Path, data_dir: Path) -> None:
    """Copy the streams of a data folder to TARGET, as of one moment; its server may run, and be written to.

    An interrupted copy is started again by the same command.
    """
    began = time.monotonic()
    with _explained(), _progress() as show:
        size = back_up(data_dir, target, show)
    seconds = time.monotonic() - began
    text = f"copied {data_dir} to {target}: {show_size(size)} in {seconds:.1f} s"
    emit(settings, text, source=str(data_dir), target=str(target), bytes=size, seconds=round(seconds, 3))


@click.command(
    cls=Command,
    examples=["durable-streams restore --data-dir /srv/streams /backups/monday"],
)
@click.argument("source", type=_FOLDER)
@_data_dir
@json_option
@click.pass_obj
def restore(settings: Settings, /, *, source: Path, data_dir: Path) -> None:
    """Make a data folder from the backup SOURCE. The folder must hold no streams, and no server may run on it.

    ETags of the origin are not valid for it: what caches keep is asked for again.
    """
    with _explained(), _progress() as show:
        size = restore_folder(source, data_dir, show)
    text = f"restored {source} to {data_dir}: {show_size(size)}"
    emit(settings, text, source=str(source), target=str(data_dir), bytes=size)


@click.command(
    cls=Command,
    examples=["durable-streams compact --data-dir /srv/streams"],
)
@_data_dir
@json_option
@click.pass_obj
def compact(settings: Settings, /, *, data_dir: Path) -> None:
    """Give the room of what was deleted back to the file system. Stop the server first.

    It needs as much free room as the streams take.
    """
    with _explained():
        before, after = compact_folder(data_dir)
    text = f"{data_dir}: {show_size(before)} before, {show_size(after)} now"
    emit(settings, text, data_dir=str(data_dir), before=before, after=after)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def _progress() -> Iterator[Show]:
    """Show how much was copied, on a terminal only."""
    drawn = 0.0
    terminal = sys.stderr is not None and sys.stderr.isatty()

    def show(done: int, size: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if terminal and (now - drawn >= _DRAW_EVERY or done == size):
            drawn = now
            click.echo(f"\r{done / (1 << 20):,.0f} of {size / (1 << 20):,.0f} MiB", nl=False, err=True)

    try:
        yield show
    finally:
        if drawn:
            click.echo(err=True)
