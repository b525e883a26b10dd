"""Load on a server from one process: writers, producers and readers, measured one rung of a ladder after the other.

Invariants: what is measured ends with the rung, and nothing of it runs on; every append is counted once, as stored or
as failed; the time of a delivery is counted from before its append, on the one clock of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import msgspec

from durable_streams import AsyncDurableStream, DurableStreamError, IdempotentProducer, RetryPolicy, astream

__all__ = ["Load", "Rung", "Times", "climb", "saturated_at"]

JSON = "application/json"
_ONCE = RetryPolicy(max_retries=0)
_WINDOW = 256  # records of a producer that are not acknowledged yet
_MOST_TIMES = 2_000_000  # of one rung: 16 MB
_CATCH_UP = 5.0  # seconds that readers have after the last append
_FLAT = 1.1  # a rung with less than this many times the appends of the one before is no progress
_PERCENTILES = (50, 90, 99, 99.9)


class Load(msgspec.Struct, frozen=True):
    """What to do on each rung.

    Attributes:
        seconds: How long.
        size: About how many bytes each message has.
        readers: How many event streams follow.
        producers: Whether writers are idempotent producers, which batch, instead of single appends.
        headers: The headers of each request.
    """

    seconds: float
    size: int
    readers: int
    producers: bool
    headers: Mapping[str, str]


class Times:
    """How long something took, each time; the first two million times of a rung."""

    def __init__(self) -> None:
        self._times = array("d")

    def add(self, seconds: float) -> None:
        """Add a time."""
        if len(self._times) < _MOST_TIMES:
            self._times.append(seconds)

    def summary(self) -> dict[str, float]:
        """Return percentiles and the maximum in milliseconds; nothing where there is no time."""
        times = sorted(self._times)
        if not times:
            return {}
        found = {f"p{share:g}": _at(times, share) * 1000 for share in _PERCENTILES}
        return {name: round(value, 3) for name, value in {**found, "max": times[-1] * 1000}.items()}


def _at(times: Sequence[float], share: float) -> float:
    """Return the time that ``share`` percent are not above: the nearest rank."""
    return times[max(0, -int(-len(times) * share // 100) - 1)]


class Rung(msgspec.Struct):
    """What one rung measured.

    Attributes:
        writers: How many wrote at a time.
        seconds: How long it took, until the last append was answered.
        appends: Messages that were stored.
        errors: Failures, by code.
        append_ms: The time of an append; percentiles in milliseconds.
        deliveries: Messages that all readers got together.
        delivery_ms: The time from before the append until a reader had the message.
    """

    writers: int
    seconds: float
    appends: int
    errors: dict[str, int]
    append_ms: dict[str, float]
    deliveries: int
    delivery_ms: dict[str, float]

    @property
    def rate(self) -> float:
        """Appends a second."""
        return self.appends / self.seconds if self.seconds else 0.0


async def climb(url: str, rungs: Sequence[int], load: Load) -> AsyncIterator[Rung]:
    """Measure each rung: that many writers at a time, on the stream at ``url``, which must hold JSON."""
    for writers in rungs:
        yield await _Measurement(url, writers, load).run()


def saturated_at(rungs: Sequence[Rung]) -> int | None:
    """Return with how many writers the most was reached for all practical purposes; None while it still grows."""
    rates = [rung.rate for rung in rungs]
    for at in range(len(rates) - 1):
        if max(rates[at + 1 :]) < rates[at] * _FLAT:
            return rungs[at].writers
    return None


class _Measurement:
    """One rung."""

    def __init__(self, url: str, writers: int, load: Load) -> None:
        self._url, self._writers, self._load = url, writers, load
        self._pad = "x" * max(0, load.size - len(_message(time.monotonic_ns(), "")))
        self._appends = self._deliveries = 0
        self._errors: Counter[str] = Counter()
        self._append_times, self._delivery_times = Times(), Times()
        self._ends = 0.0
        self._expected = sys.maxsize  # deliveries, known after the last append
        self._complete = asyncio.Event()

    async def run(self) -> Rung:
        """Measure."""
        followed = [asyncio.Event() for _ in range(self._load.readers)]
        readers: list[asyncio.Task[object]] = [asyncio.create_task(self._read(event)) for event in followed]
        try:
            for reader, event in zip(readers, followed, strict=True):
                connected = asyncio.create_task(event.wait())
                await asyncio.wait({connected, reader}, return_when=asyncio.FIRST_COMPLETED)
                connected.cancel()
            began = time.perf_counter()
            self._ends = began + self._load.seconds
            write = self._produce if self._load.producers else self._append
            await asyncio.gather(*(write(number) for number in range(self._writers)))
            seconds = time.perf_counter() - began
            await self._caught_up()
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        return Rung(
            self._writers,
            round(seconds, 3),
            self._appends,
            dict(self._errors),
            self._append_times.summary(),
            self._deliveries,
            self._delivery_times.summary(),
        )

    async def _caught_up(self) -> None:
        """Wait until the readers have everything, or for some seconds."""
        self._expected = self._appends * self._load.readers
        if self._deliveries < self._expected:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._complete.wait(), _CATCH_UP)

    async def _append(self, _: int) -> None:
        handle = AsyncDurableStream(
            self._url, content_type=JSON, headers=self._load.headers, batching=False, retry=_ONCE
        )
        async with handle:
            while (began := time.perf_counter()) < self._ends:
                with self._counted(began):
                    await handle.append(_message(time.monotonic_ns(), self._pad))

    @contextlib.contextmanager
    def _counted(self, began: float) -> Iterator[None]:
        try:
            yield
        except DurableStreamError as error:
            self._errors[error.code or "ERROR"] += 1
        else:
            self._append_times.add(time.perf_counter() - began)
            self._appends += 1

    async def _produce(self, number: int) -> None:
        room = asyncio.Semaphore(_WINDOW)
        name = f"bench-{secrets.token_hex(4)}-{number}"  # of its own: each rung begins with its first number
        producer = IdempotentProducer(self._url, name, content_type=JSON, headers=self._load.headers)

        def settled(ticket: asyncio.Future[object], began: float) -> None:
            room.release()
            if not ticket.cancelled():
                with self._counted(began):
                    ticket.result()

        try:
            while (began := time.perf_counter()) < self._ends:
                await room.acquire()
                ticket = producer.submit(_message(time.monotonic_ns(), self._pad))
                ticket.add_done_callback(lambda done, began=began: settled(done, began))  # type: ignore[misc]
            await producer.close()
        except DurableStreamError as error:
            self._errors[error.code or "ERROR"] += 1

    async def _read(self, followed: asyncio.Event) -> None:
        try:
            async with astream(self._url, offset="now", live="sse", headers=self._load.headers) as response:
                followed.set()
                async for messages in response.iter_json_batches():
                    now = time.monotonic_ns()
                    for message in messages:
                        self._delivery_times.add((now - message["t"]) / 1e9)
                    self._deliveries += len(messages)
                    if self._deliveries >= self._expected:
                        self._complete.set()
        except DurableStreamError as error:
            self._errors[error.code or "ERROR"] += 1


def _message(now: int, pad: str) -> bytes:
    return b'{"t":%d,"p":"%s"}' % (now, pad.encode())
