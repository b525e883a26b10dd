"""``context``: names for servers, so that a command needs neither their address nor a token.

Invariants: the file is its owner's only (0600) and is replaced as a whole; it holds no token, but may say in which file
one is; a token of the environment is never sent to the server of a context.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import click
import msgspec

from durable_streams.cli.help import Command, HelpSections
from durable_streams.cli.options import Settings, emit, json_option
from durable_streams.protocol.request import check_url

__all__ = ["Context", "context", "named"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILE = "contexts.json"
_LARGEST = 1 << 20  # bytes of the file, and of a token
_MODE = 0o077  # what others may not


class Context(msgspec.Struct, omit_defaults=True):
    """A server: the URL of its streams, and the file that holds a token for it."""

    url: str
    token_file: str | None = None

    def token(self) -> str | None:
        """Return the token; raises ClickException where its file cannot be read."""
        if self.token_file is None:
            return None
        try:
            with Path(self.token_file).open(encoding="ascii") as file:
                token = file.read(_LARGEST).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
            raise click.ClickException(
                f"the token cannot be read from {self.token_file}: {reason}; write it there, or add the context again"
            ) from error
        if not token:
            raise click.ClickException(f"{self.token_file} holds no token; write it there")
        return token


def _path() -> Path:
    import platformdirs  # noqa: PLC0415 - for this command only

    return Path(platformdirs.user_config_dir("durable-streams")) / _FILE


def _load() -> dict[str, Context]:
    path = _path()
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_LARGEST), type=dict[str, Context])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise click.ClickException(
            f"{path} is not what this program wrote ({error}); repair or remove it"
        ) from error


def _save(contexts: dict[str, Context]) -> None:
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{_FILE}-")  # with mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(dict(sorted(contexts.items()))), indent=2))
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error


def named(name: str) -> Context:
    """Return the context of a name; raises ClickException where there is none."""
    contexts = _load()
    if name not in contexts:
        known = ", ".join(sorted(contexts)) or "there is none yet"
        raise click.ClickException(
            f"there is no context {name!r} ({known}); 'durable-streams context add' makes one"
        )
    return contexts[name]


class _Group(HelpSections, click.Group):
    """The commands of ``context``."""


@click.command(
    cls=_Group,
    short_help="Give servers names, for --context.",
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
    contexts = _load()
    contexts[name] = Context(url.rstrip("/"), None if file is None else str(file))
    _save(contexts)
    emit(settings, f"{name} is {url} now", name=name, url=url, token_file=contexts[name].token_file)


@context.command(
    "list", cls=Command, short_help="List the names.", examples=["durable-streams context list --json"]
)
@json_option
@click.pass_obj
def list_all(settings: Settings) -> None:
    """List the names and what they stand for."""
    for name, one in _load().items():
        token = "" if one.token_file is None else f"  (token in {one.token_file})"
        emit(settings, f"{name:<16}  {one.url}{token}", name=name, url=one.url, token_file=one.token_file)


@context.command(cls=Command, short_help="Remove a name.", examples=["durable-streams context remove dev"])
@click.argument("name")
@json_option
@click.pass_obj
def remove(settings: Settings, name: str) -> None:
    """Remove NAME; its token's file stays."""
    named(name)
    contexts = _load()
    del contexts[name]
    _save(contexts)
    emit(settings, f"removed {name}", name=name)
