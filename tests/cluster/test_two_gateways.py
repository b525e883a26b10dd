"""Two gateways on the same streams: whichever of them a request goes to, and both at once."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from itertools import chain, count, islice
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace
from proof_load import Listener, Worker, subscriptions

from durable_streams import (
    DurableStream,
    IdempotentAppendResult,
    IdempotentProducer,
    StaleEpochError,
    SyncIdempotentProducer,
    follow,
    stream,
)
from durable_streams.protocol.commands import Append, Create
from durable_streams.stores.jetstream import JetStreamConfig, JetStreamStore
from durable_streams.stores.jetstream import store as store_module
from durable_streams.stores.jetstream.slots import JetSlot
from durable_streams.stores.pace import MINUTE
from durable_streams.testing import NatsCluster
from durable_streams.testing.program import wait_until

WITHIN = 60.0  # seconds
TEXT = "text/plain"
EACH_ALONE: dict[str, Any] = {"max_batch_bytes": 1, "linger_ms": 0}


@pytest.fixture
def pair(nats_cluster: NatsCluster, gateway: Callable[..., Any]) -> tuple[Any, Any]:
    """Give two gateways on three NATS servers."""
    options = ("--long-poll-timeout", "2")
    return gateway(nats_cluster, *options), gateway(nats_cluster, *options)


def lines(server: Any, path: str) -> list[str]:
    return server.read_all(path).decode().splitlines()


# two writers


def write_until_fenced(url: str, some: threading.Event) -> int:
    """Write as the producer "p" until another one takes over; return how many records were acknowledged."""
    tickets: list[Any] = []
    producer = SyncIdempotentProducer(url, "p", **EACH_ALONE)
    try:
        for number in count():
            tickets.append(producer.submit(f"old {number}\n"))
            if number >= 10:
                tickets[number - 10].result(WITHIN)
            if number == 50:
                some.set()
    except StaleEpochError as fenced:
        epoch = fenced.current_epoch
    assert epoch == 1
    producer.abandon()
    refused = [isinstance(ticket.exception(WITHIN), StaleEpochError) for ticket in tickets]
    assert refused == sorted(refused), "what came after something that was lost was not"
    return refused.count(False)


@pytest.mark.parametrize("newer", [{"epoch": 1}, {"auto_claim": True}], ids=["epoch", "auto_claim"])
def test_the_newer_of_two_producers_fences_the_older(pair: tuple[Any, Any], newer: dict[str, Any]) -> None:
    here, there = pair
    here.create("s", TEXT)
    some = threading.Event()
    older = Worker("the older producer", lambda: write_until_fenced(f"{here.root}/s", some))
    assert some.wait(WITHIN)
    with SyncIdempotentProducer(f"{there.root}/s", "p", **EACH_ALONE, **newer) as producer:
        for number in range(200):
            producer.append(f"new {number}\n")
    acknowledged = older.finish()
    written = lines(here, "s")
    old = [line for line in written if line.startswith("old")]
    assert written == old + [f"new {number}" for number in range(200)]
    assert old == [f"old {number}" for number in range(len(old))]
    assert acknowledged <= len(old) <= acknowledged + 5  # what was under way when it was fenced


def test_of_two_producers_with_one_epoch_one_is_fenced(pair: tuple[Any, Any]) -> None:
    start = threading.Barrier(2)

    def write(server: Any, path: str, name: str) -> list[str]:
        producer = SyncIdempotentProducer(f"{server.root}/{path}", "p", **EACH_ALONE)
        texts = [f"{name} {number}" for number in range(5)]
        start.wait(WITHIN)
        failures: list[BaseException | None] = []
        try:
            tickets = [producer.submit(f"{text}\n") for text in texts]
            failures = [ticket.exception(WITHIN) for ticket in tickets]
        except StaleEpochError as fenced:  # it was known before all were submitted
            failures = [fenced]
        producer.abandon()
        if any(failures):
            assert all(isinstance(failure, StaleEpochError) for failure in failures)
            return []
        return texts

    for number in range(30):
        path = f"s{number}"
        pair[number % 2].create(path, TEXT)
        names = ("here", "there")
        workers = [
            Worker(name, lambda server=server, name=name, path=path: write(server, path, name))
            for server, name in zip(pair, names, strict=True)
        ]
        acknowledged = [worker.finish() for worker in workers]
        assert sorted(map(len, acknowledged)) == [0, 5]
        assert lines(pair[0], path) == list(chain(*acknowledged))


# the same request to both


async def send_to_both(pair: tuple[Any, Any], method: str, requests: list[dict[str, Any]]) -> list[list[int]]:
    """Send each request to both gateways at once; return the statuses of the answers, in order of size."""
    async with aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session:

        async def send(server: Any, request: dict[str, Any]) -> int:
            url = f"{server.root}/{request['path']}"
            async with session.request(
                method, url, data=request["body"], headers=request["headers"]
            ) as answer:
                await answer.read()
                return answer.status

        return [
            sorted(await asyncio.gather(*[send(server, request) for server in pair])) for request in requests
        ]


def test_a_producers_request_to_both_at_once_is_stored_once(pair: tuple[Any, Any]) -> None:
    pair[0].create("s", TEXT)
    producer = {"Producer-Id": "p", "Producer-Epoch": "0", "Content-Type": TEXT}
    requests: list[dict[str, Any]] = [
        {"path": "s", "body": b"%d\n" % number, "headers": {**producer, "Producer-Seq": str(number)}}
        for number in range(300)
    ]
    assert asyncio.run(send_to_both(pair, "POST", requests)) == [[200, 204]] * 300
    for server in pair:
        assert lines(server, "s") == [str(number) for number in range(300)]


def test_of_two_appends_with_one_sequence_one_is_refused(pair: tuple[Any, Any]) -> None:
    pair[0].create("s", TEXT)
    requests: list[dict[str, Any]] = [
        {
            "path": "s",
            "body": b"%d\n" % number,
            "headers": {"Stream-Seq": f"{number:04}", "Content-Type": TEXT},
        }
        for number in range(100)
    ]
    assert asyncio.run(send_to_both(pair, "POST", requests)) == [[204, 409]] * 100
    for server in pair:
        assert lines(server, "s") == [str(number) for number in range(100)]


def test_a_stream_that_is_created_on_both_at_once_is_one(pair: tuple[Any, Any]) -> None:
    requests: list[dict[str, Any]] = [
        {"path": f"s{number}", "body": b"x", "headers": {"Content-Type": TEXT}} for number in range(50)
    ]
    assert asyncio.run(send_to_both(pair, "PUT", requests)) == [[200, 201]] * 50
    assert all(server.read_all(f"s{number}") == b"x" for server in pair for number in range(50))
    assert asyncio.run(send_to_both(pair, "DELETE", requests)) == [[204, 404]] * 50


# a pipeline through both


def test_a_pipeline_over_both_is_stored_once_and_in_order(
    pair: tuple[Any, Any], round_robin: Callable[..., Any]
) -> None:
    balancer = round_robin(pair)
    url = f"{balancer.url}/v1/stream/s"
    total = 1000
    pair[0].create("s", TEXT)

    async def write() -> list[IdempotentAppendResult]:
        async with IdempotentProducer(url, "p", **EACH_ALONE) as producer:
            tickets = [producer.submit(f"{number}\n") for number in range(total)]
        return [await ticket for ticket in tickets]

    results = asyncio.run(write())
    assert lines(pair[1], "s") == [str(number) for number in range(total)]
    assert not any(result.duplicate for result in results)
    offsets = [result.offset for result in results]
    assert offsets == sorted(set(offsets))


# live reads


def counts(cluster: NatsCluster, bucket: str) -> list[int]:
    """Return the number of live subscriptions of each connection that has some."""
    return sorted(count for server in cluster.servers for count in subscriptions(server, bucket))


def test_live_reads_learn_of_the_other_gateway_over_one_subscription(
    pair: tuple[Any, Any], nats_cluster: NatsCluster, bucket: str
) -> None:
    here, there = pair
    here.create("s", TEXT)
    here.append("s", b"first", TEXT)
    modes = ["sse", "long-poll"] * 4
    listeners = [Listener(there, "s", mode) for mode in modes] + [Listener(here, "s", "sse")]
    assert wait_until(lambda: counts(nats_cluster, bucket) == [1, 1], WITHIN)
    assert all(listener.received.get(timeout=WITHIN) == b"first" for listener in listeners)
    for number in range(20):
        (here, there)[number % 2].append("s", b"%d" % number, TEXT)
        for listener in listeners:
            assert listener.received.get(timeout=WITHIN) == b"%d" % number
    assert counts(nats_cluster, bucket) == [1, 1]
    last = listeners.pop()
    for listener in listeners:
        listener.leave()
    assert wait_until(lambda: counts(nats_cluster, bucket) == [1], WITHIN)
    there.append("s", b"the end", TEXT)
    assert last.received.get(timeout=WITHIN) == b"the end"
    last.leave()
    assert wait_until(lambda: counts(nats_cluster, bucket) == [], WITHIN)


def test_a_close_and_a_deletion_reach_readers_of_the_other_gateway(pair: tuple[Any, Any]) -> None:
    here, there = pair
    for path in ("closed", "deleted"):
        here.create(path, TEXT)
    readers = [stream(f"{there.root}/closed", live=live) for live in ("sse", "long-poll")]
    workers = [Worker("a reader", lambda reader=reader: b"".join(reader)) for reader in readers]
    there_waits = Worker(
        "a long-poll", lambda: there.request("GET", "deleted?offset=now&live=long-poll", timeout=WITHIN)
    )
    DurableStream(f"{here.root}/closed", content_type=TEXT).close_stream("last words")
    assert [worker.finish() for worker in workers] == [b"last words"] * 2
    here.request("DELETE", "deleted")
    assert there_waits.finish().status == 404


# memory


def test_streams_that_nobody_uses_leave_the_memory(nats_cluster: NatsCluster, bucket: str) -> None:
    kept, together = 1000, 200

    async def main() -> int:
        store = JetStreamStore(JetStreamConfig(tuple(nats_cluster.urls), name=bucket), max_streams=kept)
        await store.open()
        try:
            paths = iter([f"s/{number}" for number in range(20_000)])
            while group := list(islice(paths, together)):
                await asyncio.gather(*[store.create(Create(path, TEXT, b"x")) for path in group])
            gc.collect()
            return sum(isinstance(one, JetSlot) for one in gc.get_objects())
        finally:
            await store.close()

    assert asyncio.run(main()) <= kept + together


def test_the_pace_of_a_stream_counts_the_appends_through_all_gateways(
    nats_cluster: NatsCluster, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        config = JetStreamConfig(tuple(nats_cluster.urls), name=bucket, replicas=3)
        here, there = JetStreamStore(config), JetStreamStore(config)
        await here.open()
        await there.open()
        try:
            created = (await here.create(Create("s", TEXT, b"x"))).state
            for _ in range(2):
                await there.append("s", Append(TEXT, b"y"))
            state = await here.get("s")
            assert state is not None
            assert (state.records, await here.records_per_second(state)) == (3, 3 / MINUTE)
            # As if the creation was more than a minute ago, and then the appends, too.
            assert created.created is not None
            monkeypatch.setattr(store_module, "MINUTE", 1e-6)
            while (pace := await here.records_per_second(state)) != 0:
                assert pace is None or pace in {1e6, 2e6, 3e6}, "a server that lags knows of less"
                await asyncio.sleep(0.01)
            assert await here.records_per_second(replace(state, records=None)) is None
        finally:
            await here.close()
            await there.close()

    asyncio.run(main())


def test_many_streams_are_followed_over_one_gateway_and_written_over_both(pair: tuple[Any, Any]) -> None:
    paths = [f"followed/{number}" for number in range(5)]
    for path in paths:
        pair[0].create(path, TEXT)
    got: dict[str, list[bytes]] = {path: [] for path in paths}
    with follow(pair[1].root, paths) as events:
        reading = threading.Thread(target=lambda: [got[event.stream].append(event.data) for event in events])
        reading.start()
        for number in range(20):
            for path in paths:
                assert pair[number % 2].append(path, f"{number},".encode(), TEXT).status == 204
        for path in paths:
            assert pair[0].request("POST", path, stream_closed="true").status == 204
        reading.join(WITHIN)
        assert not reading.is_alive()
    expected = "".join(f"{number}," for number in range(20)).encode()
    assert {path: b"".join(parts) for path, parts in got.items()} == dict.fromkeys(paths, expected)
