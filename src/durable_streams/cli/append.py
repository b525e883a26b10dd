"""``append``: one value, or with ``--ndjson`` every line of a file or pipe, exactly once."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import click

from durable_streams import (
    DurableStream,
    DurableStreamError,
    IdempotentAppendResult,
    StaleEpochError,
    SyncIdempotentProducer,
)
from durable_streams.cli.help import Command
from durable_streams.cli.invalid import LeftOut, on_invalid_option
from durable_streams.cli.ndjson import records
from durable_streams.cli.options import (
    Settings,
    connection_options,
    emit,
    is_json,
    json_in_shell_words,
    read_value,
    stdin_bytes,
)
from durable_streams.cli.patience import patient
from durable_streams.cli.units import Duration, Size, show_duration, show_size
from durable_streams.errors import redacted
from durable_streams.protocol.jsonrule import InvalidJSONError

__all__ = ["append"]

_REDRAW = 256  # acknowledgements between two updates of the progress bar


@click.command(
    cls=Command,
    examples=[
        "durable-streams append log 'one line of text'",
        'durable-streams append flights \'{"flight": "WN 1", "delay": -5}\'',
        "durable-streams append flights --ndjson --file flights.ndjson",
    ],
    groups={
        "Options with --ndjson": [
            "close",
            "producer_id",
            "epoch",
            "batch_bytes",
            "linger",
            "retry_for",
            "on_invalid",
        ]
    },
)
@click.argument("stream")
@click.argument("value", required=False)
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take the data from a file; - is standard input.",
)
@click.option("--seq", metavar="TEXT", help="Refuse the append unless this sorts after the last one's.")
@click.option(
    "--expected-offset",
    metavar="OFFSET",
    help="Refuse the append unless the stream ends at this offset.",
)
@click.option(
    "--ndjson", is_flag=True, help="Append every line as one JSON message, exactly once, in batches."
)
@click.option("--close", is_flag=True, help="Close the stream for good after the last line.")
@click.option(
    "--producer-id",
    metavar="ID",
    help="A name that fences an earlier run of the same name that still writes. [default: random]",
)
@click.option(
    "--epoch",
    type=click.IntRange(min=0),
    metavar="N",
    help="Greater than in any run of this name before. [default: the next free one]",
)
@click.option(
    "--batch-bytes",
    type=Size(),
    default=show_size(1 << 20),
    show_default=True,
    help="About how much one request carries.",
)
@click.option(
    "--linger",
    type=Duration(),
    default=show_duration(0.005),
    show_default=True,
    help="How long a batch waits for more lines.",
)
@click.option(
    "--retry-for",
    type=Duration(endless=True),
    default=show_duration(120.0),
    show_default=True,
    help="How long to try a server that is down or failing, at the start too.",
)
@on_invalid_option(
    "What becomes of a line that is not valid JSON: raise ends with an error, skip leaves it out.",
    default="raise",
)
@connection_options
@click.pass_obj
def append(
    settings: Settings, /, *, stream: str, value: str | None, file: Path | None, **options: Any
) -> None:
    """Append VALUE, a file, or standard input to STREAM.

    On a JSON stream the data is one message. With --ndjson every line is one, sent through an idempotent
    producer: whatever happens to the server or the connection meanwhile, each line is stored exactly once
    and in order.
    """
    url = settings.url(stream)
    if not options["ndjson"]:
        _refuse_without_ndjson()
        with json_in_shell_words(value, file), DurableStream(url, headers=settings.headers) as handle:
            result = handle.append(
                read_value(value, file), seq=options["seq"], expected_offset=options["expected_offset"]
            )
        emit(settings, f"appended, next offset {result.next_offset}", url=url, offset=result.next_offset)
        return
    if value is not None or options["seq"] is not None or options["expected_offset"] is not None:
        raise click.UsageError(
            "--ndjson takes its lines from --file or standard input, not VALUE, and no --seq or --expected-offset"
        )
    with DurableStream(url, headers=settings.headers) as handle:
        content_type = patient(handle.head, options["retry_for"]).content_type
    if not is_json(content_type):
        raise click.ClickException(
            f"{redacted(url)} holds {content_type}; --ndjson is for streams of type application/json."
        )
    with _opened(file) as source:
        _append_lines(settings, url, source, options)


def _refuse_without_ndjson() -> None:
    context = click.get_current_context()
    for name in ("close", "producer_id", "epoch", "batch_bytes", "linger", "retry_for", "on_invalid"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --ndjson only")


@dataclass
class _Source:
    """The input, its name for messages, and its size in bytes where that is known."""

    lines: BinaryIO
    name: str
    size: int | None


@contextlib.contextmanager
def _opened(file: Path | None) -> Iterator[_Source]:
    if file is None or str(file) == "-":
        yield _Source(stdin_bytes(), "standard input", None)
    else:
        with file.open("rb") as lines:
            yield _Source(lines, str(file), file.stat().st_size)


@dataclass
class _Tally:
    """What the server has acknowledged; counted in the producer's threads."""

    acknowledged: int = 0
    duplicates: int = 0
    offset: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    progress: _Progress | None = None

    def count(self, future: Future[IdempotentAppendResult]) -> None:
        if future.exception() is not None:
            return  # the producer raises it
        result = future.result()
        with self.lock:
            self.acknowledged += 1
            self.duplicates += result.duplicate
            if self.offset is None or result.offset > self.offset:
                self.offset = result.offset
            if self.progress is not None and self.acknowledged % _REDRAW == 0:
                self.progress.show(self.acknowledged)


def _append_lines(settings: Settings, url: str, source: _Source, options: dict[str, Any]) -> None:
    # No `with`: on Ctrl-C it would wait for what is queued, however long the server is away.
    producer = SyncIdempotentProducer(
        url,
        options["producer_id"] or f"cli-{uuid.uuid4()}",
        epoch=options["epoch"] or 0,
        auto_claim=options["epoch"] is None,
        max_batch_bytes=options["batch_bytes"],
        linger_ms=options["linger"] * 1000,
        retry_timeout=options["retry_for"],
        content_type="application/json",
        headers=settings.headers,
    )
    tally = _Tally()
    began = time.monotonic()
    left_out = LeftOut(options["on_invalid"])
    with left_out.reported(), _Progress.shown(source.size) as tally.progress:
        try:
            sent = _submit_all(producer, source, tally, left_out)
            requests = producer.next_seq
            if options["close"]:
                tally.offset = producer.close_stream().offset
            producer.close()
        except DurableStreamError as error:
            raise click.ClickException(
                f"{_explained(error, options)} ({tally.acknowledged:,} records were acknowledged before)."
            ) from error
        except KeyboardInterrupt:
            _tell_interrupted(producer, tally)
            raise
        except OSError:  # of the input: what was read before is stored
            with contextlib.suppress(DurableStreamError):
                producer.close()
            raise
        finally:
            producer.abandon()
    seconds = time.monotonic() - began
    emit(
        settings,
        f"stored {sent:,} records with {requests:,} requests in {seconds:.1f} s",
        url=url,
        records=sent,
        requests=requests,
        duplicates=tally.duplicates,
        invalid=left_out.count,
        seconds=round(seconds, 3),
        offset=tally.offset,
        closed=options["close"],
        producer_id=producer.producer_id,
        epoch=producer.epoch,
    )


def _tell_interrupted(producer: SyncIdempotentProducer, tally: _Tally) -> None:
    if producer.pending_count:
        click.echo(
            f"durable-streams: interrupted; records acknowledged: {tally.acknowledged:,}, "
            f"read and perhaps lost: {producer.pending_count:,}",
            err=True,
        )


def _explained(error: DurableStreamError, options: dict[str, Any]) -> str:
    if isinstance(error, StaleEpochError) and options["epoch"] is not None:
        return (
            f"epoch {options['epoch']} of producer {options['producer_id']!r} was used before; "
            "give a greater --epoch, or leave it out to take the next free one"
        )
    return str(error).rstrip(".")


def _submit_all(producer: SyncIdempotentProducer, source: _Source, tally: _Tally, left_out: LeftOut) -> int:
    """Send every record and wait for the last acknowledgement; return how many there were."""
    sent = read = 0
    for record in records(source.lines):
        try:
            future = producer.submit(record.message)
        except InvalidJSONError as error:
            flaw = f"line {record.line} of {source.name} is not valid JSON: {error.__cause__}"
            if callable(left_out.on_invalid):
                left_out.on_invalid(record.message, InvalidJSONError(flaw))
                continue
            producer.close()
            raise click.ClickException(
                f"{flaw}; the {sent:,} records before it were stored, nothing after it."
            ) from None
        future.add_done_callback(tally.count)
        sent += 1
        read += len(record.message) + 1
        if tally.progress is not None and sent % _REDRAW == 0:
            tally.progress.read(sent, read)
    producer.flush()
    return sent


class _Progress:
    """A bar on a terminal: the acknowledged share of a file, or a count where the size is unknown."""

    def __init__(self, bar: Any, task: Any, size: int | None) -> None:
        self._bar = bar
        self._task = task
        self._size = size

    @classmethod
    @contextlib.contextmanager
    def shown(cls, size: int | None) -> Iterator[_Progress | None]:
        """Show it on standard error if that is a terminal; else give None."""
        if sys.stderr is None or not sys.stderr.isatty():
            yield None
            return
        # Not at the top: pipes and scripts should not wait for an import that only draws.
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = (BarColumn(), TextColumn("{task.completed:,.0f} records acknowledged"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            yield cls(bar, bar.add_task("append", total=None), size)

    def read(self, count: int, length: int) -> None:
        """Take note of how much was read: the whole is about as many records as the file has room for."""
        if self._size is not None and length:
            self._bar.update(self._task, total=max(count, count * self._size // length))

    def show(self, acknowledged: int) -> None:
        """Draw the acknowledged records."""
        self._bar.update(self._task, completed=acknowledged)
