"""What two gateways and their answers may do to each other when something takes its time: each case once went wrong.

The stores and NATS are real; what a store asks of NATS is held up, or the answer is lost, where the case needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from durable_streams.protocol.commands import Append, Create, ForkPoint, Rejection
from durable_streams.protocol.state import ProducerStamp
from durable_streams.stores.base import StoreUnavailableError, StoreUncertainError
from durable_streams.stores.jetstream import JetStreamConfig, JetStreamStore
from durable_streams.stores.jetstream.nats.bus import Bus, Message
from durable_streams.testing import NatsCluster

TEXT = "text/plain"
WITHIN = 30.0  # seconds


class SlowBus(Bus):
    """Asks as ever; a test may put something around a publish, and have the store far away."""

    def __init__(self, config: JetStreamConfig) -> None:
        super().__init__(config)
        self.away = 0.0  # seconds for each question and each publish
        self.around_publish: Callable[[Callable[[], Awaitable[int]]], Awaitable[int]] | None = None

    async def publish(self, messages: Sequence[Message]) -> int:
        store = super().publish
        await asyncio.sleep(self.away)
        if self.around_publish is None:
            return await store(messages)
        return await self.around_publish(lambda: store(messages))

    async def last(self, subject: str) -> Any:
        await asyncio.sleep(self.away)
        return await super().last(subject)

    async def next(self, subject: str, seq: int) -> Any:
        await asyncio.sleep(self.away)
        return await super().next(subject, seq)


class Now:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.time = 6_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def config(nats_server: NatsCluster, bucket: str) -> JetStreamConfig:
    return JetStreamConfig(tuple(nats_server.urls), name=bucket, replicas=1)


@asynccontextmanager
async def two(
    config: JetStreamConfig, **options: Any
) -> AsyncIterator[tuple[JetStreamStore, JetStreamStore]]:
    """Give two gateways whose sweepers rest."""
    async with AsyncExitStack() as stack:
        stores = JetStreamStore(config, **options), JetStreamStore(config, **options)
        for store in stores:
            store.bus = SlowBus(config)
            await store.open()
            stack.push_async_callback(store.close)
            await store._sweeper.stop()
        yield stores


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        await asyncio.wait_for(test(), WITHIN)

    asyncio.run(in_time())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)


async def append(store: JetStreamStore, path: str, data: bytes, name: str = "", seq: int = 0) -> int:
    """Append, and return where the stream ends then."""
    producer = ProducerStamp(name, 0, seq) if name else None
    return (await store.append(path, Append(TEXT, data, producer=producer))).state.tail


async def content(store: JetStreamStore, path: str) -> bytes:
    state = await store.get(path)
    assert state is not None
    return (await store.read(state, 0, 1 << 20)).payload


def hold(store: JetStreamStore, *, after: bool) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold up the next publishes of a store, or their answers; return when one is under way, and what lets go."""
    under_way, go = asyncio.Event(), asyncio.Event()

    async def around(publish: Callable[[], Awaitable[int]]) -> int:
        last = await publish() if after else None
        under_way.set()
        await go.wait()
        return await publish() if last is None else last

    store.bus.around_publish = around  # type: ignore[attr-defined]
    return under_way, go


@asynccontextmanager
async def busy(store: JetStreamStore, paths: Sequence[str], data: bytes = b"x") -> AsyncIterator[None]:
    """Append without a pause, one writer for each of the paths."""

    async def write(path: str) -> None:
        while True:
            await append(store, path, data)

    writers = [asyncio.create_task(write(path)) for path in paths]
    try:
        yield
    finally:
        for writer in writers:
            writer.cancel()


def test_a_late_answer_takes_back_nothing_that_was_learnt_meanwhile(config: JetStreamConfig) -> None:
    async def test() -> None:
        async with two(config) as (here, there):
            await here.create(Create("s", TEXT, payload=b"hello"))
            source = await here.get("s")
            assert source is not None
            await there.create(Create("fork", TEXT, fork=ForkPoint("s", source.id, 5)))
            stored, go = hold(here, after=True)
            late = asyncio.create_task(append(here, "s", b"!"))
            await stored.wait()
            here._catchup.distrust(here._slot("s"))
            assert (await here.get("s")).forks == 1  # type: ignore[union-attr]
            go.set()
            assert await late == 6
            here.bus.around_publish = None  # type: ignore[attr-defined]
            await here.delete("s")
            await there._sweeper._purge_gone()
            assert await content(there, "fork") == b"hello"
            await there.delete("fork")
            with pytest.raises(Rejection):
                await append(here, "s", b"?")

    run(test)


def test_a_late_answer_does_not_bring_back_what_was_deleted(config: JetStreamConfig) -> None:
    async def test() -> None:
        async with two(config) as (here, there):
            for again in (False, True):
                await here.create(Create("s", TEXT))
                stored, go = hold(here, after=True)
                late = asyncio.create_task(append(here, "s", b"late"))
                await stored.wait()
                await there.delete("s")
                if again:
                    await there.create(Create("s", TEXT, payload=b"new"))
                here._catchup.distrust(here._slot("s"))
                await here.get("s")
                go.set()
                assert await late == 4
                here.bus.around_publish = None  # type: ignore[attr-defined]
                assert ((await here.get("s")) is not None) is again
            assert await content(here, "s") == b"new"

    run(test)


def test_a_refusal_of_what_was_true_before_is_not_final(config: JetStreamConfig) -> None:
    async def test() -> None:
        async with two(config) as (here, there):
            for path in ("s", "other"):
                await here.create(Create(path, TEXT))
            await append(there, "s", b"0", "p", 0)
            for seq in range(1, 6):
                await append(here, "s", b"x", "p", seq)
            await append(there, "other", b"x")
            under_way, go = hold(there, after=False)
            # In one batch with another stream's append, decided on what this gateway knew.
            both = [append(there, "other", b"y"), append(there, "s", b"x", "p", 6)]
            appends = asyncio.gather(*both)
            await under_way.wait()
            assert (await there.get("s")).tail == 6  # type: ignore[union-attr]
            go.set()
            assert await appends == [2, 7]

    run(test)


def test_what_was_purged_before_it_was_heard_of_is_not_stored_again(config: JetStreamConfig) -> None:
    async def test() -> None:
        async with two(config) as (here, there):
            for path in ("x", "y"):
                await here.create(Create(path, TEXT, payload=b"1"))

            async def lose(publish: Callable[[], Awaitable[int]]) -> int:
                here.bus.around_publish = None  # type: ignore[attr-defined]
                await publish()
                await there.delete("x")
                await there._sweeper._purge_gone()
                raise StoreUncertainError("the answer did not arrive")

            here.bus.around_publish = lose  # type: ignore[attr-defined]
            assert await asyncio.gather(append(here, "x", b"2"), append(here, "y", b"2")) == [2, 2]
            assert await content(there, "y") == b"12"

            await here.create(Create("x", TEXT, payload=b"1"))
            here.bus.around_publish = lose  # type: ignore[attr-defined]
            with pytest.raises(StoreUncertainError):  # alone: nobody can know
                await append(here, "x", b"2")

    run(test)


def test_a_fork_of_a_stream_that_is_always_busy(config: JetStreamConfig) -> None:
    async def test() -> None:
        async with two(config) as (here, _):
            await here.create(Create("s", TEXT))
            source = await here.get("s")
            assert source is not None
            async with busy(here, ["s"] * 8):
                for number in range(5):
                    await here.create(Create(f"fork{number}", TEXT, fork=ForkPoint("s", source.id, 0)))

    run(test)


@pytest.mark.parametrize(("writers", "away", "count"), [(1, 0, 200), (16, 0, 200), (16, 0.01, 20)])
def test_a_gateway_that_never_pauses_lets_others_write(
    config: JetStreamConfig, writers: int, away: float, count: int
) -> None:
    async def test() -> None:
        async with two(config) as (here, there):
            there.bus.away = away  # type: ignore[attr-defined]
            await here.create(Create("s", TEXT))
            async with busy(here, ["s"] * writers):
                for number in range(1, count + 1):
                    await append(there, "s", b"y")
                    if number % 20 == 0:  # it must start again
                        await asyncio.sleep(0.05)

    run(test)


def test_large_appends_do_not_hold_up_small_ones_forever(config: JetStreamConfig) -> None:
    async def test() -> None:
        async with two(config) as (here, _):
            for number in range(9):
                await here.create(Create(f"s{number}", TEXT))
            async with busy(here, [f"s{number % 6}" for number in range(48)], b"x" * 100_000):
                await asyncio.sleep(0.5)
                for _ in range(5):
                    await asyncio.gather(*[append(here, f"s{number}", b"y") for number in (6, 7, 8)])

    run(test)


def test_a_subscription_that_failed_is_made_again(config: JetStreamConfig) -> None:
    async def test() -> None:
        async with two(config) as (here, there):
            await here.create(Create("s", TEXT))
            watch = await here.watch("s")
            await until(lambda: not here._live_records.streams)  # the reader has not begun yet
            subscribe = here.bus.subscribe

            async def fail(*_: Any) -> Any:
                here.bus.subscribe = subscribe  # type: ignore[method-assign]
                raise StoreUnavailableError("away for a moment")

            here.bus.subscribe = fail  # type: ignore[method-assign]
            with watch:
                await until(lambda: here.bus.subscribe == subscribe)
                await append(there, "s", b"new")
                assert await watch.changed(WITHIN)
                assert watch.state is not None
                assert watch.state.tail == 3

    run(test)


def test_some_of_its_own_records_are_heard_of_before_the_answer(config: JetStreamConfig) -> None:
    async def test() -> None:
        async with two(config) as (here, _):
            await here.create(Create("s", TEXT))
            await append(here, "s", b"0", "w", 0)
            here.bus.max_message = 48 << 10
            stored, go = hold(here, after=True)
            ask = here.bus.next

            async def next_record(subject: str, seq: int) -> Any:
                found = await ask(subject, seq)
                if go.is_set():
                    return found
                if stored.is_set() and asked:
                    go.set()  # the answer comes while the second record is on its way
                    await asyncio.sleep(0.05)
                asked.append(seq)
                return found

            asked: list[int] = []
            here.bus.next = next_record  # type: ignore[method-assign]
            big = b"x" * 40_000
            appends = [asyncio.create_task(append(here, "s", big, name, 0)) for name in "pqrstu"]
            after = asyncio.create_task(append(here, "s", big, "u", 1))
            await stored.wait()
            await here.get("s")
            assert await asyncio.gather(*appends) == [40_000 * number + 1 for number in range(1, 7)]
            assert await after == 280_001

    run(test)


def test_what_a_replica_did_not_know_does_not_undo_what_the_leader_said(config: JetStreamConfig) -> None:
    async def test() -> None:
        async with two(config) as (here, there):
            await there.create(Create("s", TEXT))
            asking, go = asyncio.Event(), asyncio.Event()

            async def away(_: str) -> Any:
                del here.bus.last
                raise StoreUnavailableError("there is no leader")

            async def lags(_: str) -> Any:
                asking.set()
                await go.wait()

            here.bus.last, here.bus.peek_last = away, lags  # type: ignore[method-assign]
            glance = asyncio.create_task(here.glance("s"))
            await asking.wait()
            assert await here.get("s") is not None
            with await here.watch("s") as watch:
                go.set()
                assert await glance is not None
                assert watch.state is not None

    run(test)


def test_a_stream_that_ended_while_somebody_watched_is_removed_later(config: JetStreamConfig) -> None:
    async def test() -> None:
        clock = Now()
        async with two(config, clock=clock) as stores:
            here, there = stores
            await here.create(Create("s", TEXT, expires_at="soon", deadline=clock.time + 30))
            state = await here.get("s")
            assert state is not None
            with await here.watch("s"):
                clock.time += 120
                await here._sweeper._pass_minutes()
                assert await here.get("s") is not None
            assert await there.get("s") is None
            clock.time += 120
            for store in stores:
                await store._sweeper._pass_minutes()
            end = await here.bus.last(here.bus.layout.log(state.id))
            assert end is not None
            assert b"true" in end.record
            with pytest.raises(Rejection):
                await append(here, "s", b"?")

    run(test)
