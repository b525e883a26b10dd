"""What only the async API meets: tasks that are cancelled, other event loops, ``async with`` and ``await`` forms."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import threading
from typing import Any

import pytest
from facade import ASYNC_TRANSPORTS, is_installed, make_client
from scripted import Received, ScriptedServer

from durable_streams import (
    AsyncDurableStream,
    DurableStreamError,
    IdempotentProducer,
    StreamNotFoundError,
    astream,
)
from durable_streams.protocol.sse import encode_control, encode_data

JSON_EVENT = encode_data(b"[1]", text=True) + encode_control("1")
TAIL = {"stream_next_offset": "5", "stream_up_to_date": "true", "content_type": "text/plain"}
ASYNC_INSTALLED = [transport for transport in ASYNC_TRANSPORTS if is_installed(transport)]
WITHIN = 30.0


async def arrived(scripted: ScriptedServer, count: int = 1) -> None:
    for _ in range(count):
        assert await asyncio.to_thread(scripted.arrived.acquire, timeout=WITHIN)


async def gone(scripted: ScriptedServer) -> None:
    assert await asyncio.to_thread(scripted.gone.acquire, timeout=WITHIN)


@contextlib.asynccontextmanager
async def client_of(transport: str) -> Any:
    client = make_client(transport)
    try:
        yield client
    finally:
        if client is not None:
            await client.aclose()


def test_both_forms_of_astream_and_stream(url: str) -> None:
    async def main() -> None:
        async with await AsyncDurableStream.create(url, content_type="application/json", body="1") as handle:
            for opening in (lambda: astream(url, live=False), lambda: handle.stream(live=False)):
                async with opening() as res:
                    assert [item async for item in res.iter_json()] == [1]
                assert res.closed
                res = await opening()
                assert await res.read_json() == [1]
                async with await opening() as res:
                    assert await res.read_text() == "[1]"
        with pytest.raises(StreamNotFoundError):
            async with astream(url + "-no"):
                pass
        with pytest.raises(StreamNotFoundError):
            await astream(url + "-no")

    asyncio.run(main())


def test_every_event_loop_has_its_own_connections(url: str) -> None:
    async def use(handle: AsyncDurableStream) -> None:
        await handle.append("1")
        assert (await handle.head()).exists

    handle = asyncio.run(AsyncDurableStream.create(url, content_type="application/json"))
    for _ in range(3):
        asyncio.run(use(handle))
    threads = [threading.Thread(target=asyncio.run, args=(use(handle),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def count() -> int:
        return len(await (await astream(url, live=False)).read_json())

    assert asyncio.run(count()) == 7


@pytest.mark.parametrize("transport", ASYNC_INSTALLED)
@pytest.mark.parametrize("where", ["head", "body", "pause", "start"])
def test_a_cancelled_read_releases_its_connection(
    scripted: ScriptedServer, transport: str, where: str
) -> None:
    """Pitfall 10: cancelled while it waits for a head, a body, a pause or its first answer."""
    hello = scripted.send(scripted.response(200, b"hello", **TAIL))
    scripted.replies = {
        "head": [hello, scripted.stall()],
        "body": [scripted.stall(scripted.events(JSON_EVENT))],
        "pause": [hello, scripted.send(scripted.response(503, retry_after="3600"), close=True)],
        "start": [scripted.stall()],
    }[where]
    live: Any = "sse" if where == "body" else "long-poll"

    async def main() -> None:
        async with client_of(transport) as client:

            async def read() -> None:
                async with astream(scripted.root + "/s", live=live, client=client) as res:
                    async for _ in res:
                        pass

            task = asyncio.create_task(read())
            await arrived(scripted, 2 if where in {"head", "pause"} else 1)
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone(scripted)

    asyncio.run(main())


def test_a_time_limit_around_a_read(scripted: ScriptedServer) -> None:
    """Pitfall 10."""
    scripted.replies = [scripted.stall(scripted.events(JSON_EVENT))]

    async def main() -> None:
        async with astream(scripted.root + "/s", live="sse") as res:
            items = res.iter_json()
            assert await anext(items) == 1
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(items), 0.2)
        assert res.closed
        await gone(scripted)

    asyncio.run(main())


def test_aclose_from_another_task_ends_the_read_normally(scripted: ScriptedServer) -> None:
    """Pitfall 10: the reading task sees the end, and a later cancellation is still a cancellation."""
    scripted.replies = [scripted.stall(scripted.events(JSON_EVENT))]

    async def main() -> None:
        res = await astream(scripted.root + "/s", live="sse")

        async def read() -> list[Any]:
            seen = [item async for item in res.iter_json()]
            await asyncio.sleep(0)  # would raise, had the wake-up left a cancellation behind
            return seen

        task = asyncio.create_task(read())
        await arrived(scripted)
        await asyncio.sleep(0.1)
        await res.aclose()
        assert await task == [1]
        await res.aclose()
        await gone(scripted)

    asyncio.run(main())


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 cannot tell two cancellations of a task from one"
)
def test_aclose_and_a_cancellation_at_once(scripted: ScriptedServer) -> None:
    """Pitfall 10: who was cancelled by its owner must not go on as if only the read had ended."""
    scripted.replies = [scripted.stall(scripted.events(JSON_EVENT))]

    async def main() -> None:
        res = await astream(scripted.root + "/s", live="sse")

        async def read() -> str:
            async for _ in res:
                pass
            await asyncio.sleep(3600)
            return "went on"

        task = asyncio.create_task(read())
        await arrived(scripted)
        await asyncio.sleep(0.1)
        task.cancel()
        await res.aclose()
        done, _ = await asyncio.wait([task], timeout=WITHIN)
        assert done
        assert task.cancelled()

    asyncio.run(main())


def test_an_iterator_left_behind_is_closed_with_the_loop(scripted: ScriptedServer) -> None:
    """Pitfall 10: broken out of without ``async with``."""
    scripted.replies = [scripted.stall(scripted.events(JSON_EVENT))]

    async def main() -> None:
        res = await astream(scripted.root + "/s", live="sse")
        async for _ in res:
            break
        del res
        gc.collect()
        await gone(scripted)

    asyncio.run(main())


def test_async_callables_and_callbacks(scripted: ScriptedServer) -> None:
    """Credentials may be fetched: headers, params and on_error may be async."""
    scripted.replies = [
        scripted.send(scripted.response(401)),
        scripted.send(scripted.response(200, b"x", **{**TAIL, "stream_closed": "true"})),
    ]
    tokens = iter(["old", "new"])

    async def token() -> str:
        await asyncio.sleep(0)
        return next(tokens)

    async def on_error(error: DurableStreamError) -> dict[str, Any] | None:
        await asyncio.sleep(0)
        return {} if error.status == 401 else None

    async def main() -> None:
        res = await astream(
            scripted.root + "/s",
            headers={"authorization": token, "x-plain": lambda: "a"},
            params={"t": token_of_params},
            on_error=on_error,
        )
        assert await res.read_bytes() == b"x"

    async def token_of_params() -> str:
        return "p"

    asyncio.run(main())
    assert [request.headers["authorization"] for request in scripted.requests] == ["old", "new"]
    assert {request.query["t"] for request in scripted.requests} == {"p"}
    assert {request.headers["x-plain"] for request in scripted.requests} == {"a"}


# -- appends at once


class SlowFirst:
    """Answers the first append when told to, the others at once."""

    def __init__(self, scripted: ScriptedServer) -> None:
        self.gate = threading.Event()
        self.records: list[Any] = []
        self._first = True
        scripted.answer = self._answer
        self._scripted = scripted

    def _answer(self, request: Received) -> bytes:
        first, self._first = self._first, False
        if first:
            self._scripted.arrived.release()
            assert self.gate.wait(WITHIN)
        self.records += json.loads(request.body)
        return self._scripted.response(204, stream_next_offset="1")


@pytest.mark.parametrize("cancelled", ["leader", "waiting", "both"])
@pytest.mark.parametrize("transport", ASYNC_INSTALLED)
def test_a_cancelled_append_hangs_no_other(scripted: ScriptedServer, transport: str, cancelled: str) -> None:
    """Pitfall 17: neither that whose request is under way nor one that waits behind it."""
    server = SlowFirst(scripted)

    async def main() -> None:
        async with client_of(transport) as client:
            handle = AsyncDurableStream(scripted.root + "/s", content_type="application/json", client=client)
            tasks = [asyncio.create_task(handle.append(0))]
            await arrived(scripted)
            tasks += [asyncio.create_task(handle.append(number)) for number in range(1, 6)]
            await asyncio.sleep(0.1)
            victims = {"leader": [0], "waiting": [1, 3], "both": [0, 1]}[cancelled]
            for victim in victims:
                tasks[victim].cancel()
            await asyncio.sleep(0)
            server.gate.set()
            done, pending = await asyncio.wait(tasks, timeout=WITHIN)
            assert not pending
            assert len(done) == 6
            for number, task in enumerate(tasks):
                assert task.cancelled() == (number in victims)
            await asyncio.wait_for(handle.append(99), WITHIN)

    asyncio.run(main())
    survivors = {"leader": {1, 2, 3, 4, 5}, "waiting": {0, 2, 4, 5}, "both": {2, 3, 4, 5}}[cancelled]
    assert set(server.records) - {0} == (survivors | {99}) - {0}
    assert len(server.records) == len(set(server.records))


@pytest.mark.parametrize("transport", ASYNC_INSTALLED)
def test_who_leads_a_request_may_be_cancelled_without_the_others_in_it(
    scripted: ScriptedServer, transport: str
) -> None:
    """Pitfall 17: several appends share a request; one of their owners goes away while it is under way."""
    gates = [threading.Event(), threading.Event()]
    requests = iter(gates)
    records: list[Any] = []

    def answer(request: Received) -> bytes:
        gate = next(requests, None)
        scripted.arrived.release()
        assert gate is None or gate.wait(WITHIN)
        records.extend(json.loads(request.body))
        return scripted.response(204, stream_next_offset="1")

    scripted.answer = answer

    async def main() -> None:
        async with client_of(transport) as client:
            handle = AsyncDurableStream(scripted.root + "/s", content_type="application/json", client=client)
            first = asyncio.create_task(handle.append(0))
            await arrived(scripted)
            tasks = [asyncio.create_task(handle.append(number)) for number in range(1, 6)]
            await asyncio.sleep(0.1)
            gates[0].set()
            await first
            await arrived(scripted, 2)  # that the first was answered, and the second request
            tasks[0].cancel()
            await asyncio.sleep(0.1)
            gates[1].set()
            done, pending = await asyncio.wait(tasks, timeout=WITHIN)
            assert not pending
            assert len(done) == 5
            assert [task.cancelled() for task in tasks] == [True, False, False, False, False]
            assert {task.result().next_offset for task in tasks[1:]} == {"1"}

    asyncio.run(main())
    assert sorted(records) == [0, 1, 2, 3, 4, 5]


def test_a_time_limit_around_appends(scripted: ScriptedServer) -> None:
    """Pitfall 17."""
    server = SlowFirst(scripted)

    async def main() -> None:
        handle = AsyncDurableStream(scripted.root + "/s", content_type="application/json")
        first = asyncio.create_task(asyncio.wait_for(handle.append(1), 0.3))
        second = asyncio.create_task(handle.append(2))
        with pytest.raises(asyncio.TimeoutError):
            await first
        server.gate.set()
        await asyncio.wait_for(second, WITHIN)

    asyncio.run(main())
    assert 2 in server.records


# -- the producer


def test_a_cancelled_put_and_a_cancelled_flush_leave_the_producer_usable(scripted: ScriptedServer) -> None:
    """Pitfall 17: who stops waiting takes nothing with it."""
    gate = threading.Event()
    bodies: list[str] = []

    def answer(request: Received) -> bytes:
        assert gate.wait(WITHIN)
        bodies.append(request.body)
        return scripted.response(
            200, stream_next_offset="1", producer_epoch="0", producer_seq=request.headers["producer-seq"]
        )

    scripted.answer = answer

    async def main() -> None:
        async with IdempotentProducer(
            scripted.root + "/s", "p", content_type="text/plain", max_pending_bytes=10, linger_ms=0
        ) as producer:
            producer.append("x" * 8)
            for wait in (producer.put("y" * 8), producer.flush()):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(wait, 0.2)
            gate.set()
            await producer.put("z" * 8)
            await producer.flush()

    asyncio.run(main())
    assert bodies == ["x" * 8, "z" * 8]


def test_a_cancelled_future_does_not_take_its_record_back_or_break_others(url: str) -> None:
    async def main() -> None:
        handle = await AsyncDurableStream.create(url, content_type="application/json")
        async with IdempotentProducer(url, "p", linger_ms=50) as producer:
            one, two = producer.submit(1), producer.submit(2)
            one.cancel()
            assert (await asyncio.wait_for(two, WITHIN)).offset == (await handle.head()).offset
        assert await (await handle.stream(live=False)).read_json() in ([1, 2], [2])

    asyncio.run(main())


def test_a_producer_cancelled_in_its_block_lets_go(scripted: ScriptedServer) -> None:
    """Pitfall 10: its owner cancelled while nothing answers."""
    scripted.replies = [scripted.stall()]

    async def main() -> None:
        async def produce() -> None:
            async with IdempotentProducer(scripted.root + "/s", "p", content_type="text/plain") as producer:
                producer.append("x")
                await producer.flush()

        task = asyncio.create_task(produce())
        await arrived(scripted)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        if not done:  # closing still waits for its record: a second cancellation must end that
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=WITHIN)
        assert done
        await gone(scripted)

    asyncio.run(main())
