"""The default sync transport, over urllib3.

Invariants: one pool for each process and proxy, with one TLS context; no exception of
urllib3, http.client or the socket layer leaves this module, all become FetchError in `_mapped`; urllib3 follows
no redirect and repeats nothing; Interrupt ends every call that a thread is blocked in here, once it is connected
(with a PoolManager of the caller's: once the answer's head is there).
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from functools import partial
from traceback import walk_tb
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3 import PoolManager, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from durable_streams.client.forks import Origin, origin_of
from durable_streams.client.transports.coding import ended_early
from durable_streams.client.transports.failures import Failure, fetch_error
from durable_streams.client.transports.heads import AnswerBase, request_headers
from durable_streams.client.transports.httpclient import (
    WatchedConnection,
    forget_connections,
    trickled,
    was_sent,
    watch,
    watching,
)
from durable_streams.client.transports.interrupt import Interrupt
from durable_streams.client.transports.limits import CONNECT_TIMEOUT, connect_limit, head_limit, silence_of
from durable_streams.client.transports.proxies import proxy_for
from durable_streams.client.transports.sockets import KEEP_ALIVE, break_off
from durable_streams.errors import FetchError
from durable_streams.protocol.request import Request, check_callers_headers

__all__ = ["PoolManager", "Urllib3Transport", "shared"]

_READ_SIZE = 64 * 1024  # faster than any larger one: it stays in the processor's cache
_DECODABLE: str = urllib3.util.make_headers(accept_encoding=True)["accept-encoding"]
_SMALL_BODY = 64 * 1024
_POOL_SIZE = 64  # connections kept per host; more are opened when needed, and closed after use

_current = threading.local()


class _Interruptible(WatchedConnection):
    """A connection that gives the Interrupt of the call in progress the function that breaks it."""

    _holder: Interrupt | None = None
    _body_follows = False
    _head = b""

    def request(self, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any) -> None:
        self._holder = None  # the call that used this connection before can no longer break it
        self._head = b""
        self._body_follows = isinstance(body, bytes) and 0 < len(body) <= _SMALL_BODY
        super().request(method, url, body, *args, **kwargs)

    def send(self, data: Any) -> None:
        # Head and body of a small request in one piece: one call into the system and one packet instead of two.
        if self._body_follows:
            self._body_follows, self._head = False, data
            return
        head, self._head = self._head, b""
        super().send(head + data if head else data)

    def getresponse(self, *args: Any, **kwargs: Any) -> Any:
        holder: Interrupt | None = getattr(_current, "interrupt", None)
        # Kept here, because http.client forgets the socket of an answer that ends with its connection.
        sock = self.sock

        def break_mine() -> None:
            if self._holder is holder:
                break_off(sock)

        self._holder = holder
        if holder is not None:
            holder.attach(break_mine)
        return super().getresponse(*args, **kwargs)


class _Connection(_Interruptible, HTTPConnection):
    pass


class _TLSConnection(_Interruptible, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Exchange(AnswerBase):
    """One answer of urllib3, with its errors mapped."""

    def __init__(self, response: urllib3.BaseHTTPResponse, interrupt: Interrupt, url: str) -> None:
        super().__init__(url, response.status, response.reason, response.headers.items())
        self._response = response
        self._interrupt = interrupt

    def read(self) -> bytes:
        self._check_origin()
        response = self._response
        if response.length_remaining == 0 and not response.tell():
            # There is no body, and reading none takes its time. Its answer ends before its connection serves others.
            if (answer := getattr(response, "_original_response", None)) is not None:
                answer.close()
            response.release_conn()
            return b""
        try:
            data: bytes | None = response.read1(_READ_SIZE)
            if data:
                return data
            # None: a HEAD, or a body that was read to its end before.
            if ended_early(getattr(response, "_decoder", None), response.tell()):
                raise urllib3.exceptions.DecodeError("the compressed data is incomplete")
        except _FOREIGN as error:
            raise _fetch_error(error, self._url, self._interrupt, self.status) from None
        except _AFTER_AN_INTERRUPT as error:
            if not self._interrupt.is_set():
                raise
            raise _fetch_error(error, self._url, self._interrupt, self.status) from None
        return b""

    def close(self) -> None:
        if self._leave():
            return
        self._interrupt.detach()
        # Closing a response that was not read to its end closes its connection; else it is back in the pool
        # already.
        with contextlib.suppress(Exception):
            self._response.close()


class Urllib3Transport:
    """Sends requests through a PoolManager: one of its own, or the caller's, whose timeouts stay in force.

    Its own uses the proxies that the environment names.
    """

    def __init__(self, manager: PoolManager | None = None) -> None:
        self._given = manager
        self._origin = Origin() if manager is None else origin_of(manager)
        self._forget()

    def _renew(self) -> None:
        """Forget all connections: a child after a fork must not write into its parent's sockets."""
        if self._given is not None:
            forget_connections(self._given)
        self._forget()

    def _forget(self) -> None:
        self._managers: dict[tuple[str, str | None], PoolManager] = {}
        self._pools: dict[str, HTTPConnectionPool] = {}  # by origin, where no proxy is in between
        self._lock = threading.Lock()

    def open(self, request: Request, interrupt: Interrupt, timeout: float | None) -> _Exchange:
        """Send, and return the exchange as soon as the answer's head is there. See Transport."""
        self._origin.notice(self._renew)
        options: dict[str, Any] = {"retries": _NO_RETRY, "redirect": False, "preload_content": False}
        if timeout is not None or self._given is None or "timeout" not in self._given.connection_pool_kw:
            silence = silence_of(request, timeout)
            options["timeout"] = urllib3.Timeout(connect=connect_limit(timeout), read=silence)
        else:
            silence = _silence_of(self._given)
        limit = head_limit(request, silence)
        _current.interrupt = interrupt
        watching(limit)
        try:
            response = self._send(request, options)
            if self._given is not None and hasattr(response, "shutdown"):
                interrupt.attach(partial(_shut_down, response))
            try:
                return _Exchange(response, interrupt, request.url)
            except FetchError:
                response.close()
                raise
        except _FOREIGN as error:
            interrupt.detach()
            if trickled() and not interrupt.is_set():
                raise fetch_error(Failure.TRICKLE, request.url, error, limit=limit) from None
            raise _fetch_error(error, request.url, interrupt, None, connect_limit(timeout)) from None
        except _AFTER_AN_INTERRUPT as error:
            interrupt.detach()
            if not interrupt.is_set():
                raise
            raise _fetch_error(error, request.url, interrupt, None, connect_limit(timeout)) from None
        except BaseException:
            interrupt.detach()
            raise
        finally:
            _current.interrupt = None

    def _send(self, request: Request, options: dict[str, Any]) -> urllib3.BaseHTTPResponse:
        method, url, body = request.method, request.url, request.body
        headers = self._headers(request)
        slash = url.find("/", 8)
        pool = self._pools.get(url[:slash]) if slash > 0 else None
        if pool is not None:
            # Straight to the host's connections: finding them takes the manager as long as all the rest.
            return pool.urlopen(
                method, url[slash:], body=body, headers=headers, assert_same_host=False, **options
            )
        manager = self._manager(url)
        response = manager.urlopen(method, url, body=body, headers=headers, **options)
        if slash > 0 and manager is not self._given and not isinstance(manager, ProxyManager):
            self._pools[url[:slash]] = manager.connection_from_url(url)
        return response

    def _headers(self, request: Request) -> dict[str, str]:
        given = None if self._given is None else self._given.headers
        if not given:
            return request_headers(request, _DECODABLE)
        check_callers_headers(given, of_client=True)
        # The manager's own are left out by the library where a request has any.
        own = {name.lower(): value for name, value in given.items()}
        headers = {**own, **request_headers(request, own.get("accept-encoding") or _DECODABLE, own)}
        return {name: value for name, value in headers.items() if name not in request.dropped}

    def _manager(self, url: str) -> PoolManager:
        if self._given is not None:
            watch(self._given)
            return self._given
        route = url.partition(":")[0], proxy_for(url)
        manager = self._managers.get(route)
        if manager is None:
            with self._lock:
                manager = self._managers.get(route) or _new_manager(*route)
                self._managers[route] = manager
        return manager


def _silence_of(manager: PoolManager) -> float | None:
    """Return the seconds of silence that a caller's manager allows, None where it sets no limit."""
    given = manager.connection_pool_kw["timeout"]
    silence = given.read_timeout if isinstance(given, urllib3.Timeout) else given
    return silence if isinstance(silence, (int, float)) else None


def _shut_down(response: urllib3.BaseHTTPResponse) -> None:
    with contextlib.suppress(Exception):  # it may be over, or its connection released
        response.shutdown()


def _new_manager(scheme: str, proxy: str | None) -> PoolManager:
    options: dict[str, Any] = {
        "num_pools": 64,
        "maxsize": _POOL_SIZE,
        "block": False,
        "socket_options": [*HTTPConnection.default_socket_options, *KEEP_ALIVE],
    }
    if scheme == "https":
        # Loading the trusted certificates takes 50 ms, so there is one context, made when the first https URL comes.
        options["ssl_context"] = ssl.create_default_context()
    if proxy is None:
        manager = PoolManager(**options)
    else:
        user = unquote(urlsplit(proxy).netloc.rpartition("@")[0])
        credentials = urllib3.util.make_headers(proxy_basic_auth=user) if user else None
        manager = ProxyManager(proxy, proxy_headers=credentials, **options)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return manager


_NEVER_SENT = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NameResolutionError,
    urllib3.exceptions.ProxyError,
)


_FOREIGN = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
_AFTER_AN_INTERRUPT = (AttributeError, ValueError)
"""The library's errors when its socket is closed in use; otherwise they are errors of the program."""

_NO_RETRY = urllib3.Retry(False)


def _fetch_error(
    error: Exception,
    url: str,
    interrupt: Interrupt,
    status: int | None,
    connect: float | None = CONNECT_TIMEOUT,
) -> FetchError:
    if interrupt.is_set():
        failure = Failure.INTERRUPTED
    elif type(error) is urllib3.exceptions.ConnectTimeoutError:  # its subclasses are refusals
        failure = Failure.CONNECT_TIMEOUT
    elif isinstance(error, (urllib3.exceptions.ReadTimeoutError, TimeoutError)):
        failure = Failure.SILENCE
    elif isinstance(error, urllib3.exceptions.SSLError) and _in_handshake(error):
        failure = Failure.TLS
    elif isinstance(error, _NEVER_SENT):
        failure = Failure.REFUSED
    elif isinstance(error, urllib3.exceptions.LocationValueError) or (status is None and not was_sent()):
        failure = Failure.NOT_SENT
    elif isinstance(error, urllib3.exceptions.DecodeError):
        failure = Failure.DECODING
    else:
        failure = Failure.BROKEN
    return fetch_error(failure, url, error, status=status, limit=connect)


def _in_handshake(error: urllib3.exceptions.SSLError) -> bool:
    """Whether TLS failed before the request went out: the library reports a later failure by the same name."""
    inner = error.args[0] if error.args else None
    if not isinstance(inner, ssl.SSLError) or isinstance(inner, ssl.CertificateError):
        return True  # the library itself refused the certificate
    return any(frame.f_code.co_name == "do_handshake" for frame, _ in walk_tb(inner.__traceback__))


_shared = Urllib3Transport()


def shared() -> Urllib3Transport:
    """Return the transport that all calls of this process share."""
    return _shared
