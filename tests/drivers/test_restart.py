"""Servers that are killed and come back on the same port, with their data: real processes, real sockets."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from facade import Facade

from durable_streams import RetryPolicy

PATIENT = RetryPolicy(max_retries=-1, initial_delay=0.02, max_delay=0.2)
WITHIN = 60.0


@pytest.fixture
def serve(run_server: Callable[..., Any], tmp_path: Path) -> Callable[[int], Any]:
    """Give a function that serves the test's folder on a port (0: a free one)."""

    def start(port: int = 0) -> Any:
        command = [sys.executable, "-m", "durable_streams.cli", "serve", "--port", str(port)]
        return run_server([*command, "--data-dir", str(tmp_path)]).wait_until_ready()

    return start


def test_a_producer_loses_and_repeats_nothing(facade: Facade, serve: Callable[[int], Any]) -> None:
    """Pitfalls 18 and 19."""
    server = serve(0)
    url = f"{server.root}/orders"
    handle = facade.DurableStream.create(url, content_type="application/json")
    with facade.Producer(url, "p", max_batch_bytes=200, linger_ms=1) as producer:
        for kill in range(3):
            for number in range(300):
                producer.append([kill, number])
                time.sleep(0.0005)
                if number == 150:
                    port = server.port
                    server.kill()
                    server = serve(port)
        producer.flush()
    assert handle.stream(live=False).read_json() == [
        [kill, number] for kill in range(3) for number in range(300)
    ]


@pytest.mark.parametrize("live", [True, "long-poll", "sse"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told-to-stop"])
def test_a_reader_follows_a_server_that_goes_and_comes(
    facade: Facade, serve: Callable[[int], Any], live: Any, end: signal.Signals
) -> None:
    """Pitfalls 3 and 4: every message once and in order, and the end."""
    server = serve(0)
    url = f"{server.root}/orders"
    handle = facade.DurableStream.create(url, content_type="application/json", body="0", retry=PATIENT)
    seen: list[int] = []
    first = threading.Event()
    reading = facade.stream(url, live=live, retry=PATIENT)

    def read() -> None:
        for item in reading.iter_json():
            seen.append(item)
            first.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert first.wait(WITHIN)
    for number in range(1, 3):
        port = server.port
        if end is signal.SIGKILL:
            server.kill()
        else:
            server.terminate()
        server = serve(port)
        handle.append(number)
    handle.close_stream()
    reader.join(WITHIN)
    assert not reader.is_alive()
    assert seen == [0, 1, 2]
    assert reading.stream_closed


def test_a_catch_up_goes_on_after_a_restart(facade: Facade, serve: Callable[[int], Any]) -> None:
    """Pitfall 3."""
    server = serve(0)
    url = f"{server.root}/big"
    handle = facade.DurableStream.create(url)
    piece = bytes(range(256)) * 2048
    for _ in range(6):
        handle.append(piece)
    response = facade.stream(url, live=False, retry=PATIENT)
    pieces = iter(response)
    data = next(pieces)
    port = server.port
    server.kill()
    serve(port)
    assert data + b"".join(pieces) == piece * 6
