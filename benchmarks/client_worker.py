"""One measurement of the client that is installed here: ours, or under the same import name the official package.

python client_worker.py TASK JSON-ARGUMENTS

Prints one JSON object. Only names that both packages document are used.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from importlib import import_module
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any

import durable_streams as ds

JSON = "application/json"
now = time.perf_counter


def message(size: int = 100) -> bytes:
    """Return one JSON message of this many bytes."""
    text = b'{"id":1234567,"carrier":"AA","origin":"JFK","dest":"LAX","delay":-7,"note":""}'
    return text[:-2] + b"x" * (size - len(text)) + text[-2:]


class Took:
    """The seconds since it was made, and how many of them this process computed."""

    def __init__(self) -> None:
        self._wall, self._cpu = now(), time.process_time()

    def with_(self, **figures: Any) -> dict[str, Any]:
        return {**figures, "seconds": now() - self._wall, "cpu": time.process_time() - self._cpu}


def timed(call: Callable[[int], object], seconds: float) -> list[float]:
    """Call with 0, 1, 2... for so long; return how many seconds each call took, but the first."""
    times: list[float] = []
    deadline = now() + seconds
    for number in count():
        begin = now()
        call(number)
        times.append(now() - begin)
        if now() > deadline and number >= 3:
            return times[1:]
    return times


async def atimed(call: Callable[[int], Coroutine[Any, Any, object]], seconds: float) -> list[float]:
    times: list[float] = []
    deadline = now() + seconds
    for number in count():
        begin = now()
        await call(number)
        times.append(now() - begin)
        if now() > deadline and number >= 3:
            return times[1:]
    return times


def httpx_client(kind: str) -> Any:
    return getattr(import_module("httpx"), kind)(timeout=30.0)


# -- calls one by one


def stream_call(url: str, seconds: float) -> dict[str, Any]:
    def call(_: int) -> None:
        with ds.stream(url, live=False) as res:
            res.read_bytes()

    return {"seconds": median(timed(call, seconds))}


async def astream_call(url: str, seconds: float) -> dict[str, Any]:
    async def call(_: int) -> None:
        async with ds.astream(url, live=False) as res:
            await res.read_bytes()

    return {"seconds": median(await atimed(call, seconds))}


def create_call(url: str, seconds: float) -> dict[str, Any]:
    def call(number: int) -> None:
        ds.DurableStream.create(f"{url}-{number}", content_type=JSON).close()

    return {"seconds": median(timed(call, seconds))}


async def acreate_call(url: str, seconds: float) -> dict[str, Any]:
    async def call(number: int) -> None:
        handle = await ds.AsyncDurableStream.create(f"{url}-{number}", content_type=JSON)
        await handle.aclose()

    return {"seconds": median(await atimed(call, seconds))}


def append(url: str, seconds: float) -> dict[str, Any]:
    data = message()
    with ds.DurableStream.create(url, content_type="application/octet-stream") as handle:
        return {"seconds": median(timed(lambda _: handle.append(data), seconds))}


async def aappend(url: str, seconds: float) -> dict[str, Any]:
    data = message()
    async with await ds.AsyncDurableStream.create(url, content_type="application/octet-stream") as handle:
        return {"seconds": median(await atimed(lambda _: handle.append(data), seconds))}


async def concurrent(url: str, seconds: float, streams: int, shared: bool = False) -> dict[str, Any]:
    """Append to this many streams at once; ``shared``: through one httpx.AsyncClient, as the documents advise."""
    data = message()
    client = httpx_client("AsyncClient") if shared else None
    handles = [
        await ds.AsyncDurableStream.create(
            f"{url}-{number}", content_type="application/octet-stream", client=client
        )
        for number in range(streams)
    ]

    async def one(handle: Any, deadline: float) -> int:
        done = 0
        while now() < deadline:
            await handle.append(data)
            done += 1
        return done

    await asyncio.gather(*(one(handle, 0.2 + now()) for handle in handles))
    took = Took()
    appends = sum(await asyncio.gather(*(one(handle, now() + seconds) for handle in handles)))
    result = took.with_(appends=appends)
    for handle in handles:
        await handle.aclose()
    return result


# -- reads


class Reading:
    """``stream`` and ``astream`` after a first small read; ``httpx``: through such a client, made before."""

    def __init__(self, warm_up: str, httpx: bool) -> None:
        self._warm_up = warm_up
        self._httpx = httpx
        self._client: Any = None

    def __enter__(self) -> Reading:
        if self._httpx:
            self._client = httpx_client("Client")
        with self.stream(self._warm_up, False) as res:
            res.read_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        if self._httpx:
            self._client.close()

    async def __aenter__(self) -> Reading:
        if self._httpx:
            self._client = httpx_client("AsyncClient")
        async with self.astream(self._warm_up, False) as res:
            await res.read_bytes()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._httpx:
            await self._client.aclose()

    def stream(self, url: str, live: Any) -> Any:
        return ds.stream(url, offset="-1", live=live, client=self._client)

    def astream(self, url: str, live: Any) -> Any:
        return ds.astream(url, offset="-1", live=live, client=self._client)


def iter_json(url: str, live: bool | str, records: int, **how: Any) -> dict[str, Any]:
    with Reading(**how) as reading:
        took = Took()
        with reading.stream(url, live) as res:
            got = consume(res.iter_json(), records)
        return took.with_(items=got)


async def aiter_json(url: str, live: bool | str, records: int, **how: Any) -> dict[str, Any]:
    async with Reading(**how) as reading:
        took = Took()
        async with reading.astream(url, live) as res:
            got = await aconsume(res.iter_json(), records)
        return took.with_(items=got)


def consume(items: Iterable[Any], most: int) -> int:
    got = 0
    for _ in islice(items, most):
        got += 1
    return got


async def aconsume(items: AsyncIterable[Any], most: int) -> int:
    got = 0
    async for _ in items:
        got += 1
        if got == most:
            break
    return got


def read_json(url: str, live: bool | str, **how: Any) -> dict[str, Any]:
    with Reading(**how) as reading:
        took = Took()
        with reading.stream(url, live) as res:
            items = res.read_json()
        return took.with_(items=len(items))


async def aread_json(url: str, live: bool | str, **how: Any) -> dict[str, Any]:
    async with Reading(**how) as reading:
        took = Took()
        async with reading.astream(url, live) as res:
            items = await res.read_json()
        return took.with_(items=len(items))


def read_bytes(url: str, **how: Any) -> dict[str, Any]:
    with Reading(**how) as reading, Memory() as memory:
        received = 0
        took = Took()
        with reading.stream(url, False) as res:
            for chunk in res:
                received += len(chunk)
        result = took.with_(bytes=received)
    return {**result, "growth": memory.growth}


async def aread_bytes(url: str, **how: Any) -> dict[str, Any]:
    async with Reading(**how) as reading:
        with Memory() as memory:
            received = 0
            took = Took()
            async with reading.astream(url, False) as res:
                async for chunk in res:
                    received += len(chunk)
            result = took.with_(bytes=received)
    return {**result, "growth": memory.growth}


class Memory:
    """How far the resident memory of this process rose above where it was."""

    growth = 0

    def __enter__(self) -> Memory:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.growth = self._status("VmHWM") - self._before

    def _status(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main(tasks: dict[str, Any]) -> None:
    task, arguments = tasks[sys.argv[1]], json.loads(sys.argv[2])
    try:
        result = asyncio.run(task(**arguments)) if inspect.iscoroutinefunction(task) else task(**arguments)
    except Exception as error:  # noqa: BLE001 - it is the result
        result = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    print(json.dumps(result))


if __name__ == "__main__":
    main(globals())
