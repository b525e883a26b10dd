"""Measure the client against its targets and against the official package, in one run.

python benchmarks client [--rounds N] [--quick] [--only GROUP ...] [--no-peer] [--json FILE] [--data DIR]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import client_groups as groups
from client_groups import ALONE, BARE, BOTH, CONCURRENTLY, NEEDED, OURS, PEER, PEER_SHARED, READ_KINDS, Bench
from processes import BenchmarkError
from results import Results, Target, report
from rich.console import Console

MEASURES = {
    "calls": groups.measure_calls,
    "appends": groups.measure_appends,
    "reads": groups.measure_reads,
    "bytes": groups.measure_bytes,
    "producer": groups.measure_producer,
    "imports": groups.measure_imports,
}


def at_most(title: str, name: str, other: str | None, limit: float) -> Target:
    return Target(title, name, OURS, other, limit, at_least=False)


def at_least(title: str, name: str, other: str | None, limit: float) -> Target:
    return Target(title, name, OURS, other, limit)


TARGETS = {
    "calls": [
        at_most(f"{call}, one call, {kind}, ms", f"{call} {kind} ms", PEER, 1 / 20)
        for kind in BOTH
        for call in ("stream(url)", "create(url)")
    ],
    "appends": [
        *(at_most(f"one append at a time, {kind}, ms", f"append {kind} ms", PEER, 0.5) for kind in BOTH),
        at_most("one append at a time, sync, ms", "append sync ms", BARE, 1.25),
        *(at_least(f"{CONCURRENTLY}, async", CONCURRENTLY, peer, 8) for peer in (PEER, PEER_SHARED)),
    ],
    "reads": [
        *(
            at_least(f"{task}, {kind}, {live}, items/s", f"{task} {kind} {live} items/s", PEER, 4)
            for task in ("iter_json", "read_json")
            for kind in BOTH
            for live in READ_KINDS
        ),
        *(
            at_least(
                f"iter_json, {kind}, catch-up, items/s", f"iter_json {kind} catch-up items/s", ALONE, 0.8
            )
            for kind in BOTH
        ),
        *(
            at_most(f"own time an item, {kind}, {live}", f"own time an item, {kind} {live} µs", None, 0.3)
            for kind in BOTH
            for live in READ_KINDS
        ),
    ],
    "bytes": [
        target
        for kind in BOTH
        for target in (
            at_least(f"read of bytes, {kind}, MB/s", f"read {kind} MB/s", NEEDED, 1),
            at_most(f"memory growth, {kind}", f"memory growth {kind} MB", None, 32),
        )
    ],
    "producer": [
        *(
            at_least(f"produced messages/s, {kind}", f"produced {kind} messages/s", None, 800_000)
            for kind in BOTH
        ),
        at_least(
            "produced messages/s, sync, linger_ms=0", "produced sync, linger_ms=0 messages/s", None, 300_000
        ),
    ],
    "imports": [
        at_most(f"import, {what}", f"import {what} ms", None, 100) for what in ("package", "every name")
    ],
}


def main() -> int:
    args = parse_arguments()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    plan = Bench(
        seconds=0.5 if args.quick else args.seconds,
        quick=args.quick,
        peer=not args.no_peer,
        parent=args.data,
        rounds=1 if args.quick else args.rounds,
    )
    results, failures = Results(), 0
    try:
        if plan.peer:
            groups.install_peer_client()
    except BenchmarkError as error:
        console.print(f"[red]benchmark:[/] {error}; --no-peer does without", highlight=False)
        return 1
    for number in range(plan.rounds):
        plan.round = number
        for group in args.only:
            console.print(f"round {plan.round + 1} of {plan.rounds}: {group}", highlight=False)
            try:
                MEASURES[group](plan, results)
            except BenchmarkError as error:
                console.print(f"[red]benchmark:[/] {error}", highlight=False)
                failures += 1
    targets = [target for group in args.only for target in TARGETS[group]]
    report(console, results, targets, "official client", notes=plan.notes, output=args.json)
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure the client against its targets and the official package."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement of calls")
    parser.add_argument("--quick", action="store_true", help="one short round with less data: is it working?")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--json", type=Path, help="write samples and verdicts to this file")
    parser.add_argument("--data", type=Path, help="folder for the server's data, on the disk to be measured")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
