"""``create``, ``head``, ``close``, ``delete`` and ``fork``: a stream's life."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from durable_streams import DurableStream
from durable_streams.cli.help import Command
from durable_streams.cli.options import (
    Settings,
    connection_options,
    emit,
    full_content_type,
    json_in_shell_words,
    read_value,
)
from durable_streams.cli.units import Duration
from durable_streams.errors import redacted

__all__ = ["close", "create", "delete", "fork", "head"]

F = TypeVar("F", bound=Callable[..., Any])

_file = click.option(
    "--file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take the data from a file; - is standard input.",
)


def _expiry(command: F) -> F:
    ttl = click.option(
        "--ttl",
        type=Duration(whole=True),
        help="Expire after this long without a read or write: seconds, or 90s, 5m, 12h, 7d.",
    )
    expires_at = click.option(
        "--expires-at", metavar="TIME", help="Expire at a time, such as 2030-01-31T12:00:00Z."
    )
    return ttl(expires_at(command))


@click.command(
    cls=Command,
    examples=[
        "durable-streams create flights -t json",
        "durable-streams create log -t text 'first line' --ttl 7d",
        "durable-streams create report -t text/csv --file report.csv --closed",
    ],
)
@click.argument("stream")
@click.argument("value", required=False)
@click.option(
    "--content-type",
    "-t",
    metavar="TYPE",
    callback=full_content_type,
    default="application/octet-stream",
    show_default=True,
    help="What the stream holds; json and text are short for application/json and text/plain.",
)
@_file
@click.option("--closed", is_flag=True, help="Create it closed: VALUE or --file is its whole content.")
@_expiry
@connection_options
@click.pass_obj
def create(
    settings: Settings,
    *,
    stream: str,
    value: str | None,
    content_type: str,
    file: Path | None,
    closed: bool,
    ttl: int | None,
    expires_at: str | None,
) -> None:
    """Create STREAM, or find it with the same configuration; VALUE is its first data.

    On a JSON stream the data is one message. A STREAM that exists already takes no data: with VALUE or --file that
    is a failure.
    """
    _one_expiry(ttl, expires_at)
    url = settings.url(stream)
    body = None if value is None and file is None else read_value(value, file)
    with (
        json_in_shell_words(value, file),
        DurableStream.create(
            url,
            content_type=content_type,
            ttl_seconds=ttl,
            expires_at=expires_at,
            body=body,
            closed=closed,
            headers=settings.headers,
        ) as handle,
    ):
        created = handle.created
    fields = {"url": url, "content_type": content_type, "closed": closed, "created": created}
    if created or not body:
        emit(settings, f"{_FOUND.get(created, 'created')} {url} ({content_type})", **fields)
        return
    if settings.json_output:
        emit(settings, "", **fields)
    raise click.ClickException(
        f"{redacted(url)} {_not_stored('VALUE' if value is not None else _named(file), created)}"
    )


_FOUND = {False: "exists already:", None: "is there:"}
"""What is said of a stream that was not created now, or perhaps not: the answer of an earlier attempt was lost."""


def _named(file: Path | None) -> str:
    return "standard input" if file is None or str(file) == "-" else str(file)


def _not_stored(data: str, created: bool | None) -> str:
    if created is None:
        return f"exists, but the answer of an earlier attempt was lost, which may have stored {data}: read it to see."
    return f"exists already; {data} was not stored"


@click.command(
    cls=Command,
    examples=["durable-streams head flights"],
)
@click.argument("stream")
@connection_options
@click.pass_obj
def head(settings: Settings, stream: str) -> None:
    """Show STREAM's content type, tail offset, closure and expiry, without reading it."""
    url = settings.url(stream)
    with DurableStream(url, headers=settings.headers) as handle:
        result = handle.head()
    fields: dict[str, Any] = {
        "url": url,
        "content_type": result.content_type,
        "offset": result.offset,
        "closed": result.stream_closed,
        "ttl_seconds": result.ttl_seconds,
        "expires_at": result.expires_at,
        "etag": result.etag,
        "earliest_offset": result.earliest_offset,
        "retention_max_age": result.retention_max_age,
        "retention_max_bytes": result.retention_max_bytes,
    }
    shown = {name: _shown(field) for name, field in fields.items() if field is not None}
    emit(
        settings, "\n".join(f"{name.replace('_', '-'):<19} {text}" for name, text in shown.items()), **fields
    )


def _shown(field: Any) -> str:
    if isinstance(field, bool):
        return "yes" if field else "no"
    return str(field)


@click.command(
    cls=Command,
    examples=["durable-streams close flights"],
)
@click.argument("stream")
@click.argument("value", required=False)
@_file
@click.option(
    "--expected-offset",
    metavar="OFFSET",
    help="Refuse unless the stream ends at this offset before the call.",
)
@connection_options
@click.pass_obj
def close(
    settings: Settings, *, stream: str, value: str | None, file: Path | None, expected_offset: str | None
) -> None:
    """Close STREAM for good, with VALUE or --file as its last data; what it holds stays readable."""
    url = settings.url(stream)
    data = None if value is None and file is None else read_value(value, file)
    with json_in_shell_words(value, file), DurableStream(url, headers=settings.headers) as handle:
        result = handle.close_stream(data, expected_offset=expected_offset)
    emit(settings, f"closed {url} at offset {result.final_offset}", url=url, final_offset=result.final_offset)


@click.command(
    cls=Command,
    examples=["durable-streams delete flights"],
)
@click.argument("stream")
@connection_options
@click.pass_obj
def delete(settings: Settings, stream: str) -> None:
    """Delete STREAM and its data; forks of it keep theirs."""
    url = settings.url(stream)
    with DurableStream(url, headers=settings.headers) as handle:
        handle.delete()
    emit(settings, f"deleted {url}", url=url)


@click.command(
    cls=Command,
    examples=["durable-streams fork flights what-if"],
)
@click.argument("source")
@click.argument("stream")
@click.option("--offset", help="Fork from this offset of the source instead of its tail.")
@click.option(
    "--sub-offset",
    type=click.IntRange(min=0),
    metavar="COUNT",
    help="Continue for this many messages (JSON) or bytes past the offset.",
)
@_expiry
@connection_options
@click.pass_obj
def fork(
    settings: Settings,
    *,
    source: str,
    stream: str,
    offset: str | None,
    sub_offset: int | None,
    ttl: int | None,
    expires_at: str | None,
) -> None:
    """Create STREAM as a fork of SOURCE: it reads as the source up to a point, then goes its own way."""
    _one_expiry(ttl, expires_at)
    url = settings.url(stream)
    with DurableStream(settings.url(source), headers=settings.headers) as handle:
        forked = handle.fork(
            url, offset=offset, sub_offset=sub_offset, ttl_seconds=ttl, expires_at=expires_at
        )
    found = _FOUND.get(forked.created)
    text = f"{found} {url}, forked from {handle.url}" if found else f"forked {handle.url} to {url}"
    emit(settings, text, url=url, source=handle.url, created=forked.created)


def _one_expiry(ttl: int | None, expires_at: str | None) -> None:
    if ttl is not None and expires_at is not None:
        raise click.UsageError("--ttl and --expires-at exclude each other; give one of them")
