"""The table "What happens when" in docs/client.md: each of its rows is shown by a test here."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    DurableStreamError,
    FetchError,
    IdempotentProducer,
    RetryPolicy,
    SyncIdempotentProducer,
    astream,
    stream,
)
from durable_streams.firehose import AsyncFirehoseStream, astream_with_retry
from durable_streams.protocol.sse import encode_control, encode_data

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
JSON = "application/json"
NONE = RetryPolicy(max_retries=0)
F = TypeVar("F", bound=Callable[..., Any])
rows: list[str] = []
send, response = ScriptedServer.send, ScriptedServer.response


def row(title: str) -> Callable[[F], F]:
    """Mark the test of a row of the table, by its first column."""
    rows.append(title)
    return lambda test: test


def test_each_row_of_the_table_has_its_test() -> None:
    _, found, rest = PAGE.read_text(encoding="utf-8").partition("## What happens when")
    assert found
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    titles = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert titles[0] == "what"
    assert titles[2:] == list(dict.fromkeys(rows))


@row("a cancelled `anext`, as by `asyncio.wait_for`")
def test_a_cancelled_wait(url: str) -> None:
    async def main() -> None:
        handle = await AsyncDurableStream.create(url, content_type=JSON, body=1)
        async with astream(url) as res:
            items = res.iter_json()
            assert await anext(items) == 1
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(items), 0.1)
            await handle.append(2)
            assert await anext(items) == 2

    asyncio.run(main())


@row("a cancelled task")
def test_a_cancelled_task(scripted: ScriptedServer) -> None:
    event = encode_data(b"[1]", text=True) + encode_control("1")
    scripted.replies = [scripted.stall(scripted.events(event))]

    async def main() -> None:
        seen = asyncio.Event()

        async def read() -> None:
            async with astream(scripted.root, live="sse") as res:
                async for _ in res.iter_json():
                    seen.set()

        task = asyncio.create_task(read())
        await asyncio.wait_for(seen.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(scripted.gone.acquire, timeout=10)

    asyncio.run(main())


@row("a cancelled append")
def test_a_cancelled_append(scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.stall(), send(response(204, stream_next_offset="2"))]

    async def main() -> None:
        handle = AsyncDurableStream(scripted.root, content_type="text/plain")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle.append("a"), 0.1)
        assert (await handle.append("b")).next_offset == "2"

    asyncio.run(main())
    assert len(scripted.by_connection) == 2, "an answer may still come on the first one"


@row("a signal whose handler raises (Ctrl-C)")
def test_a_signal(url: str) -> None:
    program = """
import os, signal, sys, threading
from durable_streams import DurableStream, stream
url = sys.argv[1]
handle = DurableStream.create(url, content_type="application/json", body=1)
with stream(url) as res:
    items = res.iter_json()
    assert next(items) == 1
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    try:
        next(items)
    except KeyboardInterrupt:
        handle.append(2)
        print(next(items), flush=True)
threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
with stream(url) as res:
    for item in res.iter_json():
        pass
"""
    done = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "2\n", done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


@row("`close()` or `stop()` from another thread, task or a signal handler")
def test_an_end_from_elsewhere(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type=JSON)
    res = facade.stream(url)
    threading.Timer(0.1, res.close).start()
    assert list(res.iter_json()) == []
    assert res.closed


@row("several threads on one object")
def test_several_threads(url: str) -> None:
    handle = DurableStream.create(url, content_type=JSON)
    threads = [
        threading.Thread(target=lambda: [handle.append(number) for number in range(10)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with stream(url, live=False) as res:
        assert sorted(res.read_json()) == sorted([*range(10)] * 4)
        with pytest.raises(DurableStreamError, match="consumed already"):
            res.iter_json()


@row("`fork()`")
def test_a_fork(url: str) -> None:
    handle = DurableStream.create(url, content_type=JSON, body=1)
    producer = SyncIdempotentProducer(url, "p", content_type=JSON)
    with stream(url) as res:
        items = res.iter_json()
        assert next(items) == 1
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)

        def child() -> None:
            code = ""
            try:
                producer.append(0)
            except DurableStreamError as error:
                code = error.code
            handle.append(2)
            sender.send((code, next(items)))
            os._exit(0)

        process = context.Process(target=child)
        process.start()
        assert receiver.poll(30)
        assert receiver.recv() == ("FORKED", 2)
        process.join(30)
        assert next(items) == 2
    producer.close()


@row("another event loop, one after the other")
def test_another_loop(url: str) -> None:
    handle = AsyncDurableStream(url, content_type=JSON)
    producer = IdempotentProducer(url, "p", content_type=JSON)

    async def first() -> None:
        await AsyncDurableStream.create(url, content_type=JSON, body=1)
        await handle.append(2)
        producer.append(3)
        await producer.close()

    async def second() -> list[Any]:
        await handle.append(4)
        async with astream(url, live=False) as res:
            return await res.read_json()

    asyncio.run(first())
    assert asyncio.run(second()) == [1, 2, 3, 4]


@row("no event loop of asyncio (trio)")
def test_no_loop_of_asyncio() -> None:
    """As under any other loop: what is awaited is begun without asyncio."""
    url = "http://127.0.0.1:1/s"

    async def producing() -> None:
        await IdempotentProducer(url, "p", content_type=JSON).put(1)

    async def reading() -> None:
        async with astream(url):
            pass

    handle = AsyncDurableStream(url, content_type=JSON)
    for work in (
        reading(),
        producing(),
        handle.append(1),
        handle.head(),
        AsyncDurableStream.create(url),
        anext(AsyncFirehoseStream(url)),
        anext(astream_with_retry(None, "GET", url)),
    ):
        with pytest.raises(RuntimeError, match=r"none runs here\. Under trio use the sync API") as caught:
            work.send(None)  # type: ignore[union-attr]
        assert caught.value.__cause__ is None


@row("a kept connection that the server has closed")
def test_an_idle_connection(scripted: ScriptedServer) -> None:
    """Noticed before its next use: a plain append, which is never repeated, does not fail."""
    answer = response(204, stream_next_offset="1")
    scripted.replies = [send(answer, close=True), send(answer)]
    handle = DurableStream(scripted.root, content_type="text/plain")
    handle.append("a")
    time.sleep(0.05)  # until the end of the connection is here
    handle.append("b")
    assert len(scripted.requests) == 2


@row("silence within a request")
@pytest.mark.every_transport
def test_silence(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.stall()]
    with pytest.raises(FetchError) as caught:
        facade.stream(scripted.root, live=False, timeout=0.2, retry=NONE)
    assert (caught.value.code, caught.value.may_have_been_sent) == ("TIMEOUT", True)


@row("silence of a live read")
def test_silence_of_a_live_read(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type=JSON)
    with facade.stream(url, idle_timeout=0.3) as res:
        assert list(res.iter_json()) == []
        assert res.timed_out
    with facade.stream(url, timeout=0.3) as res:
        timer = threading.Timer(1.0, handle.append, [1])
        timer.start()
        assert next(iter(res.iter_json())) == 1
        timer.join()


@row("a server that is away")
@pytest.mark.parametrize("retries", [0, 2])
def test_a_server_that_is_away(facade: Facade, scripted: ScriptedServer, retries: int) -> None:
    scripted.answer = lambda _: response(503)
    policy = RetryPolicy(max_retries=retries, initial_delay=0.01, max_delay=0.01)
    with pytest.raises(DurableStreamError) as caught:
        facade.stream(scripted.root, retry=policy)
    assert (caught.value.code, len(scripted.requests)) == ("BUSY", retries + 1)


@row("the end of the program")
def test_the_end_of_the_program(url: str) -> None:
    program = """
import sys
from durable_streams import DurableStream, SyncIdempotentProducer, stream
DurableStream.create(sys.argv[1], content_type="application/json", body=1)
producer = SyncIdempotentProducer(sys.argv[1], "p", content_type="application/json", linger_ms=60_000)
producer.append(2)
res = stream(sys.argv[1])
assert next(res.iter_json()) == 1
"""
    done = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    with stream(url, live=False) as res:
        assert res.read_json() == [1, 2]
