"""Transports over the caller's httpx or httpx2 client, sync and async.

Invariants: neither library is imported here, the client brings its own; the client is never closed, and its
timeouts, proxies, authentication and hooks stay in force; no exception of the library leaves this module. A hook
that raises for a status has run, and the answer is handed over even so.

Interrupt cannot end the wait of a sync request for a connection or for a free place in the pool: the client's own
timeouts bound both. On HTTP/2 it breaks nothing, since other requests share the connection.
"""

from __future__ import annotations

import contextlib
import copy
import ssl
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from functools import partial
from types import ModuleType
from typing import Any

from durable_streams.client.forks import leave_alone, origin_of
from durable_streams.client.transports.coding import ended_early
from durable_streams.client.transports.deadline import Deadline
from durable_streams.client.transports.failures import Failure, client_closed, fetch_error
from durable_streams.client.transports.heads import AnswerBase, ends_its_connection, request_headers
from durable_streams.client.transports.interrupt import Interrupt
from durable_streams.client.transports.limits import Timeout, TrickledError, head_limit, silence_of
from durable_streams.client.transports.sockets import break_off
from durable_streams.errors import FetchError
from durable_streams.protocol.request import Request, check_callers_headers

__all__ = ["AsyncHttpxTransport", "HttpxTransport", "async_transport", "sync_transport"]


def sync_transport(client: Any) -> HttpxTransport:
    """Return the transport for an ``httpx.Client`` or ``httpx2.Client``; raises TypeError for an async one."""
    return HttpxTransport(client, _library(client, "Client", "a sync call", "an httpx.Client"))


def async_transport(client: Any) -> AsyncHttpxTransport:
    """Return the transport for an ``httpx.AsyncClient`` or ``httpx2.AsyncClient``; raises TypeError for a sync one."""
    library = _library(client, "AsyncClient", "an async call", "an httpx.AsyncClient")
    return AsyncHttpxTransport(client, library)


def _library(client: Any, kind: str, call: str, wanted: str) -> ModuleType:
    for base in type(client).__mro__:
        library = sys.modules.get(base.__module__.partition(".")[0])
        if base.__name__ == kind and library is not None and base is getattr(library, kind, None):
            return library
    given = f"{type(client).__module__.partition('.')[0]}.{type(client).__name__}"
    raise TypeError(f"client= of {call} takes {wanted}, not {given}.")


_BEFORE_IT_WAITS = ("send_request_headers.started", "receive_response_headers.started")


class _Interrupted(Exception):  # noqa: N818 - it never leaves this module
    """Raised inside the library, to end a request that was interrupted."""


class _Timed:
    """A network stream that is read within a deadline, while there is one: the library reads a head in many pieces."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.deadline: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = self._stream.read(max_bytes, timeout)
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TrickledError("the head of the answer trickles in")
        return data


class _Watch:
    """The state of one request's connection, from its trace: how much was sent, and whether it may be used again."""

    def __init__(self) -> None:
        self.was_sent = True
        self._some_left = False
        self._connection: Any = None
        self._response: Any = None
        self._is_last = False

    def note(self, event: str) -> Any:
        """Note an event; return the network stream that is to be closed with it, None for none."""
        if event.endswith("send_request_headers.complete"):
            self._some_left = self.was_sent = True
        elif event.endswith("send_request_headers.failed"):
            self.was_sent = self._some_left  # half a head is no request
        elif event == "http11.receive_response_body.complete" and (self._is_last or self._has_more()):
            return self._response.extensions.get("network_stream")
        return None

    def answered(self, response: Any, connection: Any) -> None:
        """Note the answer, and the connection that it came on if that can be known."""
        self._response, self._connection = response, connection
        length, coding = (response.headers.get(name) for name in ("content-length", "transfer-encoding"))
        self._is_last = ends_its_connection(response.status_code, length, coding)

    def _has_more(self) -> bool:
        """Whether bytes followed the answer, which would be taken for the beginning of the next one."""
        return self._connection is not None and bool(self._connection._h11_state.trailing_data[0])  # noqa: SLF001


class _Requests:
    """The shared part of both transports: requests in the library's form, and the meaning of its exceptions."""

    def __init__(self, client: Any, library: Any) -> None:
        self._client = client
        self._origin = origin_of(client)
        self._library = library
        self._foreign = (
            library.HTTPError,
            library.InvalidURL,
            library.StreamError,
            library.CookieConflict,
            OSError,
            _Interrupted,
        )

    def _built(
        self, request: Request, timeout: float | None, extensions: dict[str, Any] | None = None
    ) -> Any:
        client = self._client
        self._origin.notice(self._renew)
        check_callers_headers(client.headers, of_client=True)
        if client.is_closed:
            raise client_closed(request.url)
        if timeout is None:
            silence = client.timeout
        else:
            own = client.timeout
            read = silence_of(request, timeout)
            connect = timeout.connect if isinstance(timeout, Timeout) else own.connect
            silence = self._library.Timeout(connect=connect, read=read, write=own.write, pool=own.pool)
        built = client.build_request(
            request.method,
            request.url,
            content=request.body,
            headers=request_headers(request, client=client.headers),
            timeout=silence,
            extensions=extensions,
        )
        for name in request.dropped:
            built.headers.pop(name, None)
        return built

    def _renew(self) -> None:
        client = self._client
        for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001
            _forget_connections(getattr(transport, "_pool", None))
        client.cookies.jar._cookies_lock = threading.RLock()  # noqa: SLF001

    def _with_hooks(self, kept: Callable[[Any, Any], Any]) -> Any:
        """Return the client, or a copy of it on the same connections, with each of its hooks of answers ``kept``."""
        hooks = getattr(self._client, "event_hooks", {})
        if not hooks.get("response"):
            return self._client
        client = copy.copy(self._client)
        of_answers = [partial(kept, hook) for hook in hooks["response"]]
        client._event_hooks = {**hooks, "response": of_answers}  # noqa: SLF001 - the public setter does the same
        return client

    def is_answer(self, error: Exception, outgoing: Any) -> bool:
        """Whether an error says no more than the status of the answer to this request."""
        if not isinstance(error, self._library.HTTPStatusError):
            return False
        asked = error.response.request
        return bool(asked.method == outgoing.method and asked.url == outgoing.url)

    def _kind(self, error: Exception) -> Failure:
        library = self._library
        if isinstance(error, TrickledError):
            return Failure.TRICKLE
        if isinstance(error, library.ConnectTimeout):
            return Failure.CONNECT_TIMEOUT
        if isinstance(error, library.PoolTimeout):
            return Failure.POOL_TIMEOUT
        if isinstance(error, (library.TimeoutException, TimeoutError)):
            return Failure.SILENCE
        if isinstance(error, library.ConnectError):
            return Failure.TLS if _about_tls(error) else Failure.REFUSED
        if isinstance(error, library.ProxyError):
            return Failure.REFUSED
        if isinstance(error, library.DecodingError):
            return Failure.DECODING
        if isinstance(error, (library.UnsupportedProtocol, library.InvalidURL)):
            return Failure.NOT_SENT
        return Failure.BROKEN

    @contextlib.contextmanager
    def mapped(
        self,
        url: str,
        interrupt: Interrupt | None = None,
        status: int | None = None,
        watch: _Watch | None = None,
    ) -> Iterator[None]:
        """Turn each error of the library into a FetchError: the one boundary."""
        try:
            yield
        except self._foreign as error:
            if (
                watch is not None
                and not watch.was_sent
                and not (interrupt is not None and interrupt.is_set())
            ):
                raise fetch_error(Failure.NOT_SENT, url, error) from None
            raise self._failure(error, url, interrupt, status) from None
        except (RuntimeError, ValueError, AttributeError) as error:
            # The library's errors when its client or socket is closed in use; otherwise an error of the program.
            if not (self._client.is_closed or (interrupt is not None and interrupt.is_set())):
                raise
            raise self._failure(error, url, interrupt, status) from None

    def _failure(
        self, error: Exception, url: str, interrupt: Interrupt | None, status: int | None
    ) -> FetchError:
        interrupted = interrupt is not None and interrupt.is_set()
        failure = Failure.INTERRUPTED if interrupted else self._kind(error)
        return fetch_error(failure, url, error, status=status)


class _Answer(AnswerBase):
    """The head of an answer, and the checks at its end."""

    def __init__(self, response: Any, requests: _Requests, url: str) -> None:
        lines = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw)
        super().__init__(url, response.status_code, response.reason_phrase, lines)
        self._response = response
        self._requests = requests

    def refusal(self, body: bytes) -> Exception | None:
        """Return the library's HTTPStatusError, whose ``response`` has the body."""
        response = self._response
        response._content = body  # noqa: SLF001
        try:
            response.raise_for_status()
        except self._requests._library.HTTPStatusError as error:  # noqa: SLF001
            found: Exception = error
            return found
        return None

    def _is_gone(self) -> bool:
        """Whether the body was dropped with the error that a client raised for its status."""
        return self._response.is_closed and not hasattr(self._response, "_content")

    def _check_end(self) -> None:
        response = self._response
        if ended_early(getattr(response, "_decoder", None), response.num_bytes_downloaded):
            raise self._requests._library.DecodingError("the compressed data is incomplete")  # noqa: SLF001


class _Exchange(_Answer):
    def __init__(self, response: Any, requests: _Requests, url: str, interrupt: Interrupt) -> None:
        super().__init__(response, requests, url)
        self._interrupt = interrupt
        self._drained = self._is_gone()
        self._body: Generator[bytes, None, None] = response.iter_bytes()

    def read(self) -> bytes:
        self._check_origin()
        if self._drained:
            return b""
        with self._requests.mapped(self._url, self._interrupt, self.status):
            for chunk in self._body:
                if chunk:
                    return chunk
            self._check_end()
            return b""

    def close(self) -> None:
        if self._leave():
            return
        self._interrupt.detach()
        with contextlib.suppress(Exception):
            self._body.close()
            self._response.close()


class HttpxTransport(_Requests):
    """Sends requests through the caller's sync client."""

    def open(self, request: Request, interrupt: Interrupt, timeout: float | None) -> _Exchange:
        """Send, and return the exchange as soon as the answer's head is there. See Transport."""
        watch, timed = _Watch(), None
        limit: float | None = None

        def trace(event: str, _details: Any) -> None:
            nonlocal timed
            if limit is not None and event == "http11.receive_response_headers.started":
                timed = _timed(_connection_of(self._client, outgoing), limit)
            elif timed is not None and event == "http11.receive_response_headers.complete":
                timed.deadline = None
            # A request that was interrupted before it had a connection must not begin to wait on one.
            if interrupt.is_set() and event.endswith(_BEFORE_IT_WAITS):
                raise _Interrupted
            if (stream := watch.note(event)) is not None:
                stream.close()

        try:
            with self.mapped(request.url, interrupt, watch=watch):
                outgoing = self._built(request, timeout, {"trace": trace})
                limit = head_limit(request, outgoing.extensions["timeout"].get("read"))
                interrupt.attach(partial(_break_waiting, self._client, outgoing))
                response = self._send(outgoing)
        except BaseException:
            interrupt.detach()
            raise
        interrupt.attach(partial(_break_answer, response))
        watch.answered(response, _connection_of(self._client, outgoing))
        try:
            return _Exchange(response, self, request.url, interrupt)
        except FetchError:
            interrupt.detach()
            response.close()
            raise

    def _send(self, outgoing: Any) -> Any:
        def kept(hook: Any, response: Any) -> None:
            try:
                hook(response)
            except self._library.HTTPStatusError as error:
                if error.response is not response:
                    raise

        try:
            return self._with_hooks(kept).send(outgoing, stream=True, follow_redirects=False)
        except self._library.HTTPStatusError as error:
            if self.is_answer(error, outgoing):
                return error.response
            raise


class _AsyncExchange(_Answer):
    def __init__(self, response: Any, requests: _Requests, url: str) -> None:
        super().__init__(response, requests, url)
        self._drained = self._is_gone()
        self._body: AsyncGenerator[bytes, None] = response.aiter_bytes()

    async def read(self) -> bytes:
        self._check_origin()
        if self._drained:
            return b""
        with self._requests.mapped(self._url, status=self.status):
            async for chunk in self._body:
                if chunk:
                    return chunk
            self._check_end()
            return b""

    async def close(self) -> None:
        if self._leave():
            return
        with contextlib.suppress(Exception):
            await self._body.aclose()
        with contextlib.suppress(Exception):
            await self._response.aclose()


class AsyncHttpxTransport(_Requests):
    """Sends requests through the caller's async client."""

    async def open(self, request: Request, timeout: float | None) -> _AsyncExchange:
        """Send, and return the exchange as soon as the answer's head is there. See AsyncTransport."""
        watch = _Watch()

        async def trace(event: str, _details: Any) -> None:
            if (stream := watch.note(event)) is not None:
                await stream.aclose()

        with self.mapped(request.url, watch=watch):
            outgoing = self._built(request, timeout, {"trace": trace})
            with Deadline(head_limit(request, outgoing.extensions["timeout"].get("read"))):
                response = await self._send(outgoing)
        watch.answered(response, _connection_of(self._client, outgoing))
        try:
            return _AsyncExchange(response, self, request.url)
        except FetchError:
            await response.aclose()
            raise

    async def _send(self, outgoing: Any) -> Any:
        async def kept(hook: Any, response: Any) -> None:
            try:
                await hook(response)
            except self._library.HTTPStatusError as error:
                if error.response is not response:
                    raise

        try:
            return await self._with_hooks(kept).send(outgoing, stream=True, follow_redirects=False)
        except self._library.HTTPStatusError as error:
            if self.is_answer(error, outgoing):
                return error.response
            raise


def _timed(connection: Any, limit: float) -> _Timed | None:
    """Have the next reads of a connection end at a deadline. Its stream is not public: without it there is none."""
    stream = getattr(connection, "_network_stream", None)
    if stream is None:
        return None
    timed: _Timed = stream if isinstance(stream, _Timed) else _Timed(stream)
    timed.deadline = time.monotonic() + limit
    connection._network_stream = timed  # noqa: SLF001
    return timed


def _forget_connections(pool: Any) -> None:
    """Give a pool a fresh lock and no connections, after a fork: those it has are the parent's. This is not public."""
    if hasattr(pool, "_connections") and hasattr(pool, "_optional_thread_lock"):
        leave_alone(pool._connections, pool._requests)  # noqa: SLF001
        pool._connections, pool._requests = [], []  # noqa: SLF001
        pool._optional_thread_lock = type(pool._optional_thread_lock)()  # noqa: SLF001


def _about_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _break_answer(response: Any) -> None:
    stream = response.extensions.get("network_stream")
    # Once it is closed, by its end too, the connection may serve others.
    if stream is not None and not response.is_closed and response.http_version.startswith("HTTP/1"):
        break_off(stream.get_extra_info("socket"))


def _connection_of(client: Any, outgoing: Any) -> Any:
    """Return the HTTP/1 connection of a request in progress, None where that cannot be known.

    The library gives it only together with the answer, and not the bytes behind that; its pool knows, which is not
    public.
    """
    with contextlib.suppress(Exception):
        pool = client._transport_for_url(outgoing.url)._pool  # noqa: SLF001
        for waiting in list(pool._requests):  # noqa: SLF001
            if waiting.request.extensions is outgoing.extensions:
                connection = waiting.connection
                while (inner := getattr(connection, "_connection", None)) is not None:
                    connection = inner
                return connection if hasattr(connection, "_h11_state") else None
    return None


def _break_waiting(client: Any, outgoing: Any) -> None:
    """Break the connection on which a request waits for its answer's head, else it waits for the read timeout."""
    with contextlib.suppress(Exception):
        connection = _connection_of(client, outgoing)
        break_off(connection._network_stream.get_extra_info("socket"))  # noqa: SLF001
