"""The application over ASGI: mounts into FastAPI, Starlette or Litestar, and runs under any ASGI server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.grants import Grant
from durable_streams.server import hosts
from durable_streams.server.app import App
from durable_streams.server.bodies import Bodies, Incoming
from durable_streams.server.control import error_response
from durable_streams.server.hosting import ServerWatch
from durable_streams.server.http import (
    CLOSE,
    Disconnection,
    ServerResponse,
    cut_short,
    repeated,
    too_large,
    unreadable,
)
from durable_streams.server.outlets import send_parts
from durable_streams.server.workers import OneProcess
from durable_streams.stores.base import StoreError

__all__ = ["AsgiApp", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


_log = logging.getLogger("durable_streams.server")


class _Request:
    """A ServerRequest over an ASGI scope."""

    __slots__ = (
        "_headers",
        "_incoming",
        "_is_read",
        "_receive",
        "_scope",
        "grant",
        "method",
        "mount",
        "path",
        "query",
        "scheme",
    )

    def __init__(self, scope: Scope, receive: Receive, bodies: Bodies) -> None:
        self._incoming = Incoming(bodies)
        self._is_read = False
        self._scope = scope
        self._receive = receive
        self._headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        self.grant: Grant | None = None
        self.method: str = scope["method"]
        self.scheme: str = scope.get("scheme", "http")
        self.mount: str = scope.get("root_path", "").rstrip("/")
        root = self.mount
        path: str = scope["path"]
        # A mount is part of the path for some frameworks and not for others.
        self.path = path[len(root) :] if root and path.startswith(root + "/") else path
        raw: bytes | None = scope.get("raw_path")
        if not root and raw is not None and len(raw) != len(path):
            self.mount, self.path = _unmounted(path, raw)
        self.query: str = scope["query_string"].decode("latin-1")

    @property
    def scope(self) -> Scope:
        return self._scope

    def header(self, name: str) -> str | None:
        value: bytes | None = self._headers.get(name)
        if value is None:
            return None
        if len(self._headers) != len(self._scope["headers"]) and len(self._all(name)) > 1:
            raise repeated(name)
        return self._decoded(name, value)

    def listed(self, name: str) -> str | None:
        values = self._all(name)
        return self._decoded(name, b", ".join(values)) if values else None

    def _all(self, name: str) -> list[bytes]:
        wanted = name.encode()
        return [value for key, value in self._scope["headers"] if key == wanted]

    def _decoded(self, name: str, value: bytes) -> str:
        if not value.isascii():
            raise unreadable(name)
        return value.decode("ascii")

    def has_any(self, names: frozenset[str]) -> bool:
        return not names.isdisjoint(self._headers)

    @property
    def multiplexed(self) -> bool:
        """Whether its connection carries other requests at the same time: HTTP/2 and later."""
        return not str(self._scope.get("http_version", "1.1")).startswith("1")

    def authority(self) -> str:
        return self.header("host") or ":".join(
            str(part) for part in self._scope.get("server") or ("localhost",)
        )

    def peer(self) -> str:
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    async def body(self, limit: int) -> bytes:
        declared = self.header("content-length")
        if declared is not None and declared.isascii() and declared.isdigit() and int(declared) > limit:
            raise too_large(limit)
        with self._incoming:
            return await self._parts(limit)

    async def _parts(self, limit: int) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise cut_short()
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise too_large(limit)
            self._incoming.count(len(part))
            parts.append(part)
            more = message.get("more_body", False)
        self._is_read = True
        return b"".join(parts)

    def has_unread(self) -> bool:
        declares = "transfer-encoding" in self._headers or self._headers.get("content-length", b"0") != b"0"
        # Later versions end a stream of a connection, not the connection.
        return declares and not self._is_read and self._scope.get("http_version", "1.1").startswith("1")

    def sends_on(self, status: int) -> bool:
        """Whether the rest of the body is on its way: it neither stood still (408), nor waits for a word of ours."""
        return status != 408 and "expect" not in self._headers

    async def drop_rest(self) -> None:
        """Take the rest of the body, and drop it."""
        more = True
        while more:
            message = await self._receive()
            more = message["type"] == "http.request" and message.get("more_body", False)

    def release(self) -> None:
        """Stop counting the body; the request is answered."""
        self._incoming.release()

    def disconnected(self) -> Disconnection:
        return asyncio.ensure_future(self._disconnected())

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _unmounted(path: str, raw: bytes) -> tuple[str, str]:
    """Return mount and path where no root path is named: Litestar takes the prefix off, and adds a slash."""
    whole = unquote(raw.partition(b"?")[0].decode("latin-1"))
    if path.endswith("/") and not whole.endswith("/"):
        path = path[:-1]
    return whole.removesuffix(path) if whole.endswith(path) else "", path


class AsgiApp:
    """An ASGI application. Opens its store in the lifespan, or at the first request without one.

    ``await startup()`` and ``await shutdown()`` are for frameworks that do not pass the lifespan to mounted apps. Live
    reads end when the ASGI server stops to listen, so that they do not hold up its end.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._opening: asyncio.Task[None] | None = None
        self._watch = ServerWatch(app.stop_reads, app.start_reads)
        self._one_process = OneProcess(app.store)
        self._told = ""
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop that the store is open on, None while it is not."""
        self.is_ended = False
        """Whether it was shut down, and not started again since."""
        self.before_shutdown: list[Callable[[], Awaitable[None]]] = []
        """What uses the streams in this process, and ends before they close."""

    async def startup(self) -> None:
        """Open the store, once; raises StoreError with one sentence."""
        self.is_ended = False
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        self._one_process.check_workers()
        await self._app.startup()
        self.loop = asyncio.get_running_loop()

    async def shutdown(self) -> None:
        """End the live reads and close the store; raises StoreError if it is not in order at its end."""
        if self._opening is not None:
            try:
                for end in self.before_shutdown:
                    await end()
            finally:
                self.loop, self.is_ended = None, True
            try:
                await self._app.shutdown()
            finally:
                self._opening = None
                self._watch.reset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI interface."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            self._watch.begun(scope.get("server"))
            self._note_address(scope)
            try:
                await self._http(scope, receive, send)
            finally:
                self._watch.ended()
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})

    def _note_address(self, scope: Scope) -> None:
        """Take the address that the server listens at for its URL, where only this machine reaches it."""
        subscriptions, server = self._app.subscriptions, scope.get("server")
        if subscriptions is None or subscriptions.own_url is not None or server is None or server[1] is None:
            return
        address = hosts.address_of(str(server[0]))
        if address is not None and address.is_loopback:
            mount = scope.get("root_path", "").rstrip("/")
            shown = f"[{address}]" if address.version == 6 else str(address)
            subscriptions.own_url = f"{scope.get('scheme', 'http')}://{shown}:{server[1]}{mount}"

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.startup()
                except StoreError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                try:
                    await self.shutdown()
                except StoreError as error:
                    await send({"type": "lifespan.shutdown.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _response(self, request: _Request) -> ServerResponse:
        if not self._app.needs_store(request):
            return await self._app.answer(request)
        try:
            await self.startup()
        except StoreError as error:
            self._opening = None
            return self._unavailable(request, error)
        try:
            self._one_process.check_address(self._watch.addresses)
        except StoreError as error:
            return self._unavailable(request, error)
        return await self._app.answer(request)

    def _unavailable(self, request: _Request, error: StoreError) -> ServerResponse:
        if self._told != str(error):
            self._told = str(error)
            _log.error("requests are answered 503: %s", error)
        response = self._app.unavailable(request, error)
        if not request.multiplexed and CLOSE not in response.headers:
            # Another connection may reach another process. No CLOSE itself: that waits for the rest of a body.
            response.headers.append(("connection", "close"))
        return response

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request(scope, receive, self._app.bodies)
        try:
            response = await self._response(request)
        except Rejection as refusal:  # pragma: no cover - handle answers its own
            response = error_response(refusal.status, refusal.code, refusal.message, [])
        finally:
            request.release()
        body = response.body
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        if isinstance(body, bytes):
            if response.status not in (204, 304):
                headers.append((b"content-length", str(len(body)).encode()))
            lingers = (
                bool(response.headers) and response.headers[-1] is CLOSE and request.sends_on(response.status)
            )
            content = b"" if request.method == "HEAD" else body
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": content, "more_body": lingers})
            if lingers:
                await self._app.bodies.linger(request.drop_rest())
                await send({"type": "http.response.body", "body": b""})
            return

        async def write(part: bytes) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": True})

        host, port = scope.get("client") or ("", 0)
        outlet = self._app.outlets.awaited(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", write)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        if await send_parts(body, outlet):
            await send({"type": "http.response.body", "body": b""})
