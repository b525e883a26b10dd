"""A real server on a free port, in a thread of the test's process, with faults on demand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

from durable_streams.server.config import ServerConfig
from durable_streams.server.http import STREAM_ROOT
from durable_streams.server.run import ServerStartError, run_server
from durable_streams.testing.background import Background, Stoppable
from durable_streams.testing.faults import Faults
from durable_streams.testing.proxy import Proxy

__all__ = ["InMemoryStreamServer"]


class InMemoryStreamServer(Stoppable):
    """The durable-streams server with a store in memory, running when the constructor returns.

    ``base_url`` is the server's origin, ``url("/test")`` a stream's URL, ``faults`` are the faults that its next
    requests meet. Use it as a context manager, or call ``stop()``.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        config: All other settings, such as ``data_dir`` for SQLite; its ``host`` and ``port`` are not used.

    Raises:
        ServerStartError: The port is taken, or the store cannot be opened.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, config: ServerConfig | None = None) -> None:
        self._config = replace(config or ServerConfig(), host="127.0.0.1", port=0)
        self._faults = Faults()
        listener = _listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        self._base_url = f"http://{shown}:{listener.getsockname()[1]}"

        async def main(stop: asyncio.Event, ready: Callable[[None], None]) -> None:
            proxy = Proxy(self._faults.take)
            await proxy.open(listener)

            def serving(root: str) -> None:
                parts = urlsplit(root)
                proxy.upstream.set_result((parts.hostname or "", parts.port or 0))
                ready(None)

            try:
                await run_server(self._config, stop, serving)
            finally:
                await proxy.close()

        self._background = Background("durable-streams-test-server", main)

    @property
    def base_url(self) -> str:
        """The server's origin, such as ``http://127.0.0.1:49152``."""
        return self._base_url

    @property
    def faults(self) -> Faults:
        """The faults of the next requests, such as ``server.faults.respond(503, retry_after=1)``."""
        return self._faults

    def url(self, path: str) -> str:
        """Return the URL of the stream at ``path``, such as ``/test``."""
        return f"{self._base_url}{STREAM_ROOT}{path.lstrip('/')}"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ServerStartError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port, 0 for a free one"
        ) from error
