"""The client's transports without HTTP: a call carries a request to the application, and its answer back.

Handles, producers and readers over these transports are the client's own, so that names, results and errors are those
over HTTP, and so are the store's rules and the commits that wake a reader. What falls away: sockets, HTTP, and what
protects the server from web pages and from clients that do not read.

Invariants: the application is called on its own event loop only; a body is read as its consumer asks for it, so that
nothing is held for a reader that does not read; an exchange that is closed releases what its body was made from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import CancelledError
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from durable_streams.client.transports import Interrupt
from durable_streams.client.transports.failures import Failure, fetch_error
from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.grants import Grant
from durable_streams.protocol.request import Request
from durable_streams.server.app import App
from durable_streams.server.http import Disconnection, ServerResponse, too_large
from durable_streams.server.outlets import ClientGoneError
from durable_streams.stores.base import StoreError

__all__ = ["AUTHORITY", "Home", "InProcess", "InProcessFromThread"]

T = TypeVar("T")

AUTHORITY = "in-process"
"""What stands in the place of a host in the URLs of handles."""


class Home(Protocol):
    """Where the application lives."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The application's event loop, None while it is not open."""

    async def opened(self) -> App:
        """Return the application, opened on the running event loop; raises DurableStreamError where it cannot be."""


class InProcess:
    """An AsyncTransport that calls the application."""

    def __init__(self, home: Home) -> None:
        self._home = home

    async def open(self, request: Request, timeout: float | None) -> _AsyncExchange:
        """Return the exchange of a request. See AsyncTransport."""
        del timeout  # nothing between the two can be silent
        return _AsyncExchange(request.url, *await _answered(await self._home.opened(), request))


class InProcessFromThread:
    """A Transport for worker threads: each call runs on the application's event loop, and the thread waits for it."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def open(self, request: Request, interrupt: Interrupt, timeout: float | None) -> _Exchange:
        """Return the exchange of a request. See Transport."""
        del timeout
        loop = self._home.loop
        if loop is None:
            raise DurableStreamError(
                "The streams are not open: sync handles need the application's lifespan, or startup(), before them.",
                code="CLIENT_CLOSED",
                url=request.url,
            )
        exchange = _on_loop(self._opened(request), loop, interrupt, request.url)
        return _Exchange(exchange, loop, interrupt)

    async def _opened(self, request: Request) -> _AsyncExchange:
        return _AsyncExchange(request.url, *await _answered(await self._home.opened(), request))


async def _answered(app: App, request: Request) -> tuple[ServerResponse, _Request]:
    asked = _Request(request)
    return await app.answer_call(asked), asked


class _Head:
    """The head of an answer."""

    def __init__(self, url: str, status: int, headers: Mapping[str, str]) -> None:
        self._url = url
        self.status = status
        self.headers = headers

    @property
    def reason(self) -> str:
        return HTTPStatus(self.status).phrase


class _AsyncExchange(_Head):
    """One answer of the application, and its body as it comes."""

    def __init__(self, url: str, response: ServerResponse, asked: _Request) -> None:
        super().__init__(url, response.status, dict(response.headers))
        self._asked = asked
        body: Any = response.body
        self._whole: bytes | None = None
        self._body: Any = None
        self._parts: AsyncIterator[bytes] | None = None
        if isinstance(body, bytes):
            self._whole = body if asked.method != "HEAD" else b""
        else:
            self._body, self._parts = body, aiter(body)

    async def read(self) -> bytes:
        """Return the next bytes, ``b""`` at the end. See AsyncExchange."""
        if self._parts is None:
            whole, self._whole = self._whole, b""
            return whole or b""
        try:
            return await anext(self._parts, b"")
        except (StoreError, Rejection, ClientGoneError) as error:
            # Over HTTP the connection ends early, and the reader goes on with another request.
            raise fetch_error(Failure.BROKEN, self._url, error, status=self.status) from error

    async def close(self) -> None:
        """Release what the answer holds. See AsyncExchange."""
        self._asked.leave()
        body, self._body = self._body, None
        if body is not None:
            await body.aclose()


class _Exchange(_Head):
    """An exchange of the application's event loop, for a thread."""

    def __init__(
        self, exchange: _AsyncExchange, loop: asyncio.AbstractEventLoop, interrupt: Interrupt
    ) -> None:
        super().__init__(exchange._url, exchange.status, exchange.headers)  # noqa: SLF001 - of this module
        self._exchange = exchange
        self._loop = loop
        self._interrupt = interrupt

    def read(self) -> bytes:
        """Return the next bytes, ``b""`` at the end. See Exchange."""
        return _on_loop(self._exchange.read(), self._loop, self._interrupt, self._url)

    def close(self) -> None:
        """Release what the answer holds. See Exchange."""
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._exchange.close(), self._loop)


def _on_loop(
    work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, interrupt: Interrupt, url: str
) -> T:
    """Run a coroutine on the application's event loop, from a thread that waits for it."""
    if _running() is loop:
        work.close()
        raise DurableStreamError(
            "A sync handle would stop the event loop that has to answer it: use stream() in async code, or call "
            "sync_stream() from a worker thread.",
            code="CLIENT_CLOSED",
            url=url,
        )
    if not loop.is_running():
        work.close()
        raise _ended(url)
    future = asyncio.run_coroutine_threadsafe(work, loop)
    interrupt.attach(future.cancel)
    try:
        return future.result()
    except CancelledError as error:
        raise fetch_error(Failure.INTERRUPTED, url, error) from None
    except BaseException:
        future.cancel()  # KeyboardInterrupt
        raise
    finally:
        interrupt.detach()


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _ended(url: str) -> FetchError:
    return FetchError(
        "The application's event loop has ended, and its streams with it.",
        may_have_been_sent=False,
        url=url,
        code="CLOSED",
    )


class _Request:
    """A ServerRequest that came by a call."""

    __slots__ = (
        "_body",
        "_gone",
        "_headers",
        "grant",
        "method",
        "mount",
        "path",
        "query",
        "scheme",
        "scope",
    )

    def __init__(self, request: Request) -> None:
        self.method = request.method
        self.path, self.query = _parts_of(request.url)
        self.scheme = "http"
        self.mount = ""
        self.scope: Any = None
        self.grant: Grant | None = None
        self._headers = request.headers
        self._body = request.body or b""
        self._gone: asyncio.Future[None] | None = None

    def header(self, name: str) -> str | None:
        return self._headers.get(name)

    listed = header

    def has_any(self, names: frozenset[str]) -> bool:
        return not names.isdisjoint(self._headers)

    def authority(self) -> str:
        return AUTHORITY

    def peer(self) -> str:
        return ""

    async def body(self, limit: int) -> bytes:
        if len(self._body) > limit:
            raise too_large(limit)
        return self._body

    def has_unread(self) -> bool:
        return False

    def disconnected(self) -> Disconnection:
        gone = self._gone = asyncio.get_running_loop().create_future()
        return gone

    def leave(self) -> None:
        """Let the application know that nobody reads its answer any more."""
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)


@lru_cache(maxsize=1024)
def _parts_of(url: str) -> tuple[str, str]:
    """Return the decoded path and the query of a URL."""
    parts = urlsplit(url)
    return unquote(parts.path), parts.query
