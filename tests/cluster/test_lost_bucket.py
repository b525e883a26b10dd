"""A bucket that is deleted under a running gateway, and perhaps made again: it answers for no bucket but its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import nats
import pytest

from durable_streams.testing import NatsCluster
from durable_streams.testing.program import wait_until

WITHIN = 60.0  # seconds
BYTES = "application/octet-stream"


def remove(cluster: NatsCluster, name: str) -> None:
    async def remove() -> None:
        connection = await nats.connect(cluster.urls)
        await connection.jetstream().delete_stream(f"KV_{name}")
        await connection.close()

    asyncio.run(remove())


def health(server: Any) -> int:
    return int(server.request("GET", "/health", absolute=True).status)


def expect_refusals(server: Any) -> None:
    for _ in range(2):
        for name in ("cached", "unknown"):
            assert server.append(name, b"lost").status == 503
            stamp = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}
            assert server.append(name, b"lost", **stamp).status == 503
            assert server.request("PUT", name, content_type=BYTES).status == 503
            assert server.request("HEAD", name).status == 503
            assert server.request("GET", name).status == 503
            assert server.request("DELETE", name).status == 503
        assert health(server) == 503
    assert server.request("GET", "/health/live", absolute=True).status == 200


@pytest.mark.parametrize("remade", [False, True])
def test_f2_a_bucket_that_is_deleted(
    nats_server: NatsCluster, bucket: str, gateway: Callable[..., Any], remade: bool
) -> None:
    server = gateway(nats_server)
    server.create("cached")
    assert server.append("cached", b"before").status == 204
    remove(nats_server, bucket)
    if remade:
        other = gateway(nats_server)
        other.create("cached")
        assert other.append("cached", b"other").status == 204
    assert wait_until(lambda: health(server) == 503, WITHIN)
    expect_refusals(server)
    if remade:
        assert other.read_all("cached") == b"other"
        assert health(other) == 200
    assert server.terminate() == 1
    again = gateway(nats_server)
    assert health(again) == 200
    if remade:
        assert again.read_all("cached") == b"other"
    else:
        again.create("cached")


def test_f2_a_bucket_that_is_deleted_and_made_again_while_nats_is_away(
    make_cluster: Callable[..., NatsCluster], bucket: str, gateway: Callable[..., Any]
) -> None:
    """No message says so: only what NATS answers afterwards does."""
    cluster = make_cluster(1)
    server = gateway(cluster)
    server.create("cached")
    server.append("cached", b"before")
    server.process.send_signal(19)  # SIGSTOP: it does not notice anything
    try:
        remove(cluster, bucket)
        gateway(cluster).create("cached")
        cluster.servers[0].kill()  # and what was sent to it is lost
        cluster.servers[0].start()
        cluster.wait_ready()
    finally:
        server.process.send_signal(18)
    assert wait_until(lambda: server.append("cached", b"lost").status == 503, WITHIN)
    assert wait_until(lambda: health(server) == 503, WITHIN)
    expect_refusals(server)
