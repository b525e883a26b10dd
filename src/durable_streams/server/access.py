"""Who may do what: every request for a stream or a resource comes by here, before anything of it is done.

Invariants: what no grant allows is refused; the answer to a refusal does not depend on whether the stream exists.

| request | needs |
| --- | --- |
| GET, HEAD | read |
| POST, also one that closes the stream | append |
| PUT | create; with data or closed also append; of a fork also read on its source |
| DELETE | delete |
| POST below ``__ds/streams/``: a trim | trim |
| the same: another retention | admin on the stream |
| ``__ds/subscriptions``, see server/subscriptions/grants.py | subscribe, and more |
| GET of ``__ds/producers/PATH`` | read |
| GET of ``__ds/follow`` | read on each stream; one that is refused is missing in the answer, which says why |

Without an ``authorize`` there is no `Access`, and a request costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

from durable_streams.protocol import headers as names
from durable_streams.protocol import rules
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.grants import Grant, Operation
from durable_streams.server import parse
from durable_streams.server.http import ServerRequest, ServerResponse
from durable_streams.server.quotas import LiveRead, Quotas

__all__ = [
    "Access",
    "Authorize",
    "Handler",
    "RefusedError",
    "forbidden",
    "live_seconds",
    "operation_on_resource",
    "own_producer",
    "unauthorized",
]

Authorize = Callable[[Operation, str, ServerRequest], Awaitable[Grant | None]]
"""Returns what the caller of a request may do, None if it is not known who that is.

It is called with the operation, the path below the root of the streams, and the request (``request.header(name)``,
``request.scope`` of the framework). What it returns is checked against the operation and the path.
"""

Handler = Callable[[ServerRequest, str], Awaitable[ServerResponse]]
"""Answers a request for a path."""

_OPERATIONS: dict[str, Operation] = {
    "GET": "read",
    "HEAD": "read",
    "POST": "append",
    "PUT": "create",
    "DELETE": "delete",
}
_VARY = ("vary", "authorization, cookie")  # for the cache of a browser that has several users
_LIVE_READ = 60.0  # seconds: how long the end of a grant may go unnoticed
_OWN_TOKENS = ("callback", "ack", "release")  # of a subscription: they carry the token of a wake
_CHECKED_THERE = frozenset({"list", "subscribe"})  # by what answers them, for each stream
_PUBLIC = frozenset({"jwks.json"})  # keys to verify with
_ASKS_ITSELF = frozenset({"follow"})  # for each stream by itself


def operation_on_resource(method: str, path: str) -> Operation | None:
    """Return what a request for a path below ``__ds/`` needs; None for what is open to all, or asks by itself."""
    name, _, rest = path.partition("/")
    if name in _PUBLIC or name in _ASKS_ITSELF:
        return None
    if name == "streams":
        if method != "POST":
            return "list"
        # Another policy is more than a trim: it goes on to hold, and one without limits lets the stream grow.
        return "admin" if rest.rpartition("/")[2] == "retention" else "trim"
    if name == "producers":
        return "read"
    if name == "subscriptions":
        return None if method == "POST" and rest.partition("/")[2] in _OWN_TOKENS else "subscribe"
    return "admin"


class RefusedError(Rejection):
    """A request that its caller may not make, or whose caller is not known."""


class Access:
    """Asks ``authorize`` about requests, and refuses those that no grant allows.

    Args:
        authorize: Who the caller is, and what it may do.
        quotas: How much callers may do, None for no limits.
        hides: Whether a stream that one may neither read nor list is answered like one that does not exist.
        now: The time in seconds since 1970.
    """

    def __init__(
        self,
        authorize: Authorize,
        *,
        quotas: Quotas | None = None,
        hides: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._authorize = authorize
        self._quotas = quotas
        self._hides = hides
        self._now = now

    def guard(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Return handlers by the methods of a stream, each behind what its method needs; OPTIONS needs nothing."""
        return {
            method: self._guarded(_OPERATIONS[method], handler)
            for method, handler in handlers.items()
            if method != "OPTIONS"
        }

    def guard_resources(self, handler: Handler) -> Handler:
        """Return the handler of what is below ``__ds/``, behind what each resource needs."""

        async def guarded(request: ServerRequest, path: str) -> ServerResponse:
            await self._admit_to_resource(path, request)
            if self._quotas is not None and request.grant is not None:
                self._quotas.admit(request.grant.subject)
            return await handler(request, path)

        return guarded

    def _guarded(self, operation: Operation, handler: Handler) -> Handler:
        authorize, now, quotas = self._authorize, self._now, self._quotas

        async def guarded(request: ServerRequest, path: str) -> ServerResponse:
            # As `admit`: each coroutine in between costs every append.
            grant = await authorize(operation, path, request)
            if (
                grant is None
                or (grant.expires is not None and grant.expires <= now())
                or not grant.allows(operation, path)
            ):
                raise self._refused(request, grant, operation, path)
            request.grant = grant
            if quotas is None:
                response = await handler(request, path)
            else:
                response = await self._counted(quotas, grant, handler, request, path)
            response.headers.append(_VARY)
            return response

        return guarded

    async def _counted(
        self, quotas: Quotas, grant: Grant, handler: Handler, request: ServerRequest, path: str
    ) -> ServerResponse:
        quotas.admit(grant.subject)
        if request.method != "GET" or names.QUERY_LIVE not in parse.query(request.query):
            return await handler(request, path)
        read = quotas.begin_live_read(grant.subject)
        try:
            return read.carried_by(await handler(request, path))
        except BaseException:
            read.release()
            raise

    def begin_live_read(self, request: ServerRequest) -> LiveRead | None:
        """Count a live read that was admitted by `admit`, and its request; raises the 429 of one that is too much."""
        if self._quotas is None or request.grant is None:
            return None
        self._quotas.admit(request.grant.subject)
        return self._quotas.begin_live_read(request.grant.subject)

    def count(self, request: ServerRequest, size: int) -> None:
        """Count the bytes of a request's body."""
        if self._quotas is not None and request.grant is not None:
            self._quotas.count(request.grant.subject, size)

    async def admit(self, operation: Operation, path: str, request: ServerRequest) -> None:
        """Let an operation on a stream pass, and note the grant in the request; raises the 401, 403 or 404."""
        request.grant = grant = await self._authorize(operation, path, request)
        if grant is None or self._has_ended(grant) or not grant.allows(operation, path):
            raise self._refused(request, grant, operation, path)

    async def _admit_to_resource(self, path: str, request: ServerRequest) -> None:
        """Let a request for a path below ``__ds/`` pass; raises the 401 or 403.

        A list shows what ``request.grant`` allows, and a subscription checks it against its own streams, so that they
        need the operation somewhere. Anything else may concern every stream, and needs it everywhere.
        """
        operation = operation_on_resource(request.method, path)
        if operation is None:
            return
        name, _, rest = path.partition("/")
        if name == "streams" and operation != "list":
            await self.admit(operation, rest.rpartition("/")[0], request)
            return
        if name == "producers":
            await self.admit(operation, rest, request)
            return
        request.grant = grant = await self._authorize(operation, path, request)
        if grant is None or self._has_ended(grant):
            raise self._refused(request, grant, operation, path)
        if not (
            grant.allows_somewhere(operation)
            if operation in _CHECKED_THERE
            else grant.allows_everywhere(operation)
        ):
            raise forbidden(operation, "**")

    def _has_ended(self, grant: Grant) -> bool:
        return grant.expires is not None and grant.expires <= self._now()

    def _refused(
        self, request: ServerRequest, grant: Grant | None, operation: Operation, path: str
    ) -> Rejection:
        request.grant = grant  # for the log
        if grant is None:
            return unauthorized("this server wants credentials: send Authorization: Bearer TOKEN")
        if self._has_ended(grant):
            return unauthorized("these credentials have expired: get others")
        if self._hides and not (grant.allows("read", path) or grant.allows("list", path)):
            missing = rules.not_found()
            return RefusedError(missing.status, missing.code, missing.message, missing.headers)
        return forbidden(operation, path)


def live_seconds(request: ServerRequest, most: float) -> float:
    """Return for how many of ``most`` seconds a live read may go on before its caller has to ask again."""
    if request.grant is None:
        return most
    expires = request.grant.expires
    return (
        min(most, _LIVE_READ) if expires is None else min(most, _LIVE_READ, max(0.0, expires - time.time()))
    )


def own_producer(grant: Grant, producer_id: str) -> str:
    """Return the name under which the store knows a producer that belongs to its caller (``bind_producers``).

    An id that comes in a header is ASCII text, so that no caller can name the producer of another.
    """
    return f"{grant.subject}→{producer_id}"


def unauthorized(message: str) -> Rejection:
    """Return the 401 of a request whose caller is not known."""
    return RefusedError(401, "UNAUTHORIZED", message, {"www-authenticate": "Bearer"})


def forbidden(operation: Operation, path: str) -> Rejection:
    """Return the 403 of an operation on a path, or a pattern, that no grant allows."""
    return RefusedError(
        403, "FORBIDDEN", f"these credentials do not allow {operation} on {path[:80]}: ask for a grant of it"
    )
