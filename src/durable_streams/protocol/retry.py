"""When to try again, and after how long: a pure series, apart from any sleeping.

Invariants: a delay is never above ``max_delay`` except where Retry-After asks for more; no arithmetic
overflows, however long an outage lasts; nothing is repeated that could be executed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from durable_streams.errors import FetchError
from durable_streams.protocol.request import Op, Request, Response, T, not_executed, parse_retry_after

__all__ = ["DEFAULT_POLICY", "ENDLESS", "LONG_WAIT", "RetryPolicy", "is_retryable_status", "with_retry"]

ENDLESS = -1
"""``RetryPolicy.max_retries`` for trying for ever."""

LONG_WAIT = 60.0
"""Seconds: a server that asks for a longer pause (Retry-After) is not obeyed in silence."""

_MAX_RETRY_AFTER = 3600.0  # a server cannot park a client for longer than an hour


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently to try again. Delays are in seconds.

    ``max_retries``: attempts after the first (-1: endless). The delay before retry ``n`` is
    ``initial_delay * multiplier ** n``, at most ``max_delay``, shortened at random by up to the fraction
    ``jitter`` (0 to 1). Raises ValueError for settings that make no sense.
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
        """Return the seconds to wait before retry number ``retry`` (from 0).

        ``random`` gives a number in [0, 1); ``retry_after`` is a floor, for which jitter does not apply.
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
    # Of 5xx, these stand for what only a change would mend.
    return status in {408, 425, 429} or (500 <= status < 600 and status not in {501, 505, 507, 508, 511})


def with_retry(op: Op[T], policy: RetryPolicy, random: Callable[[], float]) -> Op[T]:
    """Return the operation with each of its requests repeated where that is safe (protocol sections 3 to 5).

    A request that is not idempotent is repeated only when it certainly was not executed. The driver sleeps
    ``Request.delay`` seconds before it sends.
    """
    try:
        request = next(op)
        while True:
            try:
                response = yield from _attempts(request, policy, random)
            except FetchError as error:
                request = op.throw(error)
            else:
                request = op.send(response)
    except StopIteration as done:
        result: T = done.value
        return result


def _attempts(request: Request, policy: RetryPolicy, random: Callable[[], float]) -> Op[Response]:
    retry, doubt = 0, False
    while True:
        try:
            response = yield request
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
        request = replace(request, delay=wait)
        retry += 1


def _may_repeat(request: Request, response: Response) -> bool:
    if not is_retryable_status(response.status):
        return False
    return request.idempotent or not_executed(response)
