"""The interface of a performer to an HTTP library, and the choice of the library for a ``client=`` argument.

A transport sends one request and gives back an exchange: the answer's head, then its body piece by piece. It
follows no redirects, repeats nothing, and raises FetchError for each error of its library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from durable_streams.client.transports.interrupt import Gate, Interrupt
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
