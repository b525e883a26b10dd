"""What several commands share: where the server is, who asks, and in which form the answer is printed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote

import click
import msgspec

from durable_streams.errors import redacted
from durable_streams.protocol.jsonrule import InvalidJSONError

if TYPE_CHECKING:
    from durable_streams.cli.context_file import Context

__all__ = [
    "DEFAULT_ROOT",
    "PROGRAM",
    "Settings",
    "connection_options",
    "emit",
    "emit_secret",
    "full_content_type",
    "is_json",
    "json_in_shell_words",
    "json_option",
    "keys_file_option",
    "read_value",
    "stdin_bytes",
    "stdout_bytes",
]

PROGRAM = "durable-streams"
DEFAULT_ROOT = "http://127.0.0.1:4437/v1/stream"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """The options of every command: the stream root, the bearer token, and output for machines."""

    root: str | None = None
    token: str | None = None
    context: str | None = None
    json_output: bool = False
    explicit: set[str] = field(default_factory=set)
    """The options that were given on the command line: they outrank a context, and that the environment."""

    @cached_property
    def _context(self) -> Context | None:
        from durable_streams.cli.context_file import named  # noqa: PLC0415 - where there is one

        return None if self.context is None else named(self.context)

    @property
    def stream_root(self) -> str:
        """The URL of the server's streams."""
        if "root" not in self.explicit and self._context is not None:
            return self._context.url
        return (self.root or DEFAULT_ROOT).rstrip("/")

    def url(self, stream: str) -> str:
        """Return the URL of a stream.

        Args:
            stream: A full URL, or a path under the root. A path is taken literally: what a URL cannot carry (spaces,
                ``?``, ``%``) is percent-encoded.

        Returns:
            The URL.

        Raises:
            UsageError: The path is empty, or the URL is outside the context, whose token is not for it.
        """
        if stream.startswith(("http://", "https://")):
            if self._context is not None and not stream.startswith(f"{self.stream_root}/"):
                raise click.UsageError(
                    f"{stream} is no stream of the context {self.context}: leave --context out"
                )
            return stream
        path = stream.lstrip("/")
        if not path:
            raise click.UsageError("STREAM is empty; give a path such as 'flights' or a full URL.")
        with contextlib.suppress(UnicodeError):
            path = os.fsencode(path).decode()  # UTF-8, whatever the locale took it for
        return f"{self.stream_root}/{quote(path, safe=_LITERAL_IN_PATHS)}"

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        token = self.token
        if "token" not in self.explicit and self._context is not None:
            token = None if "root" in self.explicit else self._context.token()
        return {"Authorization": f"Bearer {token.strip()}"} if token else {}


_LITERAL_IN_PATHS = "/:@!$&'()*+,;=~-._"


def connection_options(command: F) -> F:
    """Add --url, --token, --context and --json to a command; they may stand before or after the command's name.

    Args:
        command: The function of the command, which finds their values in `Settings`.

    Returns:
        The same function.
    """
    url = click.option(
        "--url",
        metavar="ROOT",
        envvar="DURABLE_STREAMS_URL",
        show_envvar=True,
        expose_value=False,
        callback=_keep("root"),
        help="The server's stream root, for streams given as a path.",
    )
    token = click.option(
        "--token",
        metavar="TOKEN",
        envvar="DURABLE_STREAMS_TOKEN",
        show_envvar=True,
        expose_value=False,
        callback=_keep("token"),
        help="Sent as 'Authorization: Bearer TOKEN'.",
    )
    context = click.option(
        "--context",
        metavar="NAME",
        envvar="DURABLE_STREAMS_CONTEXT",
        show_envvar=True,
        expose_value=False,
        callback=_keep("context"),
        help="The server and the token of that name, see 'durable-streams context'.",
    )
    return url(token(context(json_option(command))))


def json_option(command: F) -> F:
    """Add --json to a command.

    Args:
        command: The function of the command, which finds its value in `Settings`.

    Returns:
        The same function.
    """
    return click.option(
        "--json",
        is_flag=True,
        default=None,
        expose_value=False,
        callback=_keep("json_output"),
        help="Print results as JSON, for machines.",
    )(command)


def keys_file_option(text: str) -> Callable[[F], F]:
    """Return the option ``--file``, the file of keys; its parameter is ``path``.

    Args:
        text: Its help.

    Returns:
        A decorator for a command.
    """
    return click.option(
        "--file",
        "path",
        type=click.Path(path_type=Path),
        default=Path("keys.toml"),
        envvar="DURABLE_STREAMS_AUTH",
        show_default=True,
        show_envvar=True,
        help=text,
    )


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        given = ctx.get_parameter_source(parameter.name or "")
        settings = ctx.ensure_object(Settings)
        # The command's own environment lookup must not undo an option given before its name.
        explicit = given is click.core.ParameterSource.COMMANDLINE
        if value is not None and (explicit or getattr(settings, name) in {None, False}):
            setattr(settings, name, value)
        if explicit:
            settings.explicit.add(name)

    return callback


def full_content_type(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Read the value of an option, for Click.

    Args:
        value: A content type, or a short name for one: ``json`` or ``text``.

    Returns:
        The content type.

    Raises:
        BadParameter: It is neither.
    """
    if "/" not in value and value not in _SHORT_TYPES:
        raise click.BadParameter(
            f"{value!r} is no content type; give one such as application/json, or json or text."
        )
    return _SHORT_TYPES.get(value, value)


_SHORT_TYPES = {"json": "application/json", "text": "text/plain"}


def is_json(content_type: str | None) -> bool:
    """Whether a stream holds JSON messages.

    Args:
        content_type: The stream's content type, None where it is not known.

    Returns:
        Whether it is that of JSON; its parameters do not matter.
    """
    return (content_type or "").partition(";")[0].strip().lower() == "application/json"


def emit(settings: Settings, text: str, **fields: Any) -> None:
    """Print a result, without credentials.

    Args:
        settings: They say which form is asked for.
        text: The form for people.
        **fields: The form for machines, printed as one line of JSON.
    """
    shown = {name: redacted(value) if isinstance(value, str) else value for name, value in fields.items()}
    click.echo(msgspec.json.encode(shown).decode() if settings.json_output else redacted(text))


def emit_secret(settings: Settings, text: str, **fields: Any) -> None:
    """Print a result that is a secret itself, as it is.

    Args:
        settings: They say which form is asked for.
        text: The form for people.
        **fields: The form for machines, printed as one line of JSON.
    """
    click.echo(msgspec.json.encode(fields).decode() if settings.json_output else text)


def read_value(value: str | None, file: Path | None) -> bytes:
    """Return what is to be written.

    Args:
        value: The argument, None without one.
        file: The file, None without one; ``-`` is standard input, and so is neither an argument nor a file.

    Returns:
        The bytes of the argument, of the file, or of standard input.

    Raises:
        UsageError: Both were given.
    """
    if value is not None and file is not None:
        raise click.UsageError("Give a value or --file, not both.")
    if value is not None:
        return value.encode("utf-8", "surrogateescape")
    if file is None or str(file) == "-":
        return stdin_bytes().read()
    return file.read_bytes()


@contextlib.contextmanager
def json_in_shell_words(value: str | None, file: Path | None) -> Iterator[None]:
    """Say what is wrong with data for a JSON stream, and how JSON is written in a shell.

    Args:
        value: The argument that holds the data, None without one.
        file: The file that holds it, None without one.

    Yields:
        Nothing: the block encodes the data.

    Raises:
        ClickException: The block raised InvalidJSONError.
    """
    try:
        yield
    except InvalidJSONError as error:
        flaw = error.__cause__ or error
        if value is not None:
            quoted = (
                value
                if value and value.isprintable() and len(value) <= _SHORT and "'" not in value
                else "text"
            )
            name = "VALUE"
            hint = "" if set(value) & set("{}[]") else f"; a text needs quotes of both kinds: '\"{quoted}\"'"
        else:
            name = "standard input" if file is None or str(file) == "-" else str(file)
            hint = "; with one message on each line, give --ndjson to append"
        raise click.ClickException(
            f"the stream holds JSON, and {name} is not valid JSON: {flaw}{hint}"
        ) from error


_SHORT = 40  # characters of a value that is shown again


def stdin_bytes() -> BinaryIO:
    """Return standard input as bytes; on a terminal, standard error says that it is read.

    Returns:
        The stream.

    Raises:
        ClickException: The process has no standard input.
    """
    if sys.stdin is None:
        raise click.ClickException("standard input is closed; give a value or --file.")
    if sys.stdin.isatty():
        click.echo("durable-streams: reading from the terminal; Ctrl-D ends the input", err=True)
    return sys.stdin.buffer


def stdout_bytes() -> BinaryIO:
    """Return standard output as bytes.

    Returns:
        The stream.

    Raises:
        ClickException: The process has no standard output.
    """
    if sys.stdout is None:
        raise click.ClickException("standard output is closed; there is nowhere to write to.")
    return sys.stdout.buffer
