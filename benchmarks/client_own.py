"""One measurement of our client alone: its producer, its own share of a read, and what the machine gives without it.

python client_own.py TASK JSON-ARGUMENTS

Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from itertools import cycle, islice
from statistics import median
from typing import Any, ClassVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
import urllib3
from client_worker import JSON, Took, aconsume, consume, main, message, timed

import durable_streams as ds
from durable_streams.client.transports import transport_for

READ_SIZE = 256 * 1024


# -- the transports alone, and the JSON decoder: what the machine gives


def bare(url: str, decode: bool) -> dict[str, Any]:
    pool = urllib3.PoolManager()
    answer = pool.request("GET", f"{url}-warm-up?offset=-1")
    decoded = msgspec.json.Decoder().decode if decode else None
    received, items, offset, up_to_date = 0, 0, "-1", False
    took = Took()
    while not up_to_date:
        answer = pool.request("GET", f"{url}?offset={offset}", preload_content=False)
        chunks = []
        while chunk := answer.read1(READ_SIZE):
            received += len(chunk)
            if decoded is not None:
                chunks.append(chunk)
        if decoded is not None:
            items += consume(decoded(b"".join(chunks)), sys.maxsize)
        offset = answer.headers["stream-next-offset"]
        up_to_date = "stream-up-to-date" in answer.headers
    return took.with_(bytes=received, items=items)


async def abare(url: str, decode: bool) -> dict[str, Any]:
    decoded = msgspec.json.Decoder().decode if decode else None
    received, items, offset, up_to_date = 0, 0, "-1", False
    async with aiohttp.ClientSession(auto_decompress=False, read_bufsize=READ_SIZE) as session:
        async with session.get(f"{url}-warm-up?offset=-1") as answer:
            await answer.read()
        took = Took()
        while not up_to_date:
            async with session.get(f"{url}?offset={offset}") as answer:
                chunks = []
                async for chunk in answer.content.iter_any():
                    received += len(chunk)
                    if decoded is not None:
                        chunks.append(chunk)
                if decoded is not None:
                    items += consume(decoded(b"".join(chunks)), sys.maxsize)
                offset = answer.headers["stream-next-offset"]
                up_to_date = "stream-up-to-date" in answer.headers
        return took.with_(bytes=received, items=items)


def bare_append(url: str, seconds: float) -> dict[str, Any]:
    """Append as `append` of client_worker.py does, with nothing but `http.client` and a kept connection."""
    data, target = message(), urlsplit(url)
    connection = HTTPConnection(target.hostname or "", target.port)

    def send(method: str, body: bytes | None) -> None:
        connection.request(method, target.path, body, {"content-type": "application/octet-stream"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status < 300

    send("PUT", None)
    return {"seconds": median(timed(lambda _: send("POST", data), seconds))}


# -- our own share: the answers of a recorded read, given again without a network


class Recorder:
    """A transport that remembers every answer."""

    def __init__(self) -> None:
        self._transport = transport_for(None)
        self.answers: list[Recorded] = []

    def open(self, *request: Any) -> Recorded:
        self.answers.append(Recorded(self._transport.open(*request)))
        return self.answers[-1]


class Recorded:
    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange
        self.status, self.reason, self.headers = exchange.status, exchange.reason, exchange.headers
        self.chunks: list[bytes] = []

    def read(self) -> bytes:
        self.chunks.append(self._exchange.read())
        return self.chunks[-1]

    def close(self) -> None:
        self._exchange.close()


class Player:
    """A transport that gives recorded answers in their order."""

    def __init__(self, answers: list[Recorded]) -> None:
        self._answers = iter(answers)

    def open(self, *_: Any) -> Played:
        return Played(next(self._answers))


class AsyncPlayer(Player):
    async def open(self, *_: Any) -> AsyncPlayed:  # type: ignore[override]
        return AsyncPlayed(next(self._answers))


class Played:
    def __init__(self, answer: Recorded) -> None:
        self.status, self.reason, self.headers = answer.status, answer.reason, answer.headers
        self._chunks = iter(answer.chunks)

    def read(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        pass


class AsyncPlayed(Played):
    async def read(self) -> bytes:  # type: ignore[override]
        return next(self._chunks)

    async def close(self) -> None:  # type: ignore[override]
        pass


def own_reading(url: str, live: bool | str, records: int) -> dict[str, Any]:
    """Return the seconds an item takes besides the network and the decoding of its JSON, sync and async."""
    recorder = Recorder()
    with ds.stream(url, offset="-1", live=live, client=recorder) as res:
        consume(res.iter_json(), records)
    bodies = [msgspec.json.encode(batch) for batch in batches_of(url)]
    decoded = msgspec.json.Decoder().decode

    def decode() -> None:
        for body in bodies:
            consume(decoded(body), sys.maxsize)

    def play() -> None:
        with ds.stream(url, offset="-1", live=live, client=Player(recorder.answers)) as res:
            assert consume(res.iter_json(), records) == records

    async def aplay() -> None:
        async with ds.astream(url, offset="-1", live=live, client=AsyncPlayer(recorder.answers)) as res:
            assert await aconsume(res.iter_json(), records) == records

    decoding = least(decode)
    return {
        "decoding": decoding / records,
        "sync": (least(play) - decoding) / records,
        "async": (least(lambda: asyncio.run(aplay())) - decoding) / records,
    }


def batches_of(url: str) -> list[list[Any]]:
    with ds.stream(url, live=False) as res:
        return res.read_json_batches()


def least(call: Callable[[], object], times: int = 5) -> float:
    """Return the least seconds of CPU that a call took: what else the machine does counts less."""
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return min(seconds)


# -- the producer


def messages_of_one_size() -> list[bytes]:
    return [message().replace(b"1234567", b"%07d" % (1_000_000 + number)) for number in range(1000)]


def produce(url: str, messages: int, linger_ms: float = 5) -> dict[str, Any]:
    ds.DurableStream.create(url, content_type=JSON).close()
    data = messages_of_one_size()
    with ds.SyncIdempotentProducer(url, "bench", linger_ms=linger_ms) as producer:
        took = Took()
        for item in islice(cycle(data), messages):
            producer.append(item)
        producer.flush()
        return took.with_()


async def aproduce(url: str, messages: int, linger_ms: float = 5) -> dict[str, Any]:
    handle = await ds.AsyncDurableStream.create(url, content_type=JSON)
    data = messages_of_one_size()
    async with ds.IdempotentProducer(url, "bench", linger_ms=linger_ms) as producer:
        took = Took()
        for item in islice(cycle(data), messages):
            await producer.put(item)
        await producer.flush()
        result = took.with_()
    await handle.aclose()
    return result


class Acknowledging:
    """A transport that acknowledges everything at once."""

    status, reason = 200, "OK"
    headers: ClassVar = {"stream-next-offset": "0000000000000000_0000000000000001", "content-type": JSON}

    def open(self, *_: Any) -> Acknowledging:
        return self

    def read(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


class AsyncAcknowledging(Acknowledging):
    async def open(self, *_: Any) -> AsyncAcknowledging:  # type: ignore[override]
        return self

    async def read(self) -> bytes:  # type: ignore[override]
        return b""

    async def close(self) -> None:  # type: ignore[override]
        pass


def own_producing(url: str, messages: int) -> dict[str, Any]:
    """Return the seconds a message takes on the client's side, sync and async."""
    data = messages_of_one_size()

    def send() -> None:
        with ds.SyncIdempotentProducer(url, "bench", client=Acknowledging(), content_type=JSON) as producer:
            for item in islice(cycle(data), messages):
                producer.append(item)

    async def asend() -> None:
        async with ds.IdempotentProducer(
            url, "bench", client=AsyncAcknowledging(), content_type=JSON
        ) as producer:
            for item in islice(cycle(data), messages):
                await producer.put(item)

    return {"sync": least(send, 3) / messages, "async": least(lambda: asyncio.run(asend()), 3) / messages}


if __name__ == "__main__":
    main(globals())
