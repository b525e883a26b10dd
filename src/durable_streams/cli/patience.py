"""How long a command waits for a server that is away when it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from durable_streams.client.patience import patient as _patient

__all__ = ["patient"]

T = TypeVar("T")


def patient(call: Callable[[], T], seconds: float) -> T:
    """Return what a request gives, repeated while the server is away or failing.

    One line on standard error says that it waits, and why.

    Args:
        call: Makes the request, with the few quick retries that every request has.
        seconds: How long to try, in seconds; infinity has no end.

    Returns:
        The result of the first call that succeeds.

    Raises:
        DurableStreamError: The last failure, or one that waiting does not change.
    """
    return _patient(call, seconds, lambda text: click.echo(f"durable-streams: {text}", err=True))
