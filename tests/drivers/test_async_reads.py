"""Reads as only the async API meets them: cancelled tasks, other event loops, ``async with`` and ``await`` forms."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from typing import Any

import pytest
from facade import ASYNC_INSTALLED, client_of
from scripted import ScriptedServer, arrived, gone

from durable_streams import (
    AsyncDurableStream,
    DurableStreamError,
    StreamNotFoundError,
    astream,
)
from durable_streams.protocol.sse import encode_control, encode_data

JSON_EVENT = encode_data(b"[1]", text=True) + encode_control("1")
TAIL = {"stream_next_offset": "5", "stream_up_to_date": "true", "content_type": "text/plain"}
WITHIN = 30.0


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
