"""Measure the server against its targets and against the reference server, in one run.

python benchmarks server [--rounds N] [--quick] [--only GROUP ...] [--no-peer] [--json FILE] [--data DIR]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import appends
import credentials
import growth
import live
import reads
from processes import (
    BARE,
    MEMORY,
    PEER_FILES,
    PEER_MEMORY,
    SQLITE,
    BenchmarkError,
    install_peer,
)
from results import Plan, Results, Target, report
from rich.console import Console
from wrk import require_wrk

ONE, HUNDRED = "appends/s to one stream", "appends/s to 100 streams"
TARGETS = {
    "appends": [
        Target("durable appends, one stream", ONE, SQLITE, PEER_FILES, 15),
        Target("durable appends, one stream", ONE, SQLITE, BARE, 0.55),
        Target("durable appends, 100 streams", HUNDRED, SQLITE, PEER_FILES, 15),
        Target("durable appends, 100 streams", HUNDRED, SQLITE, BARE, 0.55),
        Target("one connection, median ms", "append ms", SQLITE, PEER_FILES, 0.4, at_least=False),
        Target("appends in memory, one stream", ONE, MEMORY, PEER_MEMORY, 2),
    ],
    "credentials": [
        Target("appends with a key, of anonymous ones", credentials.RATE, "a key", "anonymous", 0.92),
        Target("appends with a token, of anonymous ones", credentials.RATE, "a token", "anonymous", 0.92),
        Target("processor for a key", credentials.PROCESSOR, "a key", "anonymous", 1.09, at_least=False),
        Target("processor for a token", credentials.PROCESSOR, "a token", "anonymous", 1.09, at_least=False),
    ],
    "reads": [
        target
        for kind in reads.KINDS
        for target in (
            Target(f"catch-up MB/s, {kind}", f"{kind} read MB/s", SQLITE, PEER_FILES, 2),
            Target(f"catch-up MB/s, {kind}", f"{kind} read MB/s", MEMORY, PEER_MEMORY, 2),
            Target(
                f"memory growth, {kind}",
                f"memory growth of a {kind} read MB",
                SQLITE,
                None,
                32,
                at_least=False,
            ),
            Target(
                f"memory growth, {kind}",
                f"memory growth of a {kind} read MB",
                MEMORY,
                None,
                32,
                at_least=False,
            ),
        )
    ],
    "live": [
        Target("SSE to 500, deliveries/s", "sse deliveries/s", SQLITE, PEER_FILES, 1.5),
        Target("SSE to 500, deliveries/s", "sse deliveries/s", MEMORY, PEER_MEMORY, 1.5),
        Target("SSE to 500, median ms", "sse latency ms", SQLITE, PEER_FILES, 0.5, at_least=False),
        Target("SSE to 500, median ms", "sse latency ms", MEMORY, PEER_MEMORY, 0.5, at_least=False),
    ],
    "idle": [Target("memory of an idle SSE reader", "idle sse KB", SQLITE, None, 20, at_least=False)],
    "streams": [
        Target("appends/s, 100 streams against one", "appends/s", "100 streams", "one stream", 0.85),
        Target("appends/s, many streams against one", "appends/s", "many streams", "one stream", 0.7),
        Target("start-up with many streams", "start-up s", "many streams", None, 1, at_least=False),
    ],
    "tail": [
        Target(
            "tail reads, short against long",
            "tail reads/s",
            "short stream",
            "long stream",
            1.3,
            at_least=False,
        )
    ],
}
EVERY_ROUND = {
    "appends": appends.measure,
    "credentials": credentials.measure,
    "reads": reads.measure,
    "live": live.measure,
    "idle": live.measure_idle,
}
ROUNDS_INSIDE = {"streams": growth.measure_streams, "tail": growth.measure_tail}


def main() -> int:
    args = parse_arguments()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    results = Results()
    plan = Plan(
        seconds=1.0 if args.quick else args.seconds,
        quick=args.quick,
        peer=not args.no_peer,
        parent=args.data,
        rounds=1 if args.quick else args.rounds,
    )
    try:
        prepare(plan)
        failures = measure(console, plan, results, args.only)
    except BenchmarkError as error:
        console.print(f"[red]benchmark:[/] {error}", highlight=False)
        return 1
    targets = [target for group in args.only for target in TARGETS[group]]
    report(console, results, targets, "reference server", about={"Node": node_version()}, output=args.json)
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure the server against its targets and the reference server."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--quick", action="store_true", help="one short round with less data: is it working?")
    parser.add_argument("--only", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--json", type=Path, help="write samples and verdicts to this file")
    parser.add_argument("--data", type=Path, help="folder for the servers' data, on the disk to be measured")
    return parser.parse_args()


def prepare(plan: Plan) -> None:
    """Check what is needed before anything is started."""
    require_wrk()
    if plan.peer:
        install_peer()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < live.IDLE + 1000:
        raise BenchmarkError(
            f"{live.IDLE} connections need as many open files, the limit is {hard}; raise it"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def measure(console: Console, plan: Plan, results: Results, only: list[str]) -> int:
    """Run every group; one that fails is reported and does not stop the others. Return how many failed."""
    steps = [
        (number, f"round {number + 1} of {plan.rounds}: {group}", EVERY_ROUND[group])
        for number in range(plan.rounds)
        for group in only
        if group in EVERY_ROUND
    ]
    steps += [
        (0, f"{plan.rounds} rounds: {group}", ROUNDS_INSIDE[group])
        for group in only
        if group in ROUNDS_INSIDE
    ]
    failures = 0
    for number, title, step in steps:
        console.print(title, highlight=False)
        plan.round = number
        try:
            step(plan, results)
        except BenchmarkError as error:
            console.print(f"[red]benchmark:[/] {error}", highlight=False)
            failures += 1
    return failures


def node_version() -> str:
    """Return what the peer runs on."""
    return (
        subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
        .stdout.strip()
        .lstrip("v")
    )


if __name__ == "__main__":
    sys.exit(main())
