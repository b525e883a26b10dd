"""Measure how many changes a second a StreamDB takes, into memory and into a SQLite file.

python benchmarks/live_state.py [--rounds N] [--changes N] [--quick] [--json FILE]

The stream is served by a process of its own, and followed from its start to its tail: the time is that of everything
from the first request to the last committed batch. Beside the rate stands the processor time of the follower, which
other programs on the machine do not change as much.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import sys
import time
from pathlib import Path

import msgspec
from processes import MEMORY, scratch, serving
from results import Results, Target, report
from rich.console import Console

from durable_streams import DurableStream, SyncIdempotentProducer
from durable_streams.state import AsyncStreamDB, Collection, StateSchema, StreamDB

KEYS = 50_000
SIDES = ("sync", "async")


class Reading(msgspec.Struct):
    """A row of some 100 bytes of JSON."""

    id: str
    place: str
    value: float
    count: int


SCHEMA = StateSchema(readings=Collection(Reading, type="reading"))
PLACES = {"memory": 200_000, "SQLite": 50_000}


def fill(url: str, changes: int) -> None:
    """Write the stream: rows that come, and that change."""
    DurableStream.create(url, content_type="application/json")
    upsert = SCHEMA.readings.upsert
    with SyncIdempotentProducer(url, "bench", content_type="application/json") as producer:
        for number in range(changes):
            row = Reading(f"sensor-{number * 7919 % KEYS}", "a hall somewhere", number / 7, number)
            producer.put(upsert(row))


def follow(side: str, url: str, path: Path | None) -> int:
    """Follow the stream to its tail; return how many rows there are."""

    async def asynchronously() -> int:
        async with AsyncStreamDB(url, SCHEMA, path=path, live=False) as db:
            await db.preload()
            return len(db.readings)

    if side == "async":
        return asyncio.run(asynchronously())
    with StreamDB(url, SCHEMA, path=path, live=False) as db:
        db.preload()
        return len(db.readings)


def measure(results: Results, url: str, changes: int) -> None:
    for place in PLACES:
        for side in SIDES:
            with scratch(None) as folder:
                path = None if place == "memory" else folder / "state.db"
                began, used = time.perf_counter(), time.process_time()
                rows = follow(side, url, path)
                took, used = time.perf_counter() - began, time.process_time() - used
            assert rows == min(KEYS, changes), rows
            results.add(f"into {place}, changes/s|{side}", changes / took)
            results.add(f"into {place}, per second of CPU time, changes|{side}", changes / used)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how many changes a second a StreamDB takes.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--changes", type=int, default=500_000)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--profile", choices=PLACES, help="show where the sync side spends its time, and end")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    changes = KEYS if args.quick else args.changes
    results = Results()
    with serving(MEMORY) as server:
        url = f"{server.origin}/v1/stream/readings"
        fill(url, changes)
        if args.profile:
            profile(url, args.profile)
            return 0
        for _ in range(1 if args.quick else args.rounds):
            measure(results, url, changes)
    targets = [
        Target(f"into {place}, {side}", f"into {place}, per second of CPU time, changes", side, None, limit)
        for place, limit in PLACES.items()
        for side in SIDES
    ]
    report(Console(width=120), results, targets, "targets", about={"changes": changes}, output=args.json)
    return 0


def profile(url: str, place: str) -> None:
    """Show the functions that take the most time, with the follower on the thread that is watched."""
    with scratch(None) as folder:
        path = None if place == "memory" else folder / "state.db"
        with StreamDB(url, SCHEMA, path=path, live=False) as db, cProfile.Profile() as watched:
            db._follow()  # noqa: SLF001 - what the thread runs
    pstats.Stats(watched).sort_stats("tottime").print_stats(18)


if __name__ == "__main__":
    sys.exit(main())
