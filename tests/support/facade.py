"""Both APIs in one shape, so that a test is written once: as a user of the sync API would write it.

`SyncFacade` is the public sync names with ``client=`` filled in. `AsyncFacade` runs the async API on an event loop in
a thread of its own: what is awaited there is waited for here, async iterators become iterators, ``async with``
becomes ``with``. Callables that a test passes in (decoders, header callables, ``on_error``) run in the loop's
thread there, so they must not call the facade.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import durable_streams

T = TypeVar("T")

SYNC_TRANSPORTS = ("urllib3", "httpx", "httpx2")
ASYNC_TRANSPORTS = ("aiohttp", "async-httpx", "async-httpx2")
WITHIN = 60.0  # seconds that anything may take before a test counts as hanging
CLIENT_TIMEOUT = 30.0


class SyncFacade:
    """The public sync names."""

    is_async = False

    def __init__(self, transport: str, client: Any = None) -> None:
        self.transport = transport
        self.client = client
        self.DurableStream = _Bound(durable_streams.DurableStream, self._options)
        self.Producer = _Bound(durable_streams.SyncIdempotentProducer, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transport})"

    def stream(self, url: str, **options: Any) -> Any:
        return durable_streams.stream(url, **self._options(options))

    def follow(self, root: str, streams: list[str], **options: Any) -> Any:
        return durable_streams.follow(root, streams, **self._options(options))

    def callable(self, function: Callable[[], str]) -> Any:
        """Return what the API takes as a header's callable: here as it is."""
        return function

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"client": self.client, **options} if self.client is not None else options


class _Bound:
    """A class of the sync API, with the facade's client in every call that takes one."""

    def __init__(self, kind: Any, options: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._kind, self._options = kind, options

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._kind(*args, **self._options(options))

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kind, name)
        return lambda *args, **options: function(*args, **self._options(options))


class Loop:
    """An event loop in a thread. ``complaints``: what it would log, such as errors that nobody asked for."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self._thread = threading.Thread(target=self._serve, name="test-loop", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end, and return the result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WITHIN)

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function in the loop's thread; what it gives is waited for where it can be, and wrapped."""

        async def work() -> Any:
            result = function(*args, **options)
            if inspect.isawaitable(result) and not isinstance(result, asyncio.Future):
                result = await result
            return self.wrapped(result)

        return self.run(work())

    def wrapped(self, result: Any) -> Any:
        if isinstance(result, asyncio.Future):
            return _concurrent(result)
        if hasattr(result, "__anext__"):
            return _Iterator(self, result)
        if hasattr(result, "__aenter__") or hasattr(result, "__aiter__"):
            return Wrapped(self, result)
        return result

    def stop(self) -> None:
        async def settle() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self.loop.shutdown_asyncgens()

        self.run(settle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WITHIN)
        self.loop.close()


class Wrapped:
    """An object of the async API, with the members of its sync twin."""

    def __init__(self, loop: Loop, inner: Any) -> None:
        self._loop, self._inner = loop, inner

    def __getattr__(self, name: str) -> Any:
        if name == "close" and hasattr(self._inner, "aclose"):
            name = "aclose"
        member = self._loop.call(getattr, self._inner, name)
        if not callable(member):
            return member
        return lambda *args, **options: self._loop.call(member, *args, **options)

    def __iter__(self) -> Iterator[Any]:
        return self._loop.call(self._inner.__aiter__)  # type: ignore[no-any-return]

    def __enter__(self) -> Wrapped:
        self._loop.call(self._inner.__aenter__)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call(self._inner.__aexit__, *error)


class _Iterator:
    """An async iterator as an iterator. Collected, it leaves its end to the event loop, as in any async program."""

    def __init__(self, loop: Loop, inner: Any) -> None:
        self._loop, self._inner = loop, inner

    def __iter__(self) -> _Iterator:
        return self

    def __next__(self) -> Any:
        async def step() -> tuple[Any, ...]:
            try:
                return (await self._inner.__anext__(),)
            except StopAsyncIteration:
                return ()

        if found := self._loop.run(step()):
            return found[0]
        raise StopIteration

    def close(self) -> None:
        self._loop.call(self._inner.aclose)


def _concurrent(future: asyncio.Future[Any]) -> Future[Any]:
    """Return a future for threads that ends as this one of the loop does."""
    other: Future[Any] = Future()

    def done(ended: asyncio.Future[Any]) -> None:
        if ended.cancelled():
            other.cancel()
        elif (error := ended.exception()) is not None:
            other.set_exception(error)
        else:
            other.set_result(ended.result())

    future.add_done_callback(done)
    return other


class AsyncFacade:
    """The public async names, in the shape of the sync ones."""

    is_async = True

    def __init__(self, transport: str, loop: Loop, client: Any = None) -> None:
        self.transport = transport
        self.loop = loop
        self.client = client
        self.DurableStream = _AsyncBound(self, durable_streams.AsyncDurableStream)
        self.Producer = _AsyncBound(self, durable_streams.IdempotentProducer)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transport})"

    def stream(self, url: str, **options: Any) -> Any:
        return self.loop.call(durable_streams.astream, url, **self.options(options))

    def follow(self, root: str, streams: list[str], **options: Any) -> Any:
        following = durable_streams.afollow(root, streams, **self.options(options))
        return Wrapped(self.loop, following)

    def callable(self, function: Callable[[], str]) -> Any:
        """Return what the API takes as a header's callable: here an async one."""

        async def resolve() -> str:
            await asyncio.sleep(0)
            return function()

        return resolve

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"client": self.client, **options} if self.client is not None else options


class _AsyncBound:
    """A class of the async API, with the facade's client in every call that takes one."""

    def __init__(self, facade: AsyncFacade, kind: Any) -> None:
        self._facade, self._kind = facade, kind

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._facade.loop.call(self._kind, *args, **self._facade.options(options))

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kind, name)
        return lambda *args, **options: self._facade.loop.call(
            function, *args, **self._facade.options(options)
        )


Facade = SyncFacade | AsyncFacade


def is_installed(transport: str) -> bool:
    """Whether the transport's library is there: httpx2 does not support every Python that we do."""
    return importlib.util.find_spec(transport.rpartition("-")[2]) is not None


def make_client(transport: str) -> Any:
    """Return a client of this kind, None for the default ones. Async ones must be made in their loop."""
    if transport in {"urllib3", "aiohttp"}:
        return None
    kind, _, library = transport.rpartition("-")
    module = importlib.import_module(library)
    return (module.AsyncClient if kind else module.Client)(timeout=CLIENT_TIMEOUT)


@contextlib.asynccontextmanager
async def client_of(transport: str) -> AsyncIterator[Any]:
    """Give a client of this kind inside a loop, closed with the block."""
    client = make_client(transport)
    try:
        yield client
    finally:
        if client is not None:
            await client.aclose()


ASYNC_INSTALLED = [transport for transport in ASYNC_TRANSPORTS if is_installed(transport)]
