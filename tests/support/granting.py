"""A server in the process of the test, whose callers name their own grants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from durable_streams.protocol.grants import Grant
from durable_streams.server import ServerConfig, ServerRequest, asgi_app


@asynccontextmanager
async def client_of(config: ServerConfig, authorize: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = asgi_app(config, authorize=authorize)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server/v1/stream/") as client:
        try:
            yield client
        finally:
            await app.shutdown()


async def by_header(_operation: str, _path: str, request: ServerRequest) -> Grant | None:
    """Take the caller at its word: the header names what it may do."""
    said = request.header("x-grant")
    return None if said is None else Grant.of(*said.split())


ALL = {"x-grant": "*:**"}
