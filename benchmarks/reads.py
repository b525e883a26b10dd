"""Catch-up reads of a 100 MB stream, JSON and bytes: MB/s, and how much memory the server takes for it."""

from __future__ import annotations

import time
from http.client import HTTPConnection
from pathlib import Path

from processes import MEMORY, PEER_FILES, PEER_MEMORY, SQLITE, BenchmarkError, Server, serving
from results import Plan, Results
from wrk import wrk

PATH = "/v1/stream/big"
BATCH = 64 << 10
MESSAGE = (
    b'{"id":123456,"carrier":"AA","origin":"JFK","dest":"LAX","delay":-7,"distance":2475,"note":"on time"}'
)
KINDS = {"bytes": "application/octet-stream", "JSON": "application/json"}


def measure(plan: Plan, results: Results) -> None:
    size = 20_000_000 if plan.quick else 100_000_000
    for kind, content_type in KINDS.items():
        for name in plan.servers(SQLITE, PEER_FILES, MEMORY, PEER_MEMORY):
            with plan.folder() as folder:
                body = folder / "body"
                body.write_bytes(batch(kind))
                data = folder / "data"
                data.mkdir()
                if name in (SQLITE, PEER_FILES):
                    with serving(name, data) as server:
                        fill(server, body, content_type, size)
                    with serving(name, data) as server:
                        read_whole(results, server, kind, size)
                else:
                    with serving(name) as server:
                        fill(server, body, content_type, size)
                        read_whole(results, server, kind, size)


def batch(kind: str) -> bytes:
    """Return one append's body of about 64 KiB."""
    if kind == "bytes":
        return bytes(range(256)) * (BATCH // 256)
    return b"[" + b",".join([MESSAGE] * (BATCH // (len(MESSAGE) + 1))) + b"]"


def fill(server: Server, body: Path, content_type: str, size: int) -> None:
    server.request("PUT", PATH, content_type=content_type)
    appends = size // body.stat().st_size + 1
    wrk(server, connections=4, seconds=600, path=PATH, type=content_type, body=body, limit=appends)
    server.request("PUT", PATH + "-small", b"[1]" if "json" in content_type else b"1", content_type)


def read_whole(results: Results, server: Server, kind: str, size: int) -> None:
    """Read the stream twice: the first time the server's memory is watched, the second time the clock."""
    follow(server, PATH + "-small")
    server.reset_peak()
    before = server.rss()
    follow(server, PATH)
    results.add(f"memory growth of a {kind} read MB|{server.name}", (server.peak() - before) / 1e6)
    start = time.perf_counter()
    received = follow(server, PATH)
    seconds = time.perf_counter() - start
    if received < size:
        raise BenchmarkError(f"{server.name} returned {received} of {size} bytes")
    results.add(f"{kind} read MB/s|{server.name}", received / seconds / 1e6)


def follow(server: Server, path: str) -> int:
    """Read from the start until up to date; return how many bytes came."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
    buffer = memoryview(bytearray(1 << 20))
    offset, received = "-1", 0
    while True:
        connection.request("GET", f"{path}?offset={offset}")
        answer = connection.getresponse()
        if answer.status != 200:
            raise BenchmarkError(f"{server.name}: a read was answered {answer.status}")
        while count := answer.readinto(buffer):
            received += count
        offset = answer.headers["Stream-Next-Offset"]
        if answer.headers["Stream-Up-To-Date"] == "true":
            connection.close()
            return received
