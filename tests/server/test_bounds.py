"""Clients that misbehave: what they can make the server hold is bounded, in all of them together (G1, F3, F5, E9)."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import base64
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

READERS = 300
BYTES = "application/octet-stream"
PIECE = 1 << 20
BUDGET = 64 << 20  # of what waits for clients, by default
GENEROUS = 2 * BUDGET


def unread(server, query: str) -> socket.socket:
    """Send a GET whose answer is never read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(f"GET /v1/stream/{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


@contextlib.contextmanager
def unread_by(server, queries: list[str]) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(unread(server, query)) for query in queries]


def wait_for(condition: Callable[[], bool], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def connections(server) -> int:
    """Return how many connections a server has open."""
    found = 0
    for link in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(link.readlink()).startswith("socket:")
    return found


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_g1_event_streams_that_nobody_reads(start_server, tmp_path: Path, interface: str) -> None:
    server = start_server(tmp_path / "data", interface=interface, send_timeout=5.0)
    server.create("s")
    quiet = connections(server)
    with unread_by(server, ["s?live=sse&offset=now"] * READERS):
        wait_for(lambda: connections(server) >= READERS)
        before, most = server.resident(), 0
        for _ in range(100):
            assert server.append("s", os.urandom(PIECE)).status == 204
            most = max(most, server.resident())
        assert most - before < GENEROUS, f"{(most - before) >> 20} MB for clients that read nothing"
        wait_for(lambda: connections(server) < quiet + 10)  # their time is up
    assert server.append("s", b"goes on").status == 204
    server.terminate()
    assert b"Traceback" not in server.error_output


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
@pytest.mark.parametrize("live", ["", "&live=long-poll"])
def test_g1_answers_that_nobody_reads(start_server, tmp_path: Path, interface: str, live: str) -> None:
    server = start_server(tmp_path / "data", interface=interface, send_timeout=5.0)
    server.create("s")
    for _ in range(60):
        server.append("s", os.urandom(PIECE))
    quiet = connections(server)
    before, most = server.resident(), 0
    with unread_by(server, [f"s?offset=-1{live}"] * (READERS // 3)):
        for _ in range(40):
            time.sleep(0.05)
            most = max(most, server.resident())
        # Others are served meanwhile.
        assert len(server.read_all("s")) == 60 * PIECE
        most = max(most, server.resident())
        assert most - before < GENEROUS, f"{(most - before) >> 20} MB for clients that read nothing"
        wait_for(lambda: connections(server) < quiet + 10)


def test_g1_readers_of_a_stream_each(start_server, tmp_path: Path) -> None:
    server = start_server(tmp_path / "data", send_timeout=5.0)
    streams = [f"s{number}" for number in range(READERS)]
    for stream in streams:
        server.create(stream)
    with unread_by(server, [f"{stream}?live=sse&offset=now" for stream in streams]):
        wait_for(lambda: connections(server) >= READERS)
        before, most = server.resident(), 0
        for stream in streams:
            assert server.append(stream, os.urandom(PIECE)).status == 204
            most = max(most, server.resident())
        assert most - before < GENEROUS, f"{(most - before) >> 20} MB for clients that read nothing"


@pytest.mark.parametrize("query", ["offset=-1", "offset=-1&live=sse"])
def test_g1_a_slow_client_gets_all_of_it(start_server, tmp_path: Path, query: str) -> None:
    """Slower than the network, faster than nothing: it is not given up."""
    server = start_server(tmp_path / "data", send_timeout=1.0)
    server.create("s", "text/plain")
    written = b"".join(b"%063d\n" % number for number in range(1 << 16))
    for at in range(0, len(written), PIECE):
        server.append("s", written[at : at + PIECE], "text/plain")
    server.request("POST", "s", stream_closed="true")
    received = bytearray()
    with unread(server, f"s?{query}") as connection:
        connection.settimeout(30)
        while not received.endswith((b"065535\n", b"\r\n0\r\n\r\n")):
            part = connection.recv(100_000)
            assert part, "cut"
            received += part
            time.sleep(0.02)
    if "sse" not in query:
        assert received.endswith(written)


def test_g1_small_budgets_serve_everybody(start_server, tmp_path: Path) -> None:
    server = start_server(tmp_path / "data", send_budget=1 << 20)
    server.create("s", "application/json")
    for number in range(20):
        server.append("s", b"[%s]" % b",".join([b'"%06d"' % number] * 20_000), "application/json")
    for accept in ("s?offset=-1", "s?offset=-1&live=long-poll"):
        answer = server.request("GET", accept)
        assert answer.status == 200
        assert len(answer.json) in (20_000 * 20, 20_000 * 6)


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json"])
def test_e9_a_catch_up_is_one_body_to_the_tail(either_server, stream: str, kind: str) -> None:
    either_server.create(stream, kind)
    number, written = 0, []
    while sum(map(len, written)) < 6 << 20:
        rows = [b'{"n":%d,"x":"%s"}' % (number + at, b"x" * 40) for at in range(9_000)]
        number += len(rows)
        written.append(b",".join(rows))
        either_server.append(stream, b"[%s]" % written[-1] if "json" in kind else written[-1], kind)
    answer = either_server.request("GET", f"{stream}?offset=-1")
    tail = either_server.request("HEAD", stream).next_offset
    assert answer.body == (b"[%s]" % b",".join(written) if "json" in kind else b"".join(written))
    assert answer.next_offset == tail
    assert answer.headers["stream-up-to-date"] == "true"
    assert int(answer.headers["content-length"]) == len(answer.body)
    again = either_server.request("GET", f"{stream}?offset=-1", if_none_match=answer.headers["etag"])
    assert again.status == 304


def test_e9_a_client_may_ask_for_less(either_server, stream: str) -> None:
    either_server.create(stream)
    for letter in b"abcdef":
        either_server.append(stream, bytes([letter]) * 100_000)
    first = either_server.request("GET", f"{stream}?offset=-1", stream_max_bytes="150000")
    assert first.body == b"a" * 100_000 + b"b" * 100_000
    assert "stream-up-to-date" not in first.headers
    rest = either_server.request("GET", f"{stream}?offset={first.next_offset}")
    assert first.body + rest.body == b"".join(bytes([letter]) * 100_000 for letter in b"abcdef")
    assert either_server.request("GET", f"{stream}?offset=-1", stream_max_bytes="many").status == 400


def test_e9_one_append_of_many_megabytes(either_server, start_server, tmp_path: Path) -> None:
    server = start_server(tmp_path / "data")
    server.create("s")
    written = os.urandom(40 << 20)
    server.append("s", written)
    assert server.request("GET", "s?offset=-1").body == written
    assert server.request("GET", "s?offset=-1", stream_max_bytes="1").body == written
    with contextlib.closing(server.connection()) as connection:
        connection.request("GET", "/v1/stream/s?offset=-1&live=sse")
        event = connection.getresponse()
        lines = iter(event.readline, b"")
        assert next(lines) == b"event: data\n"
        assert base64.b64decode(next(lines)[5:]) == written


def head(framing: str) -> bytes:
    return f"POST /v1/stream/s HTTP/1.1\r\nHost: localhost\r\nContent-Type: {BYTES}\r\n{framing}\r\n\r\n".encode()


def stalled_body(server, sent: int) -> socket.socket:
    """Begin a request and fall silent before its body is complete."""
    connection = server.connect()
    with contextlib.suppress(OSError):  # refused meanwhile
        connection.sendall(head(f"Content-Length: {64 << 20}"))
        for _ in range(sent >> 20):
            connection.sendall(bytes(PIECE))
    return connection


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_f5_bodies_that_do_not_come_on(start_server, tmp_path: Path, interface: str) -> None:
    budget = 128 << 20
    server = start_server(tmp_path / "data", interface=interface, body_budget=budget, body_timeout=3.0)
    server.create("s")
    before, most = server.resident(), 0
    with contextlib.ExitStack() as stack:
        stalled = []
        for _ in range(8):
            stalled.append(stack.enter_context(stalled_body(server, 30 << 20)))
            most = max(most, server.resident())
        assert most - before < 2 * budget, f"{(most - before) >> 20} MB of bodies that do not come on"
        answers = b"".join(connection.recv(4096) for connection in stalled)
        assert b"503 Service Unavailable" in answers
        assert b"retry-after: 1" in answers
        assert b"408 Request Timeout" in answers
        assert b"nothing was stored" in answers
    assert server.append("s", b"x" * (40 << 20)).status == 204
    assert server.request("HEAD", "s").next_offset.endswith(f"{40 << 20:016d}")


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
@pytest.mark.parametrize("framing", ["Content-Length: 10000", "Transfer-Encoding: chunked"])
def test_f5_a_body_that_trickles_is_refused(start_server, interface: str, framing: str) -> None:
    server = start_server(None, interface=interface, body_timeout=1.0)
    server.create("s")
    with server.connect() as connection:
        connection.sendall(head(framing))
        connection.settimeout(0.1)
        answer = b""
        for _ in range(200):
            with contextlib.suppress(OSError):
                connection.sendall(b"1\r\nx\r\n")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(4096)
                break
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer.lower()
    assert server.read_all("s") == b""


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_f5_a_slow_body_that_comes_on_is_taken(start_server, interface: str) -> None:
    server = start_server(None, interface=interface, body_timeout=1.0)
    server.create("s")
    with server.connect() as connection:
        size = 40 * 20_000
        connection.sendall(head(f"Content-Length: {size}"))
        for _ in range(40):
            connection.sendall(b"y" * 20_000)
            time.sleep(0.05)
        assert connection.recv(4096).startswith(b"HTTP/1.1 204 ")
    assert server.read_all("s") == b"y" * size


def test_f5_a_stop_does_not_wait_for_bodies(start_server, tmp_path: Path) -> None:
    server = start_server(tmp_path / "data")
    server.create("s")
    with stalled_body(server, 1 << 20):
        time.sleep(0.2)
        server.terminate()
    assert b"Traceback" not in server.error_output
