"""Reads whose clients are gone are not done, and keep nobody waiting: neither other requests nor the end."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import signal
from pathlib import Path

import pytest

SIZE = 30 << 20  # bytes
READERS = 40


def leave(server, target: str) -> None:
    """Ask for something, and go before the answer."""
    with server.connect() as connection:
        connection.sendall(f"GET /v1/stream/{target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_f3_clients_that_left_keep_nobody_waiting(start_server, tmp_path: Path, interface: str) -> None:
    server = start_server(tmp_path / "data", interface=interface, max_streams_in_memory=2)
    for number in range(8):
        server.create(f"s{number}")
        assert server.append(f"s{number}", b"small").status == 204
    server.create("large")
    assert server.append("large", b"x" * SIZE).status == 204
    for number in range(READERS):
        leave(server, "large")
        leave(server, "large?offset=-1&live=sse")
        leave(server, f"large?offset={number + 1:032d}")
    for number in range(8):
        head = server.request("HEAD", f"s{number}", timeout=5)
        assert (head.status, int(head.headers["stream-next-offset"].replace("_", ""))) == (200, 5)
        assert server.request("GET", f"s{number}", timeout=5).body == b"small"
        assert server.append(f"s{number}", b"!", timeout=5).status == 204
    for _ in range(READERS):
        leave(server, "large")
    code = server.terminate()  # fails if that takes long
    assert code == (0 if interface == "rsgi" else -signal.SIGTERM)
    again = start_server(tmp_path / "data")
    assert len(again.read_all("large")) == SIZE
