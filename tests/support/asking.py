"""An operation that makes one request, played against one answer: no socket."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from durable_streams.protocol.request import Op, Request, Response

T = TypeVar("T")


def ask(op: Op[T], response: Response) -> tuple[Request, T]:
    """Return the request of an operation, and what it makes of the answer."""
    request = next(op)
    try:
        op.send(response)
    except StopIteration as done:
        return request, done.value
    raise AssertionError("it asks a second time")


def json(value: object, status: int = 200) -> Response:
    """Return an answer of JSON."""
    return Response(status, {"content-type": "application/json"}, msgspec.json.encode(value))


def refusal(status: int, code: str, message: str = "no") -> Response:
    """Return an answer that refuses, as servers write it."""
    return json({"error": {"code": code, "message": message}}, status)
