"""What streams on NATS gave up leaves the bucket, and nothing that is needed goes with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from durable_streams.protocol.commands import Append, Create, ForkPoint, Rejection, SetRetention, Trim
from durable_streams.protocol.state import Policy, ProducerStamp
from durable_streams.stores.jetstream import JetStreamConfig, JetStreamStore
from durable_streams.testing import NatsCluster

BYTES = "application/octet-stream"
HUGE = 3 << 20  # bytes: several records


@pytest.fixture
def config(nats_server: NatsCluster, bucket: str) -> JetStreamConfig:
    return JetStreamConfig(tuple(nats_server.urls), name=bucket, replicas=1)


def with_stores(config: JetStreamConfig, test: Callable[..., Awaitable[None]]) -> None:
    async def main() -> None:
        stores = JetStreamStore(config), JetStreamStore(config)
        for store in stores:
            await store.open()
            await store._sweeper.stop()  # the test sweeps
        try:
            await test(*stores)
        finally:
            for store in stores:
                await store.close()

    asyncio.run(main())


async def records(store: JetStreamStore, stream_id: int) -> int:
    subject, seq, count = store.bus.layout.log(stream_id), 1, 0
    while (stored := await store.bus.next(subject, seq)) is not None:
        seq, count = stored.seq + 1, count + 1
    return count


async def trim(store: JetStreamStore, path: str, position: int) -> None:
    state = await store.get(path)
    await store.retain(path, Trim(state.id, position))


async def sweep(store: JetStreamStore) -> None:
    await store._sweeper._cut_trimmed()
    assert await store.bus.next(store.bus.layout.every_trimmed, 1) is None


async def everything(store: JetStreamStore, path: str) -> bytes:
    state = await store.get(path)
    parts, position = [], state.earliest
    while position < state.tail:
        chunk = await store.read(state, position, 1000)
        assert chunk.start == position
        parts.append(chunk.payload)
        position = chunk.end
    return b"".join(parts)


def test_a_log_loses_its_first_records(config: JetStreamConfig) -> None:
    async def test(one: JetStreamStore, other: JetStreamStore) -> None:
        state = (await one.create(Create("s", BYTES))).state
        for number in range(300):
            await one.append("s", Append(BYTES, b"%03d" % number))
        await trim(one, "s", 600)
        await sweep(one)
        assert await records(one, state.id) <= 102
        cold = JetStreamStore(config)
        await cold.open()
        for store in (one, other, cold):
            assert await everything(store, "s") == b"".join(b"%03d" % number for number in range(200, 300))
            now = await store.get("s")
            for position in range(600, 612):
                piece = await store.read_piece(now, position, 5, aligned=True)
                assert piece.start == position - position % 3
                assert await store.boundary(now, position) == (position + 2) // 3 * 3
            with pytest.raises(Rejection) as caught:
                await store.read(now, 300, 10)
            assert (caught.value.status, caught.value.code) == (410, "RETENTION_GONE")
        await cold.close()

    with_stores(config, test)


def test_a_log_of_huge_appends(config: JetStreamConfig) -> None:
    async def test(one: JetStreamStore, other: JetStreamStore) -> None:
        state = (await one.create(Create("s", BYTES, b"first"))).state
        for letter in (b"a", b"b", b"c"):
            await one.append("s", Append(BYTES, letter * HUGE))
        before = await records(one, state.id)
        await trim(other, "s", 5 + HUGE)
        await sweep(other)
        assert await records(one, state.id) < before
        now = await one.get("s")
        for position in (5 + HUGE, 6 + HUGE, 5 + 2 * HUGE - 1):
            piece = await one.read_piece(now, position, 10, aligned=True)
            assert (piece.start, piece.payload) == (5 + HUGE, b"b" * 10)
        assert (await one.read(now, 4 + 3 * HUGE, 1)).start == 5 + 2 * HUGE

    with_stores(config, test)


def test_producers_survive(config: JetStreamConfig) -> None:
    async def test(one: JetStreamStore, other: JetStreamStore) -> None:
        state = (await one.create(Create("s", BYTES))).state
        for number in range(20):
            for name in ("p", "q"):
                await one.append("s", Append(BYTES, b"x", producer=ProducerStamp(name, 3, number)))
        await one.append("s", Append(BYTES, b"plain"))
        await trim(other, "s", 45)
        await sweep(other)
        assert await records(one, state.id) == 1
        cold = JetStreamStore(config)
        await cold.open()
        for store in (one, other, cold):
            again = Append(BYTES, b"x", producer=ProducerStamp("q", 3, 19))
            assert (await store.append("s", again)).duplicate
        following = Append(BYTES, b"y", producer=ProducerStamp("p", 3, 20))
        assert not (await cold.append("s", following)).duplicate
        assert (await other.append("s", following)).duplicate
        await cold.close()

    with_stores(config, test)


def test_forks_keep_their_records(config: JetStreamConfig) -> None:
    async def test(one: JetStreamStore, other: JetStreamStore) -> None:
        state = (await one.create(Create("s", BYTES))).state
        for number in range(10):
            await one.append("s", Append(BYTES, b"%d" % number))
        await other.create(Create("f", None, fork=ForkPoint("s", state.id, 8)))
        await trim(one, "s", 10)
        await sweep(one)
        assert (await everything(other, "f"), await everything(other, "s")) == (b"01234567", b"")
        await other.delete("f")
        await sweep(other)
        assert await records(one, state.id) == 1
        assert (await one.append("s", Append(BYTES, b"z"))).state.tail == 11
        assert await everything(other, "s") == b"z"

    with_stores(config, test)


def test_a_policy_is_known_to_every_gateway(config: JetStreamConfig) -> None:
    async def test(one: JetStreamStore, other: JetStreamStore) -> None:
        state = (await one.create(Create("s", BYTES))).state
        await other.append("s", Append(BYTES, b"0123456789"))
        await one.retain("s", SetRetention(Policy(max_bytes=100)))
        for number in range(60):
            after = (await (one, other)[number % 2].append("s", Append(BYTES, b"0123456789"))).state
            assert after.tail - after.earliest <= 110
        await sweep(other)
        assert await records(one, state.id) <= 12
        assert await everything(one, "s") == await everything(other, "s") == b"0123456789" * 10

    with_stores(config, test)
