"""``bench``: what a server does under load from here, on a stream of its own that goes again."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import click
import msgspec

from durable_streams import AsyncDurableStream
from durable_streams.cli.help import Command
from durable_streams.cli.load import JSON, Load, Rung, climb, saturated_at
from durable_streams.cli.options import Settings, connection_options, emit
from durable_streams.cli.units import Duration, Size

__all__ = ["bench"]

_LADDER = "1,4,16,64"
_MOST_WRITERS = 4096
_MOST_SIZE = 1 << 20
_LEFT_OVER = 3600  # seconds until the stream goes by itself, if it could not be deleted


def _rungs(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Return the numbers of writers of a ladder."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= _MOST_WRITERS for part in parts):
        raise click.BadParameter(
            f"{value!r} is no ladder; give numbers from 1 to {_MOST_WRITERS}, as in {_LADDER}"
        )
    return tuple(map(int, parts))


@click.command(
    cls=Command,
    examples=[
        "durable-streams bench",
        "durable-streams bench --ladder 1,32 --readers 10 --time 2s --json",
        "durable-streams bench --producers --size 1KiB",
    ],
)
@click.option(
    "--ladder",
    metavar="COUNTS",
    callback=_rungs,
    default=_LADDER,
    show_default=True,
    help="How many write at a time: one measurement for each number.",
)
@click.option(
    "--time",
    "seconds",
    type=Duration(above_zero=True),
    default="3s",
    show_default=True,
    help="How long each measurement takes.",
)
@click.option("--size", type=Size(), default="100", show_default=True, help="Size of a message, about.")
@click.option(
    "--readers",
    type=click.IntRange(0, 10_000),
    metavar="COUNT",
    default=0,
    show_default=True,
    help="How many follow the stream over SSE meanwhile.",
)
@click.option("--producers", is_flag=True, help="Write with idempotent producers, which send batches.")
@connection_options
@click.pass_obj
def bench(
    settings: Settings,
    *,
    ladder: tuple[int, ...],
    seconds: float,
    size: int,
    readers: int,
    producers: bool,
) -> None:
    """Let more and more writers append to a new stream, and print how many appends a second come about, and how fast.

    The stream is deleted at the end. All load comes from this one process: beyond some thousand appends a second it is
    what is measured, so that a busy server needs several of these at once, from other machines. Times are those that a
    client sees, in milliseconds: percentiles of all appends, and of the deliveries to readers.
    """
    if size > _MOST_SIZE:
        raise click.UsageError(f"--size is at most {_MOST_SIZE} bytes")
    load = Load(seconds, size, readers, producers, settings.headers)
    url = settings.url(f"bench-{secrets.token_hex(6)}")
    asyncio.run(_bench(settings, url, ladder, load))


async def _bench(settings: Settings, url: str, ladder: tuple[int, ...], load: Load) -> None:
    created = AsyncDurableStream.create(
        url, content_type=JSON, ttl_seconds=_LEFT_OVER, headers=settings.headers
    )
    rungs: list[Rung] = []
    async with await created as handle:
        if not settings.json_output:
            click.echo(_heading(load))
        try:
            async for rung in climb(url, ladder, load):
                rungs.append(rung)
                if not settings.json_output:
                    click.echo(_row(rung, load))
        finally:
            await handle.delete()
    saturated = saturated_at(rungs)
    measured = [{**msgspec.to_builtins(rung), "appends_per_second": round(rung.rate, 1)} for rung in rungs]
    text = f"more than {saturated} writers bring no more" if saturated else "more writers may bring more"
    emit(settings, text, url=url, saturated_at=saturated, rungs=measured)


def _heading(load: Load) -> str:
    columns = f"{'writers':>7}  {'appends/s':>10}  {'p50 ms':>8}  {'p99 ms':>8}  {'max ms':>8}"
    return columns + (f"  {'deliveries/s':>12}  {'p99 ms':>8}" if load.readers else "") + "  failed"


def _row(rung: Rung, load: Load) -> str:
    row = f"{rung.writers:>7}  {rung.rate:>10,.0f}  {_times(rung.append_ms, 'p50', 'p99', 'max')}"
    if load.readers:
        rate = rung.deliveries / rung.seconds if rung.seconds else 0
        row += f"  {rate:>12,.0f}  {_times(rung.delivery_ms, 'p99')}"
    failed = ", ".join(f"{count} {code}" for code, count in rung.errors.items())
    return f"{row}  {failed or '0':>6}"


def _times(found: dict[str, Any], *names: str) -> str:
    return "  ".join(f"{found[name]:>8.2f}" if name in found else f"{'-':>8}" for name in names)
