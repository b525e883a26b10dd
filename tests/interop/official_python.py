"""The official Python client, `durable-streams` 0.1.0, against our server.

Run by `make interop` with the Python of an environment that has it, and with unittest, which needs nothing more
there. `durable_streams` is the official package here; the server is a process of our own environment, INTEROP_PYTHON.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path

import durable_streams
from durable_streams import AsyncDurableStream, DurableStream, astream, stream

JSON = "application/json"
BINARY = "application/octet-stream"
READY = re.compile(r"^durable-streams: serving http://127\.0\.0\.1:(\d+)/v1/stream")
WITHIN = 60.0  # seconds for anything that takes a fraction of one on a machine at rest


class Server:
    """`durable-streams serve` on SQLite, which can be killed and started again on the same port and folder."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="durable-streams-interop-")
        self.port = 0
        self.start()

    def start(self) -> None:
        options = ["--port", str(self.port), "--data-dir", f"{self.folder}/data", "--long-poll-timeout", "2"]
        self.process = subprocess.Popen(
            [
                os.environ["INTEROP_PYTHON"],
                "-m",
                "durable_streams.cli",
                "serve",
                *options,
                "--sse-max-age",
                "2",
            ],
            env={
                name: value for name, value in os.environ.items() if not name.startswith("DURABLE_STREAMS_")
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        ready = READY.match(self.process.stdout.readline())
        assert ready is not None, "the server did not start"
        self.port = int(ready[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)


def setUpModule() -> None:
    global server  # noqa: PLW0603
    server = Server()


def tearDownModule() -> None:
    server.close()


server: Server
numbers = count()


def fresh() -> str:
    return f"http://127.0.0.1:{server.port}/v1/stream/official-python-{next(numbers)}"


def noise(size: int) -> bytes:
    block = bytes(range(256)) + bytes(range(255, 0, -2))
    return (block * (size // len(block) + 1))[:size]


class Following(threading.Thread):
    """Reads a live stream in the background; `take` gives what comes next."""

    def __init__(self, open_items: Callable[[], Iterator[object]]) -> None:
        super().__init__(daemon=True)
        self._open = open_items
        self._items: queue.Queue[object] = queue.Queue()
        self.start()

    def run(self) -> None:
        try:
            for item in self._open():
                self._items.put(item)
        except Exception as error:  # noqa: BLE001 - `take` shows it
            self._items.put(error)

    def take(self, number: int) -> list[object]:
        return [self._items.get(timeout=WITHIN) for _ in range(number)]


class OneShot(unittest.TestCase):
    def test_it_is_the_official_client(self) -> None:
        assert not hasattr(durable_streams, "IdempotentProducer")

    def test_create_append_read_delete(self) -> None:
        with DurableStream.create(fresh(), content_type=JSON, ttl_seconds=3600) as handle:
            handle.append({"n": 0, "text": "流\r\n"})
            with ThreadPoolExecutor(8) as pool:  # batched by the client
                list(pool.map(lambda n: handle.append({"n": n}), range(1, 50)))
            with stream(handle.url, live=False) as response:
                items = response.read_json()
            assert items[0] == {"n": 0, "text": "流\r\n"}
            assert sorted(item["n"] for item in items) == list(range(50))
            head = handle.head()
            assert (head.content_type, head.offset) == (JSON, response.offset)
            handle.delete()
            with self.assertRaises(durable_streams.StreamNotFoundError):
                handle.head()

    def test_bytes_and_text_stay_as_they_are(self) -> None:
        with DurableStream.create(fresh(), content_type=BINARY, body=b"\x00\r\n\xff") as handle:
            handle.append(noise(100_000))
            with stream(handle.url, live=False) as response:
                assert response.read_bytes() == b"\x00\r\n\xff" + noise(100_000)
        with DurableStream.create(fresh(), content_type="text/plain") as handle:
            handle.append("öne\r\n")
            with stream(handle.url, live=False) as response:
                assert response.read_text() == "öne\r\n"

    def test_conflicts(self) -> None:
        with DurableStream.create(fresh(), content_type="text/plain") as handle:
            with self.assertRaises(durable_streams.StreamExistsError):
                DurableStream.create(handle.url, content_type=JSON)
            handle.append("a", seq="b")
            with self.assertRaises(durable_streams.SeqConflictError):
                handle.append("b", seq="a")

    def test_resume_at_every_offset(self) -> None:
        with DurableStream.create(fresh(), content_type=JSON) as handle:
            offsets = [handle.append(n).next_offset for n in range(5)]
            for n, offset in enumerate(offsets):
                with stream(handle.url, offset=offset, live=False) as response:
                    assert response.read_json() == list(range(n + 1, 5))


class WhatIsLongerThanOneChunk(unittest.TestCase):
    def test_e9_bytes(self) -> None:
        expected = noise(12 << 20)
        with DurableStream.create(fresh(), content_type=BINARY) as handle:
            for at in range(0, len(expected), 3 << 20):
                handle.append(expected[at : at + (3 << 20)])
            with stream(handle.url, live=False) as response:
                assert response.read_bytes() == expected
            with stream(handle.url, live=False) as response:
                assert b"".join(response) == expected

    def test_e9_text_whose_characters_lie_across_chunks(self) -> None:
        expected = "流" * (1 << 20)
        with DurableStream.create(fresh(), content_type="text/plain") as handle:
            encoded = expected.encode()
            for at in range(0, len(encoded), 1_000_000):
                handle.append(encoded[at : at + 1_000_000])
            with stream(handle.url, live=False) as response:
                assert response.read_text() == expected
            with stream(handle.url, live=False) as response:
                assert "".join(response.iter_text()) == expected

    def test_e9_json(self) -> None:
        expected = [{"n": n, "filling": "x" * 1000} for n in range(6000)]
        with DurableStream.create(fresh(), content_type=JSON, body=expected) as handle:
            with stream(handle.url, live=False) as response:
                assert response.read_json() == expected
            with stream(handle.url, live=False) as response:
                assert list(response.iter_json()) == expected


class Live(unittest.TestCase):
    # "-1" said aloud: without an offset the official client asks for a live read that the protocol forbids.
    def test_records_as_they_come(self) -> None:
        for live in ("auto", "long-poll", "sse"):
            with self.subTest(live=live), DurableStream.create(fresh(), content_type=JSON) as handle:
                handle.append(0)
                with stream(handle.url, offset="-1", live=live) as response:
                    following = Following(response.iter_json)
                    for n in range(1, 20):
                        handle.append(n)
                    assert following.take(20) == list(range(20))
                    if live != "sse":  # whose reader ends with its connection
                        time.sleep(3)  # past the end of a poll
                        handle.append(20)
                        assert following.take(1) == [20]

    def test_events_say_where_to_go_on(self) -> None:
        with DurableStream.create(fresh(), content_type=JSON) as handle:
            for n in range(10):
                handle.append(n)
            for live in ("long-poll", "sse"):
                with self.subTest(live=live), stream(handle.url, offset="-1", live=live) as response:
                    event = next(iter(response.iter_events(mode="json")))
                    taken = event.data if isinstance(event.data, list) else [event.data]
                with stream(handle.url, offset=event.next_offset, live=False) as rest:
                    assert taken + rest.read_json() == list(range(10))

    def test_text_by_sse(self) -> None:
        with DurableStream.create(fresh(), content_type="text/plain") as handle:
            handle.append("ä\ndata: x\n\n流")
            with stream(handle.url, offset="-1", live="sse") as response:
                assert "".join(islice(response.iter_text(), 1)) == "ä\ndata: x\n\n流"

    def test_a_poll_goes_on_after_the_server_was_killed(self) -> None:
        def again(_: Exception) -> dict[str, object]:
            time.sleep(0.05)
            return {}

        with DurableStream.create(fresh(), content_type=JSON) as handle:
            handle.append(0)
            with stream(handle.url, offset="-1", live="long-poll", on_error=again) as response:
                following = Following(response.iter_json)
                assert following.take(1) == [0]
                server.kill()
                server.start()
                with DurableStream(handle.url, content_type=JSON) as restarted:
                    restarted.append(1)
                assert following.take(1) == [1]


class Async(unittest.TestCase):
    def test_create_append_follow(self) -> None:
        async def scenario() -> list[object]:
            handle = await AsyncDurableStream.create(fresh(), content_type=JSON)
            async with handle, astream(handle.url, offset="-1", live="long-poll") as response:
                await asyncio.gather(*(handle.append({"n": n}) for n in range(50)))
                items: list[object] = []
                async for item in response.iter_json():
                    items.append(item)
                    if len(items) == 50:
                        return items
            raise AssertionError("the live read ended")

        assert asyncio.run(asyncio.wait_for(scenario(), WITHIN)) == [{"n": n} for n in range(50)]

    def test_e9_all_of_it(self) -> None:
        async def scenario() -> bytes:
            handle = await AsyncDurableStream.create(fresh(), content_type=BINARY)
            async with handle:
                for _ in range(3):
                    await handle.append(noise(2 << 20))
                async with astream(handle.url, live=False) as response:
                    return await response.read_bytes()

        assert asyncio.run(asyncio.wait_for(scenario(), WITHIN)) == noise(2 << 20) * 3


if __name__ == "__main__":
    program = unittest.main(argv=sys.argv[:1], verbosity=2, exit=False)
    bad = len(program.result.failures) + len(program.result.errors)
    Path(sys.argv[1]).write_text(f"{program.result.testsRun - bad} {bad}\n")
    sys.exit(0 if program.result.wasSuccessful() else 1)
