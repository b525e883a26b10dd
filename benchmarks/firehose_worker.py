"""One measurement of the ``xdk.streaming`` that is installed here: ours, or the official one.

python firehose_worker.py TASK JSON-ARGUMENTS

Prints one JSON object. Only what both document is used, but for ``arate``: the async form is ours alone.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import requests
from pydantic import BaseModel

import xdk.streaming as xs


class Metrics(BaseModel):
    retweet_count: int
    reply_count: int
    like_count: int
    quote_count: int


class Post(BaseModel):
    id: str
    author_id: str
    created_at: str
    lang: str
    public_metrics: Metrics
    text: str


class Rule(BaseModel):
    id: str
    tag: str


class Record(BaseModel):
    data: Post
    matching_rules: list[Rule]


MODELS = {"dicts": None, "model": Record}


def took(begin: float, cpu: float, **figures: Any) -> dict[str, Any]:
    return {**figures, "seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}


def rate(url: str, records: int, kind: str) -> dict[str, Any]:
    """Read ``count`` records; the clocks start with the first."""
    with requests.Session() as session:
        stream = xs.stream_with_retry(session, "get", url, response_model=MODELS[kind])
        next(stream)
        begin, cpu = time.perf_counter(), time.process_time()
        items = sum(1 for _ in islice(stream, records - 1))
        result = took(begin, cpu, items=items)
        stream.close()
    return result


async def arate(url: str, records: int, kind: str) -> dict[str, Any]:
    stream = xs.astream_with_retry(None, "get", url, response_model=MODELS[kind])
    await anext(stream)
    begin, cpu, items = time.perf_counter(), time.process_time(), 0
    async for _ in stream:
        items += 1
        if items == records - 1:
            break
    result = took(begin, cpu, items=items)
    await stream.aclose()
    return result


def first(url: str, times: int) -> dict[str, Any]:
    """Return the seconds from when the feed sent its first record until it was handed over; None for too late."""
    waited = []
    for _ in range(times):
        with requests.Session() as session:
            # The feed falls silent after its record: what has not come by then is held back.
            stream = xs.stream_with_retry(session, "get", url, xs.StreamConfig(timeout=1.5, max_retries=0))
            try:
                item = next(stream)
            except xs.StreamError:
                return {"seconds": None}
            waited.append(time.perf_counter() - item["sent"])
            stream.close()
    return {"seconds": median(waited)}


def relayed(file: str, target: str, state: str) -> dict[str, Any]:
    """Relay a file into a stream; ours alone has a relay."""
    from durable_streams.relay import relay  # noqa: PLC0415 - not in the peer's environment

    begin, cpu = time.perf_counter(), time.process_time()
    report = relay(file, target, state=state)
    return took(begin, cpu, items=report.records)


def huge(url: str, limit: int | None = None) -> dict[str, Any]:
    """Read one line; return how long it took and how far the memory rose."""
    config = xs.StreamConfig(max_retries=0, **({} if limit is None else {"max_record_bytes": limit}))
    with requests.Session() as session:
        stream = xs.stream_with_retry(session, "get", url, config)
        Path("/proc/self/clear_refs").write_text("5")
        before, begin, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
        try:
            length = len(next(stream)["text"])
        except xs.StreamError as error:
            return {"refused": str(error)}
        result = took(begin, cpu, length=length, growth=_memory("VmHWM") - before)
        stream.close()
    return result


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


TASKS = {"rate": rate, "arate": arate, "first": first, "relayed": relayed, "huge": huge}

if __name__ == "__main__":
    task, arguments = TASKS[sys.argv[1]], json.loads(sys.argv[2])
    try:
        outcome = asyncio.run(task(**arguments)) if inspect.iscoroutinefunction(task) else task(**arguments)
    except Exception as error:  # noqa: BLE001 - it is the result
        outcome = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    print(json.dumps(outcome))
