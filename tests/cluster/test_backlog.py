"""What waits for a NATS that does not answer is bounded in bytes and number."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from durable_streams.protocol.commands import Append, Appended, Create
from durable_streams.stores.base import StoreUnavailableError
from durable_streams.stores.jetstream import JetStreamConfig, JetStreamStore
from durable_streams.stores.jetstream.nats.bus import Message
from durable_streams.testing import NatsCluster

BYTES = "application/octet-stream"


def hold(store: JetStreamStore, answers: asyncio.Event) -> None:
    """Let nothing be published until ``answers`` is set."""
    publish = store.bus.publish

    async def held(messages: Sequence[Message]) -> int:
        await answers.wait()
        return await publish(messages)

    store.bus.publish = held


def test_g5_what_waits_for_nats_is_bounded(nats_server: NatsCluster, bucket: str) -> None:
    config = JetStreamConfig(tuple(nats_server.urls), name=bucket, replicas=1)

    async def main() -> None:
        for limits, size, room in (({"max_queued_bytes": 1000}, 100, 10), ({"max_queued_commands": 7}, 1, 7)):
            store = JetStreamStore(config, **limits)
            await store.open()
            path = f"s{room}"
            await store.create(Create(path, BYTES))
            answers = asyncio.Event()
            hold(store, answers)
            appends = [
                asyncio.ensure_future(store.append(path, Append(BYTES, b"x" * size))) for _ in range(40)
            ]
            done, waiting = await asyncio.wait(appends, timeout=0.3)
            assert all(isinstance(one.exception(), StoreUnavailableError) for one in done)
            assert len(waiting) == room
            answers.set()
            assert all(isinstance(one, Appended) for one in await asyncio.gather(*waiting))
            assert (await store.get(path)).tail == room * size
            assert (await store.append(path, Append(BYTES, b"x" * size))).state.tail == (room + 1) * size
            await store.close()

    asyncio.run(main())
