"""Waiting for a server that is away or failing for longer than the quick retries of a request take."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol.retry import RetryPolicy, is_retryable_status

__all__ = ["may_pass", "patient"]

T = TypeVar("T")

_PAUSES = RetryPolicy(max_retries=-1, initial_delay=0.5, max_delay=5.0)
_LASTING = frozenset({"TLS", "PROXY", "CLIENT_CLOSED", "REQUEST_FAILED", "INVALID"})
"""Codes of failures that waiting does not change."""


def patient(
    call: Callable[[], T],
    seconds: float,
    say: Callable[[str], object],
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """Return what a request gives, repeated while the server is away or failing.

    Args:
        call: Makes the request, with the few quick retries that every request has.
        seconds: How long to try, in seconds; infinity has no end.
        say: Is given one sentence, once: that it waits, how long, and why.
        pause: Sleeps for this many seconds; returns something true where the wait is to be given up.

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
            left = seconds - (time.monotonic() - began)
            if not may_pass(error) or left <= 0:
                raise
            if not failures:
                span = "until it answers" if left == float("inf") else f"for up to {left:.0f} s"
                say(f"{str(error).rstrip('.')}; trying again {span}")
            if pause(min(_PAUSES.delay(failures, random.random, error.retry_after), left)):
                raise
            failures += 1


def may_pass(error: DurableStreamError) -> bool:
    """Whether waiting may change this failure."""
    if isinstance(error, FetchError):
        return error.code not in _LASTING
    return error.status is not None and is_retryable_status(error.status)
