"""``relay``: a feed, a file or standard input into a stream, until it ends or is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import click

from durable_streams.cli.gone import on_gone_option, reader_option
from durable_streams.cli.help import Command
from durable_streams.cli.invalid import LeftOut, OnInvalid, on_invalid_option
from durable_streams.cli.options import Settings, connection_options, emit, full_content_type
from durable_streams.cli.units import Duration, show_duration
from durable_streams.relay import Relay, RelayReport, source_for
from durable_streams.relay.open import Form

__all__ = ["relay"]

_REDRAWS = 4  # a second


@click.command(
    cls=Command,
    examples=[
        "durable-streams relay https://stream.wikimedia.org/v2/stream/recentchange changes",
        "durable-streams relay access.ndjson visits --follow",
        "journalctl --follow --output json | durable-streams relay - journal",
    ],
    groups={
        "Options for the source": [
            "form",
            "follow",
            "id_field",
            "id_window",
            "gap_events",
            "headers",
            "source_token",
            "stall_timeout",
            "backoff",
            "on_invalid",
        ],
        "Options for the target": ["close", "no_create", "content_type", "retry_for", "grace"],
    },
)
@click.argument("source")
@click.argument("target")
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the place is kept between runs. [default: a file in ~/.local/state/durable-streams]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "ndjson", "sse", "stream"]),
    default="auto",
    show_default=True,
    help="What a URL as SOURCE is: a feed of JSON lines, of server-sent events, or a durable stream.",
)
@click.option(
    "--follow/--no-follow",
    default=None,
    help="Go on at the source's end. [default: for URLs, not for files]",
)
@click.option("--id-field", metavar="PATH", help="Where a record has its id, such as data.id.")
@click.option(
    "--id-window",
    type=click.IntRange(min=1),
    default=100_000,
    metavar="COUNT",
    show_default=True,
    help="How many ids are remembered.",
)
@click.option(
    "--gap-events", is_flag=True, help="Store a record where the source may have sent what is lost."
)
@click.option("--close", is_flag=True, help="Close TARGET for good when SOURCE has ended.")
@click.option("--no-create", is_flag=True, help="Fail where TARGET is missing.")
@click.option(
    "--content-type",
    "-t",
    callback=lambda ctx, parameter, value: full_content_type(ctx, parameter, value) if value else None,
    help="Of a new TARGET; json and text are short names. [default: what fits the source]",
)
@click.option(
    "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="For requests to SOURCE; repeatable."
)
@click.option(
    "--source-token",
    metavar="VARIABLE",
    help="The environment variable with the bearer token for SOURCE, such as X_BEARER_TOKEN.",
)
@click.option(
    "--stall-timeout",
    type=Duration(above_zero=True),
    help="Reconnect to a feed that is silent for so long, heartbeats included. [default: never]",
)
@click.option(
    "--backoff",
    type=Duration(),
    default=show_duration(1.0),
    show_default=True,
    help="The first wait before a feed is connected again; doubled each time, up to 64.",
)
@click.option(
    "--retry-for",
    type=Duration(endless=True),
    default=float("inf"),
    help="How long to try a target that is down or failing. [default: forever]",
)
@click.option(
    "--grace",
    type=Duration(endless=True),
    default=show_duration(10.0),
    show_default=True,
    help="How long Ctrl-C and SIGTERM wait for the last acknowledgements.",
)
@click.option(
    "--user-agent",
    metavar="TEXT",
    help="How requests to SOURCE name themselves. [default: durable-streams/VERSION]",
)
@click.option(
    "--where",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Store only records that have VALUE at FIELD, a path such as data.lang; repeatable: all fields must fit, "
    "and several values of one field are alternatives.",
)
@click.option(
    "--envelope",
    is_flag=True,
    help='Store the records of a feed as {"event", "id", "data"}, with their types and ids.',
)
@on_gone_option
@on_invalid_option(
    "What becomes of a record that is not valid JSON: raise ends the relay, with what is before it stored; skip leaves "
    "it out and counts it. [default: raise; feeds skip, and exit code 1 at the end says so]",
    default=None,
)
@click.option("--skip-invalid", is_flag=True, help="The same as --on-invalid skip.")
@connection_options
@click.pass_obj
def relay(
    settings: Settings, /, *, source: str, target: str, no_create: bool, state: Path | None, **options: Any
) -> None:
    """Relay the records of SOURCE into the stream TARGET, each of them once wherever that is possible.

    SOURCE is a URL (an NDJSON feed, server-sent events, or a durable stream), a file, or - for standard input. Once it
    is found, a line says which guarantee holds for it. A relay that was stopped or killed goes on where TARGET ends.
    Ctrl-C and SIGTERM end it once everything that was read is stored.
    """
    url = settings.url(target)
    if options.pop("skip_invalid"):
        if options["on_invalid"] == "raise":
            raise click.UsageError("--skip-invalid and --on-invalid raise exclude each other")
        options["on_invalid"] = "skip"
    names = (
        "id_field",
        "id_window",
        "gap_events",
        "close",
        "content_type",
        "retry_for",
        "grace",
    )
    given = {name: options[name] for name in names}
    where = [_condition(text) for text in options["where"]]
    asked: OnInvalid | None = options["on_invalid"]
    try:
        opened = _source(source, options)
        skips = asked == "skip" or (asked is None and opened.skips_invalid)
        running = Relay(
            opened,
            url,
            state=state,
            create=not no_create,
            headers=settings.headers,
            on_invalid=LeftOut("skip").on_invalid if skips else asked,
            where=where or None,
            on_source=lambda: _announce(settings, running, source, url),
            **given,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with _stopped_by_signals(running), _status(running):
        report = running.run()
    emit(settings, _summary(report), event="ended", url=url, **asdict(report))
    if report.invalid and asked is None:
        raise click.exceptions.Exit(1)  # nobody said that it may leave something out


def _condition(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise click.UsageError(f"--where takes FIELD=VALUE, not {text!r}")
    return field, value


def _source(source: str, options: dict[str, Any]) -> Any:
    headers = dict(_header(text) for text in options["headers"])
    variable = options["source_token"]
    if variable is not None:
        if not os.environ.get(variable):
            raise click.UsageError(f"--source-token: the environment has no variable {variable!r}")
        headers["Authorization"] = f"Bearer {os.environ[variable].strip()}"
    if options["user_agent"] is not None:
        headers = {name: value for name, value in headers.items() if name.lower() != "user-agent"}
        headers["User-Agent"] = options["user_agent"]
    form: Form = options["form"]
    return source_for(
        source,
        form=form,
        headers=headers,
        follow=options["follow"],
        stall_timeout=options["stall_timeout"],
        backoff=options["backoff"],
        envelope=options["envelope"],
        on_gone=reader_option(options["on_gone"]),
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"--header takes 'Name: value', not {text!r}")
    return name.strip(), value.strip()


def _announce(settings: Settings, running: Relay, source: str, url: str) -> None:
    if settings.json_output:
        emit(
            settings,
            "",
            event="started",
            source=source,
            url=url,
            guarantee=running.guarantee,
            state=running.state_path,
        )
    else:
        click.echo(f"durable-streams: {running.guarantee}", err=True)
        if running.state_path is not None:
            click.echo(f"durable-streams: its place is kept in {running.state_path}", err=True)
    sys.stdout.flush()


def _summary(report: RelayReport) -> str:
    notes = [
        text
        for count, text in (
            (report.skipped, f"{report.skipped:,} were there already"),
            (report.invalid, f"{report.invalid:,} were no JSON and left out"),
            (report.filtered, f"{report.filtered:,} were not selected"),
            (report.gaps, f"{report.gaps:,} gaps"),
            (report.reconnects, f"{report.reconnects:,} reconnects"),
        )
        if count
    ]
    more = f" ({', '.join(notes)})" if notes else ""
    return f"stored {report.records:,} records{more} in {report.seconds:.1f} s, next offset {report.offset}"


@contextlib.contextmanager
def _stopped_by_signals(running: Relay) -> Iterator[None]:
    """Let the first signal stop the relay, the second not wait any more, and the third end the process."""
    # A handler runs in the middle of anything, locks included: all it may do is wake a thread.
    stops: SimpleQueue[None] = SimpleQueue()
    numbers = (signal.SIGINT, signal.SIGTERM)

    taken = []

    def take(number: int, _frame: object) -> None:
        taken.append(number)
        if len(taken) > 2:
            raise KeyboardInterrupt
        stops.put(None)

    def wait() -> None:
        stops.get()
        running.stop()
        stops.get()
        running.stop(grace=0)

    before = {number: signal.signal(number, take) for number in numbers}
    threading.Thread(target=wait, name="relay-signals", daemon=True).start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _status(running: Relay) -> Iterator[None]:
    """Show one line on standard error while it runs, if that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    # Not at the top: pipes and services should not wait for an import that only draws.
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    line = _StatusLine(running)
    with Live(
        console=Console(stderr=True),
        get_renderable=line.text,
        refresh_per_second=_REDRAWS,
        transient=True,
    ):
        yield


class _StatusLine:
    """Records, rate over the last seconds, what is read and not stored yet, reconnects."""

    _OVER = 3.0  # seconds

    def __init__(self, running: Relay) -> None:
        self._running = running
        self._seen: list[tuple[float, int]] = []

    def text(self) -> str:
        """Return the line of this moment."""
        report, now = self._running.report(), time.monotonic()
        self._seen = [(at, count) for at, count in self._seen if now - at < self._OVER]
        self._seen.append((now, report.records))
        since, before = self._seen[0]
        rate = (report.records - before) / (now - since) if now > since else 0.0
        parts = [f"{report.records:,} records", f"{rate:,.0f}/s", f"lag {report.pending:,}"]
        for count, name in (
            (report.reconnects, "reconnects"),
            (report.skipped, "known"),
            (report.invalid, "invalid"),
            (report.filtered, "not selected"),
            (report.gaps, "gaps"),
        ):
            if count:
                parts.append(f"{count:,} {name}")
        return " · ".join(parts)
