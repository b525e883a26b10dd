"""The application: a request in, a response out. Adapters carry it over RSGI and ASGI."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.headers import RESERVED
from durable_streams.protocol.request import OUTCOME_UNKNOWN
from durable_streams.server import parse
from durable_streams.server.access import Access, Authorize, Handler, RefusedError
from durable_streams.server.addresses import Addresses
from durable_streams.server.authentication import authorize_of, limits_of
from durable_streams.server.bodies import Bodies
from durable_streams.server.browsers import Browsers
from durable_streams.server.budget import MemoryBudget
from durable_streams.server.config import ServerConfig
from durable_streams.server.control import (
    Control,
    error_response,
    json_response,
    method_not_allowed,
)
from durable_streams.server.counts import Counts
from durable_streams.server.follow import Follow
from durable_streams.server.handlers import Handlers
from durable_streams.server.http import (
    BASE_HEADERS,
    CLOSE,
    METHODS,
    STREAM_ROOT,
    Headers,
    ServerRequest,
    ServerResponse,
)
from durable_streams.server.inspector import Inspector
from durable_streams.server.listing import Listing
from durable_streams.server.live import LiveReads
from durable_streams.server.metrics import Metrics
from durable_streams.server.outlets import Outlets
from durable_streams.server.producers import Producers
from durable_streams.server.quotas import Quotas
from durable_streams.server.ranges import Ranges
from durable_streams.server.request_log import logged
from durable_streams.server.retention import RetentionActions, RetentionRules
from durable_streams.server.space import Space, Writes
from durable_streams.server.stats import Stats
from durable_streams.server.subscriptions.resources import Subscriptions
from durable_streams.server.tracing import traced
from durable_streams.stores.base import Store, StoreError, StoreFullError, StoreUncertainError
from durable_streams.stores.subscriptions import KeepsSubscriptions

__all__ = ["App"]

_HEALTH = "/health"
_LIVENESS = "/health/live"
_READINESS = "/health/ready"
_HEALTH_PATHS = frozenset({_HEALTH, _LIVENESS, _READINESS})
_HEALTH_METHODS = "GET, HEAD, OPTIONS"
_RETRY_AFTER = "1"  # seconds
_WARNING_INTERVAL = 60.0  # seconds between equal warnings
_WARNINGS = 16  # different ones that are remembered
_log = logging.getLogger("durable_streams.server")


class _Routes(NamedTuple):
    """What answers the methods of streams, and what is below ``__ds/``."""

    streams: dict[str, Handler]
    resources: Handler

    @classmethod
    def of(cls, handlers: Handlers, control: Control, access: Access | None) -> _Routes:
        """Return the routes to some handlers, behind what ``access`` asks for."""
        streams: dict[str, Handler] = {
            "POST": handlers.append,
            "GET": handlers.read,
            "PUT": handlers.create,
            "HEAD": handlers.head,
            "DELETE": handlers.delete,
            "OPTIONS": _options,
        }
        if access is None:
            return cls(streams, control.answer)
        return cls(streams | access.guard(streams), access.guard_resources(control.answer))


class App:
    """Serves the streams of one store.

    ``local``: on a loopback address, where every web page can ask. ``authorize``: who may do what, by default as the
    configuration says. Raises ServerStartError where that names a file that cannot be used.
    """

    def __init__(
        self,
        store: Store,
        config: ServerConfig | None = None,
        *,
        local: bool = False,
        authorize: Authorize | None = None,
    ) -> None:
        self.store = store
        self.local = local
        self.draining = False
        """Whether the server ends soon: it answers everything, and says that it is not ready."""
        self.config = config or ServerConfig()
        authorize = authorize_of(self.config, authorize)
        if authorize is not None:  # what one caller may read, no shared cache may give to another
            self.config = replace(self.config, cache="private")
        # Half for what is read ahead. What is handed over counts twice: the HTTP server's copies take about that.
        budget = MemoryBudget(self.config.send_budget // 2)
        self.bodies = Bodies(self.config.all_bodies, self.config.body_timeout)
        self.outlets = Outlets(self.config.send_budget // 4, budget, self.config.send_timeout)
        ranges = Ranges(store, budget, self.config.chunk_size)
        self.live = LiveReads(store, self.config, ranges)
        addresses = Addresses(self.config)
        self._browsers = Browsers(self.config, addresses, local=local)
        limits = limits_of(self.config, authorize)
        quotas = None if limits is None else Quotas(limits)
        self._space = None if limits is None else Space(limits, store)
        access = None
        if authorize is not None:
            access = Access(authorize, quotas=quotas, hides=self.config.hide_forbidden)
        self.follow = Follow(store, self.config, ranges)
        self.control = Control()
        self.subscriptions: Subscriptions | None = None
        if isinstance(store, KeepsSubscriptions) and store.subscriptions is not None:
            self.subscriptions = Subscriptions(store, self.config, guarded=access is not None)
            self.subscriptions.serve_on(self.control)
        listing = Listing(store, None if self.subscriptions is None else self.subscriptions.token_key)
        self.control.add(
            "streams", {"GET": listing.read, "POST": RetentionActions(store, self._space or store).post}
        )
        self.control.add("producers", {"GET": Producers(store, bound=self.config.bind_producers).read})
        engine = None if self.subscriptions is None else self.subscriptions.engine
        retention = RetentionRules(store, tuple(self.config.retention))
        self.counts = Counts(self.config.metrics_prefix)
        self.metrics = Metrics(
            store, self.counts, self._readers, self.bodies, self.outlets, subscriptions=engine
        )
        if access is not None:  # without grants they are at the address for operators only
            self.control.add("metrics", {"GET": self.metrics.read})
        self._inspector = Inspector() if self.config.ui else None
        self._stats = Stats(self.metrics) if access is not None or self.config.ui else None
        if self._stats is not None:
            self.control.add("stats", {"GET": self._stats.read})

        def routes(access: Access | None, writes: Writes) -> _Routes:
            handlers = Handlers(
                store,
                self.config,
                self.live,
                ranges,
                addresses,
                retention=retention,
                subscriptions=engine,
                access=access,
                writes=writes,
                counts=self.counts,
            )
            follow = partial(self.follow.read, access)
            return _Routes.of(handlers, self.control.plus("follow", {"GET": follow}), access)

        # Calls of this very process come from who may do everything anyway.
        self._own_routes = routes(None, store)
        self._routes = self._own_routes if access is None else routes(access, self._space or store)
        self.answer = logged(self.handle, self.config)
        """Answers a request like `handle`, and logs it, or makes a span of it, if that is configured."""
        if self.config.tracing:
            self.answer = traced(self.answer)
        self._warned: dict[str, float] = {}

    def _readers(self) -> dict[str, int]:
        return {**self.live.readers(), "follow": self.follow.readers}

    async def startup(self) -> None:
        """Open the store; raises StoreError with one sentence. May follow a `shutdown`."""
        await self.store.open()
        # Stored JSON has a comma behind its last message.
        most = self.store.largest_append - 1
        if self.config.max_body > most:
            await self.store.close()
            raise StoreError(
                f"max_body (--max-body) is {self.config.max_body} bytes, and this store takes appends of at most "
                f"{most}: set it to that or less"
            )
        if self.subscriptions is not None:
            try:
                await self.subscriptions.start()
            except BaseException:
                await self.store.close()
                raise
        if self._space is not None:
            self._space.start()
        if self._stats is not None:
            self._stats.start()
        self.start_reads()

    async def shutdown(self) -> None:
        """End the live reads, commit what was accepted, close the store."""
        self.stop_reads()
        if self._stats is not None:
            await self._stats.stop()
        if self._space is not None:
            await self._space.stop()
        if self.subscriptions is not None:
            await self.subscriptions.stop()
        await self.store.close()

    def start_reads(self) -> None:
        """Let live reads wait, also after `stop_reads`."""
        self.outlets.start()
        self.bodies.start()
        self.live.start()
        self.follow.start()

    def stop_reads(self) -> None:
        """End live reads, and connections whose clients neither take nor send."""
        self.live.stop()
        self.follow.stop()
        self.outlets.stop()
        self.bodies.stop()

    @staticmethod
    def needs_store(request: ServerRequest) -> bool:
        """Whether a request needs the store to be open; `/health/live` does not."""
        return request.path != _LIVENESS

    async def health(self, request: ServerRequest) -> ServerResponse:
        """Answer a request that is for no stream, from a place that admits requests itself."""
        try:
            return await self._elsewhere(request, request.path)
        except Exception as error:  # noqa: BLE001 - every one has an answer
            return self._failed(request, error)

    async def handle(self, request: ServerRequest) -> ServerResponse:
        """Answer a request; errors of clients and of the disk are answers too."""
        said: Headers = []
        try:
            said = self._browsers.admit(request)
            if request.method == "OPTIONS":
                said = self._browsers.preflight(request, said)
            # Awaited from here: each coroutine in between costs every append.
            handler, path = self._route(request, self._routes)
            response = await handler(request, path)
        except Exception as error:  # noqa: BLE001 - every one has an answer, so that the server goes on
            response = self._failed(request, error)
        response.headers.extend(said)
        return _framed(request, response) if request.has_unread() else response

    async def answer_call(self, request: ServerRequest) -> ServerResponse:
        """Answer a request of this very process, to which nothing about web pages and grants applies."""
        try:
            handler, path = self._route(request, self._own_routes)
            return await handler(request, path)
        except Exception as error:  # noqa: BLE001 - as in `handle`
            return self._failed(request, error)

    def unavailable(self, request: ServerRequest, error: StoreError) -> ServerResponse:
        """Answer a request while the store cannot be opened."""
        try:
            said = self._browsers.admit(request)
        except Rejection as refusal:
            return _framed(request, _refused(refusal))
        return _framed(
            request, error_response(503, "UNAVAILABLE", str(error), [("retry-after", _RETRY_AFTER), *said])
        )

    def _route(self, request: ServerRequest, routes: _Routes) -> tuple[Handler, str]:
        """Return what answers a request, and the path that it gets."""
        path = request.path
        if not path.startswith(STREAM_ROOT):
            return self._elsewhere, path
        handler = routes.streams.get(request.method)
        if handler is None:
            raise method_not_allowed(METHODS)
        if handler is _options:
            return handler, path
        path = path[len(STREAM_ROOT) :]
        if path.startswith(RESERVED) and path[len(RESERVED) :][:1] in ("", "/"):
            return routes.resources, parse.resource_path(path)[len(RESERVED) + 1 :]
        return handler, parse.stream_path(path)

    def _failed(self, request: ServerRequest, error: Exception) -> ServerResponse:
        """Return the answer of a request that was refused, or that failed."""
        refusal = self._refusal(request, error)
        self.counts.refused(refusal.code)
        response = _refused(refusal)
        response.refused = isinstance(refusal, RefusedError)
        return response

    def _refusal(self, request: ServerRequest, error: Exception) -> Rejection:
        if isinstance(error, Rejection):
            return error
        if isinstance(error, StoreFullError):
            return Rejection(507, "STORAGE_FULL", str(error), {"retry-after": _RETRY_AFTER})
        if isinstance(error, StoreUncertainError):
            # Without a Retry-After, which says that nothing was done: clients would retry it.
            self._warn(error)
            return Rejection(503, OUTCOME_UNKNOWN, str(error))
        if isinstance(error, StoreError):
            self._warn(error)
            return Rejection(503, "UNAVAILABLE", str(error), {"retry-after": _RETRY_AFTER})
        _log.error("a request failed: %s %s", request.method, request.path, exc_info=error)
        return Rejection(500, "INTERNAL", "the server failed on this request; its log says why")

    def _warn(self, error: StoreError) -> None:
        """Log why requests are refused, not for each of them: the log may be on the disk that fails."""
        now, message = time.monotonic(), str(error)
        if now - self._warned.get(message, -_WARNING_INTERVAL) >= _WARNING_INTERVAL:
            if len(self._warned) >= _WARNINGS:
                self._warned.clear()
            self._warned[message] = now
            _log.warning("the store failed: %s", message)

    async def _elsewhere(self, request: ServerRequest, path: str) -> ServerResponse:
        if request.method == "OPTIONS" and (path in _HEALTH_PATHS or path == "*"):
            return _allowed(METHODS if path == "*" else _HEALTH_METHODS)
        if path not in _HEALTH_PATHS:
            if self._inspector is not None and self._inspector.has(path):
                if request.method not in ("GET", "HEAD"):
                    raise method_not_allowed("GET, HEAD")
                return await self._inspector.read(request, path)
            message = f"there is nothing here: streams live under {STREAM_ROOT}"
            return error_response(404, "NOT_FOUND", message, [])
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed("GET, HEAD")
        if path == _READINESS and self.draining:
            message = "the server ends soon: send requests to another one"
            raise Rejection(503, "DRAINING", message, {"retry-after": _RETRY_AFTER})
        if path != _LIVENESS:
            await self.store.check()
        return json_response(200, {"status": "ok"})


def _framed(request: ServerRequest, response: ServerResponse) -> ServerResponse:
    """Let the connection end with an answer that came before its request had ended."""
    if CLOSE not in response.headers and request.has_unread():
        response.headers.append(CLOSE)
    return response


async def _options(request: ServerRequest, path: str) -> ServerResponse:  # noqa: ARG001 - one signature for all
    return _allowed(METHODS)


def _allowed(methods: str) -> ServerResponse:
    return ServerResponse(204, [*BASE_HEADERS, ("allow", methods)])


def _refused(refusal: Rejection) -> ServerResponse:
    return error_response(refusal.status, refusal.code, refusal.message, list(refusal.headers.items()))
