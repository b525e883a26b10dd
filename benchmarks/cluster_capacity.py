"""What docs/scaling.md reckons with: the cost of a stream and of a reader, and how much can be written."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

from appends import BYTES
from cluster_groups import GATEWAY, ROOT, SERVERS, Cluster, cluster, each_once
from processes import Server, resident
from reads import BATCH
from results import Plan, Results
from wrk import wrk

__all__ = ["measure_capacity"]

STREAMS = 100_000
READERS = 5_000
WRITERS = 16


def measure_capacity(plan: Plan, results: Results) -> None:
    """Fill one cluster: many streams, a reader on each of some, and a lot of bytes."""
    streams = STREAMS // 10 if plan.quick else STREAMS
    readers = READERS // 10 if plan.quick else READERS
    with cluster(plan) as nats, nats.gateway() as server:
        before = held(nats)
        each_once(server, "s", streams, method="PUT", type=BYTES)
        results.add(f"NATS memory a stream KB|{GATEWAY}", (held(nats) - before) / SERVERS / streams / 1e3)
        watched_streams(nats, server, readers, results)
        for _ in range(plan.rounds):
            results.add(f"written MB/s, 64 KiB appends|{GATEWAY}", write_rate(plan, server))


def held(nats: Cluster) -> int:
    """Return the resident memory of all NATS servers, in bytes."""
    return sum(resident(server.pid) for server in nats.nats.servers)


def watched_streams(nats: Cluster, server: Server, readers: int, results: Results) -> None:
    """An SSE reader on each of some streams: what it costs the gateway, and one NATS server."""
    before = server.rss(), held(nats)
    with ExitStack() as stack:
        for number in range(readers):
            stack.enter_context(listening(server, f"{ROOT}s{number}"))
        time.sleep(3)
        results.add(
            f"SSE reader of a stream of its own, gateway KB|{GATEWAY}",
            (server.rss() - before[0]) / readers / 1e3,
        )
        results.add(
            f"SSE reader of a stream of its own, NATS server KB|{GATEWAY}",
            (held(nats) - before[1]) / SERVERS / readers / 1e3,
        )


def listening(server: Server, path: str) -> socket.socket:
    """Return a connection on which an event stream has begun."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(f"GET {path}?offset=-1&live=sse HTTP/1.1\r\nHost: benchmark\r\n\r\n".encode())
    while b"\r\n\r\n" not in connection.recv(4096):
        pass
    return connection


def write_rate(plan: Plan, server: Server) -> float:
    """Append 64 KiB from 16 connections to as many streams; return MB a second."""
    with plan.folder() as folder:
        body = folder / "body"
        body.write_bytes(b"x" * BATCH)
        load = wrk(
            server,
            connections=WRITERS,
            seconds=plan.seconds,
            path=f"{ROOT}s",
            count=WRITERS,
            pick="each",
            type=BYTES,
            body=body,
        )
    return load.rate * BATCH / 1e6
