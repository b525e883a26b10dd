"""Writes whose tasks are cancelled: nobody else is held up, and nothing of theirs is lost. Pitfall 17."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from facade import ASYNC_INSTALLED, client_of
from scripted import Received, ScriptedServer, arrived, gone

from durable_streams import (
    AsyncDurableStream,
    IdempotentProducer,
)

WITHIN = 30.0


class SlowFirst:
    """Answers the first append on command, the others at once."""

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
        done, _ = await asyncio.wait([task], timeout=WITHIN)
        assert done
        assert task.cancelled()
        await gone(scripted)

    asyncio.run(main())
