"""What is measured of gateways on a NATS cluster: each group starts three NATS servers with file storage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from appends import BYTES, CONNECTIONS, create
from client_groups import OURS, work
from client_worker import message
from live import paced
from local_cluster import ClusterError, Gateway
from nats_worker import BARE, LAYOUT
from processes import HERE, BenchmarkError, Server
from reads import BATCH, follow
from results import Plan, Results
from wrk import Load, wrk

from durable_streams.protocol.offsets import format_offset
from durable_streams.testing.nats import NatsCluster, NatsError

GATEWAY, ALONE = "gateway", "NATS alone"
SERVERS = REPLICAS = 3
SIZE = 100  # bytes of a small append
ROOT = "/v1/stream/"
PACE = 50  # appends a second where their way to a reader is measured
RECORDS, BEHIND = 1_000_000, 20_000
STREAMS = 100_000
KEPT = (10_000, 200_000)  # streams in memory
BOTH = {"sync": "produce", "async": "aproduce"}


class Cluster:
    """Three NATS servers, and gateways that are started as they are needed."""

    def __init__(self, nats: NatsCluster, folder: Path) -> None:
        self.nats = nats
        self._folder = folder
        self._numbers = count()

    @contextmanager
    def gateway(self, at: int = 0, *options: str) -> Iterator[Server]:
        """Run a gateway that is connected to NATS server ``at``."""
        name = f"g{next(self._numbers)}"
        options = ("--nats-replicas", str(REPLICAS), *options)
        gateway = Gateway(name, self._folder / name, self.nats.urls[at], options)
        begin = time.perf_counter()
        try:
            gateway.start_first()
            yield Server(GATEWAY, gateway.port, gateway.pid, time.perf_counter() - begin)
        finally:
            gateway.stop()

    def alone(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Return what a worker measured of NATS, connected to the first server."""
        command = [str(HERE / "nats_worker.py"), task, json.dumps({"url": self.nats.urls[0], **arguments})]
        return checked(f"NATS alone, {task}", work(OURS, command))

    def align(self) -> None:
        """Have the first server lead the gateways' stream and a bare one: then both sides take the same way."""
        self.alone("prepare", replicas=REPLICAS, leader=self.nats.servers[0].name)
        for stream in (BARE, LAYOUT.stream):
            if self.nats.leader_of(stream) != 0:
                raise BenchmarkError(f"the NATS stream {stream} has changed its leader")


@contextmanager
def cluster(plan: Plan) -> Iterator[Cluster]:
    """Run three NATS servers on an empty folder."""
    try:
        with plan.folder() as folder, NatsCluster(folder, SERVERS) as nats:
            yield Cluster(nats, folder)
    except (ClusterError, NatsError) as error:
        raise BenchmarkError(str(error)) from error


def checked(title: str, answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise BenchmarkError(f"{title}: {answer['error']}")
    return answer


def rounds(plan: Plan) -> Iterator[int]:
    for number in range(plan.rounds):
        plan.round = number
        yield number


def small_body(plan: Plan, stack: ExitStack) -> Path:
    body = stack.enter_context(plan.folder()) / "body"
    body.write_bytes(b"x" * SIZE)
    return body


def measure_one(plan: Plan, results: Results) -> None:
    """One append after the other, to one stream."""
    name = "append ms"
    with cluster(plan) as nats, ExitStack() as stack:
        body = small_body(plan, stack)
        server = stack.enter_context(nats.gateway())
        create(server)
        nats.align()
        append(server, body, 1, 1)
        for _ in rounds(plan):
            for who in plan.servers(GATEWAY, ALONE):
                if who == GATEWAY:
                    milliseconds = append(server, body, plan.seconds, 1).p50
                else:
                    got = nats.alone("publish", streams=1, seconds=plan.seconds, size=SIZE)
                    milliseconds = got["median"] * 1e3
                results.add(f"{name}|{who}", milliseconds)


def measure_many(plan: Plan, results: Results) -> None:
    """64 at once, to 64 streams."""
    name = f"appends/s to {CONNECTIONS} streams"
    with cluster(plan) as nats, ExitStack() as stack:
        body = small_body(plan, stack)
        server = stack.enter_context(nats.gateway())
        create(server)
        nats.align()
        append(server, body, 1, CONNECTIONS)
        for _ in rounds(plan):
            for who in plan.servers(GATEWAY, ALONE):
                if who == GATEWAY:
                    rate = append(server, body, plan.seconds, CONNECTIONS).rate
                else:
                    got = nats.alone("publish", streams=CONNECTIONS, seconds=plan.seconds, size=SIZE)
                    rate = got["messages"] / got["seconds"]
                results.add(f"{name}|{who}", rate)


def append(server: Server, body: Path, seconds: float, connections: int) -> Load:
    """Append to as many streams as there are connections, in turn."""
    return wrk(
        server,
        connections=connections,
        seconds=seconds,
        path=f"{ROOT}s",
        count=connections,
        pick="each",
        type=BYTES,
        body=body,
    )


def measure_producer(plan: Plan, results: Results) -> None:
    """Our producers, with their default settings."""
    with cluster(plan) as nats, nats.gateway() as server:
        for number in rounds(plan):
            for kind in BOTH:
                messages = 100_000 if plan.quick else 1_000_000
                seconds = produce(server, f"{kind}{number}", kind, messages)
                results.add(f"produced {kind} messages/s|{GATEWAY}", messages / seconds)


def produce(server: Server, stream: str, kind: str, messages: int) -> float:
    """Produce messages of 100 bytes; return how many seconds it took until all were acknowledged."""
    arguments = {"url": f"{server.origin}{ROOT}{stream}", "messages": messages}
    command = [str(HERE / "client_own.py"), BOTH[kind], json.dumps(arguments)]
    seconds: float = checked(f"the {kind} producer", work(OURS, command))["seconds"]
    stored, expected = follow(server, ROOT + stream), messages * (len(message()) + 1)
    if stored < expected:
        raise BenchmarkError(f"{kind}: {expected} bytes were acknowledged, the server holds {stored}")
    return seconds


def measure_live(plan: Plan, results: Results) -> None:
    """From before an append to one gateway until a reader of another has its event."""
    with cluster(plan) as nats, nats.gateway(0) as writes, nats.gateway(1) as reads:
        writes.request("PUT", f"{ROOT}live", content_type="application/json")
        for _ in rounds(plan):
            seconds = max(plan.seconds, 2)
            latency = paced(reads, seconds, to=writes, readers=1, pace=PACE)
            results.add(f"append to event ms|{GATEWAY}", latency)


def measure_reads(plan: Plan, results: Results) -> None:
    """Streams that were written in three ways, read by one client through a gateway and by one consumer of NATS."""
    size = 10_000_000 if plan.quick else 100_000_000
    with cluster(plan) as nats, nats.gateway() as server:
        fill(plan, nats, server, size)
        nats.align()
        for _ in rounds(plan):
            for kind in KINDS:
                for who in plan.servers(GATEWAY, ALONE):
                    rate = read_rate(server, kind) if who == GATEWAY else consume_rate(nats, kind)
                    results.add(f"{kind} read MB/s|{who}", rate)


KINDS = {
    "64k": "64 KiB appends",
    "produced": "as a producer writes",
    "small": "100 bytes, 64 writers",
    "single": "100 bytes, one writer",
}


def fill(plan: Plan, nats: Cluster, server: Server, size: int) -> None:
    """Write each kind of stream; those of small appends have a tenth of the size."""
    with plan.folder() as folder:
        for kind, length, connections, share in (("64k", BATCH, 4, 1), ("small", SIZE, CONNECTIONS, 10)):
            body = folder / kind
            body.write_bytes(b"x" * length)
            server.request("PUT", ROOT + kind, content_type=BYTES)
            limit = size // share // length
            wrk(
                server,
                connections=connections,
                seconds=600,
                path=ROOT + kind,
                type=BYTES,
                body=body,
                limit=limit,
            )
    produce(server, "produced", "sync", size // SIZE)
    server.request("PUT", f"{ROOT}single", content_type=BYTES)
    nats.alone("write_log", path="single", records=size // 10 // SIZE, size=SIZE)


def read_rate(server: Server, kind: str) -> float:
    follow(server, ROOT + kind)
    begin = time.perf_counter()
    size = follow(server, ROOT + kind)
    return size / (time.perf_counter() - begin) / 1e6


def consume_rate(nats: Cluster, kind: str) -> float:
    got = nats.alone("consume", path=kind)
    rate: float = got["bytes"] / got["seconds"] / 1e6
    return rate


def measure_cold(plan: Plan, results: Results) -> None:
    """The first request for a stream of a million records, each to a gateway that has just been started.

    Answers are cut at 4 KiB: what counts is the way to the first byte. And the first request to a gateway that knows
    the stream, but not what was written to it elsewhere.
    """
    records = RECORDS // 10 if plan.quick else RECORDS
    with cluster(plan) as nats:
        with nats.gateway() as server:
            server.request("PUT", f"{ROOT}long", content_type=BYTES)
            nats.alone("write_log", path="long", records=BEHIND, size=SIZE)
            took = milliseconds(server, "HEAD", f"{ROOT}long")
            results.add(f"HEAD, {BEHIND:,} records behind ms|{GATEWAY}", took)
        nats.alone("write_log", path="long", records=records, size=SIZE)
        middle = format_offset(records // 2 * SIZE)
        for _ in rounds(plan):
            for name, method, query in COLD:
                with nats.gateway(0, "--chunk-size", "4096") as server:
                    server.request("PUT", f"{ROOT}other", content_type=BYTES)
                    took = milliseconds(server, method, f"{ROOT}long" + query.format(middle=middle))
                    results.add(f"cold open, {name} ms|{GATEWAY}", took)


def milliseconds(server: Server, method: str, path: str) -> float:
    """Return how long one request takes."""
    body, content_type = (b"x" * SIZE, BYTES) if method == "POST" else (None, None)
    begin = time.perf_counter()
    server.request(method, path, body, content_type)
    return (time.perf_counter() - begin) * 1e3


COLD = (
    ("HEAD", "HEAD", ""),
    ("append", "POST", ""),
    ("GET of the tail", "GET", "?offset=now"),
    ("GET of the middle", "GET", "?offset={middle}"),
)


def measure_memory(plan: Plan, results: Results) -> None:
    """The growth of a gateway's memory while it appends to many streams, for two limits."""
    streams = STREAMS // 10 if plan.quick else STREAMS
    half = streams // 2
    with cluster(plan) as nats, ExitStack() as stack:
        body = small_body(plan, stack)
        with nats.gateway() as server:
            for part in "ab":
                each_once(server, part, half, method="PUT", type=BYTES)
        for kept in KEPT:
            limit = max(1, kept * streams // STREAMS)
            with nats.gateway(0, "--max-streams-in-memory", str(limit)) as server:
                sizes = [server.rss()]
                for part in "ab":
                    each_once(server, part, half, type=BYTES, body=body)
                    sizes.append(server.rss())
            title = f"{kept:,} in memory"
            results.add(f"growth of the second half, {title} MB|{GATEWAY}", (sizes[2] - sizes[1]) / 1e6)
            results.add(f"growth of both halves, {title} MB|{GATEWAY}", (sizes[2] - sizes[0]) / 1e6)
            results.add(f"resident, {title} MB|{GATEWAY}", sizes[2] / 1e6)


def each_once(server: Server, part: str, streams: int, **request: object) -> None:
    """Send one request for each stream."""
    path, limit = f"{ROOT}{part}", streams + CONNECTIONS
    wrk(
        server,
        connections=CONNECTIONS,
        seconds=600,
        path=path,
        count=streams,
        pick="each",
        limit=limit,
        **request,
    )
