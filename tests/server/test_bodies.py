"""Request bodies: too large, cut off, in every framing. What is not whole is never stored."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import contextlib
import socket
import struct
import time

import pytest

LIMIT = 1 << 20  # of ``either_server``


def head(method: str, stream: str, *lines: str) -> bytes:
    return "\r\n".join(
        [
            f"{method} /v1/stream/{stream} HTTP/1.1",
            "Host: test",
            "Content-Type: application/octet-stream",
            *lines,
            "\r\n",
        ]
    ).encode()


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def test_whole_bodies_in_every_framing(either_server, stream: str) -> None:
    either_server.create(stream)
    with_length = head("POST", stream, "Content-Length: 5", "Connection: close") + b"first"
    assert either_server.raw(with_length).status == 204
    chunked = head("POST", stream, "Transfer-Encoding: chunked", "Connection: close")
    assert either_server.raw(chunked + chunk(b"sec") + chunk(b"ond") + b"0\r\n\r\n").status == 204
    extended = b"3;name=value\r\nthi\r\n2\r\nrd\r\n0\r\n\r\n"
    assert either_server.raw(chunked + extended).status == 204
    big = bytes(range(256)) * 2000
    assert (
        either_server.raw(
            chunked + b"".join(chunk(big[at : at + 999]) for at in range(0, len(big), 999)) + b"0\r\n\r\n"
        ).status
        == 204
    )
    assert either_server.raw(chunked + b"0\r\n\r\n").status == 400
    assert either_server.raw(head("POST", stream, "Content-Length: 0", "Connection: close")).status == 400
    assert either_server.raw(head("POST", stream, "Connection: close")).status == 400
    assert either_server.read_all(stream) == b"firstsecondthird" + big


CUT_OFF = {
    "length, nothing": ("Content-Length: 100", b""),
    "length, half": ("Content-Length: 100", b"x" * 50),
    "length, all but one": ("Content-Length: 100", b"x" * 99),
    "chunked, nothing": ("Transfer-Encoding: chunked", b""),
    "chunked, after a chunk": ("Transfer-Encoding: chunked", chunk(b"hello")),
    "chunked, in a size": ("Transfer-Encoding: chunked", chunk(b"hello") + b"a"),
    "chunked, in a chunk": ("Transfer-Encoding: chunked", chunk(b"hello") + b"a\r\nhalf"),
    "chunked, in the end": ("Transfer-Encoding: chunked", chunk(b"hello") + b"0\r\n"),
    "chunked, no size": ("Transfer-Encoding: chunked", chunk(b"hello") + b"zz\r\nhello\r\n"),
    "chunked, no end of a chunk": ("Transfer-Encoding: chunked", b"5\r\nhelloworld\r\n0\r\n\r\n"),
    "chunked, big": ("Transfer-Encoding: chunked", chunk(b"x" * 60_000) + b"f000\r\n" + b"y" * 60_000),
}


@pytest.mark.parametrize("way", ["close", "half-close", "reset"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_that_is_cut_off_is_not_stored(either_server, stream: str, method: str, way: str) -> None:
    targets = []
    for number, (framing, content) in enumerate(CUT_OFF.values()):
        target = f"{stream}/{number}"
        targets.append(target)
        if method == "POST":
            either_server.create(target)
        with either_server.connect() as connection:
            connection.sendall(head(method, target, framing) + content)
            if way == "half-close":
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    answer = connection.recv(1000)
                    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
                continue
            time.sleep(0.02)  # so that the server is reading it when it ends
            if way == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.2)
    for target, name in zip(targets, CUT_OFF, strict=True):
        read = either_server.request("GET", target)
        assert (read.status, read.body) == ((200, b"") if method == "POST" else (404, read.body)), name
    assert either_server.request("GET", "/health", absolute=True).status == 200


def test_a_cut_off_request_of_a_producer_moves_nothing(either_server, stream: str) -> None:
    either_server.create(stream)
    lines = ("Producer-Id: p", "Producer-Epoch: 0", "Producer-Seq: 0", "Stream-Closed: true")
    for framing in ("Content-Length: 100", "Transfer-Encoding: chunked"):
        either_server.raw(head("POST", stream, framing, *lines) + chunk(b"half"), half_close=True)
    producer = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}
    assert either_server.append(stream, b"whole", **producer).status == 200
    read = either_server.request("GET", stream)
    assert (read.body, read.headers.get("stream-closed")) == (b"whole", None)


def test_too_large_is_refused_before_it_is_sent(either_server, stream: str) -> None:
    either_server.create(stream)
    for method, target in (("POST", stream), ("PUT", stream + "-new")):
        for size in (LIMIT + 1, 10**12, 10**30):
            answer = either_server.raw(head(method, target, f"Content-Length: {size}"))
            assert answer is None or answer.status in {400, 413}, (size, answer)
            assert size > LIMIT + 1 or answer.status == 413
    assert either_server.request("GET", stream).body == b""
    assert either_server.request("GET", stream + "-new").status == 404


def test_the_limit_itself(either_server, stream: str) -> None:
    either_server.create(stream)
    assert either_server.append(stream, b"x" * LIMIT).status == 204
    more = head("POST", stream, f"Content-Length: {LIMIT + 1}") + b"x" * (LIMIT + 1)
    answer = either_server.raw(more)
    assert answer is None or answer.status == 413  # None: it closed before all of that was sent
    chunked = head("POST", stream, "Transfer-Encoding: chunked", "Connection: close")
    pieces = chunk(b"y" * (LIMIT // 2)) * 2
    assert either_server.raw(chunked + pieces + b"0\r\n\r\n").status == 204
    answer = either_server.raw(chunked + pieces + b"1\r\n!\r\n0\r\n\r\n")
    assert answer is None or answer.status == 413
    assert len(either_server.read_all(stream)) == 2 * LIMIT


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_that_never_ends_takes_no_memory(start_server, interface: str, framing: str) -> None:
    server = start_server(None, interface=interface, max_body=LIMIT, sse_heartbeat=15.0)
    server.create("s")
    server.append("s", b"x" * LIMIT)
    before = server.resident()
    total = 300 << 20
    line = f"Content-Length: {total}" if framing == "length" else "Transfer-Encoding: chunked"
    sent, piece = 0, chunk(b"x" * 65536) if framing == "chunked" else b"x" * 65536
    with server.connect(5) as connection:
        connection.sendall(head("POST", "s", line))
        with contextlib.suppress(OSError):
            while sent < total:
                connection.sendall(piece)
                sent += len(piece)
        grown = server.resident() - before
    assert grown < 64 << 20, f"{grown >> 20} MB more after {sent >> 20} MB"
    assert len(server.read_all("s")) == LIMIT
    assert server.append("s", b"goes on").status == 204


def test_many_bodies_that_hang(either_server, stream: str) -> None:
    """Idle senders hold nobody up."""
    either_server.create(stream)
    idle = []
    for number in range(50):
        connection = either_server.connect()
        connection.sendall(head("POST", stream, "Content-Length: 100")[: None if number % 2 else 30])
        idle.append(connection)
    assert either_server.append(stream, b"x").status == 204
    for connection in idle:
        connection.close()
    assert either_server.read_all(stream) == b"x"


def test_expect_continue(either_server, stream: str) -> None:
    either_server.create(stream)
    with either_server.connect() as connection:
        connection.sendall(
            head("POST", stream, "Content-Length: 5", "Expect: 100-continue", "Connection: close")
        )
        interim = connection.recv(1000)
        assert interim.startswith(b"HTTP/1.1 100")
        connection.sendall(b"after")
        assert connection.recv(1000).startswith(b"HTTP/1.1 204")
    assert either_server.read_all(stream) == b"after"


def test_requests_in_a_pipeline(either_server, stream: str) -> None:
    either_server.create(stream)
    requests = [head("POST", stream, "Content-Length: 3") + b"%03d" % number for number in range(20)]
    requests[10] = head("POST", stream, "Transfer-Encoding: chunked") + chunk(b"010") + b"0\r\n\r\n"
    last = head("POST", stream, "Content-Length: 3", "Connection: close") + b"end"
    with either_server.connect() as connection:
        connection.sendall(b"".join([*requests, last]))
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.count(b"HTTP/1.1 204") == 21
    assert either_server.read_all(stream) == b"".join(b"%03d" % number for number in range(20)) + b"end"
