"""100,000 real records through a feed that fails at random: each arrives exactly once, in order; counters add up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from chaos_feed import ChaosFeed, expected

from durable_streams.firehose import (
    AsyncFirehoseStream,
    FirehoseStream,
    StreamConfig,
    StreamError,
    StreamErrorType,
)

COUNT = 100_000
CONFIG: dict[str, Any] = {
    "max_retries": -1,
    "initial_backoff": 0.002,
    "max_backoff": 0.01,
    "stall_timeout": 1.0,
}


@contextmanager
def serving(count: int, seed: int) -> Iterator[ChaosFeed]:
    feed = ChaosFeed(count, seed)
    try:
        yield feed
    finally:
        feed.stop()


class Ledger:
    """The callbacks and records, against the expected ones."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.received = 0
        self.connects = self.disconnects = 0
        self.stalls = 0
        self._wanted = expected(count)

    def _error(self, error: StreamError) -> None:
        self.stalls += error.error_type is StreamErrorType.TIMEOUT

    def config(self) -> StreamConfig:
        return StreamConfig(
            on_connect=self._connect, on_disconnect=self._disconnect, on_error=self._error, **CONFIG
        )

    def _connect(self) -> None:
        self.connects += 1
        assert self.connects == self.disconnects + 1

    def _disconnect(self, _: Exception | None) -> None:
        self.disconnects += 1

    def take_all(self, feed: FirehoseStream) -> None:
        for record in feed:
            self._take(record)

    async def take_all_async(self, feed: AsyncFirehoseStream) -> None:
        async for record in feed:
            self._take(record)

    def _take(self, record: Any) -> None:
        assert record == next(self._wanted)
        self.received += 1

    def check(self, server: ChaosFeed, state: Any, error: StreamError) -> None:
        assert error.status_code == 410
        assert self.stalls == server.counts["stall"]
        assert self.received == self.count == state.total_items_received
        assert server.counts.pop("invalid") == state.invalid
        refused = server.counts.get("429", 0) + server.counts.get("503", 0)
        assert state.connects == self.connects == self.disconnects == sum(server.counts.values()) - refused
        assert state.partial == server.partial
        assert {"429", "503", "end", "cut", "stall", "bytes", "reported"} == set(server.counts)


@pytest.mark.parametrize("kind", ["own", "requests", "httpx"])
def test_every_record_comes_exactly_once(kind: str) -> None:
    count = COUNT if kind == "own" else COUNT // 4
    client: Any = {"own": None, "requests": requests.Session(), "httpx": httpx.Client()}[kind]
    ledger = Ledger(count)
    with serving(count, seed=len(kind)) as server:
        feed = FirehoseStream(server.url, config=ledger.config(), client=client)
        with pytest.raises(StreamError) as caught:
            ledger.take_all(feed)
    ledger.check(server, feed.state, caught.value)


# asyncio itself drops a socket whose connection is reset between its connect and its transport.
_DROPPED = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.mark.parametrize("kind", ["own", "aiohttp", pytest.param("httpx", marks=_DROPPED)])
def test_every_record_comes_exactly_once_async(kind: str) -> None:
    count = COUNT if kind == "own" else COUNT // 4
    ledger = Ledger(count)

    async def read(url: str) -> tuple[AsyncFirehoseStream, StreamError]:
        clients: dict[str, Any] = {"aiohttp": aiohttp.ClientSession, "httpx": httpx.AsyncClient}
        client = clients[kind]() if kind in clients else None
        feed = AsyncFirehoseStream(url, config=ledger.config(), client=client)
        with pytest.raises(StreamError) as caught:
            await ledger.take_all_async(feed)
        if client is not None:
            await (client.close() if kind == "aiohttp" else client.aclose())
        return feed, caught.value

    with serving(count, seed=10 + len(kind)) as server:
        feed, error = asyncio.run(read(server.url))
    ledger.check(server, feed.state, error)
