"""What is measured of the clients, from outside: workers as processes of their own against one server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

from client_worker import message
from processes import HERE, MEMORY, SQLITE, BenchmarkError, Server, install_pinned, serving
from reads import follow
from results import Plan, Results

OURS, PEER, PEER_SHARED = "ours", "peer", "peer, one client"
NEEDED, ALONE, BARE = "needed", "transport alone", "http.client"
BOTH = {"sync": "", "async": "a"}
PEER_VENV = HERE / "peer" / ".venv"
READ_KINDS = {"catch-up": False, "SSE": "sse"}
CONCURRENT = 32
CONCURRENTLY = f"{CONCURRENT} concurrent appends/s"
BYTES_A_SECOND = 1e9
OF_BARE = 0.8
ROOT = "/v1/stream/"
BATCH = 1000
FRAMING = 10_000  # bytes of brackets that a read of everything adds, at most


@dataclass
class Bench(Plan):
    """A plan, with what is worth telling besides figures."""

    notes: dict[str, str] = field(default_factory=dict)

    @property
    def records(self) -> int:
        return 50_000 if self.quick else 500_000

    @property
    def size(self) -> int:
        return 100 << 20 if self.quick else 1 << 30

    @property
    def messages(self) -> int:
        return 100_000 if self.quick else 1_000_000

    def sides(self) -> Iterator[str]:
        """Yield who is measured; every other round goes backwards."""
        names = [OURS, PEER] if self.peer else [OURS]
        yield from reversed(names) if self.round % 2 else names

    def run(self, who: str, title: str, task: str, *, own: bool = False, **arguments: Any) -> Any:
        """Return what a worker measured; None, and a note, for what cannot be done."""
        script = "client_own.py" if own else "client_worker.py"
        answer = work(who, [str(HERE / script), task, json.dumps(arguments)])
        if "error" not in answer:
            return answer
        if who == OURS:
            raise BenchmarkError(f"{title}: {answer['error']}")
        self.notes[title] = f"the peer fails: {answer['error']}"
        return None


def work(who: str, arguments: list[str]) -> Any:
    """Run a worker in the interpreter of that side and return the JSON that it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DURABLE_STREAMS_")}
    command = [sys.executable] if who == OURS else [str(PEER_VENV / "bin" / "python"), "-I"]
    try:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, timeout=180, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"error": "it does not end"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it was killed"])[-1]}
    return json.loads(done.stdout)


def install_peer_client() -> None:
    """Install the pinned official package."""
    install_pinned("the peer", HERE / "peer" / "requirements.txt", PEER_VENV)


def measure_calls(plan: Bench, results: Results) -> None:
    with serving(MEMORY) as server:
        server.request("PUT", ROOT + "small", b"[1]", "application/json")
        for kind, mark in BOTH.items():
            for who in plan.sides():
                for task, title in (("stream_call", "stream(url)"), ("create_call", "create(url)")):
                    name = f"{title} {kind} ms"
                    url = server.origin + ROOT + ("small" if task == "stream_call" else f"{who}-{kind}")
                    if got := plan.run(who, name, mark + task, url=url, seconds=plan.seconds):
                        results.add(f"{name}|{who}", got["seconds"] * 1e3)


def measure_appends(plan: Bench, results: Results) -> None:
    with serving(MEMORY) as server:
        url = server.origin + ROOT
        got = plan.run(OURS, "bare", "bare_append", own=True, url=url + "bare", seconds=plan.seconds)
        results.add(f"append sync ms|{BARE}", got["seconds"] * 1e3)
        for who in plan.sides():
            for kind, mark in BOTH.items():
                name = f"append {kind} ms"
                if got := plan.run(
                    who, name, mark + "append", url=f"{url}{who}-{kind}", seconds=plan.seconds
                ):
                    results.add(f"{name}|{who}", got["seconds"] * 1e3)
            # A client for each handle, which is the default, and one for all, which its documents advise.
            for client, shared in ((who, False), (PEER_SHARED, True))[: 1 if who == OURS else 2]:
                arguments = {"url": f"{url}{who}-{shared}", "streams": CONCURRENT, "shared": shared}
                if got := plan.run(who, CONCURRENTLY, "concurrent", seconds=plan.seconds, **arguments):
                    results.add(f"{CONCURRENTLY}|{client}", got["appends"] / got["seconds"])
                    results.add(f"concurrent append CPU µs|{client}", got["cpu"] / got["appends"] * 1e6)


def measure_reads(plan: Bench, results: Results) -> None:
    with serving(MEMORY) as server:
        fill_json(server, plan.records)
        url = server.origin + ROOT + "json"
        for kind, mark in BOTH.items():
            got = plan.run(OURS, "alone", mark + "bare", own=True, url=url, decode=True)
            results.add(f"iter_json {kind} catch-up items/s|{ALONE}", got["items"] / got["seconds"])
            results.add(f"iter_json {kind} catch-up CPU µs|{ALONE}", got["cpu"] / got["items"] * 1e6)
            for who in plan.sides():
                for live in READ_KINDS:
                    for task in ("iter_json", "read_json"):
                        read_json(plan, results, Read(who, task, kind, live), url)
        for live, mode in READ_KINDS.items():
            got = plan.run(OURS, "own", "own_reading", own=True, url=url, live=mode, records=plan.records)
            results.add("msgspec's time an item µs|ours", got["decoding"] * 1e6)
            for kind in BOTH:
                results.add(f"own time an item, {kind} {live} µs|ours", got[kind] * 1e6)


@dataclass(frozen=True)
class Read:
    """One way to read JSON."""

    who: str
    task: str
    kind: str
    live: str

    @property
    def name(self) -> str:
        return f"{self.task} {self.kind} {self.live}"


def read_json(plan: Bench, results: Results, read: Read, url: str) -> None:
    arguments = {"url": url, "live": READ_KINDS[read.live], **how(read.who, url)}
    if read.task == "iter_json":
        arguments["records"] = plan.records
    got = plan.run(read.who, read.name, BOTH[read.kind] + read.task, **arguments)
    if got is None:
        return
    results.add(f"{read.name} items/s|{read.who}", got["items"] / got["seconds"])
    results.add(f"{read.name} CPU µs|{read.who}", got["cpu"] / got["items"] * 1e6)
    if got["items"] != plan.records:
        shortfall = f"{read.who} gives {got['items']:,} of {plan.records:,} items and ends without an error"
        if read.who == OURS:
            raise BenchmarkError(f"{read.name}: {shortfall}")
        plan.notes[read.name] = shortfall


def how(who: str, url: str) -> dict[str, Any]:
    return {"warm_up": url + "-warm-up", "httpx": who == PEER}


def measure_bytes(plan: Bench, results: Results) -> None:
    with serving(MEMORY) as server:
        fill_bytes(server, plan.size)
        url = server.origin + ROOT + "bytes"
        for kind, mark in BOTH.items():
            bare = plan.run(OURS, "bare", mark + "bare", own=True, url=url, decode=False)
            rate = bare["bytes"] / bare["seconds"]
            name = f"read {kind} MB/s"
            results.add(f"{name}|{ALONE}", rate / 1e6)
            results.add(f"{name}|{NEEDED}", min(BYTES_A_SECOND, OF_BARE * rate) / 1e6)
            for who in plan.sides():
                got = plan.run(who, name, mark + "read_bytes", url=url, **how(who, url))
                if got is None:
                    continue
                if got["bytes"] != plan.size:
                    plan.notes[name] = f"{who} gives {got['bytes']:,} of {plan.size:,} bytes"
                results.add(f"{name}|{who}", got["bytes"] / got["seconds"] / 1e6)
                results.add(f"memory growth {kind} MB|{who}", got["growth"] / 1e6)


def measure_producer(plan: Bench, results: Results) -> None:
    size = len(message())
    with plan.folder() as folder, serving(SQLITE, folder) as server:
        if plan.peer:
            plan.notes["produced messages/s"] = "the peer, 0.1.0, has no producer"
        for kind, mark in BOTH.items():
            for linger, note in ((5, ""), (0, ", linger_ms=0")):
                path = f"{ROOT}{kind}-{linger}"
                arguments = {"url": server.origin + path, "messages": plan.messages, "linger_ms": linger}
                got = plan.run(OURS, "produce", mark + "produce", own=True, **arguments)
                results.add(f"produced {kind}{note} messages/s|ours", plan.messages / got["seconds"])
                results.add(f"produced {kind}{note} CPU µs|ours", got["cpu"] / plan.messages * 1e6)
                stored, expected = follow(server, path), plan.messages * (size + 1)
                if not expected <= stored <= expected + FRAMING:
                    raise BenchmarkError(
                        f"{kind}: {expected} bytes were acknowledged, the server holds {stored}"
                    )
        got = plan.run(OURS, "own", "own_producing", own=True, url=server.origin, messages=plan.messages)
        for kind in BOTH:
            results.add(f"own time a message, {kind} µs|ours", got[kind] * 1e6)


IMPORT = """
import json, time
begin = time.perf_counter()
import durable_streams
package = time.perf_counter()
for name in durable_streams.__all__:
    getattr(durable_streams, name)
print(json.dumps({"package": package - begin, "every name": time.perf_counter() - begin}))
"""


def measure_imports(plan: Bench, results: Results) -> None:
    for who in plan.sides():
        got = [work(who, ["-c", IMPORT]) for _ in range(6)][1:]  # the first one may write byte code
        for what in ("package", "every name"):
            results.add(f"import {what} ms|{who}", min(one[what] for one in got) * 1e3)  # load can only add


def fill_json(server: Server, records: int) -> None:
    with_number = message().partition(b"1234567")
    bodies = (
        b"[" + b",".join(with_number[0] + b"%d" % (1_000_000 + n) + with_number[2] for n in part) + b"]"
        for part in (range(first, first + BATCH) for first in range(0, records, BATCH))
    )
    fill(server, "json", "application/json", b"[1]", bodies)


def fill_bytes(server: Server, size: int) -> None:
    body = bytes(range(256)) * 4096
    bodies = (body for _ in range(size // len(body)))
    fill(server, "bytes", "application/octet-stream", b"1", bodies)


def fill(server: Server, name: str, content_type: str, warm_up: bytes, bodies: Iterator[bytes]) -> None:
    server.request("PUT", f"{ROOT}{name}-warm-up", warm_up, content_type)
    server.request("PUT", ROOT + name, content_type=content_type)
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    for body in bodies:
        connection.request("POST", ROOT + name, body, {"Content-Type": content_type})
        answer = connection.getresponse()
        answer.read()
        if answer.status >= 300:
            raise BenchmarkError(f"the server refuses an append: {answer.status}")
    connection.close()
