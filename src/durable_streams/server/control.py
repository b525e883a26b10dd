"""What lives under ``__ds``, beside the streams (protocol section 8): resources, by the first segment of their path.

A resource is a function of a request and the rest of its path. It is added at the start, with what it needs:

    control.add("jwks.json", {"GET": keys.read})
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.headers import RESERVED
from durable_streams.protocol.jsonparser import MALFORMED
from durable_streams.server.http import BASE_HEADERS, Headers, ServerRequest, ServerResponse

__all__ = [
    "Control",
    "Resource",
    "error_response",
    "invalid",
    "json_body",
    "json_response",
    "method_not_allowed",
]

T = TypeVar("T")

Resource = Callable[[ServerRequest, str], Awaitable[ServerResponse]]

_MAX_BODY = 1 << 20  # bytes of a request that is no append
_encode = msgspec.json.Encoder().encode


class Control:
    """The resources of one server."""

    def __init__(self) -> None:
        self._resources: dict[str, dict[str, Resource]] = {}

    def add(self, name: str, methods: Mapping[str, Resource]) -> None:
        """Serve a resource, or more methods of one.

        Args:
            name: The first segment of its paths, below ``__ds/``.
            methods: What answers each method; HEAD is answered by what answers GET.
        """
        self._resources.setdefault(name, {}).update(methods)

    def plus(self, name: str, methods: Mapping[str, Resource]) -> Control:
        """Return the same resources and one more, for some of the callers.

        Args:
            name: As for `add`.
            methods: As for `add`.
        """
        more = Control()
        more._resources = {**self._resources, name: dict(methods)}
        return more

    async def answer(self, request: ServerRequest, path: str) -> ServerResponse:
        """Answer a request for a path below ``__ds/``; raises the 404 and the 405 of what is not there."""
        name, _, rest = path.partition("/")
        methods = self._resources.get(name)
        if methods is None:
            raise Rejection(404, "NOT_FOUND", f"there is nothing under {RESERVED}/{name[:80]}")
        resource = methods.get("GET" if request.method == "HEAD" else request.method)
        if resource is None:
            allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])
            raise method_not_allowed(allowed)
        return await resource(request, rest)


def method_not_allowed(allowed: str) -> Rejection:
    """Return the 405 of a resource that has the methods ``allowed``."""
    return Rejection(
        405,
        "METHOD_NOT_ALLOWED",
        f"this method is not available here, these are: {allowed}",
        {"allow": allowed},
    )


def json_response(status: int, value: object, headers: Headers | None = None) -> ServerResponse:
    """Return an answer that no cache keeps, unless ``headers`` say otherwise."""
    said = [("cache-control", "no-store")] if headers is None else headers
    return ServerResponse(
        status, [*BASE_HEADERS, ("content-type", "application/json"), *said], _encode(value)
    )


def error_response(status: int, code: str, message: str, extra: Headers) -> ServerResponse:
    """Return an error with its small JSON body (protocol section 7)."""
    value = {"error": {"code": code, "message": message}}
    return json_response(status, value, [("cache-control", "no-store"), *extra])


async def json_body(request: ServerRequest, form: type[T]) -> T:
    """Return a request's JSON body as ``form``; raises the 400 of anything else, with the place of the mistake."""
    body = await request.body(_MAX_BODY)
    try:
        return msgspec.json.decode(body, type=form)
    except MALFORMED as error:
        raise invalid(f"the body is not the JSON that belongs here: {error}") from None


def invalid(message: str) -> Rejection:
    """Return the 400 of a request under ``__ds``."""
    return Rejection(400, "INVALID_REQUEST", message)
