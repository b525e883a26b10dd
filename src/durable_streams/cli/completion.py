"""``completion``: complete commands and options in bash, zsh and fish."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from durable_streams.cli.help import Command
from durable_streams.cli.options import PROGRAM, Settings, emit, json_option

__all__ = ["completion"]

_SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_DURABLE_STREAMS_COMPLETE"  # where Click looks, by the name of the program
_ZSH_HEAD = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
"""


@click.command(
    cls=Command,
    examples=["durable-streams completion --install", "durable-streams completion zsh"],
)
@click.argument("shell", required=False, type=click.Choice(_SHELLS))
@click.option(
    "--install", is_flag=True, help="Put it where the shell finds it; again to bring it up to date."
)
@json_option
@click.pass_context
def completion(ctx: click.Context, /, *, shell: str | None, install: bool) -> None:
    """Print the completion script of SHELL, or install it; without SHELL for the one in $SHELL.

    --install writes the script into a file of its own. For bash and zsh it also adds one line to ~/.bashrc or ~/.zshrc,
    unless it is there. New shells complete then.
    """
    chosen = shell or _current()
    script = _script(ctx.find_root().command, chosen)
    if not install:
        click.echo(script)
        return
    path, startup = _places(chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script + "\n", encoding="utf-8")
    if startup is not None:
        _add_line(startup, f'[ ! -r "{path}" ] || . "{path}"  # completion of {PROGRAM}')
    also = f", and {startup} reads it" if startup is not None else ""
    emit(
        ctx.ensure_object(Settings),
        f"wrote {path}{also}; a new {chosen} completes {PROGRAM}",
        shell=chosen,
        path=str(path),
        startup=None if startup is None else str(startup),
    )


def _current() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in _SHELLS:
        raise click.UsageError(f"which shell is it? Give one of {', '.join(_SHELLS)}")
    return name


def _script(command: click.Command, shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - for the type checker: Click has all three
    script = kind(command, {}, PROGRAM, _VARIABLE).source().strip()
    if shell != "zsh":
        return script
    first, _, rest = script.partition("\n")  # "#compdef durable-streams" has to be the first line
    return f"{first}\n{_ZSH_HEAD}{rest}"


def _places(shell: str) -> tuple[Path, Path | None]:
    """Return the script's file, and the shell's own file that has to read it."""
    home = Path.home()
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return config / "fish" / "completions" / f"{PROGRAM}.fish", None
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    startup = home / ".bashrc" if shell == "bash" else Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
    return data / PROGRAM / f"completion.{shell}", startup


def _add_line(file: Path, line: str) -> None:
    before = file.read_text(encoding="utf-8", errors="surrogateescape") if file.exists() else ""
    if line in before.splitlines():
        return
    with file.open("a", encoding="utf-8") as end:
        end.write(("" if not before or before.endswith("\n") else "\n") + line + "\n")
