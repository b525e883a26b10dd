"""Fixtures of the driver suite: a stream's URL on the shared server, and a server that says what a test wants."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest

_numbers = count()


@pytest.fixture
def url(shared_server: object, request: pytest.FixtureRequest) -> str:
    """Give the URL of a stream that no other test uses, on the shared server."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")
    return f"{shared_server.root}/drivers/{name[:60]}-{next(_numbers)}"  # type: ignore[attr-defined]


Reply = Callable[[socket.socket], None]


@dataclass
class ScriptedServer:
    """Answers each request with the next reply of its script; the last reply answers all that follow."""

    replies: list[Reply] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: threading.Event = field(default_factory=threading.Event)
    gone: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.root = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.connections: list[socket.socket] = []
        self.threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self.threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while (request := _read_request(connection)) is not None:
                self.requests.append(request)
                reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
                self.arrived.release()
                reply(connection)
        self.gone.release()

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
    def events(wire: bytes, **headers: str) -> bytes:
        """An event stream that ends with its connection."""
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "connection: close", *lines]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + wire


def _read_request(connection: socket.socket) -> str | None:
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
    return (head + b"\r\n\r\n" + body).decode()


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """Give a server that answers with what the test puts into its ``replies``."""
    server = ScriptedServer()
    yield server
    server.stop()
