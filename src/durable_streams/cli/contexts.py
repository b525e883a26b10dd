"""``context``: names for servers, so that a command needs neither their address nor a token.

Invariants: the file is its owner's only (0600) and is replaced as a whole; it holds no token, but may say in which file
one is; a token of the environment is never sent to the server of a context.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from durable_streams.cli.context_file import Context, load, named, save
from durable_streams.cli.help import Command, HelpSections
from durable_streams.cli.options import Settings, emit, json_option
from durable_streams.protocol.request import check_url

__all__ = ["context"]

_MODE = 0o077  # what others may not
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Group(HelpSections, click.Group):
    """The commands of ``context``."""


@click.command(
    cls=_Group,
    examples=[
        "durable-streams context add prod --url https://example.com/v1/stream --token-file ~/.prod-token",
        "durable-streams context list",
    ],
)
def context() -> None:
    """Give servers names: --context NAME, or DURABLE_STREAMS_CONTEXT, stands for an address and a token then.

    They are kept in a file of your own that no other user can read. It names the file that holds a token, and does not
    hold the token itself.
    """


@context.command(
    cls=Command,
    short_help="Add or replace a name.",
    examples=["durable-streams context add dev --url http://127.0.0.1:4437/v1/stream"],
)
@click.argument("name")
@click.option("--url", required=True, metavar="ROOT", help="The server's stream root.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="File with the token that requests carry; read at each command.",
)
@json_option
@click.pass_obj
def add(settings: Settings, *, name: str, url: str, token_file: Path | None) -> None:
    """Let NAME stand for the server at --url."""
    if not _NAME.fullmatch(name):
        raise click.UsageError("NAME has up to 64 letters, digits, dots, hyphens and underscores")
    try:
        check_url(url)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    file = None if token_file is None else token_file.expanduser().absolute()
    if file is not None and file.exists() and file.stat().st_mode & _MODE:
        click.echo(f"durable-streams: others can read {file}; chmod 600 it", err=True)
    contexts = load()
    contexts[name] = Context(url.rstrip("/"), None if file is None else str(file))
    save(contexts)
    emit(settings, f"{name} is {url} now", name=name, url=url, token_file=contexts[name].token_file)


@context.command(
    "list", cls=Command, short_help="List the names.", examples=["durable-streams context list --json"]
)
@json_option
@click.pass_obj
def list_all(settings: Settings) -> None:
    """List the names and what they stand for."""
    for name, one in load().items():
        token = "" if one.token_file is None else f"  (token in {one.token_file})"
        emit(settings, f"{name:<16}  {one.url}{token}", name=name, url=one.url, token_file=one.token_file)


@context.command(cls=Command, short_help="Remove a name.", examples=["durable-streams context remove dev"])
@click.argument("name")
@json_option
@click.pass_obj
def remove(settings: Settings, name: str) -> None:
    """Remove NAME; its token's file stays."""
    named(name)
    contexts = load()
    del contexts[name]
    save(contexts)
    emit(settings, f"removed {name}", name=name)
