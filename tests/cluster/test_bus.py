"""The connection to JetStream: what it stores, gives back and lets hear, on servers that are well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from elections import PatientBus

from durable_streams.stores.base import StoreError, StoreFullError, StoreUnavailableError, StoreUncertainError
from durable_streams.stores.jetstream.config import JetStreamConfig
from durable_streams.stores.jetstream.layout import EXPECT, OPERATION, RECORD, ROLLUP, TTL
from durable_streams.stores.jetstream.nats import bus as bus_module
from durable_streams.stores.jetstream.nats.bus import Bus, ConflictError, Message, Stored
from durable_streams.testing import NatsCluster

Scenario = Callable[[Bus], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long things take says something of the machine here; ``test_bus_outages`` is about time."""
    for limit in ("_PUBLISH_SECONDS", "_READ_SECONDS", "_PEEK_SECONDS"):
        monkeypatch.setattr(bus_module, limit, 30.0)


@asynccontextmanager
async def bus_on(config: JetStreamConfig) -> AsyncIterator[Bus]:
    """A bus that is open; when it is closed nothing of it is left."""
    bus = PatientBus(config)
    before = asyncio.all_tasks()
    await bus.open()
    try:
        yield bus
    finally:
        await bus.close()
        await until(lambda: asyncio.all_tasks() <= before)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("waited in vain")


@pytest.fixture(params=[1, 3], ids=["one server", "three servers"])
def config(request: pytest.FixtureRequest, bucket: str) -> JetStreamConfig:
    name = "nats_server" if request.param == 1 else "nats_cluster"
    cluster: NatsCluster = request.getfixturevalue(name)
    return JetStreamConfig(tuple(cluster.urls), name=bucket, replicas=request.param)


@pytest.fixture
def play(config: JetStreamConfig, request: pytest.FixtureRequest) -> Play:
    def run(scenario: Scenario) -> None:
        async def main() -> None:
            async with bus_on(config) as bus:
                await scenario(bus)

        asyncio.run(main())

    return run


def record(subject: str, data: bytes, expect: int | None = None, value: str = "[1]") -> Message:
    return Message(subject, data, {RECORD: value} | ({} if expect is None else {EXPECT: str(expect)}))


async def scanned(bus: Bus, subject: str, seq: int, count: int, **limits: Any) -> list[Stored]:
    """Scan until a server that may lag behind has all that is expected."""
    for _ in range(500):
        found = await bus.scan(subject, seq, **{"max_bytes": 1 << 20, **limits})
        if len(found) >= count:
            return found
        await asyncio.sleep(0.01)
    pytest.fail(f"{count} messages were not found")


async def up_to(bus: Bus, subject: str, moment: float, seq: int) -> Stored:
    """Ask for the last message up to a moment until a server that may lag behind has it."""
    for _ in range(500):
        found = await bus.last_before(subject, moment)
        if found is not None and found.seq == seq:
            return found
        await asyncio.sleep(0.01)
    pytest.fail(f"message {seq} was not found")


# writing


def test_one_message(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        log = bus.layout.log(7)
        first = await bus.publish([record(log, b"one\r\n\0", 0, '["Ü",1]')])
        second = await bus.publish([record(log, b"", first)])
        assert await bus.next(log, 1) == Stored(first, log, '["Ü",1]'.encode(), b"one\r\n\0")
        assert await bus.last(log) == Stored(second, log, b"[1]", b"")

    play(scenario)


def test_the_last_message_up_to_a_moment(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        log = bus.layout.log(7)
        before = time.time()
        first = await bus.publish([record(log, b"one", 0)])
        await scanned(bus, log, 1, 1)
        between = time.time()
        second = await bus.publish([record(log, b"two", first)])
        await scanned(bus, log, 1, 2)
        assert await up_to(bus, log, time.time(), second) == Stored(second, log, b"[1]", b"two")
        assert (await up_to(bus, log, between, first)).data == b"one"
        assert await bus.last_before(log, before) is None
        assert await bus.last_before(bus.layout.log(8), time.time()) is None

    play(scenario)


def test_a_batch_is_consecutive(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        one, two = bus.layout.log(1), bus.layout.log(2)
        batch = [
            record(one, b"a", 0),
            record(one, b"b"),
            record(two, b"c", 0),
            Message(bus.layout.probe, b"d"),
        ]
        last = await bus.publish(batch)
        assert [(m.seq, m.data) for m in await scanned(bus, one, 1, 2)] == [
            (last - 3, b"a"),
            (last - 2, b"b"),
        ]
        assert await bus.last(two) == Stored(last - 1, two, b"[1]", b"c")
        assert await bus.last(bus.layout.probe) == Stored(last, bus.layout.probe, b"", b"d")

    play(scenario)


@pytest.mark.parametrize("others", [0, 1, 40])
def test_an_expectation_that_does_not_hold_stores_nothing(play: Play, others: int) -> None:
    async def scenario(bus: Bus) -> None:
        log = bus.layout.log(1)
        seq = await bus.publish([record(log, b"a", 0)])
        neighbours = [record(bus.layout.log(n), b"n", 0) for n in range(2, 2 + others)]
        for wrong in (0, seq - 1, seq + 1):
            with pytest.raises(ConflictError):
                await bus.publish([*neighbours, record(log, b"b", wrong)])
            with pytest.raises(ConflictError):
                await bus.publish([record(log, b"b", wrong), *neighbours])
        assert (await bus.info()).last_seq == seq
        assert await bus.publish([*neighbours, record(log, b"b", seq)]) == seq + others + 1

    play(scenario)


def test_of_those_who_expect_the_same_one_succeeds(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        log = bus.layout.log(1)

        async def attempt(number: int) -> bool:
            beside = [record(bus.layout.log(100 + number), b"beside")] if number % 2 else []
            try:
                await bus.publish([*beside, record(log, b"%d" % number, 0)])
            except ConflictError:
                return False
            return True

        won = await asyncio.gather(*(attempt(number) for number in range(40)))
        assert sum(won) == 1
        [stored] = await scanned(bus, log, 1, 1)
        assert stored.data == b"%d" % won.index(True)

    play(scenario)


def test_a_batch_larger_than_what_is_sent_at_once(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        log = bus.layout.log(1)
        pieces = [bytes([n]) * bus.max_message for n in range(5)]
        last = await bus.publish(
            [record(log, piece, 0 if n == 0 else None) for n, piece in enumerate(pieces)]
        )
        for number, piece in enumerate(pieces):
            stored = await bus.next(log, last - 4 + number)
            assert stored is not None
            assert stored.data == piece
        with pytest.raises(ConflictError):
            await bus.publish([record(log, piece, 0 if n == 4 else None) for n, piece in enumerate(pieces)])
        assert (await bus.info()).last_seq == last

    play(scenario)


def test_a_message_that_nats_would_not_take(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        large = Message(bus.layout.probe, bytes(9 << 20))
        for batch in ([large], [Message(bus.layout.probe), large]):
            with pytest.raises(StoreError, match="max_payload") as refused:
                await bus.publish(batch)
            assert not isinstance(refused.value, StoreUncertainError)
        await bus.publish([Message(bus.layout.probe)])

    play(scenario)


def test_a_full_bucket(config: JetStreamConfig) -> None:
    async def scenario() -> None:
        async with bus_on(replace(config, max_bytes=64 << 10)) as bus:
            stored = 0

            async def fill() -> None:
                nonlocal stored
                for stored in range(100):  # noqa: B007 - how many these were is asked for
                    await bus.publish([record(bus.layout.log(1), bytes(1000))])

            with pytest.raises(StoreFullError, match="is full"):
                await fill()
            with pytest.raises(StoreFullError, match="is full"):
                await bus.publish([record(bus.layout.log(2), bytes(1000)) for _ in range(2)])
            assert (await bus.info()).messages == stored
            assert await bus.purge(bus.layout.log(1)) == stored
            await bus.publish([record(bus.layout.log(2), bytes(1000)) for _ in range(2)])

    asyncio.run(scenario())


# reading


def test_reads_of_one_message(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        log, other = bus.layout.log(1), bus.layout.log(2)
        seqs = [await bus.publish([record(subject, b"x")]) for subject in (log, other, log, other, log)]
        await scanned(bus, log, 1, 3)
        for read in (bus.next, bus.peek):
            found = [await read(log, seq) for seq in range(1, seqs[-1] + 2)]
            assert [stored and stored.seq for stored in found] == [
                seqs[0],
                seqs[2],
                seqs[2],
                seqs[4],
                seqs[4],
                None,
            ]
        for latest in (bus.last, bus.peek_last):
            stored = await latest(log)
            assert stored == Stored(seqs[4], log, b"[1]", b"x")
            assert await latest(bus.layout.log(3)) is None

    play(scenario)


def test_scans_end_where_they_should(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        log = bus.layout.log(1)
        last = await bus.publish([record(log, bytes(1000)) for _ in range(50)])
        everything = await scanned(bus, log, 1, 50)
        assert [stored.seq for stored in everything] == list(range(last - 49, last + 1))
        assert await bus.scan(log, last - 9, 1 << 20) == everything[-10:]
        assert await bus.scan(log, 1, 1 << 20, 7) == everything[:7]
        assert await bus.scan(log, 1, 1) == everything[:1]
        some = await bus.scan(log, 1, 10_000)
        assert some == everything[: len(some)]
        assert 5 <= len(some) <= 11
        assert await bus.scan(log, last + 1, 1 << 20) == []
        assert await bus.scan(bus.layout.log(2), 1, 1 << 20) == []

    play(scenario)


def test_patterns(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        layout = bus.layout
        await bus.publish([Message(layout.due(59.9, "a"), b"a"), Message(layout.due(60.0, "b"), b"b")])
        await bus.publish([Message(layout.due(61.0, "c"), b"c"), Message(layout.gone(9), b"9")])
        assert [stored.data for stored in await scanned(bus, layout.due_in(1), 1, 2)] == [b"b", b"c"]
        first = await bus.next(layout.due_in(1), 1)
        assert first is not None
        assert (first.subject, first.data) == (layout.due(60.0, "b"), b"b")
        assert await bus.next(layout.due_in(2), 1) is None
        assert await bus.peek(layout.every_gone, 1) == await bus.last(layout.gone(9))
        assert await bus.purge(layout.due_in(1)) == 2
        assert await bus.purge(layout.due_in(1)) == 0
        assert await bus.next(layout.due_in(0), 1) is not None

    play(scenario)


def test_purging_up_to_a_sequence(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        log = bus.layout.log(1)
        last = await bus.publish([record(log, b"x") for _ in range(10)])
        assert await bus.purge(log, last - 2) == 7
        first = await bus.next(log, 1)
        assert first is not None
        assert first.seq == last - 2

    play(scenario)


def test_a_delete_marker_replaces_what_was_there(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        key = bus.layout.meta("a")
        seq = await bus.publish([Message(key, b"state", {EXPECT: "0", ROLLUP: "sub"})])
        marker = {EXPECT: str(seq), ROLLUP: "sub", OPERATION: "PURGE", TTL: "3600s"}
        gone = await bus.publish([Message(key, b"", marker), Message(bus.layout.gone(1))])
        assert await bus.last(key) == Stored(gone - 1, key, b"", b"", removed=True)
        assert await scanned(bus, key, 1, 1) == [Stored(gone - 1, key, b"", b"", removed=True)]

    play(scenario)


def test_many_at_once(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        async def one(number: int) -> None:
            log, data = bus.layout.log(number), b"%d" % number
            seq = await bus.publish([record(log, data, 0)])
            stored = Stored(seq, log, b"[1]", data)
            assert await asyncio.gather(bus.last(log), bus.next(log, 1)) == [stored, stored]
            assert await scanned(bus, log, 1, 1) == [stored]

        await asyncio.gather(*(one(number) for number in range(300)))

    play(scenario)


def test_what_is_in_the_bucket(play: Play, config: JetStreamConfig) -> None:
    async def scenario(bus: Bus) -> None:
        assert (await bus.info()).messages == 0
        await bus.publish([Message(bus.layout.probe, b"x", {ROLLUP: "sub"})])
        seq = await bus.publish([Message(bus.layout.probe, b"x", {ROLLUP: "sub"})])
        info = await bus.info()
        assert (info.last_seq, info.messages, info.replicas, info.storage) == (
            seq,
            1,
            config.replicas,
            "file",
        )
        assert info.bytes > 0

    play(scenario)


# hearing


def test_what_is_stored_is_heard_in_order(config: JetStreamConfig) -> None:
    async def scenario() -> None:
        async with bus_on(config) as writer, bus_on(config) as listener:
            log, live = writer.layout.log(1), writer.layout.live(1)
            heard: list[Stored] = []
            await listener.subscribe(live, heard.append)
            await until_heard(writer, log, heard)
            heard.clear()
            seq = await writer.publish([record(log, b"a")])
            last = await writer.publish(
                [record(log, b"b"), record(writer.layout.log(2), b""), record(log, b"c")]
            )
            await until(lambda: len(heard) == 3)
            assert [(stored.seq, stored.data) for stored in heard] == [
                (seq, b"a"),
                (last - 2, b"b"),
                (last, b"c"),
            ]
            assert [stored.previous for stored in heard[1:]] == [seq, last - 2]
            assert [(stored.subject, stored.record) for stored in heard] == [(log, b"[1]")] * 3

    asyncio.run(scenario())


async def until_heard(writer: Bus, log: str, heard: list[Stored]) -> None:
    """Write until other servers know of the interest."""
    while not heard:
        seq = await writer.publish([record(log, b"?")])
        await asyncio.sleep(0.02)
    await until(lambda: heard[-1].seq == seq)


def test_nothing_is_heard_after_cancel(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        log, heard, kept = bus.layout.log(1), list[Stored](), list[Stored]()
        subscription = await bus.subscribe(bus.layout.live(1), heard.append)
        await bus.subscribe(bus.layout.live(1), kept.append)
        await until_heard(bus, log, kept)
        subscription.cancel()
        subscription.cancel()
        before = len(heard)
        seq = await bus.publish([record(log, b"b")])
        await until(lambda: kept[-1].seq == seq)
        assert len(heard) == before

    play(scenario)


def test_a_listener_that_fails_harms_nobody(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(bus: Bus) -> None:
        def fail(stored: Stored) -> None:
            raise ZeroDivisionError

        heard: list[Stored] = []
        await bus.subscribe(bus.layout.live(1), fail)
        await bus.subscribe(bus.layout.live(1), heard.append)
        await until_heard(bus, bus.layout.log(1), heard)
        await bus.publish([Message(bus.layout.probe)])

    play(scenario)
    assert "could not be handled" in caplog.text


# ending


def test_what_is_under_way_when_it_is_closed(config: JetStreamConfig) -> None:
    async def scenario() -> None:
        async with bus_on(config) as bus:
            calls: list[Awaitable[Any]] = [
                bus.publish([Message(bus.layout.probe)]),
                bus.publish([Message(bus.layout.probe), Message(bus.layout.probe)]),
                bus.last(bus.layout.probe),
                bus.scan(bus.layout.probe, 1, 1),
                bus.purge(bus.layout.log(1)),
            ]
            tasks = [asyncio.ensure_future(call) for call in calls]
            await asyncio.sleep(0)
            await bus.close()
            ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
            assert all(isinstance(error, StoreUnavailableError) for error in ended), ended
            assert [isinstance(error, StoreUncertainError) for error in ended[:2]] == [True, True]

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 10, 20, 40, 80])
def test_closing_in_the_middle_of_a_reconnect(config: JetStreamConfig, turns: int) -> None:
    async def scenario() -> None:
        for _ in range(5):
            async with bus_on(config) as bus:
                await bus._connection._client._process_op_err(OSError("for a test"))
                for _ in range(turns):
                    await asyncio.sleep(0)

    asyncio.run(scenario())


def test_calls_that_are_given_up(play: Play) -> None:
    async def scenario(bus: Bus) -> None:
        log = bus.layout.log(1)
        for _ in range(20):
            tasks = [asyncio.ensure_future(call) for call in (bus.last(log), bus.scan(log, 1, 100))]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert await bus.last(log) is None

    play(scenario)
