"""What breaks off a wait for data from outside, a cancellation or a signal handler, ends no read in silence (B10)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import requests
from facade import ASYNC_INSTALLED, client_of
from scripted import ScriptedServer

from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    DurableStreamError,
    RetryPolicy,
    StreamParseError,
    astream,
    stream,
)
from durable_streams.firehose import AsyncFirehoseStream, FirehoseStream, StreamConfig, StreamError
from durable_streams.protocol.sse import encode_control, encode_data

JSON = "application/json"
SYNC: dict[str, Any] = {"own": lambda: None, "requests": requests.Session, "httpx": httpx.Client}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
send, response = ScriptedServer.send, ScriptedServer.response


class AlarmError(TimeoutError):
    """Raised by the handler of SIGALRM; libraries take it for a failure of theirs."""


@dataclass
class Flight:
    origin: str


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Give what has the handler of a signal raise Alarm in this thread, after some seconds."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled by the main thread")

    def ring(*_: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def made(kind: str) -> Iterator[Any]:
    client = SYNC[kind]()
    yield client
    if client is not None:
        client.close()


async def patient(step: Callable[[], Coroutine[Any, Any, Any]], within: float) -> Any:
    """Return what a step gives, however often it has to be cancelled until then."""
    while True:
        try:
            return await asyncio.wait_for(step(), within)
        except asyncio.TimeoutError:
            continue


async def _next(pieces: AsyncIterator[Any]) -> Any:
    return await anext(pieces)


# -- async reads


@pytest.mark.parametrize("transport", ASYNC_INSTALLED)
@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_b10_waits_that_time_out_lose_and_repeat_nothing(url: str, transport: str, live: Any) -> None:
    count = 12

    async def main() -> None:
        handle = await AsyncDurableStream.create(url, content_type=JSON)

        async def write() -> None:
            for number in range(count):
                await handle.append(number)
                await asyncio.sleep(0.03 * (number % 3))

        async with client_of(transport) as client, astream(url, live=live, client=client) as res:
            writing = asyncio.create_task(write())
            pieces = res.iter_json()
            found = [await patient(lambda: _next(pieces), 0.04) for _ in range(count)]
            assert found == list(range(count))
            assert res.offset == (await handle.head()).offset
            await writing

    asyncio.run(main())


@pytest.mark.parametrize("transport", ASYNC_INSTALLED)
@pytest.mark.parametrize("form", ["bytes", "iter_text", "iter_json", "iter_json_batches", "iter_events"])
def test_b10_a_body_that_was_broken_off_comes_whole(
    scripted: ScriptedServer, transport: str, form: str
) -> None:
    wire = response(200, b'["a","b"]', content_type=JSON, stream_next_offset="2", stream_up_to_date="true")
    arrived = threading.Event()

    def in_two(connection: Any) -> None:
        connection.sendall(wire[:-4])
        if arrived.wait(10):
            connection.sendall(wire[-4:])

    scripted.replies = [in_two, send(wire)]
    expected = {
        "bytes": b'["a","b"]',
        "iter_text": '["a","b"]',
        "iter_json": "a",
        "iter_json_batches": ["a", "b"],
        "iter_events": ["a", "b"],
    }

    async def main() -> None:
        async with client_of(transport) as client, astream(scripted.root, live=False, client=client) as res:
            pieces = aiter(res) if form == "bytes" else getattr(res, form)()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(pieces), 0.05)
            arrived.set()
            found = await anext(pieces)
            assert (found.data if form == "iter_events" else found) == expected[form]
            rest = [piece async for piece in pieces]
            assert rest == (["b"] if form == "iter_json" else [])
            assert res.closed
        assert len(scripted.requests) == (1 if transport == "aiohttp" else 2)

    asyncio.run(main())


def test_b10_an_idle_event_stream_stays_open_across_cancelled_waits(scripted: ScriptedServer) -> None:
    event = encode_data(b"[1]", text=True) + encode_control("1")
    on = threading.Event()

    def reply(connection: Any) -> None:
        connection.sendall(scripted.events(b""))
        if on.wait(10):
            connection.sendall(event)
            on.clear()
            on.wait(10)

    scripted.replies = [reply]

    async def main() -> None:
        async with astream(scripted.root, live="sse") as res:
            pieces = res.iter_json()
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(pieces), 0.02)
            on.set()
            assert await anext(pieces) == 1
        on.set()

    asyncio.run(main())
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("transport", ASYNC_INSTALLED)
@pytest.mark.parametrize("leave", ["aclose", "pieces", "drop", "with"])
def test_b10_a_read_that_was_broken_off_still_releases_its_connection(
    scripted: ScriptedServer, transport: str, leave: str
) -> None:
    scripted.replies = [scripted.stall(scripted.events(encode_control("1")))]

    async def main() -> None:
        async with client_of(transport) as client:
            res = await astream(scripted.root, live="sse", client=client)
            pieces = res.iter_json()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(pieces), 0.02)
            if leave == "aclose":
                await res.aclose()
                assert [piece async for piece in pieces] == []
            elif leave == "pieces":
                await pieces.aclose()  # type: ignore[attr-defined]
                assert res.closed
            elif leave == "with":
                async with res:
                    pass
            gc.disable()
            try:
                del pieces, res
            finally:
                gc.enable()
            assert await asyncio.to_thread(scripted.gone.acquire, timeout=10)

    asyncio.run(main())


def test_b10_a_pause_goes_on_where_it_was(scripted: ScriptedServer) -> None:
    data = response(200, b"[1]", content_type=JSON, stream_next_offset="1", stream_up_to_date="true")
    scripted.replies = [send(response(503)), send(data)]
    policy = RetryPolicy(initial_delay=0.5, max_delay=0.5, jitter=False)

    async def main() -> None:
        first = response(200, b"[0]", content_type=JSON, stream_next_offset="0")
        scripted.replies.insert(0, send(first))
        async with astream(scripted.root, live=False, retry=policy) as res:
            pieces = res.iter_json()
            assert await anext(pieces) == 0
            # A pause that began again each time would never end.
            assert await asyncio.wait_for(patient(lambda: _next(pieces), 0.1), 10) == 1

    asyncio.run(main())


def test_b10_idle_timeout_counts_across_cancelled_waits(scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.stall(scripted.events(encode_control("1")))]

    async def main() -> None:
        async with astream(scripted.root, live="sse", idle_timeout=0.3) as res:
            pieces = res.iter_json()
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(patient(lambda: _next(pieces), 0.1), 10)
            assert res.timed_out

    asyncio.run(main())


def test_b10_what_cannot_go_on_says_so(scripted: ScriptedServer) -> None:
    data = response(200, b"[1,2,3]", content_type=JSON, stream_next_offset="3", stream_up_to_date="true")
    bad = response(200, b"[4]", content_type=JSON, stream_next_offset="4", stream_up_to_date="true")
    scripted.replies = [send(data), send(bad)]

    def decode(value: int) -> int:
        if value == 2:
            raise KeyboardInterrupt
        return value

    with stream(scripted.root, live=False) as res:
        items = res.iter_json(decode=decode)
        assert next(items) == 1
        with pytest.raises(KeyboardInterrupt):
            next(items)
        with pytest.raises(DurableStreamError, match=r"ended by KeyboardInterrupt\(\)") as caught:
            next(items)
        assert (caught.value.code, res.offset, res.closed) == ("INTERRUPTED", "-1", True)

    async def put_aside(_: bytes, __: StreamParseError) -> None:
        await asyncio.sleep(10)

    async def main() -> None:
        async with astream(scripted.root, live=False, on_invalid=put_aside) as res:
            items = res.iter_json(decode=Flight)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(items), 0.05)
            with pytest.raises(DurableStreamError, match="ended by CancelledError") as caught:
                await anext(items)
            assert caught.value.code == "INTERRUPTED"

    asyncio.run(main())


def test_b10_a_whole_result_that_was_cancelled_moves_nothing(scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.stall(scripted.events(encode_data(b"[1]", text=True) + encode_control("1")))]

    async def main() -> None:
        async with astream(scripted.root, live="sse") as res:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(res.read_json(), 0.05)
            assert (res.offset, res.closed) == ("-1", True)

    asyncio.run(main())


def test_b10_an_error_of_the_read_still_ends_it(scripted: ScriptedServer) -> None:
    scripted.answer = lambda _: response(200, b"[1", content_type=JSON, stream_next_offset="1")
    with stream(scripted.root, live=False, retry=RetryPolicy(max_retries=0)) as res:
        items = res.iter_json()
        with pytest.raises(StreamParseError):
            next(items)
        assert list(items) == []
        assert res.closed


# -- sync reads


@pytest.mark.parametrize("kind", SYNC)
@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_b10_a_signal_handler_that_raises_ends_no_read(
    url: str, alarm: Callable[[float], None], kind: str, live: Any
) -> None:
    handle = DurableStream.create(url, content_type=JSON, body=0)
    with made(kind) as client, stream(url, live=live, client=client) as res:
        items = res.iter_json()
        assert next(items) == 0
        for number in (1, 2):
            alarm(0.05)
            with pytest.raises(AlarmError):
                next(items)
            handle.append(number)
            assert next(items) == number
        assert res.offset == handle.head().offset


@pytest.mark.parametrize("kind", SYNC)
def test_b10_a_body_that_a_signal_broke_off_comes_whole(
    scripted: ScriptedServer, alarm: Callable[[float], None], kind: str
) -> None:
    wire = response(200, b'["a","b"]', content_type=JSON, stream_next_offset="2", stream_up_to_date="true")
    scripted.replies = [scripted.stall(wire[:-4]), send(wire)]
    with made(kind) as client, stream(scripted.root, live=False, client=client) as res:
        items = res.iter_json()
        alarm(0.05)
        with pytest.raises(AlarmError):
            next(items)
        assert list(items) == ["a", "b"]


def test_b10_a_signal_in_an_append_says_nothing_false(
    scripted: ScriptedServer, alarm: Callable[[float], None]
) -> None:
    """The exception is the handler's own; the connection, on which an answer may still come, is not used again."""
    answers = [send(response(204, stream_next_offset=offset)) for offset in ("1", "2")]
    scripted.replies = [answers[0], scripted.stall(), answers[1]]
    handle = DurableStream(scripted.root, content_type="text/plain")
    handle.append("0")  # imports what an append needs: the next one is sent at once
    alarm(0.05)
    with pytest.raises(AlarmError):
        handle.append("a")
    assert handle.append("b").next_offset == "2"
    assert len(scripted.by_connection) == 2


# -- feeds


def feed_config(**settings: Any) -> StreamConfig:
    return StreamConfig(initial_backoff=0.01, max_backoff=0.02, **settings)


@pytest.mark.parametrize("kind", SYNC)
def test_b10_a_feed_goes_on_after_a_signal(
    scripted: ScriptedServer, alarm: Callable[[float], None], kind: str
) -> None:
    scripted.replies = [scripted.stall(HEAD + b'\r\n{"id":1}\n'), scripted.stall(HEAD + b'\r\n{"id":2}\n')]
    seen: list[str] = []
    config = feed_config(on_connect=lambda: seen.append("on"), on_disconnect=lambda _: seen.append("off"))
    with made(kind) as client, FirehoseStream(scripted.root, config=config, client=client) as feed:
        assert next(feed) == {"id": 1}
        alarm(0.05)
        with pytest.raises(AlarmError):
            next(feed)
        assert next(feed) == {"id": 2}
        assert not feed.closed
    assert seen == ["on", "off", "on", "off"]
    assert feed.state.total_items_received == 2


@pytest.mark.parametrize("transport", ["aiohttp", "async-httpx"])
def test_b10_a_feed_goes_on_after_a_cancelled_wait(scripted: ScriptedServer, transport: str) -> None:
    on = threading.Event()

    def reply(connection: Any) -> None:
        connection.sendall(HEAD + b'\r\n{"id":1}\n')
        if on.wait(10):
            with contextlib.suppress(OSError):
                connection.sendall(b'{"id":2}\n')

    scripted.replies = [reply, send(HEAD + b'\r\n{"id":3}\n')]

    async def main() -> None:
        async with (
            client_of(transport) as client,
            AsyncFirehoseStream(scripted.root, config=feed_config(), client=client) as feed,
        ):
            assert await anext(feed) == {"id": 1}
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(feed), 0.05)
            on.set()
            # Where the library can read on, nothing is missed; else the feed reconnects.
            assert await anext(feed) == {"id": 2 if transport == "aiohttp" else 3}

    asyncio.run(main())


@pytest.mark.parametrize("leave", ["aclose", "drop", "stop"])
def test_b10_a_feed_that_was_broken_off_still_releases_its_connection(
    scripted: ScriptedServer, leave: str
) -> None:
    scripted.replies = [scripted.stall(HEAD + b"\r\n")]

    async def main() -> None:
        seen: list[Any] = []
        connected: list[bool] = []
        config = feed_config(on_connect=lambda: connected.append(True), on_disconnect=seen.append)
        feed = AsyncFirehoseStream(scripted.root, config=config)
        while not connected:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(feed), 0.05)
        if leave == "aclose":
            await feed.aclose()
        elif leave == "stop":
            feed.stop()
            assert [record async for record in feed] == []
        gc.disable()
        try:
            del feed
        finally:
            gc.enable()
        assert await asyncio.to_thread(scripted.gone.acquire, timeout=10)
        await asyncio.sleep(0)
        assert seen == [None]

    asyncio.run(main())


def test_b10_a_feed_that_cannot_go_on_says_so(scripted: ScriptedServer) -> None:
    scripted.answer = lambda _: HEAD + b'\r\n{"id":1}\n{"id":2}\n'

    class Model:
        @classmethod
        def model_validate(cls, _: Any) -> Any:
            raise KeyboardInterrupt

    with FirehoseStream(scripted.root, config=feed_config(), response_model=Model) as feed:
        with pytest.raises(KeyboardInterrupt):
            next(feed)
        with pytest.raises(StreamError, match=r"ended by KeyboardInterrupt\(\)") as caught:
            next(feed)
        assert caught.value.code == "INTERRUPTED"
        assert list(feed) == []
    assert feed.closed
