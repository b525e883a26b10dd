"""A server as a process of its own, and requests to it as they go over the wire."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from durable_streams.testing.program import Program, ProgramError

READY = re.compile(r"^durable-streams: serving http://127\.0\.0\.1:(\d+)(/v1/stream)\b")
READY_WITHIN = 30.0  # seconds; it takes a fraction of one
ANSWERS_WITHIN = 30.0
# What the command line can set; anything else goes through ServerConfig.
OPTIONS = {"disk_reserve", "long_poll_timeout", "sse_max_age", "max_body", "chunk_size"}
PROGRAM = """
import json, pathlib, sys
from durable_streams.server import ServerConfig, serve
settings = json.loads(sys.argv[1])
if settings.get("data_dir") is not None:
    settings["data_dir"] = pathlib.Path(settings["data_dir"])
serve(ServerConfig(**settings), lambda root: print("durable-streams: serving", root, flush=True))
"""
ASGI_PROGRAM = """
import asyncio, json, pathlib, socket, sys
import uvicorn
from durable_streams.server import ServerConfig, asgi_app
settings = json.loads(sys.argv[1])
if settings.get("data_dir") is not None:
    settings["data_dir"] = pathlib.Path(settings["data_dir"])

async def main():
    # Named as TCP: asyncio turns off Nagle's algorithm only where it knows that it is TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    app = asgi_app(ServerConfig(**settings))
    options = {"log_level": "error", "access_log": False, "lifespan": "on", "timeout_graceful_shutdown": 3}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print(f"durable-streams: serving http://127.0.0.1:{listener.getsockname()[1]}/v1/stream", flush=True)
    await serving

asyncio.run(main())
"""


@dataclass(frozen=True)
class Answer:
    """One HTTP response; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def next_offset(self) -> str:
        return self.headers["stream-next-offset"]

    @property
    def json(self) -> object:
        return json.loads(self.body)


class ServerProcess(Program):
    """A running server: ``request`` talks to it, ``kill`` and ``terminate`` end it."""

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        settings = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        super().__init__("server", arguments, environment=settings, folder=folder, listen=True)
        self.port = 0
        self.start()

    @property
    def error_output(self) -> bytes:
        """Its standard error."""
        return self.output

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/stream"

    def wait_until_ready(self) -> ServerProcess:
        """Wait for the line that names the port; fails with what the process said instead."""
        if not self.becomes_ready():
            self.kill()
            pytest.fail(f"the server is not ready: {self.error_output.decode()!r}")
        return self

    def becomes_ready(self) -> bool:
        """Wait for the line that names the port; False if the process ends instead."""
        try:
            line = self.first_line(READY_WITHIN)
        except ProgramError:
            return False
        found = READY.match(line.decode())
        self.port = int(found[1]) if found else 0
        return found is not None

    def connect(self, timeout: float = ANSWERS_WITHIN) -> socket.socket:
        """Return a raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def raw(
        self, content: bytes, *, half_close: bool = False, timeout: float = ANSWERS_WITHIN
    ) -> Answer | None:
        """Send bytes as they are on a connection of their own; None if it is closed without an answer."""
        with self.connect(timeout) as connection:
            with contextlib.suppress(ConnectionError):  # it may answer and close before it has everything
                connection.sendall(content)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection, method=content[:4].decode("latin-1").strip())
            try:
                response.begin()
                return answer(response)
            except (ConnectionError, http.client.BadStatusLine, http.client.IncompleteRead):
                return None
            finally:
                response.close()

    def connection(self, timeout: float = ANSWERS_WITHIN) -> http.client.HTTPConnection:
        """Return a kept-alive HTTP connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(
        self,
        method: str,
        stream: str,
        body: bytes | None = None,
        *,
        timeout: float = ANSWERS_WITHIN,
        absolute: bool = False,
        **headers: str,
    ) -> Answer:
        """Send one request; ``stream`` is under the root unless ``absolute``; ``content_type=`` is a header."""
        with contextlib.closing(self.connection(timeout)) as connection:
            target = stream if absolute else f"/v1/stream/{stream}"
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, target, body, names)
            return answer(connection.getresponse())

    def fields(self, method: str, stream: str) -> list[tuple[str, str]]:
        """Return all header fields of an answer, names in lower case; a name may be there more than once."""
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, f"/v1/stream/{stream}")
            response = connection.getresponse()
            response.read()
            return [(name.lower(), value) for name, value in response.getheaders()]

    def create(self, stream: str, content_type: str = "application/octet-stream", **headers: Any) -> Answer:
        created = self.request("PUT", stream, content_type=content_type, **headers)
        assert created.status == 201, created
        return created

    def append(
        self, stream: str, body: bytes, content_type: str = "application/octet-stream", **headers: Any
    ) -> Answer:
        return self.request("POST", stream, body, content_type=content_type, **headers)

    def read_all(self, stream: str, offset: str = "-1", *, patience: float = 0) -> bytes:
        """Return everything from ``offset`` to the tail of a stream of bytes; ``patience``: seconds for 503."""
        parts = []
        until = time.monotonic() + patience
        with contextlib.closing(self.connection()) as connection:
            while True:
                connection.request("GET", f"/v1/stream/{stream}?offset={offset}")
                read = answer(connection.getresponse())
                if read.status == 503 and time.monotonic() < until:
                    time.sleep(0.1)
                    continue
                assert read.status == 200, read
                parts.append(read.body)
                offset = read.next_offset
                if read.headers.get("stream-up-to-date") == "true":
                    return b"".join(parts)

    def resident(self) -> int:
        """Return the bytes of memory that the process has in use."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10

    def terminate(self, number: int = signal.SIGTERM, within: float = 10.0) -> int:
        """Ask it to end; returns its exit code."""
        self.send(number)
        return self.wait(within)

    def wait(self, within: float = 10.0) -> int:
        """Wait for its end; returns its exit code. Fails the test where it does not end in time."""
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the server did not end within {within} seconds: {self.error_output.decode()}")
        code = super().wait()
        assert code is not None
        return code


def answer(response: http.client.HTTPResponse) -> Answer:
    """Read a whole response."""
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def server_arguments(data_dir: Path | None, interface: str = "rsgi", **settings: object) -> list[str]:
    """Return the command that serves ``data_dir`` (None: in memory) on a free port."""
    settings = {"disk_reserve": 0, **settings}  # the folders of many tests stay for a while
    if interface == "asgi":
        folder = None if data_dir is None else str(data_dir)
        return [sys.executable, "-c", ASGI_PROGRAM, json.dumps({"data_dir": folder, **settings})]
    if settings.keys() <= OPTIONS:
        store = ["--memory"] if data_dir is None else ["--data-dir", str(data_dir)]
        options = [
            str(part) for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)
        ]
        return [sys.executable, "-m", "durable_streams.cli", "serve", "--port", "0", *store, *options]
    folder = None if data_dir is None else str(data_dir)
    return [sys.executable, "-c", PROGRAM, json.dumps({"port": 0, "data_dir": folder, **settings})]


@contextlib.contextmanager
def serving(data_dir: Path | None, interface: str = "rsgi", **settings: object) -> Iterator[ServerProcess]:
    """A server that is ready, killed at the end."""
    server = ServerProcess(server_arguments(data_dir, interface, **settings))
    try:
        yield server.wait_until_ready()
    finally:
        server.kill()
