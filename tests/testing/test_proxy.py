"""What the proxy in front of the test server does to bytes that no fault is meant for: nothing."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from durable_streams import DurableStream, RetryPolicy, stream
from durable_streams.testing import ChaosProxy, InMemoryStreamServer

HEAD = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"
BOUND = 64 << 20  # bytes: far more than any buffer on the way, far less than what is sent


class Peers:
    """A raw server behind a proxy that does no harm; ``connect`` gives both ends of a connection through it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        port = self.listener.getsockname()[1]
        self.proxy = ChaosProxy(f"http://127.0.0.1:{port}", rate=0)
        address = self.proxy.url("http://x/").removeprefix("http://").rstrip("/").rpartition(":")
        self.address = (address[0], int(address[2]))
        self.opened: list[socket.socket] = [self.listener]

    def connect(self, first: bytes) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection(self.address, timeout=20)
        client.sendall(first)
        server, _ = self.listener.accept()
        server.settimeout(20)
        self.opened += [client, server]
        return client, server


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    with made.proxy:
        yield made
    for one in made.opened:
        one.close()


def received(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := end.recv(65536)):
        data += part
    return data


def reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


CHUNKED = (
    b"POST /x HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: Chunked\r\n\r\n4;x=y\r\nabcd\r\nA\r\n0123456789\r\n"
)


@pytest.mark.parametrize(
    "wire",
    [
        HEAD + b"abcd",
        HEAD + b"abcd" + HEAD + b"efgh",
        CHUNKED + b"0\r\n\r\n" + HEAD + b"abcd",
        CHUNKED + b"0\r\nx-trailer: 1\r\n\r\n" + HEAD + b"abcd",
        b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"\x16\x03\x01 no HTTP at all\r\n\r\n and more",
        b"POST /x HTTP/1.1\r\ncontent-length: -4\r\n\r\nabcd",
        HEAD + b"ab",
        HEAD[:20],
    ],
)
def test_bytes_pass_as_they_are_and_half_closes_too(peers: Peers, wire: bytes) -> None:
    # Bytes of which no head can be made are held until it is clear that they are none.
    client = socket.create_connection(peers.address, timeout=20)
    client.sendall(wire)
    client.shutdown(socket.SHUT_WR)
    server, _ = peers.listener.accept()
    server.settimeout(20)
    peers.opened += [client, server]
    assert received(server, 1 << 20) == wire
    server.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    server.close()
    assert received(client, 1 << 20) == b"HTTP/1.1 204 No Content\r\n\r\n"


def test_the_end_of_either_side_reaches_the_other(peers: Peers) -> None:
    client, server = peers.connect(HEAD + b"abcd")
    assert received(server, len(HEAD) + 4) == HEAD + b"abcd"
    server.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    server.close()
    assert received(client, 1 << 20) == b"HTTP/1.1 200 OK\r\n\r\n"
    client, server = peers.connect(HEAD + b"abcd")
    client.close()
    assert received(server, 1 << 20) == HEAD + b"abcd"


def test_a_reset_of_either_side_reaches_the_other(peers: Peers) -> None:
    for first in (0, 1):
        ends = peers.connect(HEAD + b"abcd")
        assert received(ends[1], len(HEAD) + 4) == HEAD + b"abcd"
        ends[1].sendall(b"HTTP/1.1 200 OK\r\n")
        received(ends[0], 17)
        reset(ends[first])
        with pytest.raises(ConnectionResetError):
            ends[1 - first].recv(1)


@pytest.mark.parametrize("sender", [0, 1])
def test_who_does_not_read_makes_the_other_side_wait(peers: Peers, sender: int) -> None:
    head = b"POST /x HTTP/1.1\r\ncontent-length: 1000000000\r\n\r\n"
    ends = peers.connect(head)
    received(ends[1], len(head))
    ends[sender].settimeout(1)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < BOUND:
            sent += ends[sender].send(b"x" * 65536)
    assert sent < BOUND


@pytest.mark.parametrize("arm", [lambda _: None, lambda server: server.faults.duplicate(method="POST")])
def test_bodies_in_chunks_and_on_request(
    server: InMemoryStreamServer, arm: Callable[[InMemoryStreamServer], None]
) -> None:
    handle = DurableStream.create(server.url("/test"), content_type="text/plain")
    arm(server)
    doubled = server.faults.pending + 1
    netloc = server.base_url.removeprefix("http://")
    with closing(http.client.HTTPConnection(netloc, timeout=20)) as connection:
        headers = {"content-type": "text/plain"}
        connection.request(
            "POST", "/v1/stream/test", iter([b"ab", b"c" * 100_000]), headers, encode_chunked=True
        )
        assert connection.getresponse().status == 204
    arm(server)
    host, _, port = netloc.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(
            b"POST /v1/stream/test HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n"
            b"content-length: 1\r\nexpect: 100-continue\r\n\r\n"
        )
        assert received(raw, 12).startswith(b"HTTP/1.1 100")
        raw.sendall(b"d")
        received(raw, 100)
    expected = (b"ab" + b"c" * 100_000) * doubled + b"d" * doubled
    assert stream(handle.url, live=False).read_bytes() == expected


def test_a_reader_that_leaves_ends_its_read_at_the_server(peers: Peers) -> None:
    client, server = peers.connect(b"GET /x?live=sse HTTP/1.1\r\nhost: x\r\n\r\n")
    received(server, 10)
    server.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: keep-alive\n\n")
    received(client, 50)
    client.close()
    while server.recv(100):
        pass


# -- chance


def met(server: InMemoryStreamServer, seed: int, **settings: float) -> dict[str, int]:
    policy = RetryPolicy(max_retries=-1, initial_delay=0, max_delay=0)
    with ChaosProxy(server.base_url, seed=seed, longest=0.01, **settings) as proxy:  # type: ignore[arg-type]
        for number in range(20):
            url = proxy.url(server.url(f"/{number}"))
            DurableStream.create(url, content_type="text/plain", retry=policy, body="x")
            assert stream(url, live=False, retry=policy).read_text() == "x"
        return dict(proxy.met)


def test_the_same_seed_does_the_same_again(server: InMemoryStreamServer) -> None:
    first = met(server, 7)
    assert sum(first.values()) > 5
    assert met(server, 7) == first
    assert met(server, 8) != first


def test_a_rate_of_nothing_does_nothing(server: InMemoryStreamServer) -> None:
    assert met(server, 7, rate=0) == {}


def test_calm_ends_the_chaos(server: InMemoryStreamServer) -> None:
    with ChaosProxy(server.base_url, rate=1) as proxy:
        proxy.calm()
        url = proxy.url(server.url("/test"))
        DurableStream.create(url, retry=RetryPolicy(max_retries=0))
        assert not proxy.met


def test_threads_do_not_change_what_happens(server: InMemoryStreamServer) -> None:
    """Each request's fate depends on what is asked, not on which thread comes first."""
    seen = []
    for _ in range(2):
        with ChaosProxy(server.base_url, seed=3, rate=0.5, longest=0.01) as proxy:
            policy = RetryPolicy(max_retries=-1, initial_delay=0, max_delay=0)

            def head(number: int, proxy: ChaosProxy = proxy, policy: RetryPolicy = policy) -> None:
                DurableStream.create(proxy.url(server.url(f"/{number}")), retry=policy)

            threads = [threading.Thread(target=head, args=(number,)) for number in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            seen.append(dict(proxy.met))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "arguments", [{"target": "https://x"}, {"target": "x:1"}, {"rate": 1.5}, {"longest": -1}]
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ChaosProxy(**{"target": "http://127.0.0.1:1", **arguments})  # type: ignore[arg-type]
