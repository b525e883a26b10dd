"""``migrate``: copy all streams from one store to another, unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from durable_streams.cli.help import Command
from durable_streams.cli.options import Settings, emit, json_option
from durable_streams.cli.serve import serve
from durable_streams.server import ServerConfig, ServerStartError
from durable_streams.server.run import jetstream_config
from durable_streams.stores.base import StoreError, StoreFullError, StoreLostError, StoreUnavailableError
from durable_streams.stores.transfer.copy import Transfer, TransferReport
from durable_streams.stores.transfer.sqlite import SqlitePlace

if TYPE_CHECKING:
    from durable_streams.stores.jetstream import JetStreamConfig
    from durable_streams.stores.transfer.copy import TransferSource, TransferTarget

__all__ = ["migrate"]

_PLACE = "DIR|nats://…"
_SHOW_EVERY = 10.0  # seconds, where there is no terminal
_DRAW_EVERY = 0.2

Show = Callable[[TransferReport], None]


def _nats_options(command: click.Command) -> click.Command:
    """Add the NATS options of ``serve``."""
    command.params[3:3] = [option for option in serve.params if (option.name or "").startswith("nats_")]
    return command


@_nats_options
@click.command(
    cls=Command,
    examples=[
        "durable-streams migrate --from durable-streams-data --to nats://a:4222,b:4222,c:4222",
        "durable-streams migrate --from nats://a:4222 --to durable-streams-data",
    ],
    groups={"NATS": [option.name for option in serve.params if (option.name or "").startswith("nats_")]},
)
@click.option("--from", "source", metavar=_PLACE, required=True, help="Where to read streams.")
@click.option("--to", "target", metavar=_PLACE, required=True, help="Where to write streams.")
@click.option("--to-nats-name", metavar="NAME", help="Bucket of --to, if --from is on NATS as well.")
@click.option("--no-verify", is_flag=True, help="Do not read back and compare the copy.")
@json_option
@click.pass_obj
def migrate(
    settings: Settings, /, *, source: str, target: str, to_nats_name: str | None, no_verify: bool, **nats: Any
) -> None:
    """Copy all streams from a folder to NATS, or back, unchanged.

    Offsets, ETags and producers stay valid; closure, expiry and forks are copied too. Stop the servers of both places
    first. An interrupted run continues when it is started again: streams that are there already are compared and left
    alone.
    """
    target_nats = nats | {"nats_name": to_nats_name or nats["nats_name"]}
    one, other = _where(source, nats), _where(target, target_nats)
    if one == other:
        raise click.UsageError("--from and --to are the same place")
    # Settings of a new bucket do not apply to the source.
    reading = one if isinstance(one, Path) else replace(one, replicas=None, max_bytes=None)
    began = time.monotonic()
    try:
        with _progress(verify=not no_verify) as (show, every):
            report = asyncio.run(
                _transfer(_source(reading), _target(other), not no_verify, show, every),
            )
    except StoreError as error:
        stays = isinstance(error, (StoreUnavailableError, StoreFullError)) and not isinstance(
            error, StoreLostError
        )
        hint = "; copied streams are kept, the same command continues" if stays else ""
        raise click.ClickException(f"{error}{hint}") from error
    seconds = time.monotonic() - began
    fields = msgspec.structs.asdict(report)
    emit(settings, _summary(report, seconds, no_verify), **fields, seconds=round(seconds, 3))


def _where(place: str, nats: dict[str, Any]) -> Path | JetStreamConfig:
    """Return the folder or the bucket of a place."""
    if "://" not in place:
        return Path(place).resolve()
    try:
        return jetstream_config(ServerConfig(store=place, **nats))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except ServerStartError as error:
        raise click.ClickException(str(error)) from error


def _source(where: Path | JetStreamConfig) -> TransferSource:
    return _target(where, source=True)


def _target(where: Path | JetStreamConfig, *, source: bool = False) -> TransferTarget:
    if isinstance(where, Path):
        return SqlitePlace(where, source=source)
    from durable_streams.stores.transfer.jetstream import JetStreamPlace  # noqa: PLC0415 - an extra

    return JetStreamPlace(where, source=source)


async def _transfer(
    source: TransferSource, target: TransferTarget, verify: bool, show: Show, every: float
) -> TransferReport:
    async with _opened(source), _opened(target):
        transfer = Transfer(source, target, verify=verify)
        showing = asyncio.create_task(_show(transfer.report, show, every))
        try:
            return await transfer.run()
        finally:
            showing.cancel()


@contextlib.asynccontextmanager
async def _opened(place: TransferSource) -> AsyncIterator[None]:
    try:
        await place.open()
        yield
    finally:
        await place.close()


async def _show(report: TransferReport, show: Show, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        show(report)


@contextlib.contextmanager
def _progress(*, verify: bool) -> Iterator[tuple[Show, float]]:
    """Yield a function that shows a report, and its interval: a bar on a terminal, else a line now and then."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda report: click.echo(f"durable-streams: {_line(report)}", err=True), _SHOW_EVERY
        return
    # Not at the top: pipes and scripts should not pay for an import that only draws.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading the streams", total=None)

        def show(report: TransferReport) -> None:
            whole = report.bytes * (2 if verify else 1)
            bar.update(task, total=whole, completed=report.done + report.verified, description=_line(report))

        yield show, _DRAW_EVERY


def _line(report: TransferReport) -> str:
    streams = f"{report.copied + report.known:,} of {report.streams:,} streams"
    return f"{streams}, {report.done / 1e6:,.1f} of {report.bytes / 1e6:,.1f} MB copied"


def _summary(report: TransferReport, seconds: float, no_verify: bool) -> str:
    known = f", {report.known:,} were there already" if report.known else ""
    if report.subscriptions:
        known += f", and {report.subscriptions:,} subscriptions"
    verified = "not compared" if no_verify else "all of it compared by SHA-256"
    rate = report.bytes / 1e6 / seconds
    return (
        f"copied {report.copied:,} streams{known}: {report.appends:,} appends, {report.bytes:,} bytes, "
        f"{verified}, in {seconds:.1f} s ({rate:,.1f} MB/s)"
    )
