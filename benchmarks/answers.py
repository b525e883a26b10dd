"""Measure how long a token of an answer takes to a second browser: `Runs` over SQLite or memory, in one process.

python benchmarks/answers.py [--rounds N] [--quick] [--json FILE]

An application starts answers, one token every 20 ms, and leaves; a process of its own has two browsers at each answer,
plain `EventSource` requests. The time is from when the model gives a token until the second browser has read it, on
the clock that all processes of a machine share. Each browser's tokens are counted, and have to be in order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import uvicorn
from processes import scratch
from results import Results, Target, report
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from durable_streams.ai import Runs
from durable_streams.embedded import DurableStreams

STORES = ("SQLite", "memory")
ANSWERS = {"one answer": 1, "10 answers at a time": 10}
TOKENS = 200
SHORT = 20  # tokens of --quick
EVERY = 0.02  # seconds between two tokens
BROWSERS = 2  # of each answer
OURS = "to the second browser"
WITHIN = 120.0  # seconds


def application(folder: Path | None, tokens: int) -> Starlette:
    """Return the application: POST starts an answer, GET follows it."""
    streams = DurableStreams(folder)
    runs = Runs(streams, format="events")

    async def model() -> AsyncIterator[dict[str, int]]:
        for _ in range(tokens):
            await asyncio.sleep(EVERY)
            yield {"ns": time.monotonic_ns()}

    async def start(request: Request) -> Any:
        return await runs.start(request.path_params["chat"], model(), request)

    async def follow(request: Request) -> Any:
        return await runs.resume(request.path_params["chat"], request, ended=True)

    routes = [Route("/{chat}", start, methods=["POST"]), Route("/{chat}", follow)]
    return Starlette(routes=routes, lifespan=streams.lifespan)


def serve(folder: Path | None, tokens: int, ready: Connection) -> None:
    """Serve the application in this process, on a free port."""

    async def work() -> None:
        # Named as TCP: asyncio turns off Nagle's algorithm only where it knows that it is TCP.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application(folder, tokens), log_level="error"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110 - Uvicorn has no event for it
            await asyncio.sleep(0.01)
        ready.send(listener.getsockname()[1])
        await serving

    asyncio.run(work())


async def browse(session: aiohttp.ClientSession, url: str) -> list[float]:
    """Follow an answer to its end; return how many milliseconds each token took."""
    took = []
    async with session.get(url) as answer:
        async for line in answer.content:
            if line.startswith(b"data:") and b'"ns"' in line:
                took.append((time.monotonic_ns() - json.loads(line[5:])["ns"]) / 1e6)
            elif line.startswith(b"event:") and b"end" in line:
                return took
    raise RuntimeError("the answer was cut")


async def ask(session: aiohttp.ClientSession, url: str, tokens: int) -> list[float]:
    """Start an answer, leave, and have it followed; return what its last browser measured."""
    async with session.post(url) as answer:
        await answer.content.readany()
    found = await asyncio.gather(*[browse(session, url) for _ in range(BROWSERS)])
    if any(len(took) != tokens for took in found):
        raise RuntimeError(f"of {tokens} tokens the browsers have {[len(took) for took in found]}")
    return found[-1]


async def measure(results: Results, name: str, port: int, answers: int, tokens: int) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
        asking = [ask(session, f"/{name.replace(' ', '-')}-{number}", tokens) for number in range(answers)]
        found = await asyncio.wait_for(asyncio.gather(*asking), WITHIN)
    took = [one for answer in found for one in answer]
    results.add(f"{name}, median ms|{OURS}", median(took))
    results.add(f"{name}, 99th of 100, ms|{OURS}", quantiles(took, n=100)[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how long tokens take to a second browser.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console, results = Console(width=120), Results()
    tokens = SHORT if args.quick else TOKENS
    context = multiprocessing.get_context("spawn")
    for _ in range(1 if args.quick else args.rounds):
        for store in STORES:
            with scratch(None) as folder:
                ours, theirs = context.Pipe()
                where = folder if store == "SQLite" else None
                process = context.Process(target=serve, args=(where, tokens, theirs), daemon=True)
                process.start()
                try:
                    port = ours.recv()
                    for shape, answers in ANSWERS.items():
                        asyncio.run(measure(results, f"{store}, {shape}", port, answers, tokens))
                finally:
                    process.terminate()
                    process.join()
    targets = [
        Target(f"{store}, {shape}, median ms", f"{store}, {shape}, median ms", OURS, None, 5, at_least=False)
        for store in STORES
        for shape in ANSWERS
    ]
    report(console, results, targets, "time of a token", output=args.json)
    return 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
