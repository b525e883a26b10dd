"""The entry point: the group of commands, and the one place where failures become exit codes.

Invariants: a failure is one line on standard error, never a traceback; exit code 0 is success, 1 a failure,
2 wrong usage, 130 Ctrl-C; a reader that goes away (``| head -1``) is success. ``DURABLE_STREAMS_DEBUG=1``
shows the traceback of a failure, for reports of bugs.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from durable_streams.cli.help import GUESSES, HelpSections
from durable_streams.cli.options import PROGRAM, Settings, connection_options
from durable_streams.errors import DurableStreamError
from durable_streams.version import __version__

__all__ = ["main"]

INTERRUPTED = 130

# The module and the summary of each command, in the order in which a newcomer meets them.
_COMMANDS = {
    "serve": ("serve", "Run the server, until Ctrl-C or SIGTERM."),
    "create": ("manage", "Create a stream, or find the one that exists."),
    "append": ("append", "Add data to a stream: a value, a file, or lines."),
    "read": ("read", "Write all that a stream holds now."),
    "tail": ("read", "Follow a stream until it is closed, or Ctrl-C."),
    "head": ("manage", "Show a stream's type, end, closure and expiry."),
    "ls": ("inspect", "List streams, all of them or those that begin with PREFIX."),
    "info": ("inspect", "Show everything that is known of a stream."),
    "close": ("manage", "Close a stream for good; it stays readable."),
    "delete": ("manage", "Delete a stream and its data."),
    "fork": ("manage", "Create a stream that goes on from another one."),
    "trim": ("trim", "Let a stream give up its first data."),
    "relay": ("relay", "Store a feed, a file or a pipe in a stream."),
    "subscribe": ("subscriptions", "Create a subscription, or find the one that exists."),
    "subscriptions": ("subscriptions", "List, show or delete subscriptions."),
    "worker": ("subscriptions", "Run a command for each batch of a subscription, until Ctrl-C."),
    "webhook-key": ("webhook_key", "Replace the key that signs webhooks."),
    "migrate": ("migrate", "Copy all streams to another store, unchanged."),
    "backup": ("backup", "Copy a data folder while its server runs."),
    "restore": ("backup", "Make a data folder from a backup."),
    "compact": ("backup", "Give free room of a data folder back."),
    "verify": ("backup", "Check a data folder, and repair it."),
    "ping": ("inspect", "Measure how long a server takes to answer."),
    "check": ("inspect", "Check a server, for monitoring: exit code 0, 1 or 2."),
    "bench": ("bench", "Measure a server under growing load."),
    "top": ("top", "Show the busiest streams, again and again."),
    "key": ("key", "Make, list and revoke the keys of `serve --auth`."),
    "sign": ("sign", "Sign the URL of a stream, for browsers and guests."),
    "demo": ("demo.command", "Show that nothing is lost while everything is killed."),
    "context": ("contexts", "Give servers names, for --context."),
    "completion": ("completion", "Complete commands and options in your shell."),
}


class _ReaderGoneError(Exception):
    """Nobody reads standard output any more. Click would make a failure of the BrokenPipeError itself."""


class _CtrlCError(Exception):
    """Ctrl-C. Click would print an empty line for the KeyboardInterrupt itself, into logs too."""


class LazyGroup(HelpSections, click.Group):
    """A group that imports a command's module when the command is asked for, so that each starts at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        _ = ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, with its summary.

        Args:
            ctx: The group's context.
            cmd_name: The command's name.

        Returns:
            The command, None if there is none of that name.
        """
        _ = ctx
        if cmd_name not in _COMMANDS:
            return None
        module, summary = _COMMANDS[cmd_name]
        found = importlib.import_module(f"durable_streams.cli.{module}")
        command: click.Command = getattr(found, cmd_name.replace("-", "_"))
        command.short_help = summary
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their summaries, without importing any of them."""
        _ = ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what may be meant, without importing any command.

        Args:
            ctx: The group's context.
            incomplete: The beginning of a command's name or of an option.

        Returns:
            The commands and options that begin so.
        """
        names = [
            CompletionItem(name, help=summary)
            for name, (_, summary) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments begin with.

        Args:
            ctx: The group's context.
            args: The arguments from the command's name on.

        Returns:
            The command's name, the command, and its own arguments.

        Raises:
            UsageError: There is no such command; a similar name is suggested.
        """
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            close = (
                [GUESSES[name]] if name in GUESSES else difflib.get_close_matches(name.lower(), _COMMANDS, 1)
            )
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"there is no command {name!r}{hint}", ctx)
        resolved = super().resolve_command(ctx, args)
        gc.freeze()
        gc.enable()
        return resolved

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error
        except KeyboardInterrupt as interrupt:
            raise _CtrlCError from interrupt


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=[
        "durable-streams serve",
        "durable-streams create hello -t text 'Hello, world'",
        "durable-streams tail hello",
    ],
)
@click.version_option(__version__, prog_name=PROGRAM)
@connection_options
@click.pass_context
def group(ctx: click.Context) -> None:
    """Streams over HTTP that survive everything.

    A STREAM is a full URL, or a path under the root given with --url or DURABLE_STREAMS_URL (by default
    http://127.0.0.1:4437/v1/stream, which is what `durable-streams serve` serves).

    Exit codes: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C.
    """
    ctx.ensure_object(Settings)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: Its arguments, without the program's name; None for those of the process.

    Returns:
        The exit code: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C.

    Raises:
        Exception: A failure other than those of wrong usage, where ``DURABLE_STREAMS_DEBUG`` is set.
    """
    # What a command imports is no garbage: looking for some among it would take a sixth of a short command's time.
    gc.disable()
    try:
        code = _run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, _ReaderGoneError):
        _abandon(sys.stdout)
        return 0
    except OSError as error:  # the last bytes did not fit
        _abandon(sys.stdout)
        return _fail(_describe(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if args is None:
            # The process ends: to look through all that was imported once more takes a fifth of a short command's time.
            gc.freeze()
        else:
            gc.enable()
    return code


def _run(args: Sequence[str] | None) -> int:
    debug = bool(os.environ.get("DURABLE_STREAMS_DEBUG"))
    try:
        result = group.main(args=args, prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        return _fail(_usage_message(error), 2)
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt, _CtrlCError):
        if sys.stderr is not None and sys.stderr.isatty():
            click.echo(err=True)  # below the ^C
        return INTERRUPTED
    except (BrokenPipeError, _ReaderGoneError):
        raise
    except Exception as error:
        if debug:
            raise
        return _fail(_describe(error))
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int = 1) -> int:
    with contextlib.suppress(OSError):
        click.echo(f"{PROGRAM}: {' '.join(message.split())}", err=True)
    return code


def _usage_message(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx else PROGRAM
    message = error.format_message()
    if message.endswith("?"):
        return f"{message} '{command} --help' lists what there is."
    return f"{message.rstrip('.')}; see '{command} --help'."


def _describe(error: Exception) -> str:
    """Return one sentence for any failure: what the client says, what the system says, or the bug itself."""
    if isinstance(error, (DurableStreamError, ValueError)) and str(error):
        return _for_the_shell(str(error))
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.ENOSPC and error.filename is None:
            return f"cannot write the output: {reason}."
        return f"{error.filename}: {reason}." if error.filename is not None else f"{reason}."
    return f"internal error: {type(error).__name__}: {error} (DURABLE_STREAMS_DEBUG=1 shows the traceback)"


def _for_the_shell(message: str) -> str:
    """Return a message of the Python API with the command line's own names."""
    for python, shell in _SHELL_NAMES:
        message = message.replace(python, shell)
    return message


_SHELL_NAMES = (
    ("live=sse", "--live sse"),
    ("live=True", "--live auto"),
    ("for others pass a client of your own as client=.", "others need a program of your own."),
)


def _abandon(stream: object) -> None:
    # What is left in the buffer has no reader: without this the interpreter complains at exit.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())  # type: ignore[attr-defined]
        os.close(devnull)
