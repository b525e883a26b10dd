"""The sync and the async API with one face, so that each role is written once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    IdempotentProducer,
    SyncIdempotentProducer,
    astream,
    stream,
)

__all__ = ["APIS", "InThreads", "OnALoop"]


class InThreads:
    """The sync API, called in the thread of the role."""

    handle: Any = DurableStream

    def __enter__(self) -> InThreads:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, result: Any) -> Any:
        """Return what a call gave."""
        return result

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def reading(self, url: str, **options: Any) -> Any:
        """Return a context manager that gives a response."""
        return stream(url, **options)

    def close(self, response: Any) -> None:
        response.close()

    @contextlib.contextmanager
    def closing_later(self, response: Any, seconds: float) -> Iterator[None]:
        """Close a response from elsewhere, in the middle of what the block does."""
        timer = threading.Timer(seconds, response.close)
        timer.start()
        yield
        timer.join()

    def pieces(self, response: Any, method: str | None, *arguments: Any) -> Iterator[Any]:
        """Iterate over a response, or over what a method of it gives."""
        return iter(response) if method is None else iter(getattr(response, method)(*arguments))

    def producer(self, url: str, name: str, **options: Any) -> Any:
        """Return a context manager that gives a producer."""
        return SyncIdempotentProducer(url, name, **options)


class OnALoop:
    """The async API, on an event loop in a thread of its own."""

    handle: Any = AsyncDurableStream

    def __enter__(self) -> OnALoop:
        started = threading.Event()

        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            started.set()
            await self._stop.wait()

        self._thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def wait(self, result: Any) -> Any:
        """Return what a call gives in the end."""

        async def awaited() -> Any:
            return await result

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return what a function returns that must be called on the loop."""

        async def called() -> Any:
            return function(*arguments, **options)

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result()

    def sleep(self, seconds: float) -> None:
        self.wait(asyncio.sleep(seconds))

    @contextlib.contextmanager
    def _entered(self, manager: Any) -> Iterator[Any]:
        entered = self.wait(manager.__aenter__())
        try:
            yield entered
        except BaseException as error:
            self.wait(manager.__aexit__(type(error), error, error.__traceback__))
            raise
        self.wait(manager.__aexit__(None, None, None))

    def reading(self, url: str, **options: Any) -> Any:
        """Return a context manager that gives a response."""
        return self._entered(self.call(astream, url, **options))

    def close(self, response: Any) -> None:
        self.wait(response.aclose())

    @contextlib.contextmanager
    def closing_later(self, response: Any, seconds: float) -> Iterator[None]:
        """Close a response from another task, in the middle of what the block does."""

        async def close() -> None:
            await asyncio.sleep(seconds)
            await response.aclose()

        closing = asyncio.run_coroutine_threadsafe(close(), self._loop)
        yield
        closing.result()

    def pieces(self, response: Any, method: str | None, *arguments: Any) -> Iterator[Any]:
        """Iterate over a response, or over what a method of it gives."""
        source = response if method is None else getattr(response, method)(*arguments)
        iterator = source.__aiter__()

        async def step() -> Any:
            # On the loop from the first step on, so that the loop ends what is left in the middle.
            return await iterator.__anext__()

        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield self.wait(step())

    @contextlib.contextmanager
    def producer(self, url: str, name: str, **options: Any) -> Iterator[Any]:
        """Return a context manager that gives a producer, with the sync one's `put`, `submit`, `flush`."""
        with self._entered(self.call(IdempotentProducer, url, name, **options)) as producer:
            yield _Producer(self, producer)


class _Producer:
    def __init__(self, api: OnALoop, producer: Any) -> None:
        self._api = api
        self._producer = producer

    def put(self, record: Any) -> None:
        self._api.wait(self._producer.put(record))

    def append_nowait(self, record: Any) -> None:
        self._api.call(self._producer.append_nowait, record)

    def submit(self, record: Any) -> Any:
        return self._api.call(self._producer.submit, record)

    def flush(self) -> None:
        self._api.wait(self._producer.flush())

    def close_stream(self) -> Any:
        return self._api.wait(self._producer.close_stream())

    @property
    def pending_count(self) -> int:
        return int(self._producer.pending_count)


APIS = (InThreads, OnALoop)
