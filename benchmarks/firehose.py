"""Measure `xdk.streaming` against its targets and against the official module, in one run.

python benchmarks firehose [--rounds N] [--quick] [--only GROUP ...] [--no-peer] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firehose_feed import record
from official_xdk import VERSION, install
from processes import HERE, SQLITE, BenchmarkError, scratch, serving
from results import Results, Target, report
from rich.console import Console

OURS, PEER, ASYNC = "ours", "peer", "ours, async"
KINDS = {"dicts": 3.0, "model": 2.0}  # how many times the official rate is wanted
CODINGS = ("chunked", "plain", "gzip")
PACE = 1000  # records a second
HUGE, PART = 48 << 20, 12 << 20


@dataclass
class Bench:
    """How much is measured, and against whom."""

    rounds: int
    quick: bool
    peer: Path | None
    round: int = 0
    notes: dict[str, str] = field(default_factory=dict)

    def sides(self) -> Iterator[str]:
        """Yield who is measured; every other round goes backwards."""
        names = [OURS] if self.peer is None else [OURS, PEER]
        yield from reversed(names) if self.round % 2 else names

    def work(self, who: str, task: str, **arguments: Any) -> Any:
        """Return what a worker measured on that side; raises BenchmarkError."""
        command = [str(self.peer), "-I"] if who == PEER else [sys.executable]
        paths = os.pathsep.join([str(HERE.parent / "xdk" / "src"), os.environ.get("PYTHONPATH", "")])
        try:
            done = subprocess.run(
                [*command, str(HERE / "firehose_worker.py"), task, json.dumps(arguments)],
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
                env={**os.environ, "PYTHONPATH": paths},
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{task}, {who}: it does not end") from None
        if done.returncode:
            raise BenchmarkError(f"{task}, {who}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
        answer = json.loads(done.stdout)
        if "error" in answer:
            raise BenchmarkError(f"{task}, {who}: {answer['error']}")
        return answer


@contextmanager
def feeding() -> Iterator[str]:
    """Start the feed in a process of its own; yield its origin."""
    command = [sys.executable, str(HERE / "firehose_feed.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def measure_rate(bench: Bench, results: Results, feed: str) -> None:
    records = 20_000 if bench.quick else 300_000
    for kind in KINDS:
        for who in (*bench.sides(), ASYNC):
            task = "arate" if who == ASYNC else "rate"
            got = bench.work(who, task, url=f"{feed}/fast?records={records}", records=records, kind=kind)
            results.add(f"{kind}, items/s|{who}", got["items"] / got["seconds"])
            results.add(f"{kind}, CPU µs a record|{who}", got["cpu"] / got["items"] * 1e6)


def measure_paced(bench: Bench, results: Results, feed: str) -> None:
    records = PACE * (2 if bench.quick else 10)
    for who in (*bench.sides(), ASYNC):
        task = "arate" if who == ASYNC else "rate"
        url = f"{feed}/paced?records={records}&rate={PACE}"
        got = bench.work(who, task, url=url, records=records, kind="dicts")
        results.add(f"at {PACE:,}/s, CPU µs a record|{who}", got["cpu"] / got["items"] * 1e6)


def measure_first(bench: Bench, results: Results, feed: str) -> None:
    for coding in CODINGS:
        for who in bench.sides():
            url = f"{feed}/slow?coding={coding}"
            seconds = bench.work(who, "first", url=url, times=3 if bench.quick else 9)["seconds"]
            if seconds is not None:
                results.add(f"first record, {coding}, ms|{who}", seconds * 1e3)
            elif who == PEER:
                bench.notes[f"first record, {coding}"] = "the peer holds it back until more comes"
            else:
                raise BenchmarkError(f"first record, {coding}: ours holds it back")


def measure_relay(bench: Bench, results: Results, feed: str) -> None:
    """From a file into a stream on disk: what comes in over HTTP costs what `rate` says."""
    del feed
    records = 15_000 if bench.quick else 150_000
    with scratch(None) as folder, serving(SQLITE, folder / "server") as server:
        file = folder / "records.ndjson"
        file.write_bytes(b"".join(record(number) for number in range(records)))
        target, state = f"{server.origin}/v1/stream/relayed", str(folder / "place")
        got = bench.work(OURS, "relayed", file=str(file), target=target, state=state)
        if got["items"] != records:
            raise BenchmarkError(f"relay: {got['items']} of {records} records were stored")
        results.add(f"relay, records/s|{OURS}", records / got["seconds"])
        results.add(f"relay, CPU µs a record|{OURS}", got["cpu"] / records * 1e6)


def measure_huge(bench: Bench, results: Results, feed: str) -> None:
    """One line of 48 MiB, against one of a quarter; ours alone: the peer takes quadratic time."""
    whole = bench.work(OURS, "huge", url=f"{feed}/huge?size={HUGE}")
    part = bench.work(OURS, "huge", url=f"{feed}/huge?size={PART}")
    results.add(f"one line of 48 MiB, CPU s|{OURS}", whole["cpu"])
    results.add(f"one line of 12 MiB, CPU s|{OURS}", part["cpu"])
    results.add(f"line of 48 MiB against 12 MiB, times|{OURS}", whole["cpu"] / part["cpu"])
    results.add(f"memory of a line in its size, times|{OURS}", whole["growth"] / HUGE)
    over = bench.work(OURS, "huge", url=f"{feed}/huge?size={HUGE}", limit=PART)
    if "refused" not in over:
        raise BenchmarkError("a line over the limit is no error")


MEASURES = {
    "rate": measure_rate,
    "paced": measure_paced,
    "first": measure_first,
    "relay": measure_relay,
    "huge": measure_huge,
}
TARGETS = {
    "rate": [
        Target(f"400-byte records, {kind}, items/s", f"{kind}, items/s", OURS, PEER, limit)
        for kind, limit in KINDS.items()
    ],
    "paced": [
        Target(
            "CPU of a record at 1,000/s",
            f"at {PACE:,}/s, CPU µs a record",
            OURS,
            PEER,
            1.2,
            at_least=False,
        )
    ],
    # It took 21 µs when it parsed each record four times and noted its place for each of them.
    "relay": [Target("CPU of a relayed record", "relay, CPU µs a record", OURS, None, 14, at_least=False)],
    "first": [
        Target(
            f"first record of a slow feed, {coding}",
            f"first record, {coding}, ms",
            OURS,
            None,
            5,
            at_least=False,
        )
        for coding in CODINGS
    ],
    "huge": [
        # Four times the bytes, and half as much again for caches and a loaded machine.
        Target(
            "time of 48 MiB, in that of 12",
            "line of 48 MiB against 12 MiB, times",
            OURS,
            None,
            6,
            at_least=False,
        ),
        Target(
            "memory, in sizes of the line",
            "memory of a line in its size, times",
            OURS,
            None,
            4,
            at_least=False,
        ),
    ],
}


def main() -> int:
    args = parse_arguments()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    results, failures = Results(), 0
    try:
        peer = None if args.no_peer else install()
    except BenchmarkError as error:
        console.print(f"[red]benchmark:[/] {error}; --no-peer does without", highlight=False)
        return 1
    bench = Bench(1 if args.quick else args.rounds, args.quick, peer)
    for number in range(bench.rounds):
        bench.round = number
        for group in args.only:
            console.print(f"round {number + 1} of {bench.rounds}: {group}", highlight=False)
            try:
                with feeding() as feed:
                    MEASURES[group](bench, results, feed)
            except BenchmarkError as error:
                console.print(f"[red]benchmark:[/] {error}", highlight=False)
                failures += 1
    targets = [target for group in args.only for target in TARGETS[group]]
    report(console, results, targets, f"official xdk {VERSION}", notes=bench.notes, output=args.json)
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure xdk.streaming against its targets and the official module."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round with less data: is it working?")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--json", type=Path, help="write samples and verdicts to this file")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
