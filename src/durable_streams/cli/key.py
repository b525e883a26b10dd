"""``key``: the keys of callers, in the file that ``serve --auth`` reads."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import click

from durable_streams.cli.help import Command, HelpSections
from durable_streams.cli.key_editing import add_key, read_keys, remove_keys
from durable_streams.cli.options import Settings, emit, emit_secret, json_option, keys_file_option
from durable_streams.cli.units import Duration
from durable_streams.server.keys import KeyEntry, SigningEntry, new_key, new_signing_key

__all__ = ["key"]

_file = keys_file_option("The file of keys.")


class _Group(HelpSections, click.Group):
    """A group of commands."""


@click.command(
    cls=_Group,
    examples=[
        "durable-streams key create --allow 'read,append:jobs/**' --expires 30d --name worker",
        "durable-streams key ls",
        "durable-streams key revoke worker",
    ],
)
def key() -> None:
    """Make, list and revoke keys; a server with --auth reads the file again when it changes, without a restart.

    A key is sent as 'Authorization: Bearer KEY': the commands take it with --token, or from DURABLE_STREAMS_TOKEN.
    """


@key.command(
    cls=Command,
    short_help="Make a key, and print it once.",
    examples=[
        "durable-streams key create --allow '*:**' --name operator",
        "durable-streams key create --allow 'read,append:jobs/**' --allow 'create:jobs/*' --expires 30d",
    ],
)
@click.option(
    "--allow",
    multiple=True,
    required=True,
    metavar="GRANT",
    help="Operations (read, append, create, delete, trim, list, subscribe, admin; * for all), a colon, and a pattern "
    "of paths: * is one segment, ** any number of them. May be given more than once.",
)
@click.option(
    "--name", default="", metavar="NAME", help="Who it belongs to; keys of one name are the same caller."
)
@click.option(
    "--expires",
    type=Duration(above_zero=True),
    help="End it after this long, such as 12h or 30d; it has no end by default.",
)
@click.option(
    "--signing",
    is_flag=True,
    help="Make a key that signs URLs; it stays in the file, for `durable-streams sign`.",
)
@_file
@json_option
@click.pass_context
def create(
    ctx: click.Context,
    /,
    *,
    allow: tuple[str, ...],
    name: str,
    expires: float | None,
    signing: bool,
    path: Path,
) -> None:
    """Make a random key and add it to the file, which is made if it is missing.

    The file holds only the hash of a key, so that it is printed now and never again.
    """
    now = datetime.now(timezone.utc).replace(microsecond=0)
    token: str | None = None
    entry: KeyEntry | SigningEntry
    try:
        end = None if expires is None else now + timedelta(seconds=expires)
        if signing:
            entry = new_signing_key(allow, name=name, created=now, expires=end)
        else:
            token, entry = new_key(allow, name=name, created=now, expires=end)
    except OverflowError:
        raise click.UsageError("--expires is too long; without it the key has no end") from None
    except ValueError as error:
        raise click.UsageError(f"--allow: {error}") from error
    add_key(path, entry)
    settings = ctx.ensure_object(Settings)
    fields = {"id": entry.id, "name": entry.name, "allow": entry.allow, "expires": entry.expires}
    emit_secret(settings, token or f"{path} has the signing key {entry.id}", key=token, **fields)
    if not settings.json_output and token is not None:
        click.echo(f"durable-streams: this key is shown once; {path} has its hash, as {entry.id}", err=True)


@key.command(name="ls", cls=Command, short_help="List the keys.", examples=["durable-streams key ls"])
@_file
@json_option
@click.pass_context
def list_keys(ctx: click.Context, /, *, path: Path) -> None:
    """List the keys of the file; none of them can be shown again."""
    settings = ctx.ensure_object(Settings)
    file = read_keys(path)
    now = datetime.now(timezone.utc)
    for entry in (*file.key, *file.signing_key):
        signing = isinstance(entry, SigningEntry)
        end = "no end" if entry.expires is None else f"{entry.expires:%Y-%m-%d %H:%M}"
        if entry.expires is not None and entry.expires <= now:
            end = "expired"
        what = f"{'signs' if signing else 'key':<5}  {end:<16}  {' '.join(entry.allow)}"
        emit(
            settings,
            f"{entry.id}  {entry.name or '-':<16}  {what}",
            id=entry.id,
            name=entry.name,
            signing=signing,
            allow=entry.allow,
            created=entry.created,
            expires=entry.expires,
        )


@key.command(cls=Command, short_help="Take keys away.", examples=["durable-streams key revoke worker"])
@click.argument("name")
@_file
@json_option
@click.pass_context
def revoke(ctx: click.Context, /, *, name: str, path: Path) -> None:
    """Remove the key of the id NAME, or every key of that name.

    Servers refuse it within two seconds, and end its live reads within a minute.
    """
    removed = remove_keys(path, name)
    ids = [entry.id for entry in removed]
    emit(ctx.ensure_object(Settings), f"revoked {', '.join(ids)}", revoked=ids)
