"""The ASGI application that receives webhooks, under Uvicorn, against a real server."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import uvicorn
from subscribing import ACCEPTED, Api, eventually, receiving

from durable_streams.server import ServerConfig
from durable_streams.testing import InMemoryStreamServer
from durable_streams.testing.background import Background
from durable_streams.worker import Batch, webhook_app

WITHIN = 30.0


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with InMemoryStreamServer(config=ServerConfig(webhook_allow_http_localhost=True)) as server:
        port = int(server.base_url.rpartition(":")[2])
        yield Api(lambda: port)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Run an application, and give its origin."""

    async def main(stop: asyncio.Event, ready: Callable[[str], None]) -> None:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():  # noqa: ASYNC110 - Uvicorn has no event for it
            await asyncio.sleep(0.01)
        ready(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        await stop.wait()
        server.should_exit = True
        await serving

    background = Background("webhook-app", main)
    try:
        yield background.value
    finally:
        background.stop()


def jwks(api: Api) -> str:
    return f"http://127.0.0.1:{api.port()}/v1/stream/__ds/jwks.json"


def post(origin: str, body: bytes, signature: str = "", method: str = "POST") -> int:
    with closing(http.client.HTTPConnection(origin.removeprefix("http://"), timeout=WITHIN)) as connection:
        connection.request(method, "/hook", body, {"webhook-signature": signature})
        return connection.getresponse().status


def test_what_is_pending_is_handled_and_acknowledged(api) -> None:
    handled: list[Any] = []

    async def handler(batch: Batch) -> None:
        await asyncio.sleep(0)
        handled.append((batch.path, batch.items))
        if len(handled) == 1:
            raise RuntimeError("the first attempt fails")

    with serving(webhook_app(handler, jwks(api))) as origin:
        one = api.webhook(f"{origin}/hook", "hooked/*", lease_ttl_ms=1000)
        api.append("hooked/a", 1)
        eventually(one.links, lambda links: links == {"hooked/a": api.tail("hooked/a")})
        api.append("hooked/a", 2)
        eventually(one.links, lambda links: links == {"hooked/a": api.tail("hooked/a")})
        one.delete()
    assert handled == [("hooked/a", [1]), ("hooked/a", [1]), ("hooked/a", [2])]


def test_only_what_the_server_signed_just_now_is_taken_and_once(api) -> None:
    release, handled = threading.Event(), []

    async def handler(batch: Batch) -> None:
        handled.append(batch.items)
        await asyncio.to_thread(release.wait, WITHIN)

    with receiving(ACCEPTED) as receiver, serving(webhook_app(handler, jwks(api))) as origin:
        one = api.webhook(receiver.url, "signed/*", lease_ttl_ms=600_000)
        api.append("signed/a", 1)
        delivery = receiver.next()
        signature = delivery.headers["webhook-signature"]
        moment = signature.partition(",")[0]
        for bad in (
            "",
            "t=1",
            signature.replace(moment, "t=1"),
            signature.replace(moment, f"t={int(moment[2:]) - 1}"),
            signature.replace("kid=ds_", "kid=ds_x"),
            signature[:-4] + "AAAA",
            signature.replace("ed25519=", "ed25519=é"),
        ):
            assert post(origin, delivery.raw, bad.encode().decode("latin-1")) == 401, bad
        assert post(origin, delivery.raw + b" ", signature) == 401
        assert post(origin, b"x" * (5 << 20), signature) == 413
        assert post(origin, delivery.raw, signature, "GET") == 405
        assert handled == []
        assert [post(origin, delivery.raw, signature) for _ in range(3)] == [202] * 3
        release.set()
        eventually(one.links, lambda links: links == {"signed/a": api.tail("signed/a")})
        assert handled == [[1]]
        one.delete()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/keys", "jwks.json"])
def test_urls_that_are_none(url) -> None:
    with pytest.raises(ValueError, match=r"URL|jwks_url"):
        webhook_app(lambda _: None, url)
