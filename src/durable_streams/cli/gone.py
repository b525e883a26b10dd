"""``--on-gone``: what a command does where the stream has given up the data at its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import click

from durable_streams.errors import RetentionGoneError

__all__ = ["OnGone", "on_gone_option", "reader_option"]

F = TypeVar("F", bound=Callable[..., Any])
OnGone = Literal["error", "earliest"]


def on_gone_option(function: F) -> F:
    """Add the option ``--on-gone``."""
    return click.option(
        "--on-gone",
        type=click.Choice(["error", "earliest"]),
        default="error",
        show_default=True,
        help="Where the stream has given up the data at this place (retention): error ends with an error, earliest "
        "goes on from where the stream begins now, and says so on standard error.",
    )(function)


def reader_option(on_gone: OnGone) -> Literal["raise"] | Callable[[RetentionGoneError], None]:
    """Return the ``on_gone`` of a read.

    Args:
        on_gone: The value of the option.
    """
    return "raise" if on_gone == "error" else _say


def _say(error: RetentionGoneError) -> None:
    click.echo(f"data were given up before they were read: going on from {error.earliest}", err=True)
