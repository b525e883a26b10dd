"""A load balancer for tests: each request goes to the next gateway, whatever stream or connection it is for.

It streams what the gateways answer as it comes, keeps connections to them open, and holds no state but whose turn it
is. A gateway that cannot be reached is passed over; one that breaks off while it has a request is answered for with
502, or, once its answer has begun, by breaking the client's connection off. As a program (`round_robin.py URL URL`) it
prints its own origin and runs until SIGTERM; `--listener N` is a listening socket that it inherits, by its number.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from durable_streams.server.run import run_to_end
from durable_streams.testing.background import Background, Stoppable

# Of one connection, not of the message (RFC 9110, section 7.6.1), or set again by the balancer.
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect", "host"}
ADDED = (
    "Accept",
    "Accept-Encoding",
    "Content-Type",
    "User-Agent",
)  # by the HTTP client, unless they are switched off


class RoundRobin(Stoppable):
    """The balancer in a thread: ``url`` is its origin, ``origins`` those of the gateways. Running once constructed."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._background = Background("round-robin", lambda stop, ready: balance(origins, stop, ready))

    @property
    def url(self) -> str:
        url: str = self._background.value
        return url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


async def balance(
    origins: Sequence[str],
    stop: asyncio.Event,
    ready: Callable[[str], None],
    listener: socket.socket | None = None,
) -> None:
    """Serve on a free port, or a listener, until ``stop`` is set; ``ready`` is called with the origin."""
    turns = cycle([*origins[first:], *origins[:first]] for first in range(len(origins)))
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:

        async def pass_on(request: web.BaseRequest) -> web.StreamResponse:
            upstream = await send(session, request, next(turns))
            return upstream if isinstance(upstream, web.Response) else await pass_back(request, upstream)

        server = web.ServerRunner(web.Server(pass_on, handler_cancellation=True), shutdown_timeout=1)
        await server.setup()
        try:
            await (
                web.TCPSite(server, "127.0.0.1", 0) if listener is None else web.SockSite(server, listener)
            ).start()
            ready(f"http://127.0.0.1:{server.addresses[0][1]}")
            await stop.wait()
        finally:
            await server.cleanup()


async def send(
    session: aiohttp.ClientSession, request: web.BaseRequest, origins: Sequence[str]
) -> aiohttp.ClientResponse | web.Response:
    """Return the answer of the first of ``origins`` that can be reached, or the balancer's own."""
    body = await request.read() if request.body_exists else None
    for origin in origins:
        try:
            return await session.request(
                request.method,
                URL(origin + request.raw_path, encoded=True),
                headers=end_to_end(request.headers),
                skip_auto_headers=ADDED,
                data=body,
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorError:
            continue  # it never got the request
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"the gateway broke off: {type(error).__name__}")
    return web.Response(status=502, text="no gateway can be reached")


async def pass_back(request: web.BaseRequest, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    answer = web.StreamResponse(
        status=upstream.status, reason=upstream.reason, headers=end_to_end(upstream.headers)
    )
    async with upstream:
        await answer.prepare(request)
        try:
            async for part in upstream.content.iter_any():
                await answer.write(part)
        except aiohttp.ClientError:
            if request.transport is not None:
                request.transport.abort()  # an orderly end would make half an answer look like a whole one
            return answer
    await answer.write_eof()
    return answer


def end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


async def main(arguments: Sequence[str]) -> None:
    listener, origins = None, arguments
    if arguments[:1] == ["--listener"]:
        listener, origins = socket.socket(fileno=int(arguments[1])), arguments[2:]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await balance(origins, stop, lambda url: print(url, flush=True), listener)  # noqa: T201


if __name__ == "__main__":
    run_to_end(main(sys.argv[1:]))
