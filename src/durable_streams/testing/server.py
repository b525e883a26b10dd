"""A real server on a free port, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType

from durable_streams.server.config import ServerConfig
from durable_streams.server.run import run_server, run_to_end

__all__ = ["InMemoryStreamServer"]


class InMemoryStreamServer:
    """The durable-streams server with a store in memory, running when the constructor returns.

    ``port`` 0 picks a free one; ``config`` sets everything else. ``base_url`` is the server's origin,
    ``url("/test")`` a stream's URL. Use it as a context manager, or call ``stop()``. Raises ServerStartError
    if the port is taken.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, config: ServerConfig | None = None) -> None:
        self._config = replace(config or ServerConfig(), host=host, port=port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        started: Future[str] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="durable-streams-test-server", daemon=True
        )
        self._thread.start()
        self._root = started.result()

    @property
    def base_url(self) -> str:
        """The server's origin, such as ``http://127.0.0.1:49152``."""
        return self._root.removesuffix("/v1/stream")

    def url(self, path: str) -> str:
        """Return the URL of the stream at ``path``, such as ``/test``."""
        return f"{self._root}/{path.lstrip('/')}"

    def stop(self) -> None:
        """End all reads, stop the server and forget its streams. Calling it again does nothing."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
            self._thread.join()

    def __enter__(self) -> InMemoryStreamServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, started: Future[str]) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            await run_server(self._config, self._stop, started.set_result)

        try:
            run_to_end(main())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)
