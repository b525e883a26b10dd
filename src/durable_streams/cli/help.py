"""The help of a command: a summary that fits on one line, examples, and its options in groups.

Invariants: `short_help` is never cut; each command has an example that can be typed as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["GUESSES", "Command", "HelpSections"]

_OWN, _SHARED = "Options", "Options of every command"
_EVERYWHERE = frozenset({"--url", "--token", "--context", "--json", "--help"})

GUESSES = {
    "add": "append",
    "cat": "read",
    "copy": "migrate",
    "dir": "ls",
    "follow": "tail",
    "get": "read",
    "health": "check",
    "ingest": "relay",
    "list": "ls",
    "make": "create",
    "new": "create",
    "put": "create",
    "push": "append",
    "remove": "delete",
    "rm": "delete",
    "run": "serve",
    "send": "append",
    "server": "serve",
    "show": "info",
    "start": "serve",
    "stat": "info",
    "watch": "tail",
    "write": "append",
}
"""What other programs call it, and the command that does it here."""


class HelpSections(click.Command):
    """Adds examples and groups of options to a command's help.

    Args:
        *arguments: Those of Click's command.
        examples: Command lines that can be typed as they stand.
        groups: Titles, and the names of the parameters under each; those that no title has come first.
        **settings: Those of Click's command.
    """

    def __init__(
        self,
        *arguments: Any,
        examples: Sequence[str] = (),
        groups: Mapping[str, Sequence[str]] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.examples = tuple(examples)
        self.groups = dict(groups or {})

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the description, and the examples below it.

        Args:
            ctx: The command's context.
            formatter: What the help is written to.
        """
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group.

        Args:
            ctx: The command's context.
            formatter: What the help is written to.
        """
        titles = {name: title for title, names in self.groups.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (_OWN, *self.groups, _SHARED)}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:
                rows[titles.get(parameter.name or "") or self._common(parameter)].append(row)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)

    def _common(self, parameter: click.Parameter) -> str:
        shared = not isinstance(self, click.Group) and not _EVERYWHERE.isdisjoint(parameter.opts)
        return _SHARED if shared else _OWN


class Command(HelpSections):
    """A command that is no group."""
