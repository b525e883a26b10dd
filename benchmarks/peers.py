"""Measure the servers of ``contenders.py`` beside each other, by turns, in one run; a run is kept as JSON.

python benchmarks peers [--preset quick|short|full] [--only SHAPE ...] [--servers NAME ...] [--json FILE]
    [--compare OLD.json] [--data DIR] [--publish]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import appends
import record
from client_groups import OURS, work
from cluster_groups import checked
from contenders import CONTENDERS, Contender
from live import PATH as LIVE
from live import Writer, crowd
from processes import HERE, BenchmarkError, Server, scratch
from reads import follow
from results import Plan
from wrk import Load, require_wrk, wrk

BYTES, JSON = "application/octet-stream", "application/json"
PATH = "/v1/stream/s"
PACE = 10  # appends, and paced reads, a second where latency is measured
DISK = "the disk alone"


@dataclass(frozen=True)
class Preset:
    """How much is measured; ``rounds`` is for each shape but those that take long."""

    rounds: int
    seconds: float
    ladder: tuple[int, ...] = (1, 8, 64, 256)
    sizes: tuple[int, ...] = (100, 1024, 65536)
    streams: tuple[int, ...] = (1, 100, 10_000, 100_000)
    making: float = 25  # seconds at most in which streams are made
    readers: int = 1000
    spread_readers: int = 2048
    spread_streams: int = 100
    idle: int = 5000
    stampede: tuple[int, int] = (64, 10_000_000)
    messages: int = 300_000
    limit: int = 60  # seconds of one step: a server that needs more is not measured in that shape


PRESETS = {
    "quick": Preset(1, 1, (1, 8), (100, 1024), (1, 100), 5, 20, 40, 10, 50, (4, 1_000_000), 5_000),
    "short": Preset(2, 2),
    "full": Preset(3, 5, making=200, limit=600),
}


@dataclass
class Book:
    """The samples of a run, and what could not be measured."""

    samples: dict[tuple[str, str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    missing: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, shape: str, measure: str, server: str, value: float, better: str = "more") -> None:
        self.samples[shape, measure, server, better].append(value)

    def run(self, preset: str) -> record.Run:
        rows = [
            record.row(shape, measure, server, values, better)
            for (shape, measure, server, better), values in self.samples.items()
        ]
        return {
            "schema": record.SCHEMA,
            "machine": machine(),
            "versions": self.versions,
            "preset": preset,
            "rounds": PRESETS[preset].rounds,
            "missing": self.missing,
            "rows": rows,
        }


def machine() -> dict[str, Any]:
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "load at the end": round(os.getloadavg()[0], 1),
    }


def thread_times(pid: int) -> dict[str, float]:
    """Return the processor seconds of a process by the name of its threads, without their numbers."""
    tick = os.sysconf("SC_CLK_TCK")
    times: dict[str, float] = defaultdict(float)
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        first = " (first thread)" if stat.parent.name == str(pid) else ""
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has just ended
        fields = rest.split()
        times[re.sub(r"[\d#:_-]*\d+$", "", name) + first] += (int(fields[11]) + int(fields[12])) / tick
    return times


def post(server: Server, body: Path, seconds: float, connections: int, streams: int = 1) -> Load:
    return wrk(
        server, connections=connections, seconds=seconds, path=PATH, count=streams, type=BYTES, body=body
    )


def filled(folder: Path, size: int) -> Path:
    body = folder / f"body-{size}"
    body.write_bytes(b"x" * size)
    return body


def shape_appends(preset: Preset, who: Contender, server: Server, folder: Path, book: Book) -> None:
    """A ladder of connections that append to one stream, and larger appends; every acknowledged byte must be there."""
    if who.stores:
        server.request("PUT", PATH + "1", content_type=BYTES)
    sizes = preset.sizes if who.durable else preset.sizes[:1]
    steps = [(connections, preset.sizes[0]) for connections in preset.ladder]
    steps += [(preset.ladder[-2], size) for size in sizes[1:]]
    acknowledged = 0
    for connections, size in steps:
        body = filled(folder, size)
        acknowledged += size * post(server, body, 1, connections).requests
        before = thread_times(server.pid)
        load = post(server, body, preset.seconds, connections)
        after = thread_times(server.pid)
        acknowledged += size * load.requests
        shape = f"{connections} connections, {size:,} bytes"
        book.add(shape, record.RATE, who.name, load.rate)
        for title, value in (("p50", load.p50), ("p99", load.p99), ("p99.9", load.p999)):
            book.add(shape, f"{title} ms", who.name, value, "less")
        spent = {name: after[name] - before.get(name, 0.0) for name in after}
        book.add(shape, "CPU µs/append", who.name, sum(spent.values()) / load.requests * 1e6, "less")
        if (connections, size) == (preset.ladder[-2], preset.sizes[0]):
            for name, seconds in spent.items():
                cost = seconds / load.requests * 1e6
                if cost >= 0.5:
                    book.add("CPU by thread of these", "µs/append", f"{who.name}: {name}", cost, "neither")
    if who.stores and (stored := follow(server, PATH + "1")) < acknowledged:
        raise BenchmarkError(f"{who.name} acknowledged {acknowledged} bytes and holds {stored}.")


def shape_streams(preset: Preset, who: Contender, server: Server, folder: Path, book: Book) -> None:
    """Appends to a random one of many streams, and the memory of the server with all of them."""
    body = filled(folder, 100)
    before = server.rss()
    for streams in preset.streams:
        start = time.perf_counter()
        made = wrk(
            server,
            connections=64,
            seconds=preset.making,
            method="PUT",
            path=PATH,
            count=streams,
            pick="each",
            type=BYTES,
            limit=streams + 64,
        ).requests
        if made < streams:
            seconds = time.perf_counter() - start
            raise BenchmarkError(f"{made:,} of {streams:,} streams were made within {seconds:.0f} s.")
        memory = (server.rss() - before) / 1e6
        book.add(
            f"{streams:,} streams",
            record.RATE,
            who.name,
            post(server, body, preset.seconds, 64, streams).rate,
        )
        book.add(f"{streams:,} streams", "memory when made, MB", who.name, memory, "less")


def deliver(server: Server, readers: int, streams: int, seconds: float) -> dict[str, float]:
    """Append at a fixed pace to each stream in turn; return the report of the readers."""
    paths = [f"{LIVE}{number + 1}" for number in range(streams)] if streams else [LIVE]
    for path in paths:
        server.request("PUT", path, content_type=JSON)
    each = max(3, round(PACE * seconds / (5 if streams else 1)))
    with crowd(server, readers, streams) as process:
        writer = Writer(server)
        start = time.monotonic()
        for number in range(each * len(paths)):
            time.sleep(max(0.0, start + number / (PACE * len(paths)) - time.monotonic()))
            writer.append(paths[number % len(paths)])
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"expect {each}\n")
        process.stdin.flush()
        report: dict[str, float] = json.loads(process.stdout.readline() or "{}")
    if not report.get("p50_ms") or report["complete"] < readers:
        raise BenchmarkError(f"not every reader got each of {each} messages: {report}.")
    return report


def shape_sse(preset: Preset, who: Contender, server: Server, _folder: Path, book: Book) -> None:
    """SSE readers of one stream, from before an append until a reader has it."""
    report = deliver(server, preset.readers, 0, preset.seconds)
    book.add(f"{preset.readers:,} SSE readers of one stream", "p50 ms", who.name, report["p50_ms"], "less")
    book.add(f"{preset.readers:,} SSE readers of one stream", "p99 ms", who.name, report["p99_ms"], "less")


def shape_fan(preset: Preset, who: Contender, server: Server, _folder: Path, book: Book) -> None:
    """SSE readers of many streams."""
    report = deliver(server, preset.spread_readers, preset.spread_streams, preset.seconds)
    shape = f"{preset.spread_readers:,} SSE readers of {preset.spread_streams} streams"
    book.add(shape, "p50 ms", who.name, report["p50_ms"], "less")
    book.add(shape, "p99 ms", who.name, report["p99_ms"], "less")


def shape_idle(preset: Preset, who: Contender, server: Server, _folder: Path, book: Book) -> None:
    """SSE readers at the tail that nothing is sent to."""
    server.request("PUT", LIVE, content_type=JSON)
    with crowd(server, min(50, preset.idle)):
        pass
    before = server.rss()
    with crowd(server, preset.idle):
        time.sleep(1)
        shape = f"{preset.idle:,} idle SSE readers"
        book.add(shape, "KB each", who.name, (server.rss() - before) / preset.idle / 1000, "less")


def shape_stampede(preset: Preset, who: Contender, server: Server, folder: Path, book: Book) -> None:
    """Many readers that read a stream from the start at once."""
    readers, size = preset.stampede
    server.request("PUT", PATH + "1", content_type=BYTES)
    each = 65536
    wrk(
        server,
        connections=4,
        seconds=60,
        path=PATH + "1",
        type=BYTES,
        body=filled(folder, each),
        limit=size // each + 1,
    )
    follow(server, PATH + "1")
    got: list[int] = []
    threads = [
        threading.Thread(target=lambda: got.append(follow(server, PATH + "1"))) for _ in range(readers)
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if len(got) < readers or min(got) < size:
        raise BenchmarkError(f"{len(got)} of {readers} readers read the whole stream.")
    book.add(f"catch-up of {readers} readers at once", "MB/s", who.name, sum(got) / seconds / 1e6)


def shape_paced(preset: Preset, who: Contender, server: Server, folder: Path, book: Book) -> None:
    """Reads of the tail at a fixed pace while eight connections append."""
    server.request("PUT", PATH + "1", content_type=BYTES)
    headers, _ = server.request("POST", PATH + "1", b"x" * 1024, BYTES)
    path = f"{PATH}1?offset={headers['Stream-Next-Offset']}"
    took: list[float] = []
    loads: list[Load] = []
    body = filled(folder, 100)
    other = threading.Thread(target=lambda: loads.append(_pinned(server, body, preset.seconds)))
    other.start()
    start = time.perf_counter()
    number = 0
    while other.is_alive():
        time.sleep(max(0.0, start + number / (10 * PACE) - time.perf_counter()))
        before = time.perf_counter()
        server.request("GET", path)
        took.append((time.perf_counter() - before) * 1000)
        number += 1
    other.join()
    if not loads:
        raise BenchmarkError(f"{who.name} did not answer every append.")
    took.sort()
    shape = f"{10 * PACE} reads/s while 8 connections append"
    book.add(shape, record.RATE, who.name, loads[0].rate)
    book.add(shape, "read p50 ms", who.name, took[len(took) // 2], "less")
    book.add(shape, "read p99 ms", who.name, took[len(took) * 99 // 100], "less")


def _pinned(server: Server, body: Path, seconds: float) -> Load:
    """Append to another stream than the one that is read."""
    server.request("PUT", PATH + "-pinned", content_type=BYTES)
    return wrk(server, connections=8, seconds=seconds, path=PATH + "-pinned", type=BYTES, body=body)


def shape_producer(preset: Preset, who: Contender, server: Server, _folder: Path, book: Book) -> None:
    """Our producer with its default settings, which sends in batches."""
    arguments = {"url": f"{server.origin}/v1/stream/produced", "messages": preset.messages}
    done = checked(
        "the producer", work(OURS, [str(HERE / "client_own.py"), "produce", json.dumps(arguments)])
    )
    book.add("a producer, messages of 100 bytes", "messages/s", who.name, preset.messages / done["seconds"])


Shape = Callable[[Preset, Contender, Server, Path, Book], None]
# The most telling first: a run that is ended early keeps them. The second is how often, in rounds.
SHAPES: dict[str, tuple[Shape, float]] = {
    "appends": (shape_appends, 1),
    "producer": (shape_producer, 1),
    "sse": (shape_sse, 1),
    "stampede": (shape_stampede, 1),
    "fan": (shape_fan, 1),
    "idle": (shape_idle, 0.1),
    "paced": (shape_paced, 1),
    "streams": (shape_streams, 0.1),
}


def measure_disk(folder: Path, seconds: float, book: Book) -> None:
    """``fdatasync`` of appends of 4 KiB, one and 64 at a time: what any durable server can reach at most.

    Once more into space that is there already, where the file's length need not be written.
    """
    for together in (1, 64):
        for place in ("appended", "into space that is there"):
            rate = _synced(folder / f"{place}-{together}", together, seconds, ready=place != "appended")
            book.add(f"fdatasync of 4 KiB {place}", f"{together} at a time, appends/s", DISK, rate)


def _synced(path: Path, together: int, seconds: float, *, ready: bool) -> float:
    data, space = b"x" * 4096 * together, 64 << 20
    with path.open("wb", buffering=0) as file:
        if ready:
            file.write(bytes(space))
            os.fsync(file.fileno())
            file.seek(0)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            if ready and file.tell() + len(data) > space:
                file.seek(0)
            file.write(data)
            os.fdatasync(file.fileno())
            count += 1
        return count * together / (time.perf_counter() - start)


def had(names: list[str] | None, book: Book) -> list[Contender]:
    """Install what is wanted; note the versions, and what cannot be had."""
    able = []
    for who in CONTENDERS:
        if names and not any(who.name.startswith(name) for name in names):
            continue
        peer = who.name.split(",")[0]
        if peer in book.missing:
            continue
        try:
            book.versions[peer] = who.have()
        except BenchmarkError as error:
            book.missing[peer] = str(error).partition("\n")[0]
            print(f"left out: {error}", flush=True)
        else:
            able.append(who)
    return able


def steps(preset: Preset, only: list[str], able: list[Contender]) -> Iterator[tuple[str, int, Contender]]:
    """Yield what is measured, shape by shape, servers by turns; every other round goes backwards."""
    for shape in only:
        for number in range(max(1, round(preset.rounds * SHAPES[shape][1]))):
            turn = [who for who in able if shape == "appends" or who.durable]
            for who in reversed(turn) if number % 2 else turn:
                yield shape, number, who


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """End what takes longer than this with a `BenchmarkError`."""

    def end(*_: object) -> None:
        raise BenchmarkError(f"It was not done within {seconds} s.")

    signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def measure(args: argparse.Namespace, book: Book, keep: Callable[[], None]) -> None:
    preset = PRESETS[args.preset]
    able = had(args.servers, book)
    plan = Plan(seconds=preset.seconds, quick=args.preset == "quick", peer=True, parent=args.data)
    appends.learn_headers(plan)
    with scratch(args.data) as folder:
        measure_disk(folder, preset.seconds, book)
    for shape, number, who in steps(preset, args.only, able):
        print(f"{time.strftime('%H:%M:%S')} {shape}, round {number + 1}: {who.name}", flush=True)
        try:
            with (
                scratch(args.data) as folder,
                scratch(args.data) as data,
                who.start(data) as server,
                at_most(preset.limit),
            ):
                SHAPES[shape][0](preset, who, server, folder, book)
        except (BenchmarkError, OSError, ValueError) as error:
            book.missing[f"{who.name}, {shape}"] = str(error)
            print(f"not measured: {error}", flush=True)
        keep()


def main() -> int:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended on the way out
    book = Book()
    try:
        old = record.load(args.compare) if args.compare else None
        require_wrk()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

        def keep() -> None:
            args.json.write_text(json.dumps(book.run(args.preset), indent=1) + "\n")

        measure(args, book, keep)
        run = book.run(args.preset)
        print(record.tables(run))
        if args.publish:
            record.publish(run, HERE / "README.md", HERE / "appends.svg")
    except (BenchmarkError, record.RecordError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    worse = record.compare(old, run) if old else []
    print("\n".join(worse) or ("Nothing is worse beyond the noise." if old else ""))
    return 1 if worse else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the servers beside each other.")
    parser.add_argument("--preset", choices=PRESETS, default="short", help="quick: does it run?")
    parser.add_argument("--quick", dest="preset", action="store_const", const="quick")
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--servers", nargs="+", help="how the names of the wanted ones begin: ours Rust ...")
    parser.add_argument(
        "--json", type=Path, default=Path("peers.json"), help="where the run is kept (peers.json)"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="show what is worse beyond the noise"
    )
    parser.add_argument(
        "--publish", action="store_true", help="rewrite the tables of README.md and the chart"
    )
    parser.add_argument("--data", type=Path, help="folder for the servers' data, on the disk to be measured")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
