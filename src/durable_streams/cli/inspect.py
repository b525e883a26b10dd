"""``ls``, ``info``, ``ping`` and ``check``: what a server holds, and whether it is well."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

import click
import msgspec

from durable_streams import (
    DurableStream,
    DurableStreamError,
    RetryPolicy,
    StreamInfo,
    StreamNotFoundError,
    StreamParseError,
)
from durable_streams.cli.help import Command
from durable_streams.cli.options import Settings, connection_options, emit
from durable_streams.cli.units import Duration, Size, show_size
from durable_streams.client.base import CallOptions, make_options
from durable_streams.client.sync_listing import list_streams
from durable_streams.client.sync_performer import run
from durable_streams.protocol import resources
from durable_streams.protocol.headers import STREAM_ROOT
from durable_streams.protocol.subscription_operations import list_following, read_subscription

__all__ = ["check", "info", "listed", "ls", "ping", "short_size"]

_ROOT = STREAM_ROOT.rstrip("/")
_PING_SECONDS = 10.0
_ONCE = RetryPolicy(max_retries=0)


def _split(url: str) -> tuple[str, str]:
    """Return the URL of the root of a server's streams, and a path below it."""
    root, path = resources.split_root(url)
    if not root.endswith(_ROOT):
        raise click.ClickException(
            f"{url} is not below {_ROOT}, where a server of this project has its streams: give its address as --url."
        )
    return root, path


def listed(settings: Settings, prefix: str) -> Iterator[StreamInfo]:
    """Iterate over the streams whose paths below the root of ``settings`` begin with a prefix."""
    root = settings.stream_root
    _, below = _split(root)
    below = f"{below}/" if below else ""
    for found in list_streams(root, prefix=prefix.lstrip("/"), headers=settings.headers):
        yield replace(found, path=found.path[len(below) :]) if below else found


@click.command(
    cls=Command,
    examples=[
        "durable-streams ls",
        "durable-streams ls jobs/ --long",
        "durable-streams ls --json --limit 100",
    ],
)
@click.argument("prefix", default="")
@click.option(
    "--long",
    "-l",
    "is_long",
    is_flag=True,
    help="Show size, appends, time of the last one, and content type too.",
)
@click.option("--limit", "-n", type=click.IntRange(min=1), metavar="COUNT", help="List this many at most.")
@connection_options
@click.pass_obj
def ls(settings: Settings, prefix: str, *, is_long: bool, limit: int | None) -> None:
    """List the paths of streams in alphabetical order; with PREFIX, those that begin with this text.

    With --json each stream is one line with all that the list knows. The list is read as it is printed, so that it
    may be as long as it likes.
    """
    for found in islice(listed(settings, prefix), limit):
        if settings.json_output:
            click.echo(msgspec.json.encode(found).decode())
        else:
            click.echo(_row(found) if is_long else found.path)


def _row(found: StreamInfo) -> str:
    state = "closed" if found.closed else "open"
    records = "" if found.records is None else found.records
    last = (found.last_append or "")[:19]
    return f"{short_size(found.bytes):>9}  {records:>9}  {state:<6}  {last:<19}  {found.content_type:<24}  {found.path}"


def short_size(size: int) -> str:
    """Return a size in at most about seven characters."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f}{unit}"
    return f"{show_size(size)}B"


@click.command(
    cls=Command,
    examples=["durable-streams info flights", "durable-streams info flights --json"],
)
@click.argument("stream")
@connection_options
@click.pass_obj
def info(settings: Settings, stream: str) -> None:
    """Show what HEAD says of STREAM and what the list of streams knows of it.

    That is size, age, appends and their pace during the last minute, retention, forks, expiry, subscriptions and the
    first 100 producers.

    Of another server, which has no such list, it shows what HEAD says.
    """
    url = settings.url(stream)
    with DurableStream(url, headers=settings.headers) as handle:
        head = handle.head()
    fields: dict[str, Any] = {
        "url": url,
        "content_type": head.content_type,
        "tail": head.offset,
        "closed": head.stream_closed,
        "ttl_seconds": head.ttl_seconds,
        "expires_at": head.expires_at,
        "etag": head.etag,
    }
    fields |= _known(settings, url)
    shown = {name: field for name, field in fields.items() if field is not None}
    width = max(map(len, shown))
    lines = (f"{name.replace('_', '-'):<{width}} {_shown(field)}" for name, field in shown.items())
    emit(settings, "\n".join(lines), **fields)


def _known(settings: Settings, url: str) -> dict[str, Any]:
    """Return what the list of streams knows beside HEAD; nothing of a server that has none."""
    if f"{_ROOT}/" not in url:
        return {}
    root, path = _split(url.partition("?")[0])
    try:
        found = run(resources.stream_info(root, path), _options(settings))
    except StreamNotFoundError:
        return {}
    return {
        "bytes": found.bytes,
        "earliest": found.earliest,
        "created": found.created,
        "records": found.records,
        "records_per_second": found.records_per_second,
        "last_append": found.last_append,
        "retention_max_age": found.retention_max_age,
        "retention_max_bytes": found.retention_max_bytes,
        "forked_from": found.forked_from,
        "forks": found.forks,
        "subscriptions": _following(settings, root, path),
        "producers": _producers(settings, root, path),
    }


def _producers(settings: Settings, root: str, path: str) -> list[dict[str, Any]] | None:
    """Return the first producers of a stream; None where there are none to see."""
    try:
        found = run(resources.producers_page(root, path), _options(settings, retry=_ONCE))
    except DurableStreamError:  # an older server, or they are not for this caller
        return None
    return [msgspec.to_builtins(one) for one in found.producers] or None


def _following(settings: Settings, root: str, path: str) -> list[dict[str, Any]] | None:
    """Return the subscriptions of a stream and how far behind they are; None where there are none to see."""
    try:
        found = run(list_following(root, path), _options(settings, retry=_ONCE))
    except DurableStreamError:  # the server has none, or they are not for this caller
        return None
    return [msgspec.to_builtins(one) for one in found] or None


def _shown(field: Any) -> str:
    if isinstance(field, bool):
        return "yes" if field else "no"
    if isinstance(field, list):
        return ", ".join(map(_entry, field))
    return str(field)


def _entry(one: dict[str, Any]) -> str:
    if "epoch" in one:
        return f"{one['id']} (epoch {one['epoch']}, request {one['seq']})"
    return f"{one['id']} ({one['lag_bytes']:,} bytes behind)"


def _options(
    settings: Settings, timeout: float | None = None, retry: RetryPolicy | None = None
) -> CallOptions:
    return make_options(None, settings.headers, None, timeout, retry)


def _address(settings: Settings, url: str | None) -> str:
    return _split(url or settings.stream_root)[0]


@click.command(
    cls=Command,
    examples=["durable-streams ping", "durable-streams ping http://127.0.0.1:4437/v1/stream --count 10"],
)
@click.argument("address", metavar="[URL]", required=False)
@click.option(
    "--count",
    "-c",
    type=click.IntRange(1, 10_000),
    metavar="COUNT",
    default=3,
    show_default=True,
    help="How often.",
)
@connection_options
@click.pass_obj
def ping(settings: Settings, address: str | None, count: int) -> None:
    """Ask a server whether it is alive, several times, and print how long its answers took.

    The first one includes the connection. The server touches no disk for it; `check` asks it to store something.
    """
    root = _address(settings, address)
    times = []
    for number in range(count):
        began = time.perf_counter()
        run(resources.health(root, live=True), _options(settings, _PING_SECONDS, _ONCE))
        times.append((time.perf_counter() - began) * 1000)
        if not settings.json_output:
            click.echo(f"answer {number + 1} from {root}: {times[-1]:.1f} ms")
    if settings.json_output:
        rounded = [round(one, 3) for one in times]
        emit(settings, "", url=root, milliseconds=rounded, least=min(rounded), most=max(rounded))


@click.command(
    cls=Command,
    examples=[
        "durable-streams check",
        "durable-streams check --warning 100ms --critical 1s",
        "durable-streams check --stream flights --lag-warning 1m --lag-critical 10m",
        "durable-streams check --subscription orders --behind-warning 1MiB",
    ],
)
@click.argument("address", metavar="[URL]", required=False)
@click.option(
    "--warning",
    type=Duration(above_zero=True),
    default="500ms",
    show_default=True,
    help="An answer that takes longer is a warning: exit code 1.",
)
@click.option(
    "--critical",
    type=Duration(above_zero=True),
    default="5s",
    show_default=True,
    help="An answer that takes longer, or none, is critical: exit code 2.",
)
@click.option("--stream", metavar="PATH", help="Look at this stream too: how long ago its last append came.")
@click.option(
    "--lag-warning",
    type=Duration(above_zero=True),
    metavar="TIME",
    default="1m",
    show_default=True,
    help="With --stream: a last append that is older is a warning.",
)
@click.option(
    "--lag-critical",
    type=Duration(above_zero=True),
    metavar="TIME",
    default="10m",
    show_default=True,
    help="With --stream: a last append that is older, or none at all, is critical.",
)
@click.option(
    "--subscription",
    metavar="NAME",
    help="Look at this subscription too: how much its workers have not acknowledged.",
)
@click.option(
    "--behind-warning",
    type=Size(),
    metavar="SIZE",
    default="16MiB",
    show_default=True,
    help="With --subscription: more bytes behind its cursors are a warning.",
)
@click.option(
    "--behind-critical",
    type=Size(),
    metavar="SIZE",
    default="256MiB",
    show_default=True,
    help="With --subscription: more bytes behind its cursors are critical.",
)
@connection_options
@click.pass_obj
def check(
    settings: Settings,
    address: str | None,
    *,
    warning: float,
    critical: float,
    stream: str | None,
    lag_warning: float,
    lag_critical: float,
    subscription: str | None,
    behind_warning: int,
    behind_critical: int,
) -> int:
    """Let a server store something, and print one line as plugins of monitoring systems do.

    Exit code 0: it is well; 1: it is slow; 2: it cannot store, cannot be reached, or is too slow. With --stream the
    stream counts too: one that its writers have left is a warning, then critical, and so is one that does not exist.
    With --subscription its workers count: how far they are behind.
    """
    root, below = _split(address or settings.stream_root)
    limits = (
        ("", warning, critical),
        ("lag-", lag_warning, lag_critical),
        ("behind-", behind_warning, behind_critical),
    )
    for name, low, high in limits:
        if low > high:
            raise click.UsageError(f"--{name}warning must not be more than --{name}critical")
    options = _options(settings, critical, _ONCE)
    measures: list[_Measure] = []
    began, problem = time.perf_counter(), ""
    try:
        run(resources.health(root), options)
        seconds = time.perf_counter() - began
        said = f"{root} stored a probe in {seconds * 1000:.1f} ms"
        measures.append(_Measure("time", "seconds", seconds, "s", 6, warning, critical, said))
        if stream is not None:
            path = "/".join(filter(None, (below, stream.strip("/"))))
            lag = _lag(run(resources.stream_info(root, path), options))
            came = "has no append" if math.isinf(lag) else f"had its last append {lag:.1f} s ago"
            measures.append(
                _Measure("lag", "lag", lag, "s", 3, lag_warning, lag_critical, f"{stream} {came}")
            )
        if subscription is not None:
            behind = _behind(run(read_subscription(root, subscription, lag=True), options), subscription)
            said = f"{subscription} is {short_size(int(behind))} behind"
            measures.append(
                _Measure("behind", "behind", behind, "B", 0, behind_warning, behind_critical, said)
            )
    except DurableStreamError as error:
        problem, seconds = str(error), time.perf_counter() - began
        measures = [_Measure("time", "seconds", seconds, "s", 6, warning, critical, problem)]
    code = 2 if problem else max(measure.level for measure in measures)
    word = ("OK", "WARNING", "CRITICAL")[code]
    said = ", ".join(measure.said for measure in measures)
    measured = " ".join(measure.for_a_plugin for measure in measures)
    fields = {measure.field: measure.for_machines for measure in measures}
    line = f"{word} - {' '.join(said.split())} | {measured}"
    emit(settings, line, status=word, url=root, **fields, problem=problem or None)
    return code


class _Measure(NamedTuple):
    """Something that `check` looks at; ``value`` is infinite where there is none."""

    name: str
    field: str
    value: float
    unit: str
    digits: int
    warning: float
    critical: float
    said: str

    @property
    def level(self) -> int:
        return 2 if self.value > self.critical else int(self.value > self.warning)

    @property
    def for_a_plugin(self) -> str:
        shown = "U" if math.isinf(self.value) else f"{self.value:.{self.digits}f}{self.unit}"
        return f"{self.name}={shown};{self.warning:g};{self.critical:g};0"

    @property
    def for_machines(self) -> float | None:
        return None if math.isinf(self.value) else round(self.value, self.digits)


def _behind(shown: dict[str, Any], name: str) -> float:
    """Return how many bytes the workers of a subscription have not acknowledged."""
    behind = shown.get("lag_bytes")
    if not isinstance(behind, int):
        raise StreamParseError(f"This server does not say how far {name} is behind.")
    return float(behind)


def _lag(found: StreamInfo) -> float:
    """Return how many seconds ago the last append to a stream came; infinity where none did."""
    if found.last_append is None:
        return math.inf
    return max(0.0, time.time() - _seconds(found.last_append))


def _seconds(moment: str) -> float:
    """Return a moment of the list of streams in seconds since 1970."""
    return datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
