"""When to retry, and after how long: a pure series, apart from any sleeping.

Invariants: a delay is never above ``max_delay`` except where Retry-After asks for more; no arithmetic
overflows, however long an outage lasts; nothing is repeated that could be executed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from durable_streams.errors import FetchError
from durable_streams.protocol.effects import Machine, Pause
from durable_streams.protocol.exchange import fetch
from durable_streams.protocol.request import (
    TRICKLE_TIMEOUT,
    Op,
    Request,
    Response,
    T,
    not_executed,
    parse_retry_after,
)

__all__ = ["DEFAULT_POLICY", "ENDLESS", "LONG_WAIT", "RetryPolicy", "is_retryable_status", "with_retry"]

ENDLESS = -1
"""``RetryPolicy.max_retries`` for retrying forever."""

LONG_WAIT = 60.0
"""Seconds: a longer pause that a server asks for (Retry-After) is logged, and ``on_error`` is called with it."""

_MAX_RETRY_AFTER = 3600.0  # a server cannot park a client for longer than an hour


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to retry, and after which delays.

    The delay before retry ``n``, counted from 0, is ``initial_delay * multiplier ** n``, at most ``max_delay``.

    Args:
        max_retries: Attempts after the first; -1 retries forever.
        initial_delay: Seconds before the first retry.
        max_delay: The longest delay, in seconds; only Retry-After may ask for more.
        multiplier: The factor from one delay to the next, at least 1.
        jitter: The fraction, from 0 to 1, by which a delay is at most shortened at random.

    Raises:
        ValueError: A setting is out of its range.

    """

    max_retries: int = 5
    initial_delay: float = 0.1
    max_delay: float = 10.0
    multiplier: float = 2.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if (
            isinstance(self.max_retries, bool)
            or not isinstance(self.max_retries, int)
            or self.max_retries < -1
        ):
            raise ValueError(f"max_retries must be -1 (endless) or a count from 0, not {self.max_retries!r}.")
        _check("initial_delay", self.initial_delay, 0.0)
        _check("max_delay", self.max_delay, self.initial_delay)
        _check("multiplier", self.multiplier, 1.0)
        _check("jitter", self.jitter, 0.0)
        if self.jitter > 1:
            raise ValueError(f"jitter must be a fraction between 0 and 1, not {self.jitter!r}.")

    def allows(self, retry: int) -> bool:
        """Whether retry number ``retry`` (from 0) may still be made."""
        return self.max_retries == ENDLESS or retry < self.max_retries

    def delay(self, retry: int, random: Callable[[], float], retry_after: float | None = None) -> float:
        """Return the seconds to wait before a retry.

        Args:
            retry: The number of the retry, from 0.
            random: Gives numbers in [0, 1) for jitter.
            retry_after: The least delay in seconds, to which jitter does not apply; at most an hour counts.

        """
        if self.multiplier == 1 or self.initial_delay == 0:
            base = self.initial_delay
        else:
            # Past this exponent the maximum holds anyway, and a float power would overflow.
            ceiling = math.log(self.max_delay / self.initial_delay, self.multiplier)
            base = self.max_delay if retry >= ceiling else self.initial_delay * self.multiplier**retry
        delay = min(base, self.max_delay) * (1 - self.jitter * random())
        return max(delay, min(retry_after, _MAX_RETRY_AFTER)) if retry_after is not None else delay


def _check(name: str, value: float, least: float) -> None:
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{name} must be a finite number of at least {least:g}, not {value!r}.")


DEFAULT_POLICY = RetryPolicy()


def is_retryable_status(status: int) -> bool:
    """Whether the same request may succeed later: 408, 425, 429 and most of 5xx."""
    # The excluded 5xx stay true until something is changed: a retry cannot succeed.
    return status in {408, 425, 429} or (500 <= status < 600 and status not in {501, 505, 507, 508, 511})


def with_retry(
    op: Op[T],
    policy: RetryPolicy,
    random: Callable[[], float],
    clock: Callable[[], float],
    trickle: float = TRICKLE_TIMEOUT,
) -> Machine[T]:
    """Return the machine that runs an operation, each of its requests repeated where that is safe.

    A request that is not idempotent is repeated only when it certainly was not executed (protocol sections 3 to 5).

    Args:
        op: The operation.
        policy: How often a request is repeated, and after which pauses.
        random: Gives numbers in [0, 1) for jitter.
        clock: Gives seconds of any steady clock.
        trickle: Seconds that the body of an answer may take.

    """
    try:
        request = next(op)
        while True:
            try:
                response = yield from _attempts(
                    request, policy, random, partial(fetch, clock=clock, trickle=trickle)
                )
            except FetchError as error:
                request = op.throw(error)
            else:
                request = op.send(response)
    except StopIteration as done:
        result: T = done.value
        return result


def _attempts(
    request: Request,
    policy: RetryPolicy,
    random: Callable[[], float],
    fetch: Callable[[Request], Machine[Response]],
) -> Machine[Response]:
    retry, doubt = 0, False
    while True:
        try:
            response = yield from fetch(request)
        except FetchError as error:
            if not policy.allows(retry) or (error.may_have_been_sent and not request.idempotent):
                raise
            doubt = doubt or error.may_have_been_sent
            wait = policy.delay(retry, random)
        else:
            if not (policy.allows(retry) and _may_repeat(request, response)):
                return replace(response, after_doubt=True) if doubt else response
            doubt = doubt or (response.status >= 500 and not not_executed(response))
            wait = policy.delay(retry, random, parse_retry_after(response.headers))
        yield Pause(wait)
        retry += 1


def _may_repeat(request: Request, response: Response) -> bool:
    if not is_retryable_status(response.status):
        return False
    return request.idempotent or not_executed(response)
