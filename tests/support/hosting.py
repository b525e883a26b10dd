"""The application under the ASGI servers that people run, as they run them: from the command line."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

WITHIN = 60.0  # seconds until a test gives up; a live read lasts longer where nobody ends it

PLAIN = """
import pathlib
from durable_streams.server import ServerConfig, asgi_app
config = ServerConfig(data_dir=pathlib.Path("data") if {stored} else None, long_poll_timeout=300, sse_max_age=300)
app = asgi_app(config)
"""
MOUNTED = (
    PLAIN
    + """
from fastapi import FastAPI
streams, app = app, FastAPI()
app.mount("/m", streams)
"""
)
STARTED = (
    PLAIN
    + """
from contextlib import asynccontextmanager
from fastapi import FastAPI
streams = app
@asynccontextmanager
async def lifespan(_):
    await streams.startup()
    yield
    await streams.shutdown()
app = FastAPI(lifespan=lifespan)
app.mount("/m", streams)
"""
)

# The command of each server, and how it is given a socket or an address.
SERVERS = {
    "uvicorn": ["-m", "uvicorn", "app:app", "--fd", "{fd}"],
    "uvicorn in Python": ["-m", "uvicorn", "app:app", "--fd", "{fd}", "--http", "h11", "--loop", "asyncio"],
    "hypercorn": ["-m", "hypercorn", "app:app", "--bind", "fd://{fd}"],
    "gunicorn": ["-m", "gunicorn", "app:app", "-k", "uvicorn_worker.UvicornWorker", "--bind", "fd://{fd}"],
    "gunicorn asgi": ["-m", "gunicorn", "app:app", "-k", "asgi", "--bind", "fd://{fd}"],
    "granian": ["-m", "granian", "app:app", "--interface", "asgi", "--port", "{port}"],
}
NEEDS = {"gunicorn": "uvicorn_worker"}


class Hosted:
    """A running server; ``ask`` talks to it, ``output`` is what it has said."""

    def __init__(self, command: list[str], folder: Path, prefix: str = "") -> None:
        self.prefix = prefix
        granian = "granian" in command
        self._listener = socket.socket()
        # Granian opens the port itself and shares it with this socket, which listens to nothing.
        option = socket.SO_REUSEPORT if granian else socket.SO_REUSEADDR
        self._listener.setsockopt(socket.SOL_SOCKET, option, 1)
        self._listener.bind(("127.0.0.1", 0))
        if not granian:
            self._listener.listen(128)
        self.port: int = self._listener.getsockname()[1]
        number = self._listener.fileno()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self.process = subprocess.Popen(
            [sys.executable, *(part.format(fd=number, port=self.port) for part in command)],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            pass_fds=() if granian else [number],
            start_new_session=True,
        )
        if not granian:
            self._listener.close()

    @property
    def output(self) -> str:
        return os.pread(self._output.fileno(), 1 << 20, 0).decode()

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN)
        with contextlib.closing(connection):
            connection.request(method, f"{self.prefix}/v1/stream/{target}", body, headers)
            response = connection.getresponse()
            return response.status, response.read()

    def until_ready(self) -> Hosted:
        """Wait until it answers, and make the stream ``s``."""
        deadline = time.monotonic() + WITHIN
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                status, body = self.ask("PUT", "s")
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
                continue
            assert status in {200, 201}, body
            return self
        pytest.fail(f"it is not ready: {self.output}")

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._listener.close()
        self._output.close()


@contextlib.contextmanager
def hosted(
    name: str, folder: Path, application: str = PLAIN, *options: str, stored: bool = False
) -> Iterator[Hosted]:
    """Run a server, for as long as the block runs."""
    library = SERVERS[name][1]
    for needed in (library, NEEDS.get(name, library)):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    (folder / "app.py").write_text(application.format(stored=stored))
    server = Hosted([*SERVERS[name], *options], folder, "" if application is PLAIN else "/m")
    try:
        yield server
    finally:
        server.end()


class Reader(threading.Thread):
    """A live read in a thread: ``result`` is its status and body, or what it failed with."""

    def __init__(self, server: Hosted, mode: str) -> None:
        super().__init__(daemon=True)
        self._server, self._mode = server, mode
        self.result: object = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._server.ask("GET", f"s?offset=now&live={self._mode}")
        except (OSError, http.client.HTTPException) as error:
            self.result = error
