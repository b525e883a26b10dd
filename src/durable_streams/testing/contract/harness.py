"""What the tests of the contract share: a clock that tests move, a store that can be restarted, short commands.

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

from durable_streams.protocol.commands import Append, Appended, Create, Created, ForkPoint, Rejection, Trim
from durable_streams.protocol.state import Policy, ProducerStamp, StreamState
from durable_streams.stores.base import Store

__all__ = ["BYTES", "JSON", "LIMIT", "Clock", "Harness", "StoreFactory", "as_test", "on_a_loop", "refused"]

BYTES = "application/octet-stream"
JSON = "application/json"
_BEGIN = 1_800_000_000.0  # seconds since 1970
LIMIT = 60.0  # seconds: no test of the contract takes one


class Clock:
    """A clock that stands still until ``advance``.

    Attributes:
        now: The present time, in seconds since 1970.
    """

    def __init__(self) -> None:
        self.now = _BEGIN

    def __call__(self) -> float:
        """Return the seconds since 1970."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock.

        Args:
            seconds: How far, in seconds.
        """
        self.now += seconds


class StoreFactory:
    """The part of the contract that the test class of a store fills in.

    Attributes:
        durable: Whether committed data outlives ``close``.
        controls_time: Whether the store takes its time from the clock that ``make_store`` receives.
    """

    durable: ClassVar[bool] = False
    """Whether committed data outlives ``close``."""

    controls_time: ClassVar[bool] = True
    """Whether the store takes its time from the clock that ``make_store`` receives."""

    def make_store(self, folder: Path, clock: Callable[[], float]) -> Store:
        """Return a store that is not open yet.

        Args:
            folder: Where the store keeps its data: an empty folder for each test, the same one again for a restart.
            clock: Returns the seconds since 1970; it stands still unless a test moves it.

        Returns:
            The store.
        """
        raise NotImplementedError

    def failing_commits(self, store: Store) -> AbstractContextManager[None]:  # noqa: ARG002 - for overriding
        """Return a context in which every commit fails with a StoreError; override it if the store can be made to fail.

        Args:
            store: An open store, from ``make_store``.

        Returns:
            The context manager; by default the test is skipped.
        """
        pytest.skip("this store has no way to make its commits fail")

    @asynccontextmanager
    async def harness(self) -> AsyncIterator[Harness]:
        """Open a store in a new folder, and close it at the end.

        Yields:
            The open store, with its clock and short commands.
        """
        with tempfile.TemporaryDirectory(prefix="store-contract-") as folder:
            harness = Harness(self, Path(folder))
            await harness.store.open()
            try:
                yield harness
            finally:
                await harness.store.close()


class Harness:
    """One open store, and short forms of its commands.

    Attributes:
        factory: The test class that makes the store.
        folder: Where the store keeps its data.
        clock: The store's clock.
        store: The open store.

    Args:
        factory: The test class that makes the store.
        folder: Where the store keeps its data.
        clock: The store's clock; None for a new one.
    """

    def __init__(self, factory: StoreFactory, folder: Path, clock: Clock | None = None) -> None:
        self.factory = factory
        self.clock = clock or Clock()
        self.folder = folder
        self.store = factory.make_store(folder, self.clock)

    async def restart(self) -> None:
        """Close the store, and open a new one on the same folder."""
        await self.store.close()
        self.store = self.factory.make_store(self.folder, self.clock)
        await self.store.open()

    async def create(
        self,
        path: str,
        content_type: str | None = BYTES,
        *,
        payload: bytes = b"",
        closed: bool = False,
        ttl: int | None = None,
        expires_at: str | None = None,
        deadline: float | None = None,
        fork: ForkPoint | None = None,
        policy: Policy | None = None,
    ) -> Created:
        """Create a stream (protocol section 3).

        Args:
            path: The path.
            content_type: The content type; None for that of a fork's source, or the default.
            payload: The first data, in stored form.
            closed: Whether the stream is closed from the start.
            ttl: The sliding window, in seconds.
            expires_at: The fixed end, as the request states it.
            deadline: The fixed end, in seconds since 1970.
            fork: Where the stream leaves its source.
            policy: How much the stream keeps; None for that of a fork's source, or all.

        Returns:
            The state, and whether the stream is new.
        """
        return await self.store.create(
            Create(path, content_type, payload, closed, ttl, expires_at, deadline, fork, policy)
        )

    async def fork(
        self,
        path: str,
        source: str,
        position: int | None = None,
        *,
        content_type: str | None = None,
        payload: bytes = b"",
        closed: bool = False,
        ttl: int | None = None,
        expires_at: str | None = None,
        deadline: float | None = None,
    ) -> Created:
        """Create a fork (protocol section 6).

        Args:
            path: The path of the fork.
            source: The path of the source.
            position: Where the fork leaves its source, in bytes; None for the tail.
            content_type: The content type; None for that of the source.
            payload: The first data of the fork itself, in stored form.
            closed: Whether the fork is closed from the start.
            ttl: The sliding window, in seconds.
            expires_at: The fixed end, as the request states it.
            deadline: The fixed end, in seconds since 1970.

        Returns:
            The state, and whether the fork is new.
        """
        origin = await self.state(source)
        point = ForkPoint(source, origin.id, origin.tail if position is None else position)
        return await self.create(
            path,
            content_type,
            payload=payload,
            closed=closed,
            ttl=ttl,
            expires_at=expires_at,
            deadline=deadline,
            fork=point,
        )

    async def append(
        self,
        path: str,
        payload: bytes,
        content_type: str | None = BYTES,
        *,
        close: bool = False,
        seq: str | None = None,
        producer: ProducerStamp | None = None,
        expected: int | None = None,
    ) -> Appended:
        """Append to a stream (protocol section 4).

        Args:
            path: The path.
            payload: The data, in stored form.
            content_type: The content type of the request.
            close: Whether to close the stream after the append.
            seq: The Stream-Seq of the request.
            producer: The producer, its epoch and its sequence number.
            expected: The position that the tail must have, in bytes; None for any.

        Returns:
            The state after the append, and whether the append had been stored before.
        """
        return await self.store.append(path, Append(content_type, payload, close, seq, producer, expected))

    async def produce(
        self,
        path: str,
        payload: bytes,
        producer: tuple[str, int, int],
        *,
        content_type: str | None = BYTES,
        close: bool = False,
        seq: str | None = None,
    ) -> Appended:
        """Append as an idempotent producer (protocol section 4).

        Args:
            path: The path.
            payload: The data, in stored form.
            producer: The id of the producer, its epoch and its sequence number.
            content_type: The content type of the request.
            close: Whether to close the stream after the append.
            seq: The Stream-Seq of the request.

        Returns:
            The state after the append, and whether the append had been stored before.
        """
        stamp = ProducerStamp(*producer)
        return await self.append(path, payload, content_type, close=close, seq=seq, producer=stamp)

    async def close(self, path: str) -> Appended:
        """Close a stream without data.

        Args:
            path: The path.

        Returns:
            The state after the close.
        """
        return await self.append(path, b"", None, close=True)

    async def trim(
        self, path: str, position: int, *, stream_id: int | None = None, max_age: int | None = None
    ) -> StreamState:
        """Let a stream give up its first bytes.

        Args:
            path: The path.
            position: Where an append begins, in bytes.
            stream_id: The id of the stream; None for that of the present one.
            max_age: Give up what is older than that instead, in seconds.

        Returns:
            The state after it.
        """
        state = await self.store.get(path)
        known = state.id if stream_id is None and state is not None else stream_id or 0
        return await self.store.retain(path, Trim(known, position, max_age))

    async def state(self, path: str) -> StreamState:
        """Return the state of a stream that exists.

        Args:
            path: The path.

        Returns:
            The state.
        """
        state = await self.store.get(path)
        assert state is not None, path
        return state

    async def everything(self, path: str, limit: int = 1 << 20) -> bytes:
        """Read a stream from its earliest byte to the tail.

        Args:
            path: The path.
            limit: About how many bytes to read at a time.

        Returns:
            All bytes of the stream.
        """
        state = await self.state(path)
        parts, position = [], state.earliest
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
            await asyncio.wait_for(test(self, harness), LIMIT)

    return as_test(test, main)


def as_test(
    test: Callable[..., Awaitable[None]], main: Callable[[Any], Coroutine[Any, Any, None]]
) -> Callable[[Any], None]:
    """Return the function that pytest collects: ``main`` in an event loop, under the name and docstring of ``test``."""

    def run(self: Any) -> None:
        asyncio.run(main(self))

    run.__name__ = test.__name__  # not functools.wraps: pytest would ask for the wrapped test's arguments
    run.__qualname__ = getattr(test, "__qualname__", test.__name__)
    run.__module__ = test.__module__
    run.__doc__ = test.__doc__
    return run


async def refused(status: int, command: Awaitable[Any], code: str | None = None) -> Rejection:
    """Expect the rules to refuse a command; return the rejection."""
    with pytest.raises(Rejection) as caught:
        await command
    assert caught.value.status == status, caught.value.message
    assert code is None or caught.value.code == code
    return caught.value
