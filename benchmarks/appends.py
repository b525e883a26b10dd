"""Appends of 100 bytes: many connections, one connection, one stream and a hundred."""

from __future__ import annotations

from pathlib import Path

from processes import (
    BARE,
    MEMORY,
    PEER_FILES,
    PEER_MEMORY,
    SQLITE,
    BenchmarkError,
    Server,
    serving,
)
from reads import follow
from results import Plan, Results
from wrk import Load, wrk

BYTES = "application/octet-stream"
CONNECTIONS = 64
STREAMS = 100
PATH = "/v1/stream/s"
# What the HTTP layer adds by itself.
ITS_OWN = {"date", "server", "connection", "keep-alive", "content-length", "transfer-encoding"}


def measure(plan: Plan, results: Results) -> None:
    learn_headers(plan)
    with plan.folder() as scratch:
        body = scratch / "body"
        body.write_bytes(b"x" * 100)
        for name in plan.servers(SQLITE, PEER_FILES, BARE, MEMORY, PEER_MEMORY):
            with plan.folder() as folder, serving(name, folder, **HEADERS if name == BARE else {}) as server:
                if name != BARE:
                    create(server)
                measure_one(plan, results, server, body)


def measure_one(plan: Plan, results: Results, server: Server, body: Path) -> None:
    warm_up = append(server, body, 1, CONNECTIONS, 1)
    one = append(server, body, plan.seconds, CONNECTIONS, 1)
    results.add(f"appends/s to one stream|{server.name}", one.rate)
    if server.name != BARE:
        answered = (warm_up.requests + one.requests) * body.stat().st_size
        if (stored := follow(server, PATH + "1")) < answered:
            raise BenchmarkError(f"{server.name} acknowledged {answered} bytes and holds {stored}")
    if server.name in (SQLITE, PEER_FILES, BARE):
        many = append(server, body, plan.seconds, CONNECTIONS, STREAMS)
        results.add(f"appends/s to 100 streams|{server.name}", many.rate)
        append(server, body, 1, 1, 1)
        single = append(server, body, plan.seconds, 1, 1)
        results.add(f"append ms|{server.name}", single.p50)


HEADERS: dict[str, str] = {}


def learn_headers(plan: Plan) -> None:
    """Remember which headers our server answers an append with: the bare server answers with the same."""
    with plan.folder() as folder, serving(SQLITE, folder) as server:
        create(server)
        headers, _ = server.request("POST", PATH + "1", b"x" * 100, BYTES)
        HEADERS.update((k.lower(), v) for k, v in headers.items() if k.lower() not in ITS_OWN)


def create(server: Server) -> None:
    for number in range(1, STREAMS + 1):
        server.request("PUT", f"{PATH}{number}", content_type=BYTES)


def append(server: Server, body: Path, seconds: float, connections: int, streams: int) -> Load:
    return wrk(
        server,
        connections=connections,
        seconds=seconds,
        method="POST",
        path=PATH,
        count=streams,
        type=BYTES,
        body=body,
    )
