"""Workers of subscriptions, async and sync, against a real server."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from subscribing import Api, Subscribed, eventually

from durable_streams import DurableStream
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


@pytest.mark.parametrize("all_of_it", [True, False])
def test_what_a_stream_gave_up_before_it_was_processed(api, events, side, all_of_it: bool) -> None:
    """The worker goes on with what is left; where nothing is left, the stream is not pending any more."""
    one = api.pull(f"{events}/*")
    api.append(f"{events}/a", 0)
    api.append(f"{events}/a", 1)
    offset = api.tail(f"{events}/a")
    api.append(f"{events}/a", 2)
    with DurableStream(f"{root(api)}/{events}/a") as handle:
        handle.trim(before=api.tail(f"{events}/a") if all_of_it else offset)
    api.append(f"{events}/b", "other")
    batches = side.take(api, one, 1 if all_of_it else 2)
    if all_of_it:
        assert [(batch.path, batch.items) for batch in batches] == [(f"{events}/b", ["other"])]
    else:
        assert [(batch.path, batch.items) for batch in batches] == [
            (f"{events}/a", [2]),
            (f"{events}/b", ["other"]),
        ]
    assert one.links()[f"{events}/a"] == api.tail(f"{events}/a")


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


# -- run: several streams at once, and what fails


def running(side: Side, api: Api, one: Subscribed, handler: Any, until: Any, **settings: Any) -> None:
    """Run a worker with a handler until something holds."""
    ended = threading.Event()

    class Ended(BaseException):
        pass

    def checked(batch: Batch) -> None:
        if ended.is_set():
            raise Ended
        handler(batch)

    async def as_a_task(batch: Batch) -> None:
        await asyncio.to_thread(checked, batch)

    async def in_a_task() -> None:
        async with Worker(root(api), one.name, "worker", **settings) as worker:
            task = asyncio.ensure_future(worker.run(as_a_task))
            await asyncio.to_thread(eventually, until, bool)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    if side.kind == "async":
        asyncio.run(asyncio.wait_for(in_a_task(), WITHIN))
        return

    def in_a_thread() -> None:
        with SyncWorker(root(api), one.name, "worker", **settings) as worker, contextlib.suppress(Ended):
            worker.run(checked)

    thread = threading.Thread(target=in_a_thread, daemon=True)
    thread.start()
    eventually(until, bool)
    ended.set()
    streams = one.asked["pattern"].removesuffix("*")
    api.append(f"{streams}end", 0)
    thread.join(WITHIN)
    assert not thread.is_alive()


def test_streams_are_processed_side_by_side_and_each_in_order(api, events, side) -> None:
    one = api.pull(f"{events}/*")
    for name in "abc":
        api.append(f"{events}/{name}", 1)
    together = threading.Barrier(3)
    handled: list[tuple[str, list[Any]]] = []

    def handler(batch: Batch) -> None:
        if batch.items == [1]:
            together.wait(WITHIN)  # no one gets on before all three are here
            api.append(batch.path, 2)
        handled.append((batch.path, batch.items))

    running(side, api, one, handler, lambda: len(handled) >= 6, max_concurrent_streams=3)
    for name in "abc":
        assert [items for path, items in handled if path == f"{events}/{name}"] == [[1], [2]]


def test_a_failure_among_several_ends_the_run(api, events, side) -> None:
    one = api.pull(f"{events}/*")
    for name in "abcd":
        api.append(f"{events}/{name}", 1)

    def handler(batch: Batch) -> None:
        if batch.path.endswith("/b"):
            raise RuntimeError("the handler's own")

    async def in_tasks() -> None:
        async with Worker(root(api), one.name, "worker", max_concurrent_streams=2) as worker:

            async def handle(batch: Batch) -> None:
                handler(batch)

            await asyncio.wait_for(worker.run(handle), WITHIN)

    def in_threads() -> None:
        with SyncWorker(root(api), one.name, "worker", max_concurrent_streams=2) as worker:
            worker.run(handler)

    with pytest.raises(RuntimeError, match="own"):
        asyncio.run(in_tasks()) if side.kind == "async" else in_threads()
    assert one.links()[f"{events}/b"] == "-1"
    assert one.claim().generation == 2, "the lease was given back"


def test_before_is_at_most_once(api, events, side) -> None:
    one = api.pull(f"{events}/*")
    api.append(f"{events}/a", 1)
    (batch,) = side.take(api, one, 1, ack="before")
    assert one.links() == {f"{events}/a": batch.offset}


def test_manual_acknowledges_what_it_is_told_only(api, events) -> None:
    one = api.pull(f"{events}/*")
    api.append(f"{events}/a", 1)
    api.append(f"{events}/b", 1)
    with SyncWorker(root(api), one.name, "worker", ack="manual") as worker:
        first, second = next(worker), next(worker)
        worker.ack(second)
        third = next(worker)
        assert (third.path, third.items) == (first.path, first.items), "it comes again"
        with pytest.raises(LeaseLostError, match="is over"):
            worker.ack(first)
        assert one.links() == {f"{events}/a": "-1", f"{events}/b": second.offset}
        worker.ack(third)
        assert one.links() == {f"{events}/a": third.offset, f"{events}/b": second.offset}


def test_what_fails_too_often_is_a_dead_letter_once_and_is_acknowledged(api, events, side) -> None:
    one = api.pull(f"{events}/*")
    dead = f"dead-{events}"
    api.append(f"{events}/a", 1, "poison")
    api.append(f"{events}/b", 2)
    handled: list[Any] = []

    def handler(batch: Batch) -> None:
        if "poison" in batch.items:
            raise ValueError("it is poison")
        handled.append(batch.items)

    def is_over() -> bool:
        links = one.links()
        return all(links.get(f"{events}/{name}") == api.tail(f"{events}/{name}") for name in "ab")

    running(side, api, one, handler, is_over, dead_letter=dead, max_failures=2)
    assert api.messages(dead) == [
        {
            "subscription": one.name,
            "path": f"{events}/a",
            "from": "-1",
            "offset": api.tail(f"{events}/a"),
            "worker": "worker",
            "failures": 2,
            "error": "ValueError: it is poison",
            "items": [1, "poison"],
        }
    ]
    assert handled == [[2]]


def test_what_cannot_be_decoded_is_a_dead_letter_too(api, events, side) -> None:
    one = api.pull(f"{events}/*")
    api.append(f"{events}/a", "no number")
    api.append(f"{events}/b", 5)
    handled: list[Any] = []
    running(
        side,
        api,
        one,
        lambda batch: handled.append(batch.items),
        lambda: handled,
        decode=int,
        dead_letter=f"dead-{events}",
        max_failures=1,
    )
    assert handled == [[5]]
    (letter,) = api.messages(f"dead-{events}")
    assert (letter["items"], letter["path"]) == (["no number"], f"{events}/a")


def test_a_letter_whose_acknowledgement_was_lost_is_not_stored_again(api, events) -> None:
    one = api.pull(f"{events}/*")
    api.append(f"{events}/a", 1)
    dead = f"dead-{events}"

    class Crash(BaseException):
        pass

    class Dying(SyncWorker):
        def _acknowledge(self, *_arguments: Any, **_options: Any) -> bool:
            raise Crash

    def handler(batch: Batch) -> None:
        raise ValueError("poison")

    with pytest.raises(Crash), Dying(root(api), one.name, "w", dead_letter=dead, max_failures=1) as worker:
        worker.run(handler)
    assert len(api.messages(dead)) == 1
    assert one.links() == {f"{events}/a": "-1"}
    running(
        Side("sync"),
        api,
        one,
        handler,
        lambda: one.links()[f"{events}/a"] != "-1",
        dead_letter=dead,
        max_failures=1,
    )
    assert [letter["from"] for letter in api.messages(dead) if letter["path"] == f"{events}/a"] == ["-1"]


def test_settings_that_make_no_sense(api) -> None:
    for settings in (
        {"ack": "never"},
        {"max_concurrent_streams": 0},
        {"max_failures": 0},
        {"trickle_timeout": 0},
    ):
        for kind in (Worker, SyncWorker):
            with pytest.raises(ValueError, match=next(iter(settings))):
                kind(root(api), "one", "worker", **settings)
