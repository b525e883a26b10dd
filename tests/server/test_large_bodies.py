"""How large a body may be at most: no more than the store can take, which is said at the start."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

from pathlib import Path

import pytest

MOST = 999_999_999  # one byte of a stored message is its comma
BYTES = "application/octet-stream"


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
@pytest.mark.parametrize("limit", [MOST + 1, 2_000_000_000, 1 << 40])
def test_g7_more_than_the_store_takes(
    run_server, server_command, tmp_path: Path, interface: str, limit: int
) -> None:
    server = run_server(server_command(tmp_path / "data", interface, max_body=limit))
    assert not server.becomes_ready()
    server.kill()
    if interface == "rsgi":  # Uvicorn gets the error, and writes it to its log
        said = server.error_output.decode()
        assert "--max-body" in said
        assert str(MOST) in said


@pytest.mark.parametrize("limit", [950_000_000, MOST])
def test_g7_as_much_as_the_store_takes(start_server, tmp_path: Path, limit: int) -> None:
    server = start_server(tmp_path / "data", max_body=limit)
    server.create("s")
    assert server.append("s", b"x" * (8 << 20)).status == 204
    lines = [f"Content-Type: {BYTES}", f"Content-Length: {limit + 1}", "Expect: 100-continue"]
    head = "\r\n".join(["POST /v1/stream/s HTTP/1.1", "Host: localhost", *lines, "", ""])
    refused = server.raw(head.encode())
    assert refused.status == 413
    assert "retry-after" not in refused.headers, "it will not be smaller the next time"
    assert len(server.read_all("s")) == 8 << 20


def test_g7_in_memory(start_server) -> None:
    server = start_server(None, max_body=2_000_000_000)
    server.create("s")
    assert server.append("s", b"abc").status == 204


def test_g7_a_server_that_was_refused_leaves_the_folder(
    start_server, run_server, server_command, tmp_path
) -> None:
    server = run_server(server_command(tmp_path / "data", max_body=MOST + 1))
    assert not server.becomes_ready()
    server.kill()
    start_server(tmp_path / "data").create("s")
