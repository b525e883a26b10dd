"""Writers that never give up and readers that follow, for tests that take the servers away beneath them.

Every record is made from its writer's name and its number alone, so that a reader of a stream can check the writer
and the completeness of each. The clients are the real ones with their default settings: nobody helps them through.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import random
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any, Generic, TypeVar

from durable_streams import (
    DurableStream,
    DurableStreamError,
    FetchError,
    IdempotentAppendResult,
    IdempotentProducer,
    RetryPolicy,
    SyncIdempotentProducer,
    astream,
    stream,
)
from durable_streams.protocol.offsets import parse_offset
from durable_streams.testing.background import Background
from durable_streams.testing.nats import NatsServer

T = TypeVar("T")

SIZES = (0, 10, 100, 100, 1000, 1000, 5000)  # bytes
HUGE = 600_000  # bytes: more than a message of NATS may have in these tests
HUGE_ONE_IN = 400
ENDS_WITHIN = 60.0  # seconds; an election takes up to nine
BURST = 20  # records at most
WINDOW = 100  # records of a writer that wait for their acknowledgement
HEAD = re.compile(rb"<([\w-]+) (\d+) \d+>")
ONCE = RetryPolicy(max_retries=0)


def record(writer: str, number: int, *, as_json: bool) -> Any:
    """Return the record that a writer sends under a number."""
    chance = random.Random(f"{writer}/{number}")
    size = HUGE if number % HUGE_ONE_IN == HUGE_ONE_IN // 2 else chance.choice(SIZES)
    content = chance.randbytes(size)
    if as_json:
        return {"by": writer, "number": number, "content": content.hex()[:size]}
    return b"<%s %d %d>%s\n" % (writer.encode(), number, size, content)


class Content:
    """What somebody read of a stream: ``sha256`` of all of it, the same however it was cut on its way."""

    def __init__(self, *, as_json: bool, keep: bool = False) -> None:
        self._as_json = as_json
        self._parts: list[bytes] | None = [] if keep else None
        self._sum = hashlib.sha256()
        self._empty = True

    def take(self, piece: bytes) -> None:
        if self._as_json:  # one array of messages, wherever the server ended it
            piece = piece.strip()[1:-1].strip()
            if not piece:
                return
            if not self._empty:
                piece = b"," + piece
        self._empty = False
        self._sum.update(piece)
        if self._parts is not None:
            self._parts.append(piece)

    @property
    def sha256(self) -> str:
        return self._sum.hexdigest()

    def records(self) -> Iterator[tuple[str, int, int]]:
        """Give the writer and the number of each record, and its end in bytes (0 for JSON); all of them are whole."""
        assert self._parts is not None
        content, position = b"".join(self._parts), 0
        if self._as_json:
            for message in json.loads(b"[" + content + b"]"):
                writer, number = message["by"], message["number"]
                assert message == record(writer, number, as_json=True), (writer, number)
                yield writer, number, 0
            return
        while position < len(content):
            head = HEAD.match(content, position)
            assert head is not None, content[position : position + 40]
            writer, number = head[1].decode(), int(head[2])
            whole = record(writer, number, as_json=False)
            assert content.startswith(whole, position), f"not all of {writer} {number} is there"
            position += len(whole)
            yield writer, number, position


class Worker(threading.Thread, Generic[T]):
    """Work in a thread; what it raises fails the test that finishes it."""

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._outcome: Future[T] = Future()
        self.start()

    def run(self) -> None:
        try:
            self._outcome.set_result(self._work())
        except BaseException as error:  # noqa: BLE001 - shown by ``finish``
            self._outcome.set_exception(error)

    @property
    def failed(self) -> bool:
        return self._outcome.done() and self._outcome.exception() is not None

    def finish(self, within: float = ENDS_WITHIN) -> T:
        self.join(within)
        assert not self.is_alive(), f"{self.name} does not end"
        error = self._outcome.exception()
        if error is not None:
            raise AssertionError(f"{self.name} failed: {error!r}") from error
        return self._outcome.result()


class Listener:
    """A live reader; ``received`` fills as it reads."""

    def __init__(self, server: Any, path: str, live: Any) -> None:
        self.received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._response = stream(f"{server.root}/{path}", live=live)
        self._worker = Worker(f"{live} of {path}", self._listen)

    def _listen(self) -> None:
        for piece in self._response:
            if piece:
                self.received.put(piece)

    def leave(self) -> None:
        self._response.close()
        self._worker.finish()


def subscriptions(server: NatsServer, bucket: str) -> list[int]:
    """Return for each connection to a NATS server how many live streams of a bucket it follows, if any."""
    connections = server.monitor("connz?subs=1").get("connections", ())
    counts = [
        sum(subject.startswith(f"{bucket}.live.") for subject in connection.get("subscriptions_list", ()))
        for connection in connections
    ]
    return [count for count in counts if count]


class Place:
    """One stream under load, below the roots of several servers."""

    def __init__(self, path: str, *, as_json: bool) -> None:
        self.path = path
        self.as_json = as_json
        self.content_type = "application/json" if as_json else "application/octet-stream"

    def read(self, root: str, *, keep: bool = False) -> Content:
        """Read all of it again."""
        content = Content(as_json=self.as_json, keep=keep)
        for piece in stream(f"{root}/{self.path}", live=False):
            content.take(piece)
        return content

    def follow(self, root: str) -> Content:
        """Read it by long-poll until it is closed."""
        content = Content(as_json=self.as_json)
        for piece in stream(f"{root}/{self.path}", live="long-poll"):
            content.take(piece)
        return content

    async def listen(self, root: str) -> Content:
        """Read it by server-sent events until it is closed."""
        content = Content(as_json=self.as_json)
        async with astream(f"{root}/{self.path}", live="sse") as response:
            async for piece in response:
                content.take(piece)
        return content


class Writer:
    """What the writers have in common: their names, their pace, and what they know of what they wrote."""

    def __init__(self, load: Load, place: Place, root: str, name: str) -> None:
        self.load = load
        self.place = place
        self.url = f"{root}/{place.path}"
        self.name = name
        self.chance = random.Random(name)

    def bursts(self) -> Iterator[range]:
        """Give the numbers of records to send at once, as long as there is a need; between them the caller pauses."""
        sent = 0
        while self.load.wants_more():
            burst = self.chance.randint(1, BURST)
            yield range(sent, sent + burst)
            sent += burst

    def pause(self, burst: range) -> float:
        """Return the seconds after which the writer goes on."""
        if self.load.over.is_set():
            return 0.0
        pause = len(burst) * self.load.interval
        return pause if self.load.acknowledged < self.load.total else 5 * pause

    def check(self, records: Sequence[tuple[int, int]]) -> None:
        """Fail unless what is there under this writer's name (numbers and ends, in order) is what it must be."""
        raise NotImplementedError


class Producing(Writer):
    """An idempotent producer: each record has to be there once and in order, at the offset that was acknowledged."""

    def __init__(self, load: Load, place: Place, root: str, name: str, *, batching: bool = False) -> None:
        super().__init__(load, place, root, name)
        self.results: list[IdempotentAppendResult] = []
        self.requests = 0
        self._batching = batching
        # Every record goes out by itself, or up to 4 KB of them together.
        self.settings: dict[str, Any] = (
            {"max_batch_bytes": 4096} if batching else {"max_batch_bytes": 1, "linger_ms": 0}
        )

    def write(self) -> None:
        pending: list[Future[IdempotentAppendResult]] = []
        with SyncIdempotentProducer(self.url, self.name, **self.settings) as producer:
            for burst in self.bursts():
                for number in burst:
                    ticket = producer.submit(record(self.name, number, as_json=self.place.as_json))
                    ticket.add_done_callback(self.load.count)
                    pending.append(ticket)
                self.load.over.wait(self.pause(burst))
                pending[-WINDOW:][0].result()
        self.requests = producer.next_seq
        self.results = [ticket.result() for ticket in pending]

    async def awrite(self) -> None:
        pending: list[asyncio.Future[IdempotentAppendResult]] = []
        async with IdempotentProducer(self.url, self.name, **self.settings) as producer:
            for burst in self.bursts():
                for number in burst:
                    ticket = producer.submit(record(self.name, number, as_json=self.place.as_json))
                    ticket.add_done_callback(self.load.count)
                    pending.append(ticket)
                await asyncio.sleep(self.pause(burst))
                await pending[-WINDOW:][0]
        self.requests = producer.next_seq
        self.results = [await ticket for ticket in pending]

    def check(self, records: Sequence[tuple[int, int]]) -> None:
        assert [number for number, _ in records] == list(range(len(self.results))), (
            f"{self.name}: not once each"
        )
        if self._batching or self.place.as_json:
            return
        for (number, end), result in zip(records, self.results, strict=True):
            if not result.duplicate:
                assert parse_offset(result.offset) == end, (self.name, number)


class Plain(Writer):
    """Appends without a producer: what was acknowledged is there once, what was refused is not, the rest may be."""

    def __init__(self, load: Load, place: Place, root: str, name: str) -> None:
        super().__init__(load, place, root, name)
        self.acknowledged: set[int] = set()
        self.refused: set[int] = set()
        self.unknown: set[int] = set()

    def write(self) -> None:
        handle = DurableStream(self.url, content_type=self.place.content_type, retry=ONCE, batching=False)
        for number in count():
            if self.load.over.is_set():
                return
            try:
                handle.append(record(self.name, number, as_json=self.place.as_json))
            except DurableStreamError as error:
                (self.refused if _not_done(error) else self.unknown).add(number)
                self.load.over.wait(0.2)
            else:
                self.acknowledged.add(number)
            self.load.over.wait(self.load.interval)

    def check(self, records: Sequence[tuple[int, int]]) -> None:
        numbers = [number for number, _ in records]
        assert numbers == sorted(set(numbers)), f"{self.name}: doubled or out of order"
        assert self.acknowledged <= set(numbers), f"{self.name}: lost {self.acknowledged - set(numbers)}"
        assert self.refused.isdisjoint(numbers), f"{self.name}: refused and stored"


def _not_done(error: DurableStreamError) -> bool:
    """Whether an append that failed so certainly was not stored."""
    if isinstance(error, FetchError):
        return not error.may_have_been_sent
    return error.status == 503 and error.retry_after is not None


class Load:
    """Writers and readers on streams below three roots: those of two gateways and of a balancer before them.

    The producers append ``total`` records at least, ``pace`` a second, and some more until `finish` is called.
    """

    def __init__(self, places: Sequence[Place], roots: Sequence[str], total: int, pace: float) -> None:
        self.places = places
        self.over = threading.Event()
        self.acknowledged = 0  # records
        self._lock = threading.Lock()
        self.roots = roots
        self.total = total
        self.interval = 3 * len(places) / pace
        self.producers: list[Producing] = []
        self.plain: list[Plain] = []
        self._background = Background("load", _forever)
        self._loop = self._background.value
        self._writing: list[Worker[Any]] = []
        self._reading: list[tuple[Place, Worker[Content]]] = []
        for number, place in enumerate(places):
            DurableStream.create(f"{roots[number % 2]}/{place.path}", content_type=place.content_type)
        self._read()
        self._write()

    def _write(self) -> None:
        for number, place in enumerate(self.places):
            first, second, balancer = self.roots
            here = Producing(self, place, first, f"here-{number}", batching=number < 2)
            there = Producing(self, place, second, f"there-{number}", batching=number >= 2)
            split = Producing(self, place, balancer, f"split-{number}")
            plain = Plain(self, place, self.roots[number % 2], f"plain-{number}")
            self.producers += [here, there, split]
            self.plain.append(plain)
            for writer, work in (here, here.write), (plain, plain.write):
                self._writing.append(Worker(writer.name, work))
            for writer in there, split:
                self._writing.append(Worker(writer.name, self._in_loop(writer.awrite())))

    def _read(self) -> None:
        for number, place in enumerate(self.places):
            polled, listened = self.roots[number % 2], self.roots[1 - number % 2]
            poll = Worker(f"the long-poll of {place.path}", partial(place.follow, polled))
            events = Worker(f"the event stream of {place.path}", self._in_loop(place.listen(listened)))
            self._reading += [(place, poll), (place, events)]

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> Callable[[], T]:
        """Begin what is async, all of it in one loop; return what waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result

    def count(self, ticket: Any) -> None:
        """Note that a record's fate is known."""
        if not ticket.cancelled() and ticket.exception() is None:
            with self._lock:
                self.acknowledged += 1

    def wants_more(self) -> bool:
        """Whether the writers should go on."""
        return not self.over.is_set() or self.acknowledged < self.total

    def fail_early(self) -> None:
        """Raise what a worker that should be working failed with."""
        for worker in [*self._writing, *(worker for _, worker in self._reading)]:
            if worker.failed:
                worker.finish()

    def finish(self) -> dict[Place, list[Content]]:
        """Let the writers come to their end and close the streams; return what the readers of each place read."""
        self.over.set()
        for worker in self._writing:
            worker.finish()
        read: dict[Place, list[Content]] = {place: [] for place in self.places}
        for place in self.places:
            DurableStream(f"{self.roots[-1]}/{place.path}").close_stream()
        for place, worker in self._reading:
            read[place].append(worker.finish())
        self._background.stop()
        return read


async def _forever(stop: asyncio.Event, ready: Callable[[asyncio.AbstractEventLoop], None]) -> None:
    ready(asyncio.get_running_loop())
    await stop.wait()
