"""Fixtures for tests against a real server: a process of its own on a free port, with a folder of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, not of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

READY = re.compile(r"^durable-streams: serving http://127\.0\.0\.1:(\d+)(/v1/stream)\b")
READY_WITHIN = 30.0  # seconds; it takes a fraction of one
ANSWERS_WITHIN = 30.0
# What the command line can set; anything else goes through ServerConfig.
OPTIONS = {"long_poll_timeout", "sse_max_age", "max_body", "chunk_size"}
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


class ServerProcess:
    """A running server: ``request`` talks to it, ``kill`` and ``terminate`` end it."""

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        # A file, not a pipe: nobody reads it while the server runs, and a full pipe would stop it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )
        self.port = 0
        self.error_output = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/stream"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self) -> ServerProcess:
        """Wait for the line that names the port; fails with what the process said instead."""
        if not self.becomes_ready():
            self.kill()
            pytest.fail(f"the server is not ready: {self.error_output.decode()!r}")
        return self

    def becomes_ready(self) -> bool:
        """Wait for the line that names the port; False if the process ends instead."""
        assert self.process.stdout is not None
        line, deadline = b"", time.monotonic() + READY_WITHIN
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return False
            part = os.read(self.process.stdout.fileno(), 4096)
            if not part:
                return False
            line += part
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

    def create(self, stream: str, content_type: str = "application/octet-stream", **headers: str) -> Answer:
        created = self.request("PUT", stream, content_type=content_type, **headers)
        assert created.status == 201, created
        return created

    def append(
        self, stream: str, body: bytes, content_type: str = "application/octet-stream", **headers: str
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
        self.process.send_signal(number)
        return self.wait(within)

    def wait(self, within: float = 10.0) -> int:
        """Wait for its end; returns its exit code."""
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the server did not end within {within} seconds: {self.error_output.decode()}")
        self._release()
        return self.process.returncode

    def kill(self) -> None:
        """End it without warning."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._release()

    def _release(self) -> None:
        if not self._errors.closed:
            self._errors.seek(0)
            self.error_output = self._errors.read()
            self._errors.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


def answer(response: http.client.HTTPResponse) -> Answer:
    """Read a whole response."""
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def server_arguments(data_dir: Path | None, interface: str = "rsgi", **settings: object) -> list[str]:
    """Return the command that serves ``data_dir`` (None: in memory) on a free port."""
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


StartServer = Callable[..., ServerProcess]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Give a function that starts a server, ``start_server(folder_or_None, **settings)``; ended with the test."""
    started: list[ServerProcess] = []

    def start(
        data_dir: Path | None = None, *, environment: Mapping[str, str] | None = None, **settings: object
    ) -> ServerProcess:
        server = ServerProcess(server_arguments(data_dir, **settings), environment)
        started.append(server)
        return server.wait_until_ready()

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def run_server() -> Iterator[Callable[..., ServerProcess]]:
    """Give a function that starts any command as a server without waiting for it; all end with the test."""
    started: list[ServerProcess] = []

    def run(
        arguments: list[str], environment: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> ServerProcess:
        server = ServerProcess(arguments, environment, folder)
        started.append(server)
        return server

    yield run
    for server in started:
        server.kill()


@pytest.fixture
def server_command() -> Callable[..., list[str]]:
    """Give the function that names the command to serve a folder, for ``run_server``."""
    return server_arguments


@contextlib.contextmanager
def serving(data_dir: Path | None, interface: str = "rsgi", **settings: object) -> Iterator[ServerProcess]:
    """A server that is ready, killed at the end."""
    server = ServerProcess(server_arguments(data_dir, interface, **settings))
    try:
        yield server.wait_until_ready()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Give one server on SQLite for all tests of this process that do it no harm."""
    # Short waits, so that tests that wait for the end of a live read are quick.
    with serving(tmp_path_factory.mktemp("shared-server"), long_poll_timeout=1.0, sse_max_age=30.0) as server:
        yield server


@pytest.fixture(scope="session")
def shared_memory_server() -> Iterator[ServerProcess]:
    """Give one server that keeps streams in memory, for all tests of this process that do it no harm."""
    with serving(None, long_poll_timeout=1.0, sse_max_age=30.0) as server:
        yield server


@pytest.fixture(scope="session")
def small_server() -> Iterator[ServerProcess]:
    """Give a shared server with small answers and very short waits: reads take many requests."""
    with serving(None, chunk_size=1024, long_poll_timeout=0.2, sse_max_age=0.2) as server:
        yield server


@pytest.fixture(scope="session", params=["rsgi", "asgi"])
def either_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Give a shared server on SQLite, once as ``serve`` runs it and once under an ASGI server."""
    folder = tmp_path_factory.mktemp(f"shared-{request.param}")
    with serving(folder, request.param, long_poll_timeout=1.0, max_body=1 << 20) as server:
        yield server


_numbers = count()


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """Give a stream's path that no other test uses."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")
    return f"{name[:80]}-{next(_numbers)}"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "every_transport: run over every HTTP library, not only the default ones"
    )
    config.addinivalue_line("markers", "every_store: run against a server on each store, not only SQLite")


def pytest_addoption(parser: pytest.Parser) -> None:
    crash = parser.getgroup("crash", "tests that kill servers")
    crash.addoption("--crash-kills", type=int, default=20, help="how often to kill the server (default 20)")
    crash.addoption(
        "--crash-seed", type=int, default=None, help="the seed of a run to repeat (default: a new one)"
    )
    chaos = parser.getgroup("chaos", "tests through a network that fails at random")
    chaos.addoption("--chaos-seeds", type=int, default=40, help="how many seeds to run (default 40)")
    chaos.addoption("--chaos-seed", type=int, default=None, help="the one seed to run")
    fuzz = parser.getgroup("fuzz", "raw requests of every kind")
    fuzz.addoption(
        "--fuzz-requests", type=int, default=2000, help="how many, over all servers (default 2,000)"
    )
    fuzz.addoption(
        "--fuzz-seed", type=int, default=None, help="the seed of a run to repeat (default: a new one)"
    )
    fuzz.addoption("--fuzz-only", type=int, default=None, help="the one case of the seed to send")
    cluster = parser.getgroup("cluster", "tests with several gateways on NATS servers that fail")
    cluster.addoption("--proof-appends", type=int, default=8_000, help="how many appends (default 8,000)")
