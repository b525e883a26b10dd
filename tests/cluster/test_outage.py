"""A gateway whose NATS cluster has lost its majority: its answers during the outage, and its recovery."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from durable_streams import stream
from durable_streams.testing import NatsCluster
from durable_streams.testing.program import wait_until

WITHIN = 60.0  # seconds
PROMISED = 5.0  # seconds: until a 503, says the documentation
TEXT = "text/plain"


def unavailable(server: Any, method: str, target: str, body: bytes | None = None) -> None:
    began = time.monotonic()
    answer = server.request(method, target, body)
    assert (answer.status, answer.headers.get("retry-after")) == (503, "1"), (method, target, answer)
    assert time.monotonic() - began < PROMISED + 5  # the machine may be busy


def test_a_cluster_without_a_majority(
    make_cluster: Callable[..., NatsCluster], gateway: Callable[..., Any]
) -> None:
    cluster = make_cluster(3)
    server = gateway(cluster, "--chunk-size", "4", "--long-poll-timeout", "2")
    server.create("s", TEXT)
    for part in (b"aaaa", b"bbbb"):
        end = server.append("s", part, TEXT).next_offset
    with server.connect(WITHIN) as reader:
        reader.sendall(b"GET /v1/stream/s?live=sse&offset=-1 HTTP/1.1\r\nHost: test\r\n\r\n")
        received = b""
        while b"upToDate" not in received:
            received += reader.recv(65536)
        lose_the_majority(cluster, server, end)
        while b"end." not in received:  # the event stream that waited all the time
            part = reader.recv(65536)
            assert part, received
            received += part


def lose_the_majority(cluster: NatsCluster, server: Any, end: str) -> None:
    for lost in cluster.servers[1:]:
        lost.kill()
    assert wait_until(lambda: server.append("s", b"x", TEXT).status == 503, WITHIN)
    # A leader takes a few seconds to see that it is alone; until then what it says is true.
    assert wait_until(lambda: server.request("HEAD", "s").status == 503, WITHIN)
    first = server.request("GET", "s?offset=-1", stream_max_bytes="4")
    assert (first.status, first.body) == (200, b"aaaa")
    second = server.request("GET", f"s?offset={first.next_offset}", stream_max_bytes="4")
    assert (second.status, second.body) == (200, b"bbbb")
    assert "stream-up-to-date" not in second.headers
    for target in (
        f"s?offset={end}",
        "s?offset=now",
        f"s?offset={end}&live=long-poll",
        "s?live=sse&offset=-1",
    ):
        unavailable(server, "GET", target)
    unavailable(server, "HEAD", "s")
    unavailable(server, "PUT", "t", b"x")
    unavailable(server, "DELETE", "s")
    unavailable(server, "GET", "other")

    for back in cluster.servers[1:]:
        back.start()
    assert wait_until(lambda: server.append("s", b"end.", TEXT).status == 204, WITHIN)
    content = b"".join(stream(f"{server.root}/s", live=False))
    assert content.startswith(b"aaaabbbb")
    assert content.endswith(b"end.")
