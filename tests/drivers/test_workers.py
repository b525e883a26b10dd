"""Workers of subscriptions, async and sync, against a real server."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from subscribing import Api, Subscribed, eventually

from durable_streams.errors import StreamNotFoundError
from durable_streams.testing import InMemoryStreamServer
from durable_streams.worker import Batch, LeaseLostError, SyncWorker, Worker

WITHIN = 30.0
_folders = count()


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with InMemoryStreamServer() as server:
        port = int(server.base_url.rpartition(":")[2])
        yield Api(lambda: port)


@pytest.fixture
def events() -> str:
    return f"events-{next(_folders)}"


def root(api: Api) -> str:
    return f"http://127.0.0.1:{api.port()}/v1/stream"


class Side:
    """Takes batches from a worker on one of the sides, in the same words."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def take(self, api: Api, one: Subscribed, most: int, **settings: Any) -> list[Batch]:
        """Return ``most`` batches; the last one is not acknowledged."""
        if self.kind == "async":
            return asyncio.run(asyncio.wait_for(self._take(api, one, most, **settings), WITHIN))
        taken = []
        with SyncWorker(root(api), one.name, "worker", **settings) as worker:
            for batch in worker:
                taken.append(batch)
                if len(taken) == most:
                    return taken
        return taken

    async def _take(self, api: Api, one: Subscribed, most: int, **settings: Any) -> list[Batch]:
        taken = []
        async with Worker(root(api), one.name, "worker", **settings) as worker:
            async for batch in worker:
                taken.append(batch)
                if len(taken) == most:
                    return taken
        return taken


@pytest.fixture(params=["async", "sync"])
def side(request) -> Side:
    return Side(request.param)


def test_what_is_pending_is_handed_over_and_acknowledged_afterwards(api, events, side) -> None:
    one = api.pull(f"{events}/*")
    api.append(f"{events}/a", 1, 2)
    api.append(f"{events}/b", 3)
    batches = side.take(api, one, 2)
    assert [(batch.path, batch.items) for batch in batches] == [(f"{events}/a", [1, 2]), (f"{events}/b", [3])]
    # The first one was acknowledged when the loop came back; the second one comes again.
    assert one.links() == {f"{events}/a": api.tail(f"{events}/a"), f"{events}/b": "-1"}
    again = one.claim("another")
    assert again.generation == 2, "the lease was given back"


def test_it_waits_for_the_next_wake(api, events, side) -> None:
    one = api.pull(f"{events}/*")
    appending = threading.Timer(0.2, lambda: api.append(f"{events}/a", 1))
    appending.start()
    (batch,) = side.take(api, one, 1)
    assert batch.items == [1]
    appending.join()


def test_one_lease_after_the_other(api, events, side) -> None:
    one = api.pull(f"{events}/*")
    api.append(f"{events}/a", 0)

    def on(number: int) -> int:
        if number < 3:
            api.append(f"{events}/a", number + 1)
        return number

    batches = side.take(api, one, 4, decode=on)
    assert [batch.items for batch in batches] == [[0], [1], [2], [3]]
    assert one.shown()["status"] == "active"


def test_bytes(api, events, side) -> None:
    one = api.pull(f"{events}/*")
    api.call("PUT", f"{events}/a%20b", b"data", content_type="text/plain")
    (batch,) = side.take(api, one, 1)
    assert (batch.path, batch.data, batch.items) == (f"{events}/a b", b"data", [])
    assert batch.url.endswith(f"{events}/a%20b")


def test_a_subscription_that_is_not_there(api, side) -> None:
    missing = object.__new__(Subscribed)
    missing.name = "missing"
    with pytest.raises(StreamNotFoundError):
        side.take(api, missing, 1)
    with pytest.raises(ValueError, match="A worker needs"):
        Worker(root(api), "", "worker")


def test_a_slow_handler_keeps_its_lease(api, events) -> None:
    one = api.pull(f"{events}/*", lease_ttl_ms=1000)
    api.append(f"{events}/a", 1)

    async def main() -> None:
        async with Worker(root(api), one.name, "slow") as worker:
            async for batch in worker:
                await asyncio.sleep(1.6)
                assert not batch.is_lost
                break
            refusal = one.refused_claim()
            assert refusal.json["error"]["current_holder"] == "slow"

    asyncio.run(asyncio.wait_for(main(), WITHIN))
    assert one.claim().generation == 2


def test_a_slow_thread_keeps_its_lease(api, events) -> None:
    one = api.pull(f"{events}/*", lease_ttl_ms=1000)
    api.append(f"{events}/a", 1)
    with SyncWorker(root(api), one.name, "slow") as worker:
        for batch in worker:
            threading.Event().wait(1.6)
            assert not batch.is_lost
            assert one.refused_claim().json["error"]["current_holder"] == "slow"
            break
    assert one.claim().generation == 2


def test_a_lease_that_is_lost_is_an_error_and_nothing_is_acknowledged(api, events, side) -> None:
    one = api.pull(f"{events}/*")
    api.append(f"{events}/a", 1)

    def lose() -> None:
        one.delete()
        assert api.call("PUT", one.path, one.asked).status == 201

    if side.kind == "sync":
        with SyncWorker(root(api), one.name, "worker") as worker:
            assert next(worker).items == [1]
            lose()
            with pytest.raises(LeaseLostError, match="token") as lost:
                next(worker)
            assert lost.value.code == "FENCED"
        return

    async def main() -> None:
        async with Worker(root(api), one.name, "worker") as worker:
            assert (await anext(worker)).items == [1]
            lose()
            with pytest.raises(LeaseLostError) as lost:
                await anext(worker)
            assert lost.value.code == "FENCED"
            api.append(f"{events}/a", 2)
            assert (await anext(worker)).items == [2]  # it goes on

    asyncio.run(asyncio.wait_for(main(), WITHIN))


def test_a_handler_whose_lease_is_lost_is_cancelled(api, events) -> None:
    one = api.pull(f"{events}/*", lease_ttl_ms=1000)
    api.append(f"{events}/a", 1)
    handled: list[str] = []
    ended: asyncio.Event

    async def handler(batch: Batch) -> None:
        if not handled:
            handled.append("began")
            one.delete()  # the next heartbeat finds out
            assert api.call("PUT", one.path, one.asked).status == 201
            api.append(f"{events}/a", 2)
            try:
                await asyncio.sleep(WITHIN)
            except asyncio.CancelledError:
                handled.append("cancelled")
                raise
        handled.append(str(batch.items))
        ended.set()

    async def main() -> None:
        nonlocal ended
        ended = asyncio.Event()
        async with Worker(root(api), one.name, "worker") as worker:
            running = asyncio.ensure_future(worker.run(handler))
            await ended.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), WITHIN))
    assert handled[:3] == ["began", "cancelled", "[2]"]


def test_a_handler_that_fails_ends_the_run_and_gives_the_lease_back(api, events) -> None:
    one = api.pull(f"{events}/*")
    api.append(f"{events}/a", 1)

    def handler(batch: Batch) -> None:
        raise RuntimeError("the handler's own")

    with SyncWorker(root(api), one.name, "worker") as worker, pytest.raises(RuntimeError, match="own"):
        worker.run(handler)
    eventually(
        lambda: api.call("POST", f"{one.path}/claim", {"worker": "w"}).status, lambda status: status == 200
    )
    assert one.links() == {f"{events}/a": "-1"}
