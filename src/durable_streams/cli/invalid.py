"""``--on-invalid``: what becomes of messages that are not valid JSON, in every command that meets some."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import click

__all__ = ["LeftOut", "OnInvalid", "on_invalid_option"]

F = TypeVar("F", bound=Callable[..., Any])

OnInvalid = Literal["raise", "skip"]


def on_invalid_option(text: str, default: OnInvalid | None) -> Callable[[F], F]:
    """Return the option ``--on-invalid``.

    Args:
        text: Its help.
        default: Its default; None leaves the choice to the command.

    Returns:
        A decorator for a command.
    """
    return click.option(
        "--on-invalid",
        type=click.Choice(["raise", "skip"]),
        default=default,
        show_default=default is not None,
        help=text,
    )


class LeftOut:
    """Says on standard error what is left out: the first message at once, and at the end how many there were."""

    def __init__(self, on_invalid: OnInvalid) -> None:
        self.count = 0
        self.on_invalid: OnInvalid | Callable[[bytes, Exception], None] = (
            self._take if on_invalid == "skip" else on_invalid
        )

    def _take(self, _raw: bytes, error: Exception) -> None:
        self.count += 1
        if self.count == 1:
            click.echo(f"durable-streams: left out: {error}", err=True)

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Say at the end of the block how many there were, if there were more than the one that was named."""
        try:
            yield
        finally:
            if self.count > 1:
                click.echo(f"durable-streams: {self.count:,} invalid messages were left out", err=True)
