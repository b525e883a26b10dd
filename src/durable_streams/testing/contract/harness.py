"""What the tests of the contract have in common: a clock that obeys, a store that can be restarted, short commands.

Invariants: time moves only when a test says so; the store in ``Harness.store`` is open.
"""
# ruff: noqa: S101 - what tests assert

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from durable_streams.protocol.commands import Append, Appended, Create, Created, ForkPoint, Rejection
from durable_streams.protocol.state import ProducerStamp, StreamState
from durable_streams.stores.base import Store

__all__ = ["BYTES", "JSON", "Clock", "Harness", "StoreFactory", "on_a_loop", "on_two", "refused"]

BYTES = "application/octet-stream"
JSON = "application/json"
_BEGIN = 1_800_000_000.0  # seconds since 1970
_LIMIT = 60.0  # seconds: no test of the contract takes one


class Clock:
    """A clock that stands still until ``advance``."""

    def __init__(self) -> None:
        self.now = _BEGIN

    def __call__(self) -> float:
        """Return the seconds since 1970."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class StoreFactory:
    """The part of the contract that a store's own test class fills in."""

    durable: ClassVar[bool] = False
    """Whether what was committed outlives ``close``."""

    shares: ClassVar[bool] = False
    """Whether several stores that are open on one folder at a time serve the same streams."""

    controls_time: ClassVar[bool] = True
    """Whether the store takes its time from the clock that ``make_store`` is given."""

    def make_store(self, folder: Path, clock: Callable[[], float]) -> Store:
        """Return a store that is not open yet."""
        raise NotImplementedError

    def failing_commits(self, store: Store) -> AbstractContextManager[None]:  # noqa: ARG002 - for overriding
        """Make every commit of ``store`` fail within the context; a store that cannot leaves this alone."""
        pytest.skip("this store has no way to make its commits fail")

    @asynccontextmanager
    async def harness(self) -> AsyncIterator[Harness]:
        """Open a store in a folder of its own."""
        with tempfile.TemporaryDirectory(prefix="store-contract-") as folder:
            harness = Harness(self, Path(folder))
            await harness.store.open()
            try:
                yield harness
            finally:
                await harness.store.close()


class Harness:
    """One open store and short ways to command it."""

    def __init__(self, factory: StoreFactory, folder: Path, clock: Clock | None = None) -> None:
        self.factory = factory
        self.clock = clock or Clock()
        self._folder = folder
        self.store = factory.make_store(folder, self.clock)

    @asynccontextmanager
    async def another(self) -> AsyncIterator[Harness]:
        """Open a second store on the same folder, with the same clock."""
        other = Harness(self.factory, self._folder, self.clock)
        await other.store.open()
        try:
            yield other
        finally:
            await other.store.close()

    async def restart(self) -> None:
        """Close the store and open it again on the same folder."""
        await self.store.close()
        self.store = self.factory.make_store(self._folder, self.clock)
        await self.store.open()

    async def create(self, path: str, content_type: str | None = BYTES, **options: Any) -> Created:
        """Create a stream."""
        return await self.store.create(Create(path, content_type, **options))

    async def fork(self, path: str, source: str, position: int | None = None, **options: Any) -> Created:
        """Create a fork, by default at the source's tail."""
        origin = await self.state(source)
        point = ForkPoint(source, origin.id, origin.tail if position is None else position)
        return await self.create(path, options.pop("content_type", None), fork=point, **options)

    async def append(
        self, path: str, payload: bytes, content_type: str | None = BYTES, **options: Any
    ) -> Appended:
        """Append bytes in stored form."""
        return await self.store.append(path, Append(content_type, payload, **options))

    async def produce(
        self, path: str, payload: bytes, producer: tuple[str, int, int], **options: Any
    ) -> Appended:
        """Append as an idempotent producer: its id, its epoch, the request's number."""
        return await self.append(path, payload, producer=ProducerStamp(*producer), **options)

    async def close(self, path: str) -> Appended:
        """Close a stream without data."""
        return await self.append(path, b"", None, close=True)

    async def state(self, path: str) -> StreamState:
        """Return the state of a stream that exists."""
        state = await self.store.get(path)
        assert state is not None, path
        return state

    async def everything(self, path: str, limit: int = 1 << 20) -> bytes:
        """Return all of a stream's bytes, read in pieces of about ``limit``."""
        state = await self.state(path)
        parts, position = [], 0
        while position < state.tail:
            chunk = await self.store.read(state, position, limit)
            assert chunk.start == position
            assert position < chunk.end <= state.tail
            assert len(chunk.payload) == chunk.end - chunk.start
            parts.append(chunk.payload)
            position = chunk.end
        return b"".join(parts)


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[[Any], None]:
    """Turn an asynchronous test of a Harness into one that pytest runs by itself."""

    async def main(self: Any) -> None:
        async with self.harness() as harness:
            await asyncio.wait_for(test(self, harness), _LIMIT)

    return _plain(test, main)


def on_two(test: Callable[..., Awaitable[None]]) -> Callable[[Any], None]:
    """Do the same with a test of two Harnesses, whose stores serve the same streams."""

    async def main(self: Any) -> None:
        if not self.shares:
            pytest.skip("this store shares its streams with no other")
        async with self.harness() as one, one.another() as other:
            await asyncio.wait_for(test(self, one, other), _LIMIT)

    return _plain(test, main)


def _plain(
    test: Callable[..., Awaitable[None]], main: Callable[[Any], Coroutine[Any, Any, None]]
) -> Callable[[Any], None]:
    def run(self: Any) -> None:
        asyncio.run(main(self))

    run.__name__ = test.__name__  # not functools.wraps: pytest would ask for the wrapped test's arguments
    run.__qualname__ = getattr(test, "__qualname__", test.__name__)
    run.__module__ = test.__module__
    run.__doc__ = test.__doc__
    return run


async def refused(status: int, command: Awaitable[Any], code: str | None = None) -> Rejection:
    """Expect the rules to refuse a command; returns how."""
    with pytest.raises(Rejection) as caught:
        await command
    assert caught.value.status == status, caught.value.message
    assert code is None or caught.value.code == code
    return caught.value
