"""The end of a server: what was acknowledged is kept, live reads end cleanly, it takes a moment."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import contextlib
import http.client
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

BYTES = "application/octet-stream"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stored", [True, False])
def test_a_signal_ends_it_cleanly(start_server, tmp_path: Path, number: signal.Signals, stored: bool) -> None:
    server = start_server(tmp_path / "data" if stored else None)
    server.create("s", "text/plain")
    server.append("s", b"abc", "text/plain")
    kept_alive = server.connection()
    kept_alive.request("GET", "/health")
    kept_alive.getresponse().read()
    idle = server.connect()
    half_sent = server.connect()
    half_sent.sendall(
        b"POST /v1/stream/s HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nhal"
    )
    results: dict[str, Any] = {}

    def read(mode: str) -> None:
        results[mode] = server.request("GET", f"s?live={mode}&offset=now")

    readers = [threading.Thread(target=read, args=(mode,)) for mode in ("sse", "long-poll")]
    for reader in readers:
        reader.start()
    time.sleep(0.4)
    started = time.monotonic()
    assert server.terminate(number) == 0
    assert time.monotonic() - started < 5
    for reader in readers:
        reader.join(10)
    assert results["long-poll"].status == 204
    assert results["long-poll"].headers["stream-up-to-date"] == "true"
    assert results["sse"].status == 200, "the event stream did not end cleanly"
    assert b"event: control" in results["sse"].body
    assert server.error_output == b""
    for connection in (kept_alive, idle, half_sent):
        connection.close()
    if stored:
        again = start_server(tmp_path / "data")
        assert again.read_all("s") == b"abc"


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_appends_in_flight_are_finished_or_not_acknowledged(
    start_server, tmp_path: Path, interface: str
) -> None:
    server = start_server(tmp_path / "data", interface=interface)
    writers, acknowledged = 8, [0] * 8
    for number in range(writers):
        server.create(f"s{number}")

    def write(number: int) -> None:
        gone = contextlib.suppress(OSError, http.client.HTTPException)
        with contextlib.closing(server.connection(10)) as connection, gone:
            for count in range(100_000):
                body = b"%06d" % count
                connection.request("POST", f"/v1/stream/s{number}", body, {"Content-Type": BYTES})
                response = connection.getresponse()
                response.read()
                if response.status != 204:
                    assert response.status == 503
                    return
                acknowledged[number] = count + 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    code = server.terminate()
    assert code == 0 or (
        interface == "asgi" and code == -signal.SIGTERM
    )  # Uvicorn ends with the signal itself
    for thread in threads:
        thread.join(20)
    assert min(acknowledged) > 0
    again = start_server(tmp_path / "data")
    for number in range(writers):
        content = again.read_all(f"s{number}")
        stored = [int(content[at : at + 6]) for at in range(0, len(content), 6)]
        assert stored == list(range(len(stored)))
        assert len(stored) in {acknowledged[number], acknowledged[number] + 1}


def test_a_second_signal_does_no_harm(start_server, tmp_path: Path) -> None:
    server = start_server(tmp_path / "data")
    server.create("s")
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGINT)
    assert server.wait(10) == 0


def test_it_starts_again_at_once(start_server, tmp_path: Path) -> None:
    for number in range(4):
        server = start_server(tmp_path / "data")
        assert server.request("PUT", "s", content_type=BYTES).status == (201 if number == 0 else 200)
        assert server.append("s", b"%d" % number).status == 204
        assert server.terminate() == 0
        left = {path.name for path in (tmp_path / "data").iterdir()}
        assert left <= {"streams.db", "lock", "streams.db-wal", "streams.db-shm"}
    server = start_server(tmp_path / "data")
    assert server.read_all("s") == b"0123"
