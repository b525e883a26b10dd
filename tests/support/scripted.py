"""A server that says what a test wants, byte by byte, and tells what it was asked and whose connections ended."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import parse_qsl, urlsplit

Reply = Callable[[socket.socket], None]


class Received(str):  # noqa: SLOT000 - cached properties need a dict
    """A request as it came, and its parts; ``content`` is its body as bytes."""

    content = b""

    @cached_property
    def method(self) -> str:
        return self.split(" ", 1)[0]

    @cached_property
    def target(self) -> str:
        return self.split(" ", 2)[1]

    @cached_property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))

    @cached_property
    def headers(self) -> dict[str, str]:
        lines = self.partition("\r\n\r\n")[0].split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @cached_property
    def body(self) -> str:
        return self.partition("\r\n\r\n")[2]


@dataclass
class ScriptedServer:
    """Answers each request with the next of ``replies``, or as ``answer`` says: with bytes, or a reply.

    The last of ``replies`` answers all that follow.
    """

    replies: list[Reply] = field(default_factory=list)
    answer: Callable[[Received], bytes | Reply] | None = None
    requests: list[Received] = field(default_factory=list)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: threading.Event = field(default_factory=threading.Event)
    gone: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    by_connection: list[list[Received]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.root = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self.threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self.threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        own: list[Received] = []
        self.by_connection.append(own)
        with contextlib.suppress(OSError), connection:
            while (request := _read_request(connection)) is not None:
                own.append(request)
                reply = self._next_reply(request)
                self.arrived.release()
                reply(connection)
        self.gone.release()

    def _next_reply(self, request: Received) -> Reply:
        with self._lock:
            self.requests.append(request)
            if self.answer is not None:
                answer = self.answer(request)
                return self.send(answer) if isinstance(answer, bytes) else answer
            return self.replies[min(len(self.requests), len(self.replies)) - 1]

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # close alone would not wake the thread in accept
        self.listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    # -- replies

    def stall(self, first: bytes = b"") -> Reply:
        """Send this much, then nothing until the test ends or the client goes away."""

        def reply(connection: socket.socket) -> None:
            connection.sendall(first)
            while not self.ended.is_set() and connection.recv(1024):
                pass
            raise ConnectionAbortedError

        return reply

    @staticmethod
    def send(wire: bytes, *, close: bool = False) -> Reply:
        def reply(connection: socket.socket) -> None:
            connection.sendall(wire)
            if close:
                raise ConnectionAbortedError

        return reply

    @staticmethod
    def pieces(wire: bytes, *cuts: int) -> Reply:
        """Send it in pieces cut at these places, each in a packet of its own, then end the connection."""

        def reply(connection: socket.socket) -> None:
            for start, end in zip((0, *cuts), (*cuts, len(wire)), strict=True):
                connection.sendall(wire[start:end])
                threading.Event().wait(0.005)
            raise ConnectionAbortedError

        return reply

    @staticmethod
    def reset(_: socket.socket) -> None:
        """End the connection without an answer."""
        raise ConnectionAbortedError

    @staticmethod
    def response(status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> bytes:
        lines = [
            f"HTTP/1.1 {status} Status",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        lines.append(f"content-length: {len(body) if length is None else length}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    @staticmethod
    def chunked(body: bytes, size: int = 100_000, **headers: str) -> bytes:
        """A body of unknown length."""
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = "\r\n".join(["HTTP/1.1 200 OK", "transfer-encoding: chunked", *lines]).encode()
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        return head + b"\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])

    @staticmethod
    def events(wire: bytes, **headers: str) -> bytes:
        """An event stream that ends with its connection."""
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "connection: close", *lines]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + wire


def _read_request(connection: socket.socket) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    missing = int(found[1]) - len(body) if found else 0
    while missing > 0:
        part = connection.recv(65536)
        body += part
        missing -= len(part)
    received = Received((head + b"\r\n\r\n" + body).decode("utf-8", "replace"))
    received.content = body
    return received


async def arrived(scripted: ScriptedServer, count: int = 1) -> None:
    """Wait until this many more requests are there, without holding up the event loop."""
    for _ in range(count):
        assert await asyncio.to_thread(scripted.arrived.acquire, timeout=30)


async def gone(scripted: ScriptedServer) -> None:
    """Wait until one more connection has ended."""
    assert await asyncio.to_thread(scripted.gone.acquire, timeout=30)
