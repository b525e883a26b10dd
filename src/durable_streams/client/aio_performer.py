"""One request, and one operation, over an async transport."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from durable_streams.client.base import Call, log_refusal, random
from durable_streams.client.transports import AsyncExchange, AsyncTransport, async_transport_for
from durable_streams.errors import FetchError
from durable_streams.protocol.request import ERROR_BODY_LIMIT, Op, Request, Response, with_caller
from durable_streams.protocol.retry import with_retry

__all__ = ["open_exchange", "run", "send"]

T = TypeVar("T")


async def _resolved(values: Mapping[str, Any]) -> dict[str, str]:
    resolved = {}
    for name, given in values.items():
        value = given() if callable(given) else given
        resolved[name] = await value if inspect.isawaitable(value) else value
    return resolved


async def open_exchange(request: Request, call: Call) -> AsyncExchange:
    """Send one request with the caller's headers and parameters, resolved now; raises FetchError."""
    transport: AsyncTransport = call.transport or async_transport_for(None)
    if call.headers or call.params:
        request = with_caller(request, await _resolved(call.headers), await _resolved(call.params))
    if request.trickle != call.trickle:
        request = replace(request, trickle=call.trickle)
    return await transport.open(request, call.timeout)


async def send(request: Request, call: Call) -> Response:
    """Send one request and return the whole answer; raises FetchError."""
    exchange = await open_exchange(request, call)
    body, began = bytearray(), None
    try:
        while len(body) < ERROR_BODY_LIMIT and (chunk := await exchange.read()):
            body += chunk
            began = began or time.monotonic()
            if time.monotonic() - began > call.trickle:
                break
    except FetchError:
        pass  # the head has decided already; a body cut off only makes the error's text poorer
    finally:
        await exchange.close()
    response = Response(exchange.status, exchange.headers, bytes(body))
    if "retry-after" in exchange.headers:
        log_refusal(request, response)
    return response


async def run(op: Op[T], call: Call) -> T:
    """Run a one-shot operation to its result, with the call's retries."""
    op = with_retry(op, call.policy, random)
    try:
        request = next(op)
        while True:
            if request.delay:
                await asyncio.sleep(request.delay)
            try:
                response = await send(request, call)
            except FetchError as error:
                request = op.throw(error)
            else:
                request = op.send(response)
    except StopIteration as done:
        result: T = done.value
        return result
