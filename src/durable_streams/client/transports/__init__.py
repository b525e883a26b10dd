"""The interface of a performer to an HTTP library, and the choice of the library for a ``client=`` argument.

A transport sends one request and gives back an exchange: the answer's head, then its body piece by piece. It
follows no redirects, repeats nothing, and raises FetchError for each error of its library.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

from durable_streams.client.forks import Origin
from durable_streams.protocol.effects import Head
from durable_streams.protocol.request import Request

__all__ = [
    "AsyncExchange",
    "AsyncTransport",
    "Exchange",
    "Gate",
    "Interrupt",
    "Transport",
    "async_transport_for",
    "completes_urls",
    "is_session",
    "transport_for",
]


class _Answer(Head, Protocol):
    """One answer. ``headers`` have lower-case names."""

    @property
    def reason(self) -> str: ...


class Exchange(_Answer, Protocol):
    """One answer, and its body piece by piece."""

    def read(self) -> bytes:
        """Return the next bytes as soon as there are some, ``b""`` at the end; raises FetchError."""

    def close(self) -> None:
        """Release the connection: for reuse if the body was read to its end, else closed."""


class Transport(Protocol):
    """Sends requests. Safe to share between threads."""

    def open(self, request: Request, interrupt: Interrupt, timeout: float | None) -> Exchange:
        """Send, and return as soon as the answer's head is there; raises FetchError.

        ``timeout``: seconds of silence before the read is given up, None for the default. ``interrupt``
        breaks the exchange from another thread.
        """


class AsyncExchange(_Answer, Protocol):
    """One answer, and its body piece by piece."""

    async def read(self) -> bytes:
        """Return the next bytes as soon as there are some, ``b""`` at the end; raises FetchError.

        Cancelled in the middle, it leaves an exchange that can only be closed, unless ``outlives_cancellation`` is
        True: then the next call goes on.
        """

    async def close(self) -> None:
        """Release the connection: for reuse if the body was read to its end, else closed."""


class AsyncTransport(Protocol):
    """Sends requests. Safe to share between tasks, and between event loops."""

    async def open(self, request: Request, timeout: float | None) -> AsyncExchange:
        """Send, and return as soon as the answer's head is there; raises FetchError.

        ``timeout``: seconds of silence before the read is given up, None for the default. Cancelling it
        leaves nothing open.
        """


class Gate:
    """An event that a signal handler may set, too, while its own thread waits for it; set once and for all.

    The `threading.Event` of the standard library holds a lock for a moment, which a handler that runs in that moment
    would wait for without end.
    """

    def __init__(self) -> None:
        self._open = False
        self._lock = threading.Lock()
        self._lock.acquire()  # noqa: SIM115, RUF100 - held until `set`

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._open

    def set(self) -> None:
        """Let all that wait, now or later, go on."""
        self._open = True
        with contextlib.suppress(RuntimeError):  # it is released already
            self._lock.release()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for `set`, for this many seconds at most; return whether it was called."""
        limit = -1 if seconds is None else min(max(seconds, 0.0), threading.TIMEOUT_MAX)
        if not self._open and self._lock.acquire(timeout=limit):
            with contextlib.suppress(RuntimeError):
                self._lock.release()  # for the next one that waits
        return self._open


class Interrupt:
    """Ends the call that a thread of the performer is blocked in: a connect, a read or a pause. Cannot be taken back.

    A signal handler may call `set`: nothing here waits for a lock that its own thread may hold.

    ``with interrupt:`` is around everything that may block, so that `busy` says whether a thread is in it. In a child
    after a fork an interrupt knows no exchange: to break one there would end the parent's connection.
    """

    def __init__(self) -> None:
        self._origin = Origin()
        self._event = Gate()
        self._lock = threading.RLock()
        self._break: Callable[[], None] | None = None
        self._busy = False

    def _renew(self) -> None:
        was_set, self._event = self._event.is_set(), Gate()
        if was_set:
            self._event.set()
        self._lock, self._break, self._busy = threading.RLock(), None, False

    @property
    def busy(self) -> bool:
        """Whether a thread is in the block."""
        self._origin.notice(self._renew)
        return self._busy

    def __enter__(self) -> None:
        self._origin.notice(self._renew)
        self._busy = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._busy = False

    def set(self) -> None:
        """Break the exchange in progress, if any, and every later one at once."""
        self._origin.notice(self._renew)
        with self._lock:
            self._event.set()
            if self._break is not None:
                self._break()

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._event.is_set()

    def pause(self, seconds: float) -> bool:
        """Sleep, unless interrupted; return whether it was interrupted."""
        self._origin.notice(self._renew)
        return self._event.wait(seconds) if seconds > 0 else self._event.is_set()

    def attach(self, action: Callable[[], None]) -> None:
        """Take the function that breaks the present exchange; it is called at once if `set` was called already."""
        self._origin.notice(self._renew)
        with self._lock:
            self._break = action
            if self._event.is_set():
                action()

    def detach(self) -> None:
        """Drop the function of `attach`: the exchange is over, its connection may serve others."""
        self._origin.notice(self._renew)
        with self._lock:
            self._break = None


def transport_for(client: Any) -> Transport:
    """Return the transport for a ``client=`` argument: None for the one shared by the process.

    Raises TypeError for an object that is not a known kind of client.
    """
    # Imported late: HTTP libraries are slow to import, and most programs need one of them.
    if client is None or _is_from("urllib3", client):
        from durable_streams.client.transports import urllib3 as own  # noqa: PLC0415

        if client is None:
            return own.shared()
        if isinstance(client, own.PoolManager):
            return own.Urllib3Transport(client)
    elif _is_from("httpx", client) or _is_from("httpx2", client):
        from durable_streams.client.transports import httpx  # noqa: PLC0415

        return httpx.sync_transport(client)
    elif is_session(client):
        from durable_streams.client.transports import requests  # noqa: PLC0415

        return requests.RequestsTransport(client)
    elif callable(getattr(client, "open", None)):
        transport: Transport = client
        return transport
    raise TypeError(
        f"client= takes an httpx.Client, a requests.Session, a urllib3.PoolManager or a Transport, not {_kind(client)}."
    )


def async_transport_for(client: Any) -> AsyncTransport:
    """Return the async transport for a ``client=`` argument: None for the one shared by the process.

    Raises TypeError for an object that is not a known kind of async client.
    """
    if client is None or _is_from("aiohttp", client):
        from durable_streams.client.transports import aiohttp as own  # noqa: PLC0415

        if client is None:
            return own.shared()
        if isinstance(client, own.ClientSession):
            return own.AiohttpTransport(client)
    elif _is_from("httpx", client) or _is_from("httpx2", client):
        from durable_streams.client.transports import httpx  # noqa: PLC0415

        return httpx.async_transport(client)
    elif callable(getattr(client, "open", None)):
        transport: AsyncTransport = client
        return transport
    raise TypeError(
        f"client= takes an httpx.AsyncClient, an aiohttp.ClientSession or an AsyncTransport, not {_kind(client)}."
    )


def is_session(client: Any) -> bool:
    """Whether it is a ``requests.Session``, or has a session's methods, as test doubles do."""
    if _is_from("requests", client) or _is_from("requests", client.__class__, itself=True):
        return callable(getattr(client, "request", None))
    if isinstance(client, Mapping) or any(_is_from(name, client) for name in _OTHERS):
        return False
    is_double = _is_from("unittest", client) or not callable(getattr(client, "open", None))
    return is_double and callable(getattr(client, "get", None))


_OTHERS = ("aiohttp", "httpx", "httpx2", "urllib3")


def completes_urls(client: Any) -> bool:
    """Whether a client may make a whole URL of a relative one: it has a base, or methods of its caller's making."""
    if client is None:
        return False
    if _is_from("httpx", client) or _is_from("httpx2", client):
        return str(client.base_url) not in {"", "/"}
    if _is_from("aiohttp", client):
        return getattr(client, "_base_url", None) is not None
    if not is_session(client):
        return False
    return any(
        not _is_from("requests", getattr(client, name, None), itself=True) for name in ("request", "get")
    )


def _is_from(library: str, client: Any, *, itself: bool = False) -> bool:
    # By name, so that no library is imported that the caller does not use; subclasses count.
    kinds = (client, *getattr(client, "__mro__", ())) if itself else type(client).__mro__
    return any(str(getattr(kind, "__module__", "")).partition(".")[0] == library for kind in kinds)


def _kind(client: Any) -> str:
    return f"{type(client).__module__}.{type(client).__name__}"
