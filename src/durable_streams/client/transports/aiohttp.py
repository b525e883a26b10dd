"""The default async transport, over aiohttp.

Invariants: one session for each event loop, closed when its loop shuts down, and never shared with a child
after a fork; no exception of aiohttp or the socket layer leaves this module, all become FetchError in `_mapped`;
aiohttp follows no redirect; an answer that the session
raises an error for is handed over all the same; no request has a time limit as a whole, only one on silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp import ClientSession
from yarl import URL

from durable_streams.client.forks import Origin, leave_alone, origin_of
from durable_streams.client.transports.deadline import Deadline
from durable_streams.client.transports.failures import Failure, client_closed, fetch_error
from durable_streams.client.transports.heads import AnswerBase, ends_its_connection, request_headers
from durable_streams.client.transports.limits import (
    TrickledError,
    connect_limit,
    head_limit,
    silence_of,
)
from durable_streams.client.transports.proxies import proxy_for
from durable_streams.client.transports.sockets import has_input, keep_alive
from durable_streams.errors import FetchError
from durable_streams.protocol.request import Request, check_callers_headers

__all__ = ["AiohttpTransport", "ClientSession", "shared"]

_BUFFER_SIZE = 512 * 1024  # bytes of a body held at most, twice, before the server has to wait
_HEADER_SIZE = 64 * 1024


class _Exchange(AnswerBase):
    """One answer of aiohttp, with its errors mapped."""

    outlives_cancellation = True  # `readany` takes bytes out of its buffer at its end only

    def __init__(self, response: aiohttp.ClientResponse, url: str) -> None:
        super().__init__(url, response.status, response.reason, response.headers.items())
        self._response = response
        self._read: bytes | None = response._body  # noqa: SLF001 - what a hook of the session has read already

    async def read(self) -> bytes:
        self._check_origin()
        if self._read is not None:
            data, self._read = self._read, b""
            return data
        with _mapped(self._url, self.status):
            return await self._response.content.readany()

    def refusal(self, body: bytes) -> Exception | None:
        """Return the library's ClientResponseError."""
        del body
        answer = self._response
        return aiohttp.ClientResponseError(
            answer.request_info,
            answer.history,
            status=answer.status,
            message=answer.reason or "",
            headers=answer.headers,
        )

    async def close(self) -> None:
        if self._leave():
            return
        # A response that was read to its end has given its connection back already.
        self._response.close()

    def __del__(self) -> None:
        # Collected, a response closes its connection: in a child after a fork the parent's event loop would then
        # stop to watch it, for both have one selector.
        if self._origin.left and (connection := self._response.connection) is not None:
            leave_alone(connection.protocol)
            connection._protocol = None  # noqa: SLF001


class _Told(AnswerBase):
    """An answer of which only an error of the library is left: its head, without its body."""

    def __init__(self, error: aiohttp.ClientResponseError, url: str) -> None:
        headers = error.headers.items() if error.headers is not None else ()
        super().__init__(url, error.status, error.message, headers)

    async def read(self) -> bytes:
        return b""

    async def close(self) -> None:
        """Do nothing: the library has closed it."""


class AiohttpTransport:
    """Sends requests through a ClientSession: one of its own, or the caller's, whose timeouts stay in force."""

    def __init__(self, session: ClientSession | None = None) -> None:
        self._given = session
        if session is not None:
            _watch(session.connector)
        self._origin = Origin() if session is None else origin_of(session)
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}

    def _renew(self) -> None:
        """Leave all connections alone, for they belong to another process."""
        leave_alone(self._sessions)
        sessions = (
            [self._given] if self._given is not None else [own.session for own in self._sessions.values()]
        )
        for session in sessions:
            if session.connector is not None:
                connections = session.connector._conns  # noqa: SLF001
                leave_alone(connections.copy())
                connections.clear()
        self._sessions = {}

    async def open(self, request: Request, timeout: float | None) -> _Exchange | _Told:
        """Send, and return the exchange as soon as the answer's head is there. See AsyncTransport."""
        self._origin.notice(self._renew)
        url = URL(request.url, encoded=True)
        options: dict[str, Any] = {}
        silence: float | None
        if self._given is not None:
            check_callers_headers(self._given.headers, of_client=True)
        else:
            options["proxy"] = proxy_for(request.url)
        if timeout is not None or self._given is None:
            silence = silence_of(request, timeout)
            options["timeout"] = aiohttp.ClientTimeout(connect=connect_limit(timeout), sock_read=silence)
        else:
            silence = self._given.timeout.sock_read
        session = self._given or await self._own()
        if session.closed:
            raise client_closed(request.url)
        if not request.dropped.isdisjoint(map(str.lower, session.headers)):
            options["middlewares"] = (*session._middlewares, _without(request.dropped))  # noqa: SLF001
        holder: list[Any] = []
        _holder.set(holder)
        limit = head_limit(request, silence)
        with _mapped(request.url, limit=limit, connect=connect_limit(timeout)), Deadline(limit):
            try:
                response = await session.request(
                    request.method,
                    url,
                    headers=request_headers(
                        request, client=None if self._given is None else self._given.headers
                    ),
                    skip_auto_headers=("content-type", *request.dropped),
                    data=None if request.body is None else _Body(request.body),
                    allow_redirects=False,
                    raise_for_status=_kept(session),
                    **options,
                )
            except aiohttp.ClientResponseError as error:
                if _is_answer(error, url):
                    return _Told(error, request.url)
                raise
        if request.streaming and response.connection is not None:
            transport = response.connection.transport
            keep_alive(transport and transport.get_extra_info("socket"))
        try:
            exchange = _Exchange(response, request.url)
        except FetchError:
            response.close()
            raise
        found = exchange.headers.get
        if (
            ends_its_connection(exchange.status, found("content-length"), found("transfer-encoding"))
            and holder
        ):
            _end_with(response, holder[-1])
        return exchange

    async def _own(self) -> ClientSession:
        kept = self._sessions.get(asyncio.get_running_loop())
        if kept is None:
            kept = self._new_session()
            await kept.keep()
        return kept.session

    def _new_session(self) -> _Session:
        # A loop that was closed without being shut down has left its session behind.
        for old in [other for other in self._sessions if other.is_closed()]:
            self._sessions.pop(old).abandon()
        kept = self._sessions[asyncio.get_running_loop()] = _Session(self._sessions)
        return kept

    def last_requests(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Return what to enter around requests while the running loop shuts down: its session ends no sooner."""
        if self._given is not None:
            return contextlib.nullcontext()
        self._origin.notice(self._renew)
        return _LastRequests(self._sessions.get(asyncio.get_running_loop()) or self._new_session())


def _kept(session: ClientSession) -> Callable[[aiohttp.ClientResponse], Awaitable[None]] | bool:
    """Return what ``raise_for_status`` of a session becomes: its function is called, but its error does not count."""
    own = getattr(session, "_raise_for_status", False)
    if not callable(own):
        return False

    async def kept(response: aiohttp.ClientResponse) -> None:
        response._in_context = True  # noqa: SLF001 - its `raise_for_status` would drop the body
        try:
            await own(response)
        except aiohttp.ClientResponseError as error:
            if error.status != response.status:
                raise

    return kept


def _is_answer(error: aiohttp.ClientResponseError, url: URL) -> bool:
    """Whether an error, of a middleware or a trace say, tells no more than the status of the answer from this URL."""
    malformed = isinstance(error.__cause__, aiohttp.http_exceptions.HttpProcessingError)
    return type(error) is aiohttp.ClientResponseError and not malformed and error.request_info.url == url


_holder: ContextVar[list[Any] | None] = ContextVar("_holder", default=None)
"""The list in which the request in progress notes the connections it is given."""

_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_used: weakref.WeakSet[Any] = weakref.WeakSet()


def _watch(connector: Any) -> None:
    """Have a connector give out no connection that has ended, or on which unrequested bytes arrived."""
    if connector is None or connector in _watched:
        return
    _watched.add(connector)
    connect = connector.connect

    async def connect_to_live(*args: Any, **kwargs: Any) -> Any:
        while True:
            connection = await connect(*args, **kwargs)
            protocol = connection.protocol
            if protocol is not None and protocol in _used and _is_over(protocol):
                connection.close()
                continue
            return _given_out(connection, protocol)

    connector.connect = connect_to_live


def _is_over(protocol: Any) -> bool:
    # While the event loop does not run, it sees neither the end of a connection nor bytes that arrived on it.
    transport = protocol.transport
    return protocol.should_close or (transport is not None and has_input(transport.get_extra_info("socket")))


def _given_out(connection: Any, protocol: Any) -> Any:
    if protocol is not None:
        if protocol not in _used:
            _used.add(protocol)
        # Bytes that arrive while it is idle are kept raw, where `should_close` sees them, and half an answer too.
        connection.add_callback(lambda: setattr(protocol, "_parser", None))
    if (holder := _holder.get()) is not None:
        holder.append(protocol)
    return connection


def _end_with(response: aiohttp.ClientResponse, protocol: Any) -> None:
    """Have a connection serve no other request, whether or not it was released already."""
    if protocol is not None:
        protocol.force_close()
        if response.connection is None:
            protocol.close()


class _Session:
    """A session that ends with its event loop."""

    def __init__(self, home: dict[asyncio.AbstractEventLoop, _Session]) -> None:
        self._home = home
        self._origin = Origin()
        self._connector = aiohttp.TCPConnector(limit=0)
        _watch(self._connector)
        self.session = ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_BUFFER_SIZE,
            max_line_size=_HEADER_SIZE,
            max_field_size=_HEADER_SIZE,
        )
        # Retries are decided in `protocol.retry`: a DELETE that is repeated in silence would find nothing to delete.
        self.session._retry_connection = False  # noqa: SLF001
        self._keeper = self._until_the_end()
        self.users = 0
        self._kept = False

    async def keep(self) -> None:
        """Tie the session to the running loop: a loop that shuts down closes every generator that has begun."""
        self._kept = True
        await anext(self._keeper)

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._kept = False
            await self.end_unless_used()

    async def end_unless_used(self) -> None:
        """Close the session if its loop is on its way down and nothing is sent through it any more."""
        if self._kept or self.users:
            return
        self._home.pop(asyncio.get_running_loop(), None)
        if self._origin.left:
            leave_alone(self)  # a copy of the parent's loop ends: its own connections live on
        else:
            await self.session.close()

    def abandon(self) -> None:
        """Drop the session of a loop that is closed."""
        with contextlib.suppress(AttributeError):
            self._connector._conns.clear()  # noqa: SLF001 - it would warn of connections that its loop cannot close any more
        self.session.detach()


class _LastRequests(contextlib.AbstractAsyncContextManager[None]):
    # Not a generator: a loop that shuts down warns of new ones.
    def __init__(self, session: _Session) -> None:
        self._session = session

    async def __aenter__(self) -> None:
        self._session.users += 1

    async def __aexit__(self, *error: object) -> None:
        self._session.users -= 1
        await self._session.end_unless_used()


class _Body(aiohttp.BytesPayload):
    """Bytes of any size that the caller has in memory anyway."""

    def __init__(self, body: bytes) -> None:
        # Skips the direct base class, which warns of bodies over 1 MiB.
        super(aiohttp.BytesPayload, self).__init__(body, content_type="application/octet-stream")
        self._size = len(body)


def _without(names: Iterable[str]) -> aiohttp.ClientMiddlewareType:
    """Return what takes headers of the session out of a request."""

    async def send(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        for name in names:
            request.headers.popall(name, None)
        return await handler(request)

    return send


@contextlib.contextmanager
def _mapped(
    url: str, status: int | None = None, limit: float | None = None, connect: float | None = None
) -> Iterator[None]:
    """Turn each error of the library into a FetchError: the one boundary."""
    try:
        yield
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
        if isinstance(error, aiohttp.ServerDisconnectedError):
            # Instead of the parsed head, in Python's notation, that the library puts there.
            error.args = ("the server closed it without an answer",)
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            limit = connect
        raise fetch_error(_failure(error), url, error, status=status, limit=limit) from None


def _failure(error: Exception) -> Failure:
    if isinstance(error, TrickledError):
        return Failure.TRICKLE
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Failure.CONNECT_TIMEOUT
    if isinstance(error, asyncio.TimeoutError):
        return Failure.SILENCE
    if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch, ssl.SSLError)):
        return Failure.TLS
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError)):
        return Failure.REFUSED
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
        return Failure.NOT_SENT
    if isinstance(error.__cause__, aiohttp.http_exceptions.ContentEncodingError):
        return Failure.DECODING
    return Failure.BROKEN


_shared = AiohttpTransport()


def shared() -> AiohttpTransport:
    """Return the transport that all calls of this process share."""
    return _shared


def _leave_all() -> None:
    _shared._origin.notice(_shared._renew)  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    # At once: an object collected in the child, at its end at the latest, is closed in the parent's selector too.
    os.register_at_fork(after_in_child=_leave_all)
