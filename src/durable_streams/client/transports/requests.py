"""The sync transport over the caller's ``requests.Session``.

Invariants: requests is not imported here, the session brings it; the session is never closed, and its adapters,
authentication, cookies, proxies and hooks stay in force; no exception of requests, urllib3 or the socket layer
leaves this module; an answer that a hook, an adapter or its `Retry` raises an error for is handed over all the same.
Redirects are the session's: a feed that moved is found as its user expects.

Requests cannot be interrupted before an answer's head is there, so the wait for it takes place in a separate thread,
which an Interrupt leaves behind: that thread closes its answer, should one come.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import http.client
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import urllib3

from durable_streams.client.forks import origin_of
from durable_streams.client.transports.coding import ended_early
from durable_streams.client.transports.failures import Failure, fetch_error
from durable_streams.client.transports.heads import AnswerBase, request_headers
from durable_streams.client.transports.httpclient import (
    forget_connections,
    trickled,
    was_sent,
    watch,
    watching,
)
from durable_streams.client.transports.interrupt import Gate, Interrupt
from durable_streams.client.transports.limits import TrickledError, connect_limit, head_limit, silence_of
from durable_streams.client.transports.sockets import break_off
from durable_streams.errors import FetchError
from durable_streams.protocol import headers as h
from durable_streams.protocol.request import Request, check_callers_headers

__all__ = ["RequestsTransport"]

_READ_SIZE = 64 * 1024


class RequestsTransport:
    """Sends requests through the caller's session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._origin = origin_of(session)

    def _renew(self) -> None:
        """Leave all connections alone after a fork, for they belong to the parent."""
        session = self._session
        for adapter in self._adapters():
            managers = (
                getattr(adapter, "poolmanager", None),
                *getattr(adapter, "proxy_manager", {}).values(),
            )
            for manager in managers:
                if isinstance(manager, urllib3.PoolManager):
                    forget_connections(manager)
        session.cookies._cookies_lock = threading.RLock()  # noqa: SLF001

    def _adapters(self) -> list[Any]:
        adapters = getattr(self._session, "adapters", None)
        return list(adapters.values()) if isinstance(adapters, Mapping) else []

    def _watch(self) -> None:
        """Have the connections of the session's adapters held to HTTP, those through proxies too."""
        for adapter in self._adapters():
            if isinstance(manager := getattr(adapter, "poolmanager", None), urllib3.PoolManager):
                watch(manager)
            proxies = getattr(adapter, "proxy_manager", None)
            if type(proxies) is dict:
                adapter.proxy_manager = _Managers(proxies)
            retry = getattr(adapter, "max_retries", None)
            if isinstance(retry, urllib3.Retry) and not isinstance(retry, _Lenient):
                adapter.max_retries = lenient = copy.copy(retry)
                kind: Any = type(retry)
                lenient.__class__ = _lenient(kind)

    def _send(self, request: Request, options: dict[str, Any]) -> Any:
        watching(head_limit(request, options["timeout"][1]))
        method = getattr(self._session, request.method.lower(), None)
        own = callable(method) and not _is_of_requests(method)
        _current.ours = True
        try:
            if not own:
                return self._session.request(request.method, request.url, data=request.body, **options)
            return self._call(method, request, options)
        except Exception as error:
            response = getattr(error, "response", None)
            if _is_answer(response, request):
                return response
            if trickled():
                raise TrickledError from error
            # What a method of the caller's own raises may have come from no connection of ours.
            if not own and self._adapters() and not was_sent():
                raise _UnsentError from error
            raise
        finally:
            _current.ours = False

    @staticmethod
    def _call(method: Any, request: Request, options: dict[str, Any]) -> Any:
        """Call a method of the caller's own making with the arguments that the X SDK calls it with."""
        url, params = request.parts or (request.url, None)
        body: dict[str, Any] = {}
        if request.body is not None:
            is_json = h.is_json(request.headers.get("content-type", ""))
            body = {"json": json.loads(request.body)} if is_json else {"data": request.body}
        return method(url, params=params or {}, **body, **options)

    def open(
        self, request: Request, interrupt: Interrupt, timeout: float | None
    ) -> _Exchange | _DoublesExchange:
        """Send, and return the exchange as soon as the answer's head is there. See Transport."""
        if self._adapters():
            self._origin.notice(self._renew)
        if isinstance(headers := getattr(self._session, "headers", None), Mapping):
            check_callers_headers(headers, of_client=True)
        options: dict[str, Any] = {
            "headers": self._headers(request),
            "stream": True,
            "timeout": (connect_limit(timeout), silence_of(request, timeout)),
        }
        if hooks := _kept_hooks(self._session):
            options["hooks"] = {"response": hooks}
        self._watch()
        with _mapped(request.url, interrupt, connect=connect_limit(timeout)):
            response = _Opening(lambda: self._send(request, options)).result(interrupt)
        kind = _Exchange if isinstance(response.raw, urllib3.BaseHTTPResponse) else _DoublesExchange
        try:
            return kind(response, interrupt, request.url)
        except FetchError:
            response.close()
            raise

    def _headers(self, request: Request) -> dict[str, str | None]:
        own = getattr(self._session, "headers", None)
        headers: dict[str, str | None] = {**request_headers(request, client=own)}
        chosen = own.get("accept-encoding") if isinstance(own, Mapping) else None
        if chosen != sys.modules["requests"].utils.default_headers().get("accept-encoding"):
            headers.pop("accept-encoding", None)  # the session's own choice goes out
        headers.update(request.headers)
        return {**headers, **dict.fromkeys(request.dropped)}  # None: the session's is left out


def _is_of_requests(method: Any) -> bool:
    return str(getattr(method, "__module__", "")).partition(".")[0] == "requests"


_current = threading.local()


class _Lenient:
    """Mixed into a `Retry` of an adapter: the last answer to a request of this module is returned, whatever its status.

    Not so for other users of the adapter.
    """

    @property
    def raise_on_status(self) -> bool:
        raises: bool = self.__dict__["raise_on_status"]
        return raises and not getattr(_current, "ours", False)

    @raise_on_status.setter
    def raise_on_status(self, raises: bool) -> None:
        self.__dict__["raise_on_status"] = raises


@lru_cache(maxsize=64)
def _lenient(kind: Any) -> Any:
    return type(kind.__name__, (_Lenient, kind), {})


def _lines(response: Any) -> Iterable[tuple[str, str]]:
    """Return the lines of an answer's head: the library's own headers have joined those of one name."""
    headers = getattr(response.raw, "headers", None)
    lines = headers if isinstance(headers, urllib3.HTTPHeaderDict) else response.headers
    items: Iterable[tuple[str, str]] = lines.items()
    return items


def _kept_hooks(session: Any) -> list[Callable[..., Any]]:
    """Return a session's hooks of answers, so that an error that they raise for an answer does not count."""
    given = session.hooks.get("response") if isinstance(getattr(session, "hooks", None), dict) else None
    hooks = [given] if callable(given) else list(given or ())
    return [_kept(hook) for hook in hooks]


def _kept(hook: Callable[..., Any]) -> Callable[..., Any]:
    def kept(response: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return hook(response, *args, **kwargs)
        except Exception as error:
            if getattr(error, "response", None) is not response:
                raise
            return None

    return kept


def _is_answer(response: Any, request: Request) -> bool:
    """Whether an error carries the answer to this request, and not that of another, for a token say."""
    library = sys.modules["requests"]
    if not isinstance(response, library.Response) or response.request is None:
        return False
    first = (response.history or [response])[0].request
    return bool(first.method == request.method and _place(first.url) == _place(request.url))


def _place(url: str) -> str:
    prepared: str = sys.modules["requests"].Request("GET", url).prepare().url
    return prepared.partition("?")[0]


class _Managers(dict[str, Any]):
    """The managers of an adapter's proxies, which it makes when it needs them."""

    def __init__(self, managers: dict[str, Any]) -> None:
        super().__init__()
        for proxy, manager in managers.items():
            self[proxy] = manager

    def __setitem__(self, proxy: str, manager: Any) -> None:
        if isinstance(manager, urllib3.PoolManager):
            watch(manager)
        super().__setitem__(proxy, manager)


class _UnsentError(Exception):
    """No byte of the request has left."""


class _Opening:
    """A call in a separate thread, which can be left behind."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._over = Gate()
        self._lock = threading.Lock()
        self._left = False
        self._response: Any = None
        self._error: BaseException | None = None

    def result(self, interrupt: Interrupt) -> Any:
        """Return the answer, or raise what the call raised; an Interrupt raises _Interrupted."""
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run,), name="feed-request", daemon=True).start()
        interrupt.attach(self._over.set)
        try:
            self._over.wait()
        finally:
            interrupt.detach()
            with self._lock:
                self._left = self._response is None and self._error is None
        if self._left:
            raise _Interrupted
        if self._error is not None:
            raise self._error
        return self._response

    def _run(self) -> None:
        response: Any = None
        error: BaseException | None = None
        try:
            response = self._send()
        except BaseException as raised:  # noqa: BLE001 - it is raised again where it was waited for
            error = raised
        with self._lock:
            self._response, self._error = response, error
            left = self._left
        self._over.set()
        if left and response is not None:
            response.close()


class _Interrupted(Exception):  # noqa: N818 - it never leaves this module
    """The wait for an answer was given up."""


class _Exchange(AnswerBase):
    """One answer of requests, read below the library's own buffers, with its errors mapped."""

    def __init__(self, response: Any, interrupt: Interrupt, url: str) -> None:
        super().__init__(url, response.status_code, response.reason, _lines(response))
        self._response = response
        self._raw = response.raw
        self._raw.decode_content = True
        self._interrupt = interrupt
        content = response._content  # noqa: SLF001 - what a hook has read already; False for nothing
        self._read: bytes | None = content if isinstance(content, bytes) else None
        # Kept here, because http.client forgets the socket of an answer that ends with its connection.
        sock = getattr(getattr(self._raw, "connection", None), "sock", None)
        interrupt.attach(lambda: self._break(sock))

    def _break(self, sock: Any) -> None:
        if sock is not None:
            break_off(sock)
        elif hasattr(self._raw, "shutdown"):
            with contextlib.suppress(Exception):  # it may be over, or its connection released
                self._raw.shutdown()

    def refusal(self, body: bytes) -> Exception | None:
        """Return the library's HTTPError, whose ``response`` has the body."""
        response = self._response
        response._content, response._content_consumed = body, True  # noqa: SLF001
        return _refusal(response)

    def read(self) -> bytes:
        self._check_origin()
        if self._read is not None:
            content, self._read = self._read, b""
            return content
        with _mapped(self._url, self._interrupt, self.status):
            data: bytes | None = self._raw.read1(_READ_SIZE)
            if data:
                return data
            if ended_early(getattr(self._raw, "_decoder", None), self._raw.tell()):
                raise urllib3.exceptions.DecodeError("the compressed data is incomplete")
            return b""

    def close(self) -> None:
        if self._leave():
            return
        self._interrupt.detach()
        # Closing one that was not read to its end closes its connection; else it is back in the pool already.
        with contextlib.suppress(Exception):
            self._response.close()


class _DoublesExchange(AnswerBase):
    """An answer that came from no connection: of a test double, or of an adapter of the caller's own."""

    def __init__(self, response: Any, interrupt: Interrupt, url: str) -> None:
        self._refused = _refusal(response)
        status = response.status_code
        if not isinstance(status, int):  # it was never set: what raises for a status has the last word
            status = getattr(getattr(self._refused, "response", None), "status_code", 500)
            status = status if self._refused is not None and isinstance(status, int) else 200
        headers = response.headers
        lines = headers.items() if isinstance(headers, Mapping) else ()
        reason = response.reason if isinstance(response.reason, str) else ""
        super().__init__(url, status, reason, lines)
        self._response, self._interrupt = response, interrupt
        self._pieces: Iterator[Any] | None = None

    def refusal(self, body: bytes) -> Exception | None:
        """Return what the answer itself raises for its status."""
        del body
        return self._refused

    def read(self) -> bytes:
        with _mapped(self._url, self._interrupt, self.status):
            if self._pieces is None:
                self._pieces = iter(self._bodys_pieces())
            for piece in self._pieces:
                if data := piece.encode() if isinstance(piece, str) else bytes(piece):
                    return data
            return b""

    def _bodys_pieces(self) -> Any:
        if self._refused is not None:
            texts = (getattr(self._response, name, None) for name in ("content", "text"))
            return [text for text in texts if isinstance(text, (str, bytes))][:1]
        return self._response.iter_content(chunk_size=1024, decode_unicode=False)

    def close(self) -> None:
        self._interrupt.detach()
        with contextlib.suppress(Exception):
            self._response.close()


def _refusal(response: Any) -> Exception | None:
    try:
        response.raise_for_status()
    except Exception as error:  # noqa: BLE001 - a session may have one of its own
        return error
    return None


def _as_of_requests(error: Exception) -> Exception:
    """Return the error that requests itself raises for one that urllib3 raised while a body was read."""
    if isinstance(error, (_UnsentError, TrickledError)):
        return error.__cause__ if isinstance(error.__cause__, Exception) else error
    kinds = sys.modules["requests"].exceptions
    for kind, theirs in (
        (urllib3.exceptions.DecodeError, kinds.ContentDecodingError),
        (urllib3.exceptions.SSLError, kinds.SSLError),
        (urllib3.exceptions.ReadTimeoutError, kinds.ConnectionError),
        ((urllib3.exceptions.ProtocolError, http.client.HTTPException), kinds.ChunkedEncodingError),
        ((urllib3.exceptions.HTTPError, OSError), kinds.ConnectionError),
    ):
        if isinstance(error, kind) and not isinstance(error, kinds.RequestException):
            made: Exception = theirs(error)
            made.__cause__ = error
            return made
    return error


@contextlib.contextmanager
def _mapped(
    url: str, interrupt: Interrupt, status: int | None = None, *, connect: float | None = None
) -> Iterator[None]:
    """Turn each error into a FetchError: the one boundary."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - adapters and authentication may raise anything
        failure = Failure.INTERRUPTED if interrupt.is_set() else _failure(error, status)
        limit = None if failure is Failure.TRICKLE else connect
        raise fetch_error(failure, url, _as_of_requests(error), status=status, limit=limit) from None


_NEVER_SENT = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.NameResolutionError,
    urllib3.exceptions.ProxyError,
)
_BROKEN = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


def _failure(error: Exception, status: int | None) -> Failure:
    if isinstance(error, _UnsentError):
        return Failure.NOT_SENT
    if isinstance(error, TrickledError):
        return Failure.TRICKLE
    kinds = sys.modules["requests"].exceptions
    reason = _reason(error)
    if isinstance(error, (kinds.ConnectTimeout,)) or type(reason) is urllib3.exceptions.ConnectTimeoutError:
        return Failure.CONNECT_TIMEOUT
    if isinstance(error, (kinds.Timeout, TimeoutError)) or isinstance(reason, _SILENT):
        return Failure.SILENCE
    if isinstance(error, kinds.SSLError):
        return Failure.TLS
    if isinstance(error, kinds.ProxyError) or isinstance(reason, _NEVER_SENT):
        return Failure.REFUSED
    if isinstance(error, urllib3.exceptions.DecodeError):
        return Failure.DECODING
    if status is None and (
        isinstance(error, (ValueError, kinds.TooManyRedirects)) or not isinstance(error, _BROKEN)
    ):
        return Failure.NOT_SENT  # a bad URL or header, or a rule of the session itself
    return Failure.BROKEN


_SILENT = (urllib3.exceptions.ReadTimeoutError, TimeoutError)


def _reason(error: Exception) -> Any:
    """Return the error that the library wrapped, once or twice."""
    inner = error.args[0] if error.args else None
    return getattr(inner, "reason", inner) if isinstance(inner, Exception) else error
