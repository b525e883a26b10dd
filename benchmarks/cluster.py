"""Measure gateways on a NATS cluster against their targets and against the bare NATS client, in one run.

python benchmarks cluster [--rounds N] [--quick] [--only GROUP ...] [--json FILE] [--data DIR]
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import cluster_groups as groups
from cluster_capacity import measure_capacity
from cluster_groups import ALONE, GATEWAY
from processes import BenchmarkError
from results import Plan, Results, Target, report
from rich.console import Console
from wrk import require_wrk

MEASURES = {
    "one": groups.measure_one,
    "many": groups.measure_many,
    "producer": groups.measure_producer,
    "live": groups.measure_live,
    "reads": groups.measure_reads,
    "cold": groups.measure_cold,
    "memory": groups.measure_memory,
    "capacity": measure_capacity,
}


def at_most(title: str, name: str, limit: float, other: str | None = None) -> Target:
    return Target(title, name, GATEWAY, other, limit, at_least=False)


def at_least(title: str, name: str, limit: float, other: str | None = None) -> Target:
    return Target(title, name, GATEWAY, other, limit)


TARGETS = {
    "one": [at_most("one append at a time, median ms", "append ms", 1.8, ALONE)],
    "many": [
        at_least(
            f"{groups.CONNECTIONS} connections and streams, appends/s",
            f"appends/s to {groups.CONNECTIONS} streams",
            0.5,
            ALONE,
        )
    ],
    "producer": [
        at_least(f"producer, {kind}", f"produced {kind} messages/s", 150_000) for kind in groups.BOTH
    ],
    "live": [at_most("append at one gateway to event at another", "append to event ms", 5)],
    "reads": [
        at_least(f"catch-up MB/s, {title}", f"{kind} read MB/s", 0.5, ALONE)
        for kind, title in groups.KINDS.items()
    ],
    "cold": [
        *(
            at_most(f"first {name}, 1,000,000 records", f"cold open, {name} ms", 50)
            for name, *_ in groups.COLD
        ),
        at_most(f"HEAD, {groups.BEHIND:,} records behind", f"HEAD, {groups.BEHIND:,} records behind ms", 50),
    ],
    "memory": [
        at_most(
            f"memory for 50,000 more streams, {groups.KEPT[0]:,} kept",
            f"growth of the second half, {groups.KEPT[0]:,} in memory MB",
            10,
        )
    ],
    "capacity": [],
}


def main() -> int:
    args = parse_arguments()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    plan = Plan(
        seconds=1.0 if args.quick else args.seconds,
        quick=args.quick,
        peer=True,
        parent=args.data,
        rounds=1 if args.quick else args.rounds,
    )
    results, failures = Results(), 0
    try:
        require_wrk()
    except BenchmarkError as error:
        console.print(f"[red]benchmark:[/] {error}", highlight=False)
        return 1
    for group in args.only:
        console.print(f"{plan.rounds} rounds: {group}", highlight=False)
        try:
            MEASURES[group](plan, results)
        except BenchmarkError as error:
            console.print(f"[red]benchmark:[/] {error}", highlight=False)
            failures += 1
    targets = [target for group in args.only for target in TARGETS[group]]
    about: dict[str, object] = {"nats-py": version("nats-py")}
    report(console, results, targets, "bare NATS client", about=about, output=args.json)
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure gateways on a NATS cluster against their targets and the bare NATS client."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--quick", action="store_true", help="one short round with less data: is it working?")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--json", type=Path, help="write samples and verdicts to this file")
    parser.add_argument("--data", type=Path, help="folder for the NATS servers' data, on the disk to measure")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
