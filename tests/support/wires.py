"""Every transport in one shape, so that a test is written once and runs over each library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from facade import Loop

from durable_streams import DurableStreamError, FetchError
from durable_streams.client.transports import Interrupt, async_transport_for, transport_for
from durable_streams.protocol.request import Request

OWN = ("urllib3", "aiohttp")  # the defaults, over what the process shares
SYNC = ("urllib3", "urllib3.PoolManager", "httpx.Client", "httpx2.Client")
ASYNC = ("aiohttp", "aiohttp.ClientSession", "httpx.AsyncClient", "httpx2.AsyncClient")
ALL = (*SYNC, *ASYNC)
EVERY = (*ALL, "requests.Session")  # with the session whose redirects, time limits and retries are its own

CLIENT_TIMEOUT = 20.0


def client_for(name: str, timeout: float = CLIENT_TIMEOUT) -> Any:
    """Return a client of the caller's, None for the default; skips where its library is not installed."""
    library, _, kind = name.partition(".")
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    if not kind:
        return None
    if kind == "Session":
        return module.Session()
    if kind == "PoolManager":
        return module.PoolManager(timeout=module.Timeout(connect=timeout, read=timeout))
    if kind == "ClientSession":
        silence = module.ClientTimeout(sock_connect=timeout, sock_read=timeout)
        return module.ClientSession(timeout=silence)
    return getattr(module, kind)(timeout=timeout)


class Answer:
    """An exchange, waited for where it is async."""

    def __init__(self, exchange: Any, wait: Callable[[Any], Any]) -> None:
        self.exchange, self._wait = exchange, wait
        self.status, self.reason, self.headers = exchange.status, exchange.reason, exchange.headers

    def read(self) -> bytes:
        data = self._wait(self.exchange.read())
        assert type(data) is bytes
        return data

    def body(self) -> bytes:
        return b"".join(iter(self.read, b""))

    def close(self) -> None:
        self._wait(self.exchange.close())

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Wire:
    """A transport, and what its calls are waited for with."""

    def __init__(self, name: str, client: Any, loop: Loop) -> None:
        self.name, self.client, self.loop = name, client, loop
        self.is_async = name in ASYNC
        self.library = name.partition(".")[0]
        self.given = name not in OWN

    def __repr__(self) -> str:
        return self.name

    def wait(self, result: Any) -> Any:
        return self.loop.run(result) if self.is_async else result

    def open(
        self,
        url: str,
        method: str = "GET",
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        streaming: bool = False,
        timeout: float | None = None,
        interrupt: Interrupt | None = None,
    ) -> Answer:
        request = Request(method, url, headers or {}, body, streaming=streaming)
        if self.is_async:
            return Answer(self.loop.run(self._aopen(request, timeout)), self.wait)
        transport = transport_for(self.client)
        return Answer(transport.open(request, interrupt or Interrupt(), timeout), self.wait)

    async def _aopen(self, request: Request, timeout: float | None) -> Any:
        return await async_transport_for(self.client).open(request, timeout)

    def get(self, url: str, **options: Any) -> bytes:
        with self.open(url, **options) as answer:
            return answer.body()

    @property
    def is_closed(self) -> bool:
        if self.library == "urllib3":
            return False  # a pool manager has no such state
        return bool(getattr(self.client, "closed", None) or getattr(self.client, "is_closed", False))

    def end(self) -> None:
        """Close the client, as its owner may."""
        for name in ("aclose", "close", "clear"):
            if (close := getattr(self.client, name, None)) is not None:
                if self.is_async:
                    self.loop.call(close)
                else:
                    close()
                return


@contextlib.contextmanager
def wire_over(name: str, loop: Loop, timeout: float = CLIENT_TIMEOUT) -> Iterator[Wire]:
    """Give a transport over a client that ends with the block."""

    async def made() -> Any:
        return client_for(name, timeout)

    wire = Wire(name, loop.run(made()) if name in ASYNC else client_for(name, timeout), loop)
    try:
        yield wire
    finally:
        wire.end()


def failure(wire: Wire, url: str, **options: Any) -> FetchError:
    """Return the error of a read; it must be ours, and know what it stands for."""
    with pytest.raises(DurableStreamError) as caught:
        wire.get(url, **options)
    error = caught.value
    assert type(error) is FetchError
    assert error.original is not None
    assert error.url == url
    assert str(error).count("\n") == 0
    return error
