"""``read`` and ``tail``: a stream's bytes to standard output or a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import click
import msgspec

from durable_streams import DurableStream, StreamParseError, StreamResponse, stream
from durable_streams.cli.checkpoint import CheckpointSaver
from durable_streams.cli.gone import OnGone, on_gone_option, reader_option
from durable_streams.cli.help import Command
from durable_streams.cli.invalid import LeftOut, OnInvalid, on_invalid_option
from durable_streams.cli.ndjson import lines_of
from durable_streams.cli.options import Settings, connection_options, is_json
from durable_streams.cli.output import Output, open_output, when_reader_leaves
from durable_streams.client.checkpoints import Checkpoint, FileCheckpoint
from durable_streams.types import LiveMode

__all__ = ["read", "tail"]

F = TypeVar("F", bound=Callable[..., Any])

_LIVE_MODES: dict[str, LiveMode] = {"auto": True, "sse": "sse", "long-poll": "long-poll"}


def _reading(command: F) -> F:
    offset = click.option(
        "--offset",
        default="-1",
        show_default=True,
        help="Where to begin: -1 is the start, now the present tail, or any offset that the server gave.",
    )
    ndjson = click.option(
        "--ndjson",
        is_flag=True,
        help="JSON streams: one message per line, as stored but for its line breaks.",
    )
    output = click.option(
        "--output",
        "-o",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write to a file instead of standard output.",
    )
    on_invalid = on_invalid_option(
        "--ndjson: what becomes of a message that is not valid JSON: raise ends with an error, skip leaves it out.",
        default="raise",
    )
    return offset(on_gone_option(ndjson(on_invalid(output(command)))))


@click.command(
    cls=Command,
    examples=["durable-streams read flights", "durable-streams read flights --ndjson | head -3"],
)
@click.argument("stream_", metavar="STREAM")
@_reading
@connection_options
@click.pass_obj
def read(
    settings: Settings,
    stream_: str,
    *,
    offset: str,
    on_gone: OnGone,
    ndjson: bool,
    on_invalid: OnInvalid,
    output: Path | None,
) -> None:
    """Write everything that STREAM holds now to standard output, byte for byte.

    A JSON stream comes as one JSON array of its messages; --ndjson gives lines.
    """
    left_out = LeftOut(on_invalid)
    with (
        stream(
            settings.url(stream_),
            offset=offset,
            live=False,
            headers=settings.headers,
            on_invalid=left_out.on_invalid,
            on_gone=reader_option(on_gone),
        ) as response,
        open_output(output) as out,
        left_out.reported(),
    ):
        if ndjson:
            _copy_lines(response, out, saver=None)
        elif is_json(response.content_type):
            _copy_array(response, out)
        else:
            _copy(response, out, saver=None)


def _copy_array(response: StreamResponse, out: Output) -> None:
    """Write the arrays of all chunks as one, each message's bytes as they came."""
    before = b"["
    for event in response.iter_events(mode="bytes"):
        inner = cast("bytes", event.data).strip()[1:-1].strip()
        if inner:
            out.write(before + inner)
            before = b","
    out.write(b"]" if before == b"," else b"[]")


@click.command(
    cls=Command,
    examples=[
        "durable-streams tail flights --ndjson",
        "durable-streams tail flights --offset now",
        "durable-streams tail flights --ndjson --output copy.ndjson --checkpoint place.json",
    ],
)
@click.argument("stream_", metavar="STREAM")
@_reading
@click.option(
    "--live",
    type=click.Choice(list(_LIVE_MODES)),
    default="auto",
    show_default=True,
    help="How to wait for new data; auto takes what returns every byte and comes through. sse alters text.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Save the place in a file, and go on from there the next time (then --offset does not matter).",
)
@connection_options
@click.pass_obj
def tail(
    settings: Settings,
    stream_: str,
    *,
    offset: str,
    on_gone: OnGone,
    ndjson: bool,
    on_invalid: OnInvalid,
    output: Path | None,
    live: Literal["auto", "sse", "long-poll"],
    checkpoint: Path | None,
) -> None:
    """Follow STREAM until it is closed; survives server restarts without losing or repeating a byte. Ctrl-C ends it.

    With --checkpoint the next run goes on where this one ended. What was written to standard output after
    the last save comes again if the process is killed; with --output FILE as well it does not, because the
    file is cut back to what the checkpoint covers: each byte arrives there exactly once.
    """
    url = settings.url(stream_)
    file = FileCheckpoint(checkpoint, url) if checkpoint is not None else None
    saved = file.read() if file is not None else None
    start, kept = _start(settings, url, offset, saved)
    if checkpoint is not None and output is not None:
        _check_pair(checkpoint, output, saved)
    left_out = LeftOut(on_invalid)
    with contextlib.ExitStack() as stack:
        response = stack.enter_context(
            stream(
                url,
                offset=start,
                live=_LIVE_MODES[live],
                headers=settings.headers,
                on_invalid=left_out.on_invalid,
                on_gone=reader_option(on_gone),
            )
        )
        out = stack.enter_context(open_output(output, kept))
        saver = None
        if file is not None:
            if saved is None:
                file.write(Checkpoint(start, url, out.length))
            saver = stack.enter_context(CheckpointSaver(file, out, response.close))
        if output is None:
            when_reader_leaves(response.close)
        stack.enter_context(left_out.reported())
        (_copy_lines if ndjson else _copy)(response, out, saver=saver)


def _start(settings: Settings, url: str, offset: str, saved: Checkpoint | None) -> tuple[str, int | None]:
    """Return the offset to begin at and how much of the output file to keep."""
    if saved is not None:
        return saved.offset, saved.bytes
    if offset != "now":
        return offset, None
    # A checkpoint of "now" would mean another place after a restart.
    with DurableStream(url, headers=settings.headers) as handle:
        return handle.head().offset or offset, None


def _check_pair(checkpoint: Path, output: Path, saved: Checkpoint | None) -> None:
    """Refuse a file whose content the checkpoint knows nothing of."""
    if saved is None and output.exists() and output.stat().st_size:
        raise click.ClickException(
            f"{output} holds data but there is no checkpoint {checkpoint} for it; remove or rename it first."
        )
    if saved is not None and saved.bytes is None:
        raise click.ClickException(
            f"{checkpoint} was saved without a file and does not cover {output}; choose another one."
        )


def _copy(response: StreamResponse, out: Output, *, saver: CheckpointSaver | None) -> None:
    """Write batch after batch; a place is saved once all that lies before it was written and flushed."""
    place = response.offset
    for event in response.iter_events(mode="bytes"):
        data = cast("bytes", event.data)
        if data == b"[]" and is_json(response.content_type):
            data = b""  # nothing yet, in the words of JSON
        out.write(data)
        if data and is_json(response.content_type):
            out.end_line()  # a batch on each line
        place = _passed(place, event.next_offset, out, saver)


def _copy_lines(response: StreamResponse, out: Output, *, saver: CheckpointSaver | None) -> None:
    """Write a message on each line, batch after batch, and save places as `_copy` does."""
    if response.content_type is not None and not is_json(response.content_type):
        raise click.ClickException(
            f"the stream holds {response.content_type}; --ndjson is for streams of type application/json."
        )
    place = response.offset
    try:
        for messages in response.iter_json_batches(decode=msgspec.Raw):
            out.write(lines_of(messages))
            place = _passed(place, response.offset, out, saver)
    except StreamParseError as error:
        raise click.ClickException(
            f"{error.message.rstrip('.')}; --on-invalid skip leaves such messages out."
        ) from error


def _passed(place: str, now: str, out: Output, saver: CheckpointSaver | None) -> str:
    # Several batches can share one place: only the last of them moves it.
    if saver is not None and now != place:
        saver.advance(now, out.length)
    return now
