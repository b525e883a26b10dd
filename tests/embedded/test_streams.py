"""`DurableStreams`: handles in the process of the streams give the results and errors of handles over HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    DurableStreamError,
    IdempotentProducer,
    StaleEpochError,
    StreamClosedError,
    SyncIdempotentProducer,
    astream,
)
from durable_streams.embedded import DurableStreams
from durable_streams.server import ServerConfig
from durable_streams.stores.memory import MemoryStore
from durable_streams.testing import InMemoryStreamServer

JSON = "application/json"
QUICK = ServerConfig(long_poll_timeout=0.05)


@pytest.fixture(params=["memory", "sqlite"])
def streams(request: pytest.FixtureRequest, tmp_path: Path) -> DurableStreams:
    """Give streams that are not open yet."""
    return DurableStreams(tmp_path / "data" if request.param == "sqlite" else None, config=QUICK)


async def outcome(call: Awaitable[Any]) -> Any:
    """Return the result of a call, or all that is known of its error but the server's address."""
    try:
        return await call
    except (DurableStreamError, ValueError, TypeError) as error:
        known = {
            name: getattr(error, name, None)
            for name in ("status", "code", "current_epoch", "final_offset", "expected", "expected_seq")
        }
        return type(error), known


async def life(url: Callable[[str], str], client: Any) -> list[Any]:
    """Return the outcomes of a stream's life, whatever is behind the URLs."""
    stream = await AsyncDurableStream.create(url("a b/ü"), content_type=JSON, body={"n": 0}, client=client)
    text = AsyncDurableStream(url("text"), content_type="text/plain", client=client)
    missing = AsyncDurableStream(url("missing"), client=client)
    found = [
        stream.created,
        await outcome(stream.append({"n": 1.50})),
        await outcome(stream.append(b"[1,2]", seq="b")),
        await outcome(stream.append(b"[1,2]", seq="a")),
        await outcome(stream.append(b"{")),
        await outcome(text.create_stream(ttl_seconds=60)),
        await outcome(text.create_stream(ttl_seconds=61)),
        await outcome(text.append("x" * 300_000)),
        await outcome(text.append("x" * 2_000_000)),
        await outcome(missing.append("x")),
        await outcome(missing.head()),
        await outcome(missing.delete()),
    ]
    fork = await stream.fork(url("fork"), sub_offset=0)
    found += [await outcome(fork.append([3])), await outcome(stream.close_stream({"n": 2}))]
    found += [await outcome(stream.append({"n": 3})), await outcome(stream.close_stream())]
    for one in (stream, fork, text):
        async with one.stream(live=False) as read:
            found += [
                await outcome(read.read_bytes()),
                read.content_type,
                read.up_to_date,
                read.stream_closed,
            ]
    async with stream.stream() as read:
        found += [item async for item in read.iter_json()]
    async with astream(url("text"), offset="now", live="long-poll", client=client) as read:
        found += [read.offset, await outcome(read.read_text())]
    found.append(await outcome(_opened(astream(url("text"), offset="nonsense", client=client))))
    producer = IdempotentProducer(url("fork"), "p", epoch=3, client=client)
    found.append(await producer.submit({"n": 4}))
    await producer.close()
    old = IdempotentProducer(url("fork"), "p", epoch=2, client=client)
    found += [await outcome(old.submit({"n": 5})), await outcome(old.close())]
    head = await fork.head()
    return [*found, head.offset, head.content_type, await outcome(fork.delete()), await outcome(fork.head())]


async def _opened(opening: Any) -> Any:
    await opening


def test_results_and_errors_are_those_over_http(streams: DurableStreams) -> None:
    with InMemoryStreamServer(config=QUICK) as server:
        over_http = asyncio.run(life(lambda path: server.url(quote(path)), None))

    async def main() -> list[Any]:
        async with streams.lifespan():
            return await life(streams.url, streams.client)

    assert asyncio.run(main()) == over_http


def test_a_worker_thread_has_the_sync_handles(streams: DurableStreams) -> None:
    def work() -> list[Any]:
        handle = DurableStream.create(streams.url("t"), content_type=JSON, client=streams.sync_client)
        results: list[Any] = [handle.append({"n": 1})]
        with streams.sync_producer("t", "p", content_type=JSON) as producer:
            results.append(producer.submit({"n": 2}).result(30))
        assert isinstance(producer, SyncIdempotentProducer)
        streams.sync_stream("t").close_stream()
        with pytest.raises(StreamClosedError) as refused:
            streams.sync_stream("t", content_type=JSON).append({})
        with handle.stream() as read:
            return [*results, refused.value.final_offset, *read.iter_json()]

    async def main() -> list[Any]:
        async with streams.lifespan():
            return await asyncio.to_thread(work)

    first, second, final, *read = asyncio.run(main())
    assert first.next_offset < second.offset == final
    assert read == [{"n": 1}, {"n": 2}]


def test_a_commit_wakes_readers_in_the_process_at_once(streams: DurableStreams) -> None:
    """Async ones and those of threads, by server-sent events and by long-polls."""

    def follow(ready: threading.Event) -> list[bytes]:
        with streams.sync_stream("text").stream() as read:
            ready.set()
            return list(read)

    async def main() -> None:
        async with streams.lifespan():
            await streams.create("text", content_type="text/plain")
            numbers = await streams.create("numbers", content_type=JSON)
            ready = threading.Event()
            following = asyncio.create_task(asyncio.to_thread(follow, ready))
            await asyncio.to_thread(ready.wait, 30)
            async with numbers.stream(live="sse") as read:
                items = read.iter_json()
                for number in range(50):
                    await numbers.append(number)
                    assert await asyncio.wait_for(anext(items), 30) == number
                    await streams.stream("text").append(f"{number} ")
            await streams.stream("text").close_stream()
            assert b"".join(await following) == "".join(f"{number} " for number in range(50)).encode()

    asyncio.run(main())


def test_a_read_in_a_thread_ends_when_it_is_closed(streams: DurableStreams) -> None:
    async def main() -> None:
        async with streams.lifespan():
            await streams.create("idle", content_type=JSON)
            read = await asyncio.to_thread(lambda: streams.sync_stream("idle").stream())
            consuming = asyncio.create_task(asyncio.to_thread(list, read.iter_json()))
            await asyncio.sleep(0.05)
            read.close()
            assert await asyncio.wait_for(consuming, 30) == []

    asyncio.run(main())


def test_two_producers_fence_each_other(streams: DurableStreams) -> None:
    async def main() -> None:
        async with streams.lifespan():
            await streams.create("p", content_type=JSON)
            old = streams.producer("p", "writer", epoch=1, linger_ms=0)
            await old.submit(1)
            async with streams.producer("p", "writer", epoch=2, linger_ms=0) as new:
                await new.submit(2)
                with pytest.raises(StaleEpochError):
                    await old.submit(3)
            with pytest.raises(StaleEpochError):
                await old.close()

    asyncio.run(main())


def test_what_is_on_disk_outlives_the_process_of_its_streams(tmp_path: Path) -> None:
    async def main() -> None:
        for start in range(2):
            streams = DurableStreams(tmp_path)
            async with streams.lifespan():
                handle = await streams.create("kept", content_type=JSON)
                assert handle.created is (start == 0)
                await handle.append(start)
        async with DurableStreams(tmp_path).lifespan():
            pass
        again = DurableStreams(config=ServerConfig(data_dir=tmp_path))
        assert await (await again.stream("kept").stream(live=False)).read_json() == [0, 1]
        await again.shutdown()

    asyncio.run(main())


def test_a_folder_that_is_in_use_is_one_sentence(tmp_path: Path) -> None:
    async def main() -> None:
        async with DurableStreams(tmp_path).lifespan():
            other = DurableStreams(tmp_path)
            with pytest.raises(DurableStreamError, match="another server has the folder") as refused:
                await other.stream("x").append("x")
            assert refused.value.code == "UNAVAILABLE"

    asyncio.run(main())


def test_a_store_of_ones_own() -> None:
    async def main() -> None:
        async with (streams := DurableStreams(MemoryStore())).lifespan():
            assert (await streams.create("x")).created

    asyncio.run(main())


def test_a_store_is_named_once() -> None:
    with pytest.raises(ValueError, match="named twice"):
        DurableStreams("folder", config=ServerConfig(data_dir=Path("another")))


@pytest.mark.parametrize("path", ["", "/", "http://localhost/v1/stream/x", "a/../b"])
def test_a_stream_is_named_by_its_path(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|URL"):
        DurableStreams().stream(path)


def test_a_sync_handle_does_not_stop_its_own_event_loop() -> None:
    async def main() -> None:
        async with (streams := DurableStreams()).lifespan():
            with pytest.raises(DurableStreamError, match="from a worker thread"):
                streams.sync_stream("x").head()

    asyncio.run(main())


def test_a_sync_handle_needs_an_open_application() -> None:
    streams = DurableStreams()
    with pytest.raises(DurableStreamError, match="not open"):
        streams.sync_stream("x").head()


def test_another_event_loop_is_refused() -> None:
    streams = DurableStreams()

    async def elsewhere() -> None:
        with pytest.raises(DurableStreamError, match="another event loop"):
            await streams.stream("x").head()

    async def main() -> None:
        async with streams.lifespan():
            await asyncio.to_thread(asyncio.run, elsewhere())

    asyncio.run(main())


def test_after_the_end_every_call_says_so() -> None:
    async def main() -> None:
        async with (streams := DurableStreams()).lifespan():
            stream = await streams.create("x", content_type=JSON)
            read = await stream.stream()
            following = asyncio.ensure_future(anext(read.iter_json()))
            await asyncio.sleep(0.01)
        appending = asyncio.ensure_future(stream.append(1))
        for call in (following, appending):
            with pytest.raises(DurableStreamError, match="lifespan has ended") as refused:
                await asyncio.wait_for(call, 30)
            assert refused.value.code == "CLIENT_CLOSED"
        with pytest.raises(DurableStreamError, match="not open"):
            await asyncio.to_thread(streams.sync_stream("x").head)
        async with streams.lifespan():
            await streams.create("x")

    asyncio.run(main())


def test_calls_of_the_own_process_need_no_grant(tmp_path: Path) -> None:
    """Neither keys nor limits of callers are about the application itself."""
    (tmp_path / "keys.toml").write_text("")
    (tmp_path / "limits.toml").write_text("[default]\nrequests = 0.001\n[prefix.own]\nstreams = 0\n")
    config = ServerConfig(
        auth=tmp_path / "keys.toml",
        limits=tmp_path / "limits.toml",
        bind_producers=True,
        hide_forbidden=True,
    )

    async def main() -> None:
        streams = DurableStreams(config=config)
        async with streams.lifespan():
            stream = streams.stream("own/1", content_type=JSON)
            await stream.create_stream(body={"n": 0})
            fork = await stream.fork(streams.url("own/2"))
            async with streams.producer("own/1", "producer", content_type=JSON) as producer:
                producer.append({"n": 1})
            assert (await stream.append({"n": 2})).next_offset
            async with fork.stream(live=False) as read:
                assert await read.read_json() == [{"n": 0}]
            await fork.set_retention(max_bytes=100)
            await fork.delete()
            transport = httpx.ASGITransport(streams.asgi)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                assert (await client.get("/v1/stream/own/1")).status_code == 401

    asyncio.run(main())
