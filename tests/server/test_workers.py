"""Several processes behind one address, and streams that live in one of them (F9)."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosting import MOUNTED, PLAIN, SERVERS, WITHIN, hosted

MEMORY = "streams in memory live in one process"
FOLDER = "a data folder belongs to one process"
WORKERS = {
    "uvicorn": ["--workers", "3"],
    "hypercorn": ["--workers", "2"],
    "gunicorn": ["--workers", "2"],
    "gunicorn asgi": ["--workers", "2"],
    "granian": ["--workers", "2"],
}
TWO = """
import socket, sys, uvicorn
from app import app
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])
"""


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "folder"])
@pytest.mark.parametrize("name", WORKERS)
def test_f9_several_workers_are_refused_with_a_sentence(name: str, stored: bool, tmp_path: Path) -> None:
    with hosted(name, tmp_path, PLAIN, *WORKERS[name], stored=stored) as server:
        server.process.wait(WITHIN)
        assert (FOLDER if stored else MEMORY) in server.output
        assert "run one worker" in server.output


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "folder"])
@pytest.mark.parametrize("name", ["uvicorn", "gunicorn"])
def test_f9_without_a_lifespan_each_request_says_so(name: str, stored: bool, tmp_path: Path) -> None:
    with hosted(name, tmp_path, MOUNTED, *WORKERS[name], stored=stored) as server:
        for _ in range(20):
            status, body = _patiently(server)
            assert status == 503
            assert (FOLDER if stored else MEMORY) in json.loads(body)["error"]["message"]
        assert f"requests are answered 503: {FOLDER if stored else MEMORY}" in server.output


@pytest.mark.parametrize("name", SERVERS)
def test_f9_one_worker_serves(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the environment asks for more and the command does not."""
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    with hosted(name, tmp_path, PLAIN, "--workers", "1") as server:
        server.until_ready()
        assert server.ask("POST", "s", b"x", **{"content-type": "application/octet-stream"})[0] == 204


def test_f9_a_reloader_is_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    with hosted("uvicorn", tmp_path, PLAIN, "--reload") as server:
        server.until_ready()


@pytest.mark.skipif(sys.platform != "linux", reason="names that end with their process are Linux'")
@pytest.mark.parametrize("application", [PLAIN, MOUNTED], ids=["plain", "mounted"])
def test_f9_the_first_process_at_an_address_has_it(
    application: str, tmp_path: Path, two: list[subprocess.Popen[bytes]]
) -> None:
    """Two that nobody started as workers: one answers, the other says why not, until the first is gone."""
    pytest.importorskip("uvicorn")
    (tmp_path / "app.py").write_text(application.format(stored=False))
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        prefix = "" if application is PLAIN else "/m"
        command = [sys.executable, "-c", TWO, str(port)]
        path = {**os.environ, "PYTHONPATH": str(tmp_path)}
        two += [
            subprocess.Popen(command, cwd=tmp_path, env=path, stderr=subprocess.DEVNULL) for _ in range(2)
        ]
        answers = _answers(port, prefix, {201, 200, 503})
        assert {status for status, _ in answers} == {200, 201, 503}
        assert sum(status == 201 for status, _ in answers) == 1, "one process has the stream"
        refusal = f"{MEMORY}, and another one answers at 127.0.0.1:{port} too".encode()
        assert all(refusal in body for status, body in answers if status == 503)
        two[0].terminate()
        two[0].wait(WITHIN)
        assert {status for status, _ in _answers(port, prefix, {200})} <= {200, 201}


@pytest.fixture
def two() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def _answers(port: int, prefix: str, wanted: set[int]) -> list[tuple[int, bytes]]:
    """Create a stream again and again, each time over another connection, until all that is wanted has come."""
    answers: list[tuple[int, bytes]] = []
    deadline = time.monotonic() + WITHIN
    while len(answers) < 30 or not wanted <= {status for status, _ in answers}:
        assert time.monotonic() < deadline, answers
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN)
        try:
            connection.request("PUT", f"{prefix}/v1/stream/s")
            response = connection.getresponse()
            answers.append((response.status, response.read()))
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        finally:
            connection.close()
    return answers


def _patiently(server: object) -> tuple[int, bytes]:
    deadline = time.monotonic() + WITHIN
    while True:
        try:
            return server.ask("PUT", "s")  # type: ignore[attr-defined,no-any-return]
        except (OSError, http.client.HTTPException):
            assert time.monotonic() < deadline
            time.sleep(0.05)
