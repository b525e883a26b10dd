"""How long a command waits for a server that is away when it starts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import click

from durable_streams import DurableStreamError, FetchError, RetryPolicy
from durable_streams.protocol.retry import is_retryable_status

__all__ = ["patient"]

T = TypeVar("T")

_PAUSES = RetryPolicy(max_retries=-1, initial_delay=0.5, max_delay=5.0)
_LASTING = frozenset({"TLS", "PROXY", "CLIENT_CLOSED", "REQUEST_FAILED", "INVALID"})
"""Codes of failures that waiting does not change."""


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
    began, failures = time.monotonic(), 0
    while True:
        try:
            return call()
        except DurableStreamError as error:
            pause = _PAUSES.delay(failures, random.random, error.retry_after)
            left = seconds - (time.monotonic() - began)
            if not _may_pass(error) or left <= 0:
                raise
            if not failures:
                span = "until it answers" if left == float("inf") else f"for up to {left:.0f} s"
                click.echo(f"durable-streams: {str(error).rstrip('.')}; trying again {span}", err=True)
            failures += 1
            time.sleep(min(pause, left))


def _may_pass(error: DurableStreamError) -> bool:
    if isinstance(error, FetchError):
        return error.code not in _LASTING
    return error.status is not None and is_retryable_status(error.status)
