"""``backup``, ``restore``, ``compact`` and ``verify``: what is done with a data folder as a whole."""

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
from durable_streams.stores.verify import Found, repair
from durable_streams.stores.verify import verify as verify_folder

__all__ = ["backup", "compact", "restore", "verify"]

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


@click.command(
    cls=Command,
    examples=["durable-streams verify /srv/streams", "durable-streams verify --repair /srv/streams"],
)
@click.argument("data_dir", type=_FOLDER)
@click.option("--repair", "repairs", is_flag=True, help="Keep what is whole, and say what is lost.")
@json_option
@click.pass_obj
def verify(settings: Settings, /, *, data_dir: Path, repairs: bool) -> None:
    """Check every row of DATA_DIR against its checksum. Stop the server first. Exit code 1 if there is damage.

    --repair writes another file of what is whole, and keeps the damaged one beside it: that needs room for a second
    copy. A stream that lost bytes begins behind them, its offsets stay valid; what was whole before them is in closed
    streams PATH~POSITION. A stream whose row is lost is a closed one of bytes.
    """
    with _explained(), _progress() as show:
        found = (repair if repairs else verify_folder)(data_dir, show)
    text = f"{data_dir}: {found.streams} streams, {found.size:,} bytes are whole"
    emit(
        settings,
        "\n".join([*map(str, found.damages), *_after_repair(found), text]),
        data_dir=str(data_dir),
        streams=found.streams,
        bytes=found.size,
        damages=[damage._asdict() for damage in found.damages],
        kept=found.kept,
        aside=found.aside,
    )
    if found.damages and not repairs:
        raise SystemExit(1)


def _after_repair(found: Found) -> list[str]:
    if found.aside is None:
        return []
    return [*[f"kept as {path}" for path in found.kept], f"the damaged file is {found.aside} now"]


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
