"""One measurement of NATS alone, with the client nats-py: the peer of a gateway. In a process of its own.

python nats_worker.py TASK JSON-ARGUMENTS

Prints one JSON object. The task ``write_log`` measures nothing: it writes a long log as a gateway would have.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import APIError

from durable_streams.server.run import new_event_loop
from durable_streams.stores.jetstream.layout import EXPECT, RECORD, Layout
from durable_streams.stores.jetstream.records import LogRecord, decode_meta, decode_record, encode_record

BARE = "bare"
SUBJECT = f"{BARE}.log"
LAYOUT = Layout("durable-streams")
WARM_UP = 0.5  # seconds
IN_PROCESS = 10164  # "wrong last sequence", while NATS is not done with the message before
AT_ONCE = 1000  # messages of an atomic batch
NO_LIMIT = {"pending_msgs_limit": -1, "pending_bytes_limit": -1}
now = time.perf_counter


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    client = await nats.connect(url, allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()


async def prepare(url: str, replicas: int, leader: str) -> dict[str, Any]:
    """Make the bare stream, and have it and the gateways' one led by the same server."""
    async with connected(url) as client:
        config = StreamConfig(
            name=BARE,
            subjects=[f"{BARE}.>"],
            storage=StorageType.FILE,
            num_replicas=replicas,
            allow_direct=True,
        )
        await client.jetstream().add_stream(config)
        for stream in (BARE, LAYOUT.stream):
            await lead(client, stream, leader)
    return {}


async def lead(client: Client, stream: str, server: str) -> None:
    js, wanted = client.jetstream(), json.dumps({"placement": {"preferred": server}}).encode()
    while True:
        cluster = (await js.stream_info(stream)).cluster
        if cluster is None or cluster.leader == server:
            return
        await client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", wanted, timeout=5)
        await asyncio.sleep(0.5)


class Publisher:
    """Publishes to one subject, one message after the other, each expecting the one before."""

    def __init__(self, js: JetStreamContext, subject: str) -> None:
        self._js = js
        self._subject = subject
        self._seq = 0

    async def publish(self, payload: bytes) -> None:
        while True:
            try:
                ack = await self._js.publish(self._subject, payload, headers={EXPECT: str(self._seq)})
            except APIError as error:
                # One in 40,000, right after its own acknowledgement: a moment later the same is right.
                if error.err_code != IN_PROCESS:
                    raise
            else:
                self._seq = ack.seq
                return

    async def until(self, deadline: float, payload: bytes) -> list[float]:
        """Return how many seconds each publish took."""
        times: list[float] = []
        while (begin := now()) < deadline:
            await self.publish(payload)
            times.append(now() - begin)
        return times


async def publish(url: str, streams: int, seconds: float, size: int) -> dict[str, Any]:
    """Publish to this many subjects at once, to each one message after the other; what warms up is not counted."""
    run = f"{SUBJECT}.{time.time_ns()}"
    async with connected(url) as client:
        js = client.jetstream()
        publishers = [Publisher(js, f"{run}.{number}") for number in range(streams)]
        payload = b"x" * size

        async def all_until(deadline: float) -> list[float]:
            runs = await asyncio.gather(*(one.until(deadline, payload) for one in publishers))
            return [seconds for times in runs for seconds in times]

        await all_until(now() + WARM_UP)
        begin = now()
        times = await all_until(begin + seconds)
        return {"seconds": now() - begin, "messages": len(times), "median": median(times)}


async def consume(url: str, path: str) -> dict[str, Any]:
    """Read a stream's log twice with an ordered consumer; what is measured is the second time."""
    async with connected(url) as client:
        js = client.jetstream()
        subject = LAYOUT.log(await stream_id(js, path))
        last = (await js.get_last_msg(LAYOUT.stream, subject)).seq
        await read_all(js, subject, last)
        begin = now()
        count, size = await read_all(js, subject, last)
        return {"seconds": now() - begin, "messages": count, "bytes": size}


async def read_all(js: JetStreamContext, subject: str, last: int | None) -> tuple[int, int]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    count = size = 0

    async def take(message: Any) -> None:
        nonlocal count, size
        count += 1
        size += len(message.data)
        # The sequence is in the reply subject, from its end the fourth.
        if int(message.reply.rsplit(".", 4)[1]) == last and not done.done():
            done.set_result(None)

    subscription = await js.subscribe(
        subject, stream=LAYOUT.stream, ordered_consumer=True, cb=take, **NO_LIMIT
    )
    await asyncio.wait_for(done, 120)
    await subscription.unsubscribe()
    return count, size


async def stream_id(js: JetStreamContext, path: str) -> int:
    meta = await js.get_last_msg(LAYOUT.stream, LAYOUT.meta(path))
    return decode_meta(meta.data or b"").id


async def write_log(url: str, path: str, records: int, size: int) -> dict[str, Any]:
    """Add records to a stream that a gateway has made and nobody writes to."""
    async with connected(url) as client:
        js = client.jetstream()
        subject = LAYOUT.log(await stream_id(js, path))
        last = await js.get_last_msg(LAYOUT.stream, subject)
        assert last.headers is not None
        before, seq = decode_record(last.headers[RECORD].encode()), last.seq or 0
        n, position = before.n, before.start + len(last.data or b"")
        begin = now()
        while n < records:
            count = min(AT_ONCE, records - n)
            batch = [LogRecord("bench", n + k + 1, position + k * size) for k in range(count)]
            seq = await publish_batch(client, subject, batch, seq, b"x" * size)
            n, position = n + count, position + count * size
        return {"seconds": now() - begin, "records": n}


async def publish_batch(
    client: Client, subject: str, batch: list[LogRecord], seq: int, payload: bytes
) -> int:
    """Store records, all or none, if the last one of the subject is ``seq``; return the sequence of the last."""
    name = f"{time.time_ns():x}"
    for number, record in enumerate(batch, 1):
        headers = {RECORD: encode_record(record), "Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}
        if number == 1:
            headers[EXPECT] = str(seq)
        if number < len(batch):
            await client.publish(subject, payload, headers=headers)
    headers["Nats-Batch-Commit"] = "1"
    answer = json.loads((await client.request(subject, payload, headers=headers, timeout=30)).data)
    if "error" in answer:
        raise SystemExit(f"NATS refuses a batch: {answer['error']}")
    return int(answer["seq"])


TASKS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    task.__name__: task for task in (prepare, publish, consume, write_log)
}


def main() -> None:
    loop = new_event_loop()
    try:
        print(json.dumps(loop.run_until_complete(TASKS[sys.argv[1]](**json.loads(sys.argv[2])))))
    finally:
        loop.close()


if __name__ == "__main__":
    main()
