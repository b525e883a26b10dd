"""A server inside another program's process: what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from durable_streams.server.config import ServerConfig
from durable_streams.server.rsgi import RsgiAdapter
from durable_streams.server.run import run_server
from durable_streams.testing.background import Background


@contextlib.contextmanager
def repeated(*works: Callable[[], object]) -> Iterator[None]:
    """Do each of these again and again, in a thread of its own."""
    done = threading.Event()

    def repeat(work: Callable[[], object]) -> None:
        while not done.is_set():
            work()

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("_time", range(5))
def test_no_request_comes_after_the_end(_time: int) -> None:
    """Of clients that do not wait for an answer: Granian handed such ones to a loop that was closed."""
    before = set(map(id, adapters()))

    async def main(stop: asyncio.Event, ready: Callable[[str], None]) -> None:
        await run_server(ServerConfig(host="127.0.0.1", port=0), stop, ready)

    server = Background("server", main)
    root = urlsplit(server.value)

    def ask_and_leave() -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((root.hostname or "", root.port or 0)) as client,
        ):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"GET /v1/stream/x HTTP/1.1\r\nhost: x\r\n\r\n")

    with repeated(*[ask_and_leave] * 4, *[lambda: sum(range(1000))] * 2):
        time.sleep(0.05)
        server.stop()
        left = [one for one in adapters() if id(one) not in before]
    assert not left


def adapters() -> list[RsgiAdapter]:
    """Return what Granian can still call."""
    return [one for one in gc.get_objects() if isinstance(one, RsgiAdapter)]
