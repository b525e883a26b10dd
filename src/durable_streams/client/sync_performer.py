"""One request, and one operation, over a sync transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from durable_streams.client.base import Call, log_refusal, random
from durable_streams.client.transports import Exchange, Interrupt, Transport, transport_for
from durable_streams.errors import FetchError
from durable_streams.protocol.request import ERROR_BODY_LIMIT, Op, Request, Response, with_caller
from durable_streams.protocol.retry import with_retry

__all__ = ["open_exchange", "run", "send"]

T = TypeVar("T")


def _resolved(values: Mapping[str, str | Callable[[], str]]) -> dict[str, str]:
    return {name: value() if callable(value) else value for name, value in values.items()}


def open_exchange(request: Request, call: Call, interrupt: Interrupt) -> Exchange:
    """Send one request with the caller's headers and parameters, resolved now; raises FetchError."""
    transport: Transport = call.transport or transport_for(None)
    if call.headers or call.params:
        request = with_caller(request, _resolved(call.headers), _resolved(call.params))
    if request.trickle != call.trickle:
        request = replace(request, trickle=call.trickle)
    return transport.open(request, interrupt, call.timeout)


def send(request: Request, call: Call, interrupt: Interrupt) -> Response:
    """Send one request and return the whole answer; raises FetchError."""
    exchange = open_exchange(request, call, interrupt)
    body, began = bytearray(), None
    try:
        while len(body) < ERROR_BODY_LIMIT and (chunk := exchange.read()):
            body += chunk
            began = began or time.monotonic()
            if time.monotonic() - began > call.trickle:
                break
    except FetchError:
        pass  # the head has decided already; a body cut off only makes the error's text poorer
    finally:
        exchange.close()
    response = Response(exchange.status, exchange.headers, bytes(body))
    if "retry-after" in exchange.headers:
        log_refusal(request, response)
    return response


def run(op: Op[T], call: Call) -> T:
    """Run a one-shot operation to its result, with the call's retries."""
    interrupt = Interrupt()
    op = with_retry(op, call.policy, random)
    try:
        request = next(op)
        while True:
            interrupt.pause(request.delay)
            try:
                response = send(request, call, interrupt)
            except FetchError as error:
                request = op.throw(error)
            else:
                request = op.send(response)
    except StopIteration as done:
        result: T = done.value
        return result
