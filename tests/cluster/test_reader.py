"""Reading logs back: every position of logs of every shape, found with and without knowing where it is."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import accumulate
from typing import TypeVar

import pytest
from elections import settled_leader

from durable_streams.stores.base import Chunk, StoreUnavailableError, StoreUncertainError
from durable_streams.stores.jetstream.config import JetStreamConfig
from durable_streams.stores.jetstream.layout import EXPECT, RECORD, new_id
from durable_streams.stores.jetstream.nats.bus import Bus, ConflictError, Message, Stored
from durable_streams.stores.jetstream.reader import LogReader
from durable_streams.stores.jetstream.records import LogRecord, encode_record
from durable_streams.testing import NatsCluster

T = TypeVar("T", bound=Bus)
R = TypeVar("R")
BATCH = 500
TRIES = 5


@asynccontextmanager
async def bus_on(urls: list[str], bucket: str, kind: type[T], replicas: int = 1) -> AsyncIterator[T]:
    bus = kind(JetStreamConfig(tuple(urls), name=bucket, replicas=replicas))
    await bus.open()
    try:
        yield bus
    finally:
        await bus.close()


class Log:
    """A log as it should be: its bytes, and where its appends begin. ``bounds`` holds the end of the last, too."""

    def __init__(self, bus: Bus, begin: int = 0) -> None:
        self.id = new_id()
        self.begin = begin
        self.bounds = [begin]
        self.content = bytearray()
        self.messages: list[Message] = []
        self._subject = bus.layout.log(self.id)
        self._n = 0

    @property
    def tail(self) -> int:
        return self.bounds[-1]

    def record(self, *appends: bytes) -> None:
        """Write appends as one record; without any, an empty one."""
        lengths = [len(append) for append in appends] if len(appends) > 1 else []
        self._write(b"".join(appends), LogRecord("nonce", self._n + 1, self.tail, lengths))
        self.bounds += [self.tail + end for end in accumulate(map(len, appends))]

    def pieces(self, *pieces: bytes) -> None:
        """Write one append, piece by piece."""
        start = self.tail
        for number, piece in enumerate(pieces, 1):
            self._write(piece, LogRecord("nonce", self._n + 1, start, more=number < len(pieces)))
            start += len(piece)
        self.bounds.append(start)

    def _write(self, data: bytes, record: LogRecord) -> None:
        self._n += 1
        self.content += data
        self.messages.append(Message(self._subject, data, {RECORD: encode_record(record)}))

    def part(self, start: int, end: int) -> bytes:
        return bytes(self.content[start - self.begin : end - self.begin])

    def check(self, chunk: Chunk | None, start: int, stop: int, limit: int) -> Chunk:
        """Whole appends, exactly those that were asked for; only the beginning of a first large one may be missing."""
        assert chunk is not None
        until = min(stop, start + limit)
        first = bisect_right(self.bounds, start) - 1
        assert self.bounds[first] <= chunk.start <= start
        assert (chunk.start == start) == (self.bounds[first] == start)
        assert chunk.end == min(stop, self.bounds[bisect_left(self.bounds, until)])
        assert chunk.payload == self.part(chunk.start, chunk.end)
        return chunk


def grown_at_random(log: Log, rng: random.Random, largest: int) -> None:
    """Add one record of some kind, or some that belong together."""
    kind = rng.random()

    def some(most: int) -> bytes:
        return rng.randbytes(rng.choice((1, rng.randint(1, 20), rng.randint(1, most))))

    if kind < 0.1:
        log.record()
    elif kind < 0.2:
        log.pieces(*(some(largest) for _ in range(rng.randint(2, 6))))
    elif kind < 0.6:
        log.record(*(some(largest // 4) for _ in range(rng.randint(2, 30))))
    else:
        log.record(some(largest))


async def publish(bus: Bus, logs: list[Log], rng: random.Random) -> None:
    """Publish what the logs hold, in the order of each but with those of the others in between."""
    queues = [iter(log.messages) for log in logs]
    batch: list[Message] = []
    while queues:
        queue = rng.choice(queues)
        for _ in range(rng.choice((1, 1, 5, 50))):  # bursts
            message = next(queue, None)
            if message is None:
                queues.remove(queue)
                break
            batch.append(message)
        if batch and (len(batch) >= BATCH or not queues):
            await send(bus, batch)
            batch.clear()


async def send(bus: Bus, messages: list[Message]) -> None:
    for at in range(0, len(messages), BATCH):
        await send_batch(bus, messages[at : at + BATCH])


async def send_batch(bus: Bus, batch: list[Message]) -> None:
    """Publish messages once, however often that has to be tried on a machine that is busy."""
    for subject in {message.subject for message in batch}:
        last = await patiently(partial(bus.last, subject))
        index, first = next((index, one) for index, one in enumerate(batch) if one.subject == subject)
        headers = {**(first.headers or {}), EXPECT: str(last.seq if last else 0)}
        batch[index] = Message(subject, first.data, headers)
    doubtful = False
    while True:
        try:
            await bus.publish(batch)
        except StoreUncertainError:
            doubtful = True
        except ConflictError:
            assert doubtful
            return
        else:
            return


class CountingBus(Bus):
    """Counts what one read asks for."""

    peeks = 0
    scanned = 0

    async def peek(self, subject: str, seq: int) -> Stored | None:
        self.peeks += 1
        return await super().peek(subject, seq)

    async def scan(self, subject: str, seq: int, max_bytes: int, max_messages: int = 1000) -> list[Stored]:
        found = await super().scan(subject, seq, max_bytes, max_messages)
        self.scanned += sum(len(stored.data) for stored in found)
        return found


async def read(reader: LogReader, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
    async def ask() -> Chunk | None:
        if isinstance(reader._bus, CountingBus):
            reader._bus.peeks = reader._bus.scanned = 0
        return await reader.read(stream_id, start, stop, limit)

    return await patiently(ask)


async def patiently(ask: Callable[[], Awaitable[R]]) -> R:
    """Retry, within a bound, where the machine was too busy to answer in time."""
    for _ in range(TRIES):
        with suppress(StoreUnavailableError):
            return await ask()
    return await ask()


@pytest.mark.parametrize("seed", range(6))
def test_every_place_of_random_logs(nats_server: NatsCluster, bucket: str, seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, Bus) as bus:
            logs = [Log(bus, begin) for begin in (0, 0, 1_000_000)]
            for log in logs:
                largest = rng.choice((30, 300, 20_000))
                log.record()
                for _ in range(rng.randint(1, 120)):
                    grown_at_random(log, rng, largest)
                log.record(b"the end")
            await publish(bus, logs, rng)
            for log in logs:
                await look_everywhere(bus, log, rng)

    asyncio.run(main())


async def look_everywhere(bus: Bus, log: Log, rng: random.Random) -> None:
    remembers, searches = LogReader(bus), LogReader(bus, max_places=0)
    places = rng.sample(log.bounds[:-1], min(60, len(log.bounds) - 1))
    places += [rng.randrange(log.begin, log.tail) for _ in range(60)]
    for start in places:
        stop = rng.choice((log.tail, rng.randint(start + 1, log.tail)))
        limit = rng.choice((1, 2, 100, 5_000, 1 << 20))
        for reader in (remembers, searches):
            log.check(await read(reader, log.id, start, stop, limit), start, stop, limit)


@pytest.mark.parametrize("limit", [1, 700, 50_000, 1 << 20])
def test_reading_on_from_the_end_of_each_chunk_gives_everything(
    nats_server: NatsCluster, bucket: str, limit: int
) -> None:
    rng = random.Random(limit)

    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, Bus) as bus:
            log, other = Log(bus), Log(bus)
            for _ in range(60):
                grown_at_random(log, rng, 2_000)
                grown_at_random(other, rng, 2_000)
            log.record(b"the end")
            await publish(bus, [log, other], rng)
            reader, position = LogReader(bus), 0
            while position < log.tail:
                chunk = log.check(
                    await read(reader, log.id, position, log.tail, limit), position, log.tail, limit
                )
                position = chunk.end

    asyncio.run(main())


def even(number: int) -> int:
    return 100


def growing(number: int) -> int:
    return 1 + number // 20


def spiked(number: int) -> int:
    return 40_000 if number in (17, 2_500, 2_501) else 3


def late(number: int) -> int:
    return 3 if number < 4_500 else 3_000


@pytest.mark.parametrize("size", [even, growing, spiked, late])
@pytest.mark.parametrize("bursts", [False, True])
def test_a_search_takes_few_steps(
    nats_server: NatsCluster, bucket: str, size: Callable[[int], int], bursts: bool
) -> None:
    """However large the records are, and wherever those of other streams are between them."""

    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, CountingBus) as bus:
            log, other = Log(bus), Log(bus)
            for number in range(5_000):
                log.record(bytes([number % 251]) * size(number))
                other.record(b"other")
            mixed: list[Message] = []
            step = 2_500 if bursts else 1
            for at in range(0, 5_000, step):
                mixed += log.messages[at : at + step] + other.messages[at : at + step]
            await send(bus, mixed)
            reader = LogReader(bus, max_places=0)
            rng = random.Random(1)
            for start in [1, log.tail - 1, *rng.sample(log.bounds[1:-1], 40)]:
                log.check(await read(reader, log.id, start, log.tail, 10), start, log.tail, 10)
                # Of 10,000 messages: an interpolation and a bisection together halve what is left.
                assert bus.peeks <= 2 * 14 + 2

    asyncio.run(main())


def test_of_a_large_append_only_what_is_wanted_is_read(nats_server: NatsCluster, bucket: str) -> None:
    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, CountingBus) as bus:
            log, piece = Log(bus), 300_000
            log.record(b"before")
            log.pieces(*(bytes([number]) * piece for number in range(30)))
            log.record(b"behind")
            await publish(bus, [log], random.Random(0))
            reader = LogReader(bus)
            for start in (6 + 20 * piece, 6 + 20 * piece + 1, 6 + 27 * piece - 1):
                chunk = log.check(await read(reader, log.id, start, log.tail, 10), start, log.tail, 10)
                assert start - chunk.start <= piece
                assert bus.scanned <= log.tail - start + 2 * piece
            # A fork ends in the middle of it.
            stop = 6 + 3 * piece + 5
            log.check(await read(reader, log.id, 0, stop, 1 << 20), 0, stop, 1 << 20)
            assert bus.scanned <= stop + piece

    asyncio.run(main())


def test_the_last_piece_of_an_append_is_not_taken_for_one(nats_server: NatsCluster, bucket: str) -> None:
    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, Bus) as bus:
            log = Log(bus)
            log.record(b"before")
            log.pieces(b"one", b"two", b"three")
            await publish(bus, [log], random.Random(0))
            for start in (6, 7, 9, 12, 13):
                log.check(await read(LogReader(bus), log.id, start, log.tail, 10), start, log.tail, 10)

    asyncio.run(main())


def test_a11_appends_are_read_from_their_start(nats_server: NatsCluster, bucket: str) -> None:
    rng = random.Random(11)

    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, Bus) as bus:
            logs = [Log(bus, begin) for begin in (0, 1_000_000)]
            for log in logs:
                log.pieces(*(rng.randbytes(rng.choice((1, 3_000, 30_000))) for _ in range(20)))
                for _ in range(60):
                    grown_at_random(log, rng, 20_000)
                log.pieces(*(rng.randbytes(20_000) for _ in range(20)))
            await publish(bus, logs, rng)
            for log in logs:
                places = [*log.bounds[:-1], *(rng.randrange(log.begin, log.tail) for _ in range(100))]
                for start in places:
                    begin = log.bounds[bisect_right(log.bounds, start) - 1]
                    end = log.bounds[bisect_right(log.bounds, start)]
                    reader = LogReader(bus, max_places=rng.choice((0, 65536)))
                    for stop in {end, log.tail, begin + 1}:
                        if start < stop:
                            chunk = await patiently(partial(reader.read_appends, log.id, start, stop, 1))
                            assert chunk is not None
                            assert (chunk.start, chunk.end) == (begin, min(end, stop))
                            assert chunk.payload == log.part(begin, chunk.end)
            assert await LogReader(bus).append_start(new_id(), 5) is None

    asyncio.run(main())


def test_a_chunk_costs_no_more_memory_than_it_holds(nats_server: NatsCluster, bucket: str) -> None:
    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, Bus) as bus:
            log = Log(bus)
            for _ in range(400):
                log.record(bytes(60_000))
            await publish(bus, [log], random.Random(0))
            reader, position, limit = LogReader(bus), 0, 1 << 20
            tracemalloc.start()
            try:
                while position < log.tail:
                    chunk = await read(reader, log.id, position, log.tail, limit)
                    assert chunk is not None
                    position = chunk.end
                    del chunk
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < 6 * limit  # received, decoded, joined

    asyncio.run(main())


def test_a_log_that_is_gone(nats_server: NatsCluster, bucket: str) -> None:
    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, Bus) as bus:
            log = Log(bus)
            for number in range(200):
                log.record(bytes([number]) * 100)
            await publish(bus, [log], random.Random(0))
            knows, does_not = LogReader(bus), LogReader(bus)
            assert (await read(knows, log.id, 0, log.tail, 1_000)) is not None
            assert await bus.purge(bus.layout.log(log.id)) == 200
            for reader in (knows, does_not):
                for start in (0, 1_000, 1_050, 19_999):
                    assert await read(reader, log.id, start, log.tail, 1_000) is None
            assert await read(does_not, new_id(), 0, 10, 10) is None
            assert await read(does_not, new_id(), 5, 10, 10) is None

    asyncio.run(main())


def test_a_log_that_has_lost_its_beginning(nats_server: NatsCluster, bucket: str) -> None:
    """A log under removal: the rest of it is never taken for other bytes."""

    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, Bus) as bus:
            log = Log(bus)
            for number in range(20):
                log.record(bytes([number]) * 100)
            del log.messages[:10]
            await publish(bus, [log], random.Random(0))
            for start in (0, 100, 999):
                assert await read(LogReader(bus), log.id, start, log.tail, 1_000) is None
            for start in (1_000, 1_500):  # a stream that was trimmed
                chunk = await read(LogReader(bus), log.id, start, log.tail, 1_000)
                assert (chunk.start, chunk.payload[:1]) == (start, bytes([start // 100]))

    asyncio.run(main())


def test_places_are_forgotten(nats_server: NatsCluster, bucket: str) -> None:
    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, Bus) as bus:
            log = Log(bus)
            for number in range(100):
                log.record(bytes([number]) * 10)
            await publish(bus, [log], random.Random(0))
            reader = LogReader(bus, max_places=7)
            for start in (*range(0, 1_000, 10), *range(0, 1_000, 30)):
                log.check(await read(reader, log.id, start, log.tail, 5), start, log.tail, 5)
                assert len(reader._places) <= 7

    asyncio.run(main())


class LaggingBus(Bus):
    """A bus whose replicas have nothing from one sequence on; only the leader has."""

    upto = 0

    async def scan(self, subject: str, seq: int, max_bytes: int, max_messages: int = 1000) -> list[Stored]:
        found = await super().scan(subject, seq, max_bytes, max_messages)
        return [stored for stored in found if stored.seq <= self.upto]

    async def peek(self, subject: str, seq: int) -> Stored | None:
        found = await super().peek(subject, seq)
        return found if found is not None and found.seq <= self.upto else None

    async def peek_last(self, subject: str) -> Stored | None:
        found: Stored | None = None
        for stored in await super().scan(subject, 1, 1 << 20):
            found = stored if stored.seq <= self.upto else found
        return found


@pytest.mark.parametrize("upto", [0, 1, 7, 8, 9, 39])
def test_what_replicas_lack_comes_from_the_leader(nats_server: NatsCluster, bucket: str, upto: int) -> None:
    async def main() -> None:
        async with bus_on(nats_server.urls, bucket, LaggingBus) as bus:
            log = Log(bus)
            for number in range(10):
                log.record(bytes([number]) * 100, b"second")
                log.record()
                log.pieces(b"one", b"two")
            await publish(bus, [log], random.Random(0))
            bus.upto = (await bus.info()).last_seq - len(log.messages) + upto
            for start in range(0, log.tail, 107):
                await read_all(LogReader(bus), log, start, 10_000)

    asyncio.run(main())


def test_a_follower_that_comes_back(make_cluster: Callable[..., NatsCluster], bucket: str) -> None:
    """Read from it while it catches up: everything that is known to be stored is there, from any server."""
    cluster = make_cluster(3)

    async def main() -> None:
        async with bus_on(cluster.urls, bucket, Bus, 3) as bus:
            leader = settled_leader(cluster, bus.layout.stream)
        follower, *others = (cluster.servers[(leader + step) % 3] for step in (1, 0, 2))
        async with bus_on([server.url for server in others], bucket, Bus, 3) as writer:
            log = Log(writer)
            for _ in range(3):
                begin = log.tail
                log.messages.clear()
                for number in range(2_000):
                    log.record(number.to_bytes(2, "big") * 50)
                async with bus_on([follower.url], bucket, Bus, 3) as reading:
                    follower.suspend()
                    await send(writer, log.messages)
                    follower.resume()
                    await read_all(LogReader(reading), log, begin, 1 << 16)
                cluster.wait_ready()

    asyncio.run(main())


async def read_all(reader: LogReader, log: Log, begin: int, limit: int) -> None:
    """Read on to the tail: there may be less in a chunk than could be, but whole appends."""
    position = begin
    while position < log.tail:
        chunk = await read(reader, log.id, position, log.tail, limit)
        assert chunk is not None
        assert position < chunk.end <= position + limit + 1_000
        assert chunk.end in log.bounds
        log.check(chunk, position, log.tail, chunk.end - position)
        position = chunk.end
