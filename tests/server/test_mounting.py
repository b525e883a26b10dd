"""The same server as a part of somebody else's: in FastAPI under a prefix, and alone under Uvicorn."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OWN = """
import os, pathlib
from contextlib import asynccontextmanager
from fastapi import FastAPI
from durable_streams.server import ServerConfig, asgi_app

streams = asgi_app(ServerConfig(data_dir=pathlib.Path("data")))

@asynccontextmanager
async def lifespan(_):
    await streams.startup()
    yield
    await streams.shutdown()

app = FastAPI(lifespan=lifespan)
app.mount("/streams", streams)

@app.get("/greet/{name}")
async def greet(name: str):
    return {"greeting": f"Hello, {name}!"}
"""
RUN = """
import asyncio, socket, sys
import uvicorn
sys.path.insert(0, sys.argv[1])
from fastapi_app import app

async def main():
    # Named as TCP: asyncio turns off Nagle's algorithm only where it knows that it is TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=3))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print(f"durable-streams: serving http://127.0.0.1:{listener.getsockname()[1]}/v1/stream", flush=True)
    await serving

asyncio.run(main())
"""
ROOT = "/streams/v1/stream"


@pytest.fixture
def mounted(run_server, tmp_path: Path):  # noqa: ANN201
    """Give a function that runs the application in a folder, the project's example by default."""

    def start(folder: Path = EXAMPLES):  # noqa: ANN202
        return run_server([sys.executable, "-c", RUN, str(folder)], folder=tmp_path).wait_until_ready()

    return start


def test_under_a_prefix(mounted, tmp_path: Path) -> None:
    (tmp_path / "fastapi_app.py").write_text(OWN)
    server = mounted(tmp_path)

    def call(method: str, path: str, body: bytes | None = None, **headers: str):  # noqa: ANN202
        return server.request(method, path, body, absolute=True, **headers)

    assert call("GET", "/greet/world").json == {"greeting": "Hello, world!"}
    created = call("PUT", f"{ROOT}/a/b%20c", content_type="application/json")
    assert created.status == 201
    assert created.headers["location"] == f"http://127.0.0.1:{server.port}{ROOT}/a/b%20c"
    assert call("POST", f"{ROOT}/a/b%20c", b'[1,{"b":1.10}]', content_type="application/json").status == 204
    assert call("GET", f"{ROOT}/a/b%20c?offset=-1").body == b'[1,{"b":1.10}]'
    fork = call("PUT", f"{ROOT}/fork", stream_forked_from="/v1/stream/a/b%20c")
    assert fork.status == 201
    assert fork.headers["location"].endswith(f"{ROOT}/fork")
    assert call("POST", f"{ROOT}/fork", stream_closed="true").status == 204
    listened = call("GET", f"{ROOT}/fork?live=sse&offset=-1")
    assert b'data:[1,{"b":1.10}]' in listened.body
    assert b"streamClosed" in listened.body
    assert call("GET", "/streams/health").json == {"status": "ok"}
    assert call("GET", "/v1/stream/fork").status == 404, "only under the prefix"
    assert call("GET", f"{ROOT}/none").status == 404
    assert call("PUT", f"{ROOT}/../x").status in {400, 404, 405}
    assert call("DELETE", f"{ROOT}/fork").status == 204

    server.process.send_signal(signal.SIGTERM)
    assert server.wait(10) in {0, -signal.SIGTERM}
    again = mounted(tmp_path)
    assert again.request("GET", f"{ROOT}/a/b%20c?offset=-1", absolute=True).body == b'[1,{"b":1.10}]'


def test_the_example(mounted) -> None:
    """A job reports its progress into a stream: it is there, whole, and closed."""
    server = mounted()
    started = server.request("POST", "/jobs/42?steps=3", absolute=True)
    assert started.status == 202
    url = started.json["stream"]
    assert url == f"http://127.0.0.1:{server.port}{ROOT}/jobs/42"
    listened = server.request("GET", f"{ROOT}/jobs/42?live=sse&offset=-1", absolute=True)
    assert listened.status == 200, "the stream is there before the answer that names it (E4)"
    assert listened.body.count(b'"of":3') == 3
    assert b"streamClosed" in listened.body


def test_e4_a_job_that_exists_is_not_started_again(mounted) -> None:
    server = mounted()
    statuses = [server.request("POST", "/jobs/42?steps=1", absolute=True).status for _ in range(2)]
    assert statuses == [202, 409]


def test_e4_ctrl_c_in_the_middle_of_a_job_is_no_traceback(run_server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--app-dir", str(EXAMPLES), "--port", "0"]
    server = run_server(command, folder=tmp_path)
    running = re.compile(rb"running on http://127\.0\.0\.1:(\d+)")
    while (found := running.search(server.error_output)) is None:
        assert server.alive, server.error_output
        time.sleep(0.05)
    server.port = int(found[1])
    assert server.request("POST", "/jobs/42?steps=1000", absolute=True).status == 202
    server.process.send_signal(signal.SIGINT)
    server.wait(30)
    said = server.error_output.decode()
    assert "/jobs/42 is not finished: " in said
    assert "Traceback" not in said


def test_live_reads_do_not_hold_up_the_end(start_server, tmp_path: Path) -> None:
    """Uvicorn tells nobody that it ends before all requests have: it cuts live reads off after its own grace."""
    server = start_server(tmp_path / "data", interface="asgi")
    server.create("s", "text/plain")
    with server.connect() as listener, server.connect() as poller:
        listener.sendall(b"GET /v1/stream/s?live=sse&offset=-1 HTTP/1.1\r\nHost: x\r\n\r\n")
        poller.sendall(b"GET /v1/stream/s?live=long-poll&offset=-1 HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while b"event: control" not in received:
            received += listener.recv(65536)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(8) in {0, -signal.SIGTERM}


def test_a_folder_that_is_taken(start_server, run_server, server_command, tmp_path: Path) -> None:
    start_server(tmp_path / "data")
    server = run_server(server_command(tmp_path / "data", interface="asgi"))
    assert server.becomes_ready() is False or not server.alive
    server.wait(10)
