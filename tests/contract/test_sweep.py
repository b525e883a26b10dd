"""Streams that are due are looked at without a request for them: what is too old goes, and so do expired streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from durable_streams.protocol.commands import Append, Create
from durable_streams.protocol.state import Policy
from durable_streams.stores.local import LocalStore
from durable_streams.stores.memory import MemoryStore
from durable_streams.stores.sqlite import SqliteStore
from durable_streams.testing.contract import Clock

BYTES = "application/octet-stream"


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LocalStore, Clock]:
    clock = Clock()
    return (
        MemoryStore(clock=clock) if request.param == "memory" else SqliteStore(tmp_path, clock=clock)
    ), clock


async def sweep(store: LocalStore) -> None:
    while await store._sweep_some():
        pass


def test_what_is_too_old_goes(store: tuple[LocalStore, Clock]) -> None:
    async def main() -> None:
        streams, clock = store
        await streams.open()
        await streams.create(Create("s", BYTES, b"abc", policy=Policy(max_age=100)))
        clock.advance(50)
        await streams.append("s", Append(BYTES, b"def"))
        for seconds, earliest in ((45, 0), (10, 3), (40, 3), (10, 6), (1000, 6)):
            clock.advance(seconds)
            await sweep(streams)
            assert (await streams.get("s")).earliest == earliest
        assert await streams._backend.expired(clock.now + 10**6, 10) == []
        await streams.append("s", Append(BYTES, b"ghi"))
        clock.advance(104)
        await sweep(streams)
        assert (await streams.get("s")).earliest == 9
        await streams.close()

    asyncio.run(main())


def test_many_streams_expire_at_once(store: tuple[LocalStore, Clock]) -> None:
    """Fault G4: one sweep removes all of them, in a few commits."""

    async def main() -> None:
        streams, clock = store
        await streams.open()
        deadline = clock.now + 10
        paths = [f"s{number}" for number in range(2500)]
        creations = [Create(path, BYTES, b"x", expires_at="x", deadline=deadline) for path in paths]
        await asyncio.gather(*map(streams.create, creations))
        await streams.create(Create("kept", BYTES, expires_at="x", deadline=deadline + 10**6))
        clock.advance(20)
        await sweep(streams)
        assert await streams._backend.expired(clock.now, 10) == []
        assert await streams._backend.load([*paths[:50], "kept"]) == {"kept": await streams.get("kept")}
        await streams.close()

    asyncio.run(main())
