"""An application that is shut down and started again: what a test client does with every `with` block."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from durable_streams.server import AsgiApp, ServerConfig, asgi_app


async def _ask(app: AsgiApp, method: str, query: str = "", body: bytes = b"") -> tuple[int, bytes]:
    scope = {
        "type": "http",
        "method": method,
        "path": "/v1/stream/s",
        "query_string": query.encode(),
        "headers": [(b"host", b"test")],
    }
    incoming = [{"type": "http.request", "body": body}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not incoming:
            await asyncio.Event().wait()  # the client stays
        return incoming.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_second_life_on_another_event_loop(on_disk: bool, tmp_path: Path) -> None:
    app = asgi_app(ServerConfig(data_dir=tmp_path if on_disk else None, long_poll_timeout=0.2))

    async def first() -> None:
        await app.startup()
        assert await _ask(app, "PUT", body=b"a") == (201, b"")
        assert await _ask(app, "GET") == (200, b"a")
        await app.shutdown()

    async def second() -> None:
        await app.startup()
        assert (await _ask(app, "GET"))[0] == (200 if on_disk else 404)
        assert (await _ask(app, "PUT", body=b"a"))[0] == (200 if on_disk else 201)
        assert await _ask(app, "GET") == (200, b"a")
        began = time.monotonic()
        assert await _ask(app, "GET", "offset=now&live=long-poll") == (204, b"")
        assert time.monotonic() - began >= 0.15  # live reads wait again
        await app.shutdown()

    asyncio.run(first())
    asyncio.run(second())
