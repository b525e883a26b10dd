"""Measure appends of `DurableStreams` against the same appends over loopback HTTP, in one run.

python benchmarks/in_process.py [--rounds N] [--quick] [--json FILE]

Both sides are the same handles of the same streams in one process, which is what an application does that mounts the
server; over HTTP they reach it through Uvicorn on a free port.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from processes import scratch
from results import Results, Target, report
from rich.console import Console

from durable_streams import AsyncDurableStream
from durable_streams.embedded import DurableStreams

IN_PROCESS, OVER_HTTP = "in process", "over HTTP"
STORES = ("memory", "SQLite")
DATA = b"x" * 100
BYTES = "application/octet-stream"
# What runs at a time, and whether appends of one handle go out together.
SHAPES = {
    "one after the other": (1, False),
    "64 at a time, each alone": (64, False),
    "64 at a time, batched": (64, True),
}
SHORT = 0.3  # seconds of --quick


@asynccontextmanager
async def listening(streams: DurableStreams) -> AsyncIterator[str]:
    """Serve the streams on a free port, on this event loop."""
    # Named as TCP: asyncio turns off Nagle's algorithm only where it knows that it is TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(streams.asgi, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - Uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/stream/bench"
    finally:
        server.should_exit = True
        await serving


async def rate(handle: AsyncDurableStream, at_a_time: int, seconds: float) -> float:
    """Return the appends a second of one handle."""
    count, end = 0, time.perf_counter() + seconds

    async def append() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await handle.append(DATA)
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*[append() for _ in range(at_a_time)])
    return count / (time.perf_counter() - began)


async def measure(results: Results, store: str, folder: Path, seconds: float, *, backwards: bool) -> None:
    streams = DurableStreams(folder if store == "SQLite" else None)
    async with streams.lifespan(), listening(streams) as url:
        await streams.create("bench")
        for shape, (at_a_time, batching) in SHAPES.items():
            sides = {
                IN_PROCESS: AsyncDurableStream(
                    streams.url("bench"), content_type=BYTES, client=streams.client, batching=batching
                ),
                OVER_HTTP: AsyncDurableStream(url, content_type=BYTES, batching=batching),
            }
            for who in reversed(sides) if backwards else sides:
                await rate(sides[who], at_a_time, seconds / 5)  # warm-up
                results.add(f"{store}, {shape}, appends/s|{who}", await rate(sides[who], at_a_time, seconds))


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure appends in process against those over HTTP.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console, results = Console(width=120), Results()
    for number in range(1 if args.quick else args.rounds):
        for store in STORES:
            with scratch(None) as folder:
                seconds = SHORT if args.quick else args.seconds
                asyncio.run(measure(results, store, folder, seconds, backwards=number % 2 == 1))
    targets = [
        Target(f"{store}, {shape}", f"{store}, {shape}, appends/s", IN_PROCESS, OVER_HTTP, 5)
        for store in STORES
        for shape, (at_a_time, batching) in SHAPES.items()
        # One request carries what is batched, and a sync to disk takes its time on both ways.
        if not batching and (store == "memory" or at_a_time > 1)
    ]
    report(console, results, targets, "same appends over HTTP", output=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
