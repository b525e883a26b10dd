"""What many streams and long streams cost: appends, tail reads, start-up. Ours alone, against itself."""

from __future__ import annotations

import time
from pathlib import Path

from appends import BYTES, CONNECTIONS
from processes import SQLITE, BenchmarkError, Server, serving
from results import Plan, Results
from wrk import wrk

MANY = 100_000
SHORT, LONG = 1_000, 5_000_000
PER_APPEND = 100
PATH = "/v1/stream/g"
JSON = "application/json"


def measure_streams(plan: Plan, results: Results) -> None:
    """Appends to one stream, to a random one of 100 and of many, and the start of a server that has many."""
    many = MANY // 10 if plan.quick else MANY
    with plan.folder() as one, plan.folder() as hundred, plan.folder() as all_data, plan.folder() as scratch:
        body = scratch / "body"
        body.write_bytes(b"x" * 100)
        order = [(one, 1, "one stream"), (hundred, 100, "100 streams"), (all_data, many, "many streams")]
        for data, streams, _ in order:
            with serving(SQLITE, data) as server:
                create(server, streams)
        for turn in range(plan.rounds):
            for data, streams, label in reversed(order) if turn % 2 else order:
                with serving(SQLITE, data) as server:
                    before = time.perf_counter()
                    server.request("HEAD", f"{PATH}{streams}")
                    answered = server.started + time.perf_counter() - before
                    results.add(f"start-up s|{label}", answered)
                    append(server, body, 1, streams)
                    results.add(f"appends/s|{label}", append(server, body, plan.seconds, streams))


def create(server: Server, streams: int) -> None:
    wrk(
        server,
        connections=CONNECTIONS,
        seconds=600,
        method="PUT",
        path=PATH,
        count=streams,
        pick="each",
        type=BYTES,
        limit=streams + CONNECTIONS,
    )
    server.request("HEAD", f"{PATH}{streams}")


def append(server: Server, body: Path, seconds: float, streams: int) -> float:
    load = wrk(
        server, connections=CONNECTIONS, seconds=seconds, path=PATH, count=streams, type=BYTES, body=body
    )
    return load.rate


def measure_tail(plan: Plan, results: Results) -> None:
    """Reads of the last append of a short and of a long stream."""
    long = LONG // 20 if plan.quick else LONG
    with plan.folder() as data, plan.folder() as scratch:
        body = scratch / "body"
        body.write_bytes(b"[" + b",".join(b'{"n":%d}' % n for n in range(1000, 1000 + PER_APPEND)) + b"]")
        queries = {}
        with serving(SQLITE, data) as server:
            for records, label in ((SHORT, "short"), (long, "long")):
                queries[label] = fill(server, body, PATH + label, records)
        with serving(SQLITE, data) as server:
            for turn in range(plan.rounds):
                labels = ["short", "long"]
                for label in reversed(labels) if turn % 2 else labels:
                    load = wrk(
                        server,
                        connections=CONNECTIONS,
                        seconds=plan.seconds,
                        method="GET",
                        path=PATH + label,
                        query=queries[label],
                    )
                    results.add(f"tail reads/s|{label} stream", load.rate)


def fill(server: Server, body: Path, path: str, records: int) -> str:
    """Append records; return the query that reads the last append."""
    server.request("PUT", path, content_type=JSON)
    appends = records // PER_APPEND
    wrk(
        server,
        connections=min(CONNECTIONS, max(1, appends // 10)),
        seconds=900,
        path=path,
        type=JSON,
        body=body,
        limit=appends,
    )
    time.sleep(1)  # wrk ends with requests in flight
    headers, _ = server.request("POST", path, body.read_bytes(), JSON)
    offset = headers["Stream-Next-Offset"]
    server.request("POST", path, body.read_bytes(), JSON)
    _, last = server.request("GET", f"{path}?offset={offset}")
    if last != body.read_bytes():
        raise BenchmarkError(f"a read of the last append of {path} returned {len(last)} bytes")
    return f"?offset={offset}"
