"""One whole exchange as a machine: a request out, its answer in, as one-shot operations and the producer need it."""

from __future__ import annotations

from collections.abc import Callable

from durable_streams.errors import FetchError
from durable_streams.protocol.effects import READ, RELEASE, Call, Head, Machine, Send
from durable_streams.protocol.request import ERROR_BODY_LIMIT, Request, Response

__all__ = ["fetch", "read_short_body"]


def fetch(request: Request, clock: Callable[[], float], trickle: float) -> Machine[Response]:
    """Return the machine that sends one request and returns the whole answer.

    It calls ``on_refusal(request, response)`` for an answer that asks for a pause, and raises the FetchError of a
    request that gets no answer.

    Args:
        request: The request.
        clock: Gives seconds of any steady clock.
        trickle: Seconds after which no more of the body is read, complete or not.

    """
    head: Head = yield Send(request)
    body = yield from read_short_body(clock, trickle)
    yield RELEASE
    response = Response(head.status, head.headers, body)
    if "retry-after" in head.headers:
        yield Call("on_refusal", (request, response))
    return response


def read_short_body(clock: Callable[[], float], trickle: float) -> Machine[bytes]:
    """Return the machine that reads the open answer's body where the head has decided already.

    A body that is cut, too long or too slow only makes an error's text poorer: it is no failure.

    Args:
        clock: Gives seconds of any steady clock.
        trickle: Seconds after which no more is read.

    """
    body, began = bytearray(), clock()
    while len(body) < ERROR_BODY_LIMIT and clock() - began <= trickle:
        try:
            chunk: bytes = yield READ
        except FetchError:
            break
        if not chunk:
            break
        body += chunk
    return bytes(body)
