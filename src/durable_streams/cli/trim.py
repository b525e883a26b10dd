"""``trim``: let a stream give up its first appends, now or by a policy."""

from __future__ import annotations

import click

from durable_streams import DurableStream, RetentionResult
from durable_streams.cli.help import Command
from durable_streams.cli.options import Settings, connection_options, emit
from durable_streams.cli.units import Duration, Size, show_duration, show_size

__all__ = ["trim"]


@click.command(
    cls=Command,
    examples=[
        "durable-streams trim flights --max-bytes 1GiB",
        "durable-streams trim flights --before 0000000000000000_0000000000004096",
        "durable-streams trim flights --keep --max-age 7d --max-bytes 1GiB",
        "durable-streams trim flights --keep",
    ],
)
@click.argument("stream")
@click.option(
    "--before", metavar="OFFSET", help="Keep the append at this offset, and all behind it; now: nothing."
)
@click.option("--max-bytes", type=Size(), help="Keep as many of the last appends as fit.")
@click.option(
    "--max-age",
    type=Duration(above_zero=True, whole=True),
    help="Keep what came within this time; the stream must have a retention with an age.",
)
@click.option(
    "--keep", is_flag=True, help="Keep to these limits from now on; without any, everything is kept."
)
@connection_options
@click.pass_obj
def trim(
    settings: Settings,
    *,
    stream: str,
    before: str | None,
    max_bytes: int | None,
    max_age: int | None,
    keep: bool,
) -> None:
    """Let STREAM give up its first appends, for good; readers of them are answered 410.

    Offsets, producers and closure stay as they are. A fork keeps what it began with.
    """
    given = sum(one is not None for one in (before, max_bytes, max_age))
    if keep and before is not None:
        raise click.UsageError("--keep goes with --max-age and --max-bytes, not with --before")
    if not keep and given != 1:
        raise click.UsageError("give one of --before, --max-bytes and --max-age, or --keep with limits")
    with DurableStream(settings.url(stream), headers=settings.headers) as handle:
        if keep:
            result = handle.set_retention(max_age=max_age, max_bytes=max_bytes)
        else:
            result = handle.trim(before=before, max_bytes=max_bytes, max_age=max_age)
    emit(
        settings,
        f"{handle.url} begins at {result.earliest_offset} and {_limits(result)}",
        url=handle.url,
        earliest_offset=result.earliest_offset,
        offset=result.next_offset,
        max_age=result.max_age,
        max_bytes=result.max_bytes,
    )


def _limits(result: RetentionResult) -> str:
    limits = []
    if result.max_age is not None:
        limits.append(show_duration(result.max_age))
    if result.max_bytes is not None:
        limits.append(show_size(result.max_bytes))
    return f"keeps {' and at most '.join(limits)}" if limits else "keeps everything from there on"
