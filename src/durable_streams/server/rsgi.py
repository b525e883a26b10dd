"""The application over RSGI, as Granian calls it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]  # re-exported, but not in its __all__

from durable_streams.protocol.grants import Grant
from durable_streams.server.admin import AdminApp
from durable_streams.server.app import App
from durable_streams.server.bodies import SMALL_BODY, Bodies, Incoming
from durable_streams.server.http import CLOSE, Disconnection, cut_short, repeated, too_large, unreadable
from durable_streams.server.outlets import sending

__all__ = ["RsgiAdapter"]


class _Request:
    """A ServerRequest over an RSGI scope and protocol."""

    __slots__ = (
        "_bodies",
        "_headers",
        "_is_begun",
        "_is_read",
        "_protocol",
        "_scope",
        "_sent",
        "grant",
        "header",
        "incoming",
        "listed",
        "method",
        "mount",
        "path",
    )

    def __init__(self, scope: Any, protocol: Any, bodies: Bodies) -> None:
        self._scope = scope
        self._protocol = protocol
        self._bodies = bodies
        self.incoming: Incoming | None = None
        self._is_read = False
        self._is_begun = False
        self.grant: Grant | None = None
        self.method: str = scope.method
        self.path: str = scope.path
        self.mount = ""
        self._headers = headers = scope.headers
        lines = headers.items()
        values: dict[str, str] = dict(lines)
        self._sent: Collection[str] = values  # the names
        self.header: Callable[[str], str | None] = values.get
        self.listed: Callable[[str], str | None] = values.get
        if (
            not len(values) == len(lines) == len(headers)
        ):  # one is repeated, or is not ASCII, which `items` leaves out
            self._sent = frozenset(headers.keys())
            self.header, self.listed = self._one_of, self._all_of

    @property
    def query(self) -> str:
        query: str = self._scope.query_string
        return query

    @property
    def scheme(self) -> str:
        scheme: str = self._scope.scheme
        return scheme

    @property
    def scope(self) -> Any:
        return self._scope

    def _one_of(self, name: str) -> str | None:
        if name not in self._sent:
            return None
        values: list[str] = self._headers.get_all(name)
        if len(values) == 1:
            return values[0]
        raise repeated(name) if values else unreadable(name)

    def _all_of(self, name: str) -> str | None:
        if name not in self._sent:
            return None
        values: list[str] = self._headers.get_all(name)
        if not values:
            # Granian gives out only what is ASCII; what was sent must not count as absent.
            raise unreadable(name)
        return ", ".join(values)

    def has_any(self, names: frozenset[str]) -> bool:
        return not names.isdisjoint(self._sent)

    def authority(self) -> str:
        authority: str = self.header("host") or self._scope.authority or self._scope.server
        return authority

    def peer(self) -> str:
        client: str = self._scope.client
        return client.rpartition(":")[0].strip("[]")

    async def body(self, limit: int) -> bytes:
        declared = self.header("content-length")
        if declared is not None:
            size = int(declared) if declared.isascii() and declared.isdigit() else 0
            if size > limit:
                raise too_large(limit)
            if not size:
                return b""
            if size <= SMALL_BODY:
                self.incoming = incoming = Incoming(self._bodies, size)
                with incoming:
                    try:
                        whole: bytes = await self._protocol()
                    except ProtocolClosed:
                        raise cut_short() from None
            else:
                self.incoming = incoming = Incoming(self._bodies)
                with incoming:
                    whole, _ = await self._parts(incoming, limit)
            if len(whole) != size:
                raise cut_short()
            self._is_read = True
            return whole
        if self.listed("transfer-encoding") is None:
            return b""
        self.incoming = incoming = Incoming(self._bodies)
        with incoming:
            whole, empty = await self._parts(incoming, limit)
        # Granian ends every body with one empty part. It hides the error of a body that was cut off in another one
        # (and trailers, which have no use here, in the same way).
        if empty > 1:
            raise cut_short()
        self._is_read = True
        return whole

    async def _parts(self, incoming: Incoming, limit: int) -> tuple[bytes, int]:
        """Return the body, and how many of its parts were empty."""
        parts, size, empty = [], 0, 0
        self._is_begun = True
        async for part in self._protocol:
            size += len(part)
            if size > limit:
                raise too_large(limit)
            incoming.count(len(part))
            parts.append(part)
            empty += not part
        return b"".join(parts), empty

    def has_unread(self) -> bool:
        sent = self._sent
        if self._is_read or ("content-length" not in sent and "transfer-encoding" not in sent):
            return False
        return "transfer-encoding" in sent or self._headers.get("content-length") != "0"

    def sends_on(self, status: int) -> bool:
        """Whether the rest of the body is on its way: it neither stood still (408), nor waits for a word of ours."""
        return status != 408 and "expect" not in self._sent

    async def drop_rest(self) -> None:
        """Take the rest of the body, and drop it."""
        parts = self._protocol
        if not self._is_begun:
            parts.__aiter__()  # Granian begins a body once
        with contextlib.suppress(StopAsyncIteration):
            while True:
                await parts.__anext__()

    def disconnected(self) -> Disconnection:
        # A future already: a task to wait for it would cost each idle reader two kilobytes.
        gone: Disconnection = self._protocol.client_disconnect()
        return gone


class RsgiAdapter:
    """What Granian serves.

    Args:
        app: What answers.
        peers: The only peers that are answered, as ``host:port``; None for all.
    """

    def __init__(self, app: App | AdminApp, peers: Collection[str] | None = None) -> None:
        self._handle = app.answer
        self._peers = peers
        self._outlets = app.outlets
        self._bodies = app.bodies

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        if scope.proto != "http":
            protocol.close(1003)
            return
        if self._peers is not None and scope.client not in self._peers:
            protocol.response_empty(403, [])
            return
        request = _Request(scope, protocol, self._bodies)
        try:
            response = await self._handle(request)
        finally:
            if request.incoming is not None:
                request.incoming.release()
        body = response.body
        if not isinstance(body, bytes):
            transport = protocol.response_stream(response.status, response.headers)
            outlet = self._outlets.watched(scope.client, transport.send_bytes)
            del (
                request,
                scope,
                protocol,
                response,
                transport,
            )  # an idle event stream lives for long and needs none of them
            async with sending(body, outlet):
                async for part in body:
                    await outlet.send(part)
                    del part  # it counts no more, so that it must not stay while the next one is waited for
            return
        if body and scope.method != "HEAD":
            protocol.response_bytes(response.status, response.headers, body)
        else:
            protocol.response_empty(response.status, response.headers)
        if response.headers and response.headers[-1] is CLOSE and request.sends_on(response.status):
            await self._bodies.linger(request.drop_rest())
