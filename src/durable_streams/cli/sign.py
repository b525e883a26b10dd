"""``sign``: a URL that lets everybody who has it do some things with one stream, for some time."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import cast

import click

from durable_streams.cli.help import Command
from durable_streams.cli.key_editing import read_keys
from durable_streams.cli.options import Settings, connection_options, emit_secret, keys_file_option
from durable_streams.cli.units import Duration
from durable_streams.protocol.grants import Operation
from durable_streams.server.keys import SigningEntry
from durable_streams.server.signing import sign_url, signed_path

__all__ = ["sign"]


@click.command(
    cls=Command,
    examples=[
        "durable-streams sign jobs/1 --expires 1h",
        "durable-streams sign https://example.com/v1/stream/inbox/7 --allow append --expires 7d",
    ],
)
@click.argument("stream")
@click.option(
    "--allow",
    default="read",
    metavar="OPERATIONS",
    show_default=True,
    help="What the URL is for, with commas between: read, append, create, delete, trim.",
)
@click.option(
    "--expires",
    type=Duration(above_zero=True),
    default="1h",
    show_default=True,
    help="How long it is good for.",
)
@click.option(
    "--key", "name", metavar="NAME", help="Id or name of the signing key; by default the newest one."
)
@keys_file_option("The file of keys, with a key that `durable-streams key create --signing` made.")
@connection_options
@click.pass_context
def sign(
    ctx: click.Context, /, *, stream: str, allow: str, expires: float, name: str | None, path: Path
) -> None:
    """Print the URL of a stream with a signature, for the server that has the same file of keys.

    It needs no token. It ends after --expires, or when the signing key is revoked, and allows no more than that key
    does.
    """
    settings = ctx.ensure_object(Settings)
    url = settings.url(stream)
    key = _key(path, name)
    operations = cast("list[Operation]", [one.strip() for one in allow.split(",")])
    try:
        signed = sign_url(url, key.secret, allow=operations, expires_in=expires)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for operation in operations:
        if not key.grant().allows(operation, signed_path(url)):
            raise click.UsageError(
                f"the signing key {key.id} does not allow {operation} on {signed_path(url)}"
            )
    emit_secret(settings, signed, url=signed, key=key.id)


def _key(path: Path, name: str | None) -> SigningEntry:
    now = datetime.now(timezone.utc)
    found = [
        key
        for key in read_keys(path).signing_key
        if (name is None or name in (key.id, key.name)) and (key.expires is None or key.expires > now)
    ]
    if not found:
        called = "" if name is None else f" of the id or name {name!r}"
        raise click.ClickException(
            f"{path} has no signing key{called}; make one with "
            "`durable-streams key create --signing --allow 'read:**'`"
        )
    return found[-1]
