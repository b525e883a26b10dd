"""Requests that are refused before their bodies were read: the answer says that the connection ends, and arrives."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import contextlib
import socket
import time

import pytest

LIMIT = 1 << 20  # of ``either_server``
BYTES = "application/octet-stream"


def head(method: str, target: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def exchange(server, request: bytes, body: bytes, *, pause: float = 0.0) -> tuple[bytes, int]:
    """Send a request and its body, then read, as clients do; return the answer, and how much of the body was sent."""
    with server.connect() as connection:
        connection.sendall(request)
        time.sleep(pause)  # the answer may be there before the body
        sent, received = 0, b""
        while sent < len(body):
            sent += connection.send(body[sent : sent + 65536])
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(65536):
                received += part
        return received, sent


def is_refused_and_closed(answer: bytes, status: int) -> None:
    first, _, rest = answer.partition(b"\r\n\r\n")
    lines = first.decode().lower().split("\r\n")
    assert lines[0].startswith(f"http/1.1 {status} ")
    assert lines.count("connection: close") == 1, lines
    assert b"HTTP/1.1" not in rest, "nothing that was sent may be taken for another request"


# Of a request that is refused before its body is read: the method, the target, a header, the status.
REFUSED = [
    ("POST", "/v1/stream/{stream}", f"Content-Type: {BYTES}", 413),
    ("PUT", "/v1/stream/{stream}/new", f"Content-Type: {BYTES}", 413),
    ("POST", "/v1/stream/{stream}", "Content-Encoding: gzip", 415),
    ("POST", "/v1/stream/{stream}", "Producer-Id: p", 400),
    ("PUT", "/v1/stream/{stream}/new", "Stream-TTL: x", 400),
    ("PATCH", "/v1/stream/{stream}", "X-A: b", 405),
    ("POST", "/v1/stream/%00", "X-A: b", 400),
    ("POST", "/nowhere", "X-A: b", 404),
    ("DELETE", "/health", "X-A: b", 405),
    ("POST", "/v1/stream/{stream}", "Origin: https://evil.example", 403),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]}-{case[3]}-{case[2].split(':')[0]}")
@pytest.mark.parametrize("size", [1000, LIMIT + 1, 20 * LIMIT])
@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_g9_the_answer_says_that_the_connection_ends(
    either_server, stream: str, case: tuple[str, str, str, int], size: int, pause: float
) -> None:
    method, target, line, status = case
    if status == 413 and size <= LIMIT:
        return
    either_server.create(stream)
    declared = f"Content-Length: {size}"
    request = head(method, target.format(stream=stream), line, declared)
    answer, sent = exchange(either_server, request, b"x" * size, pause=pause)
    is_refused_and_closed(answer, status)
    assert sent == size, "what a client is still sending is taken, so that it gets to read the answer"
    assert either_server.read_all(stream) == b""
    assert either_server.request("HEAD", f"{stream}/new").status == 404


def test_g9_a_chunked_body_that_becomes_too_large(either_server, stream: str) -> None:
    either_server.create(stream)
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    request = head("POST", f"/v1/stream/{stream}", f"Content-Type: {BYTES}", "Transfer-Encoding: chunked")
    answer, _ = exchange(either_server, request, chunk * 64 + b"0\r\n\r\n")
    is_refused_and_closed(answer, 413)
    assert either_server.read_all(stream) == b""


def test_g9_a_client_that_waits_for_a_word(either_server, stream: str) -> None:
    """``Expect: 100-continue``: it gets the answer, and an end, without sending anything."""
    either_server.create(stream)
    lines = (f"Content-Type: {BYTES}", f"Content-Length: {20 * LIMIT}", "Expect: 100-continue")
    answer, _ = exchange(either_server, head("POST", f"/v1/stream/{stream}", *lines), b"")
    is_refused_and_closed(answer, 413)


def test_g9_what_was_read_keeps_the_connection(either_server, stream: str) -> None:
    either_server.create(stream)
    with either_server.connect() as connection:
        for line, body, status in (
            (f"Content-Type: {BYTES}", b"abc", b"204"),
            ("Content-Type: text/plain", b"abc", b"409"),
            ("X-A: b", b"abc", b"400"),
            (f"Content-Type: {BYTES}", b"", b"400"),
            (f"Content-Type: {BYTES}", b"d" * 100_000, b"204"),
        ):
            lines = (line, f"Content-Length: {len(body)}")
            connection.sendall(head("POST", f"/v1/stream/{stream}", *lines) + body)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 " + status), (line, answer)
            assert b"connection: close" not in answer.lower()
            declared = [one for one in answer.lower().split(b"\r\n") if one.startswith(b"content-length:")]
            size = int(declared[0].partition(b":")[2]) if declared else 0
            rest = answer.partition(b"\r\n\r\n")[2]
            while len(rest) < size:
                rest += connection.recv(65536)
    assert either_server.read_all(stream) == b"abc" + b"d" * 100_000


def test_g9_a_client_that_goes_on_sending_is_left(either_server, stream: str) -> None:
    """Nor does one that stays silent hold up the end of a server; and one that leaves is no error."""
    either_server.create(stream)
    lines = (f"Content-Type: {BYTES}", f"Content-Length: {1 << 40}")
    request = head("POST", f"/v1/stream/{stream}", *lines)
    with either_server.connect() as connection:
        connection.sendall(request)
        received = b""
        while part := connection.recv(65536):  # it ends, though the body never does
            received += part
        is_refused_and_closed(received, 413)
    with either_server.connect() as connection:
        connection.sendall(request + b"x" * 100_000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert either_server.request("GET", "/health", absolute=True).status == 200


def test_g9_a_server_that_ends_meanwhile(start_server) -> None:
    server = start_server(None, max_body=1000)
    server.create("s")
    with server.connect() as connection:
        lines = (f"Content-Type: {BYTES}", f"Content-Length: {1 << 40}")
        connection.sendall(head("POST", "/v1/stream/s", *lines))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
        assert server.terminate() == 0
