"""An event loop in a thread of its own, for servers that run beside a test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from durable_streams.server.run import run_to_end

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Background", "Stoppable"]

T = TypeVar("T")

Main = Callable[[asyncio.Event, Callable[[T], None]], Coroutine[Any, Any, None]]


class Background(Generic[T]):
    """Runs a coroutine function in a daemon thread; ``value`` is the argument of its call of ``ready``.

    The constructor returns once ``ready`` was called, and raises any exception that ends ``main`` before that.

    Args:
        name: The thread's name.
        main: Called as ``main(stop, ready)``: it calls ``ready(value)`` once, and ends when the event ``stop`` is set.
    """

    def __init__(self, name: str, main: Main[T]) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        started: Future[T] = Future()
        self._thread = threading.Thread(target=self._run, args=(main, started), name=name, daemon=True)
        self._thread.start()
        self.value: T = started.result()

    def stop(self) -> None:
        """Set ``main``'s stop event and wait for its end. Calling it again does nothing."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
            self._thread.join()

    def _run(self, main: Main[T], started: Future[T]) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            await main(self._stop, started.set_result)

        try:
            run_to_end(run())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)


class Stoppable:
    """A server in the background that runs until `stop`, or until the end of a ``with`` block."""

    _background: Background[Any]

    def stop(self) -> None:
        """End all connections and stop. Calling it again does nothing."""
        self._background.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
