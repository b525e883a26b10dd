"""What users of the X SDK's own `streaming`, and of feeds elsewhere, rely on: over every kind of client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import urllib3
from scripted import ScriptedServer

from durable_streams.firehose import AsyncFirehoseStream, FirehoseStream, StreamConfig, StreamError
from durable_streams.version import USER_AGENT

send, response = ScriptedServer.send, ScriptedServer.response
GONE = send(response(404, b'{"title":"Gone"}'))
CLIENTS = ["own", "requests", "httpx", "urllib3", "own-async", "aiohttp", "httpx-async"]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer([send(response(200, b'{"n":1}\n')), GONE])
    yield server
    server.stop()


def follow(
    kind: str,
    url: str,
    config: StreamConfig | None = None,
    *,
    own: dict[str, str] | None = None,
    **options: Any,
) -> tuple[list[Any], Exception | None]:
    """Follow a feed with a client that has these headers; return the records, and what ended it."""
    config = config or StreamConfig(initial_backoff=0.01, max_backoff=0.01)
    if kind in {"own-async", "aiohttp", "httpx-async"}:
        return asyncio.run(_afollow(kind, url, config, own or {}, options))
    client: Any = None
    if kind == "requests":
        client = requests.Session()
        client.headers.update(own or {})
    elif kind == "httpx":
        client = httpx.Client(headers=own)
    elif kind == "urllib3":
        client = urllib3.PoolManager(headers=own)
    values: list[Any] = []
    try:
        with FirehoseStream(url, config=config, client=client, **options) as feed:
            values += feed
    except Exception as error:  # noqa: BLE001 - looked at by the test
        return values, error
    finally:
        if client is not None:
            (client.clear if kind == "urllib3" else client.close)()
    return values, None


async def _afollow(
    kind: str, url: str, config: StreamConfig, own: dict[str, str], options: dict[str, Any]
) -> tuple[list[Any], Exception | None]:
    client: Any = None
    if kind == "aiohttp":
        client = aiohttp.ClientSession(headers=own)
    elif kind == "httpx-async":
        client = httpx.AsyncClient(headers=own)
    values: list[Any] = []
    try:
        async with AsyncFirehoseStream(url, config=config, client=client, **options) as feed:
            async for value in feed:
                values.append(value)  # noqa: PERF401 - what came before an error counts
    except Exception as error:  # noqa: BLE001 - looked at by the test
        return values, error
    finally:
        if client is not None:
            await (client.close() if kind == "aiohttp" else client.aclose())
    return values, None


def sent(server: ScriptedServer, name: str) -> list[str | None]:
    """Return a header of all requests, each of which must have it once at most."""
    assert all(request.lower().count(f"\n{name}:") <= 1 for request in server.requests)
    return [request.headers.get(name) for request in server.requests]


@pytest.mark.parametrize("kind", CLIENTS)
def test_d10_a_feed_is_asked_by_this_librarys_name(kind: str, server: ScriptedServer) -> None:
    values, error = follow(kind, server.root)
    assert values == [{"n": 1}]
    assert isinstance(error, StreamError)
    follow(kind, server.root, headers={"User-Agent": "mine/1"})
    assert sent(server, "user-agent") == [USER_AGENT, USER_AGENT, "mine/1"]


@pytest.mark.parametrize("kind", ["requests", "httpx", "urllib3", "aiohttp", "httpx-async"])
def test_d10_the_clients_own_user_agent_stays(kind: str, server: ScriptedServer) -> None:
    follow(kind, server.root, own={"User-Agent": "theirs/2", "X-Own": "1"})
    assert sent(server, "user-agent") == ["theirs/2", "theirs/2"]
    assert sent(server, "x-own") == ["1", "1"]
