"""What every transport must do, over each of them: a new one is in the list of wires, or a test here fails.

B3: a client that raises for a status by itself. B6: credentials in URLs. B11: proxies.
"""

from __future__ import annotations

import inspect
from base64 import b64encode
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
from facade import Loop
from raising import RAISING, clients_that_raise
from scripted import Received, ScriptedServer
from wires import ASYNC, EVERY, OWN, Wire, wire_over

from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    DurableStreamError,
    RetryPolicy,
    StreamNotFoundError,
    astream,
    stream,
)
from durable_streams.client import transports
from durable_streams.client.transports import proxies

NONE = RetryPolicy(max_retries=0)
BASIC = "Basic " + b64encode(b"user:hidden").decode()
# Of the clients of the caller's, these take the proxies of the environment by themselves.
WITH_PROXIES = {
    "requests.Session",
    "httpx.Client",
    "httpx.AsyncClient",
    "httpx2.Client",
    "httpx2.AsyncClient",
}


def test_each_transport_is_run() -> None:
    defined = {
        name
        for module in iter_modules(transports.__path__, transports.__name__ + ".")
        for name, kind in inspect.getmembers(import_module(module.name), inspect.isclass)
        if kind.__module__ == module.name
        and not name.startswith("_")
        and callable(getattr(kind, "open", None))
    }
    reached = set()
    loop = Loop()
    try:
        for name in EVERY:
            with wire_over(name, loop) as wire:
                choose = transports.async_transport_for if name in ASYNC else transports.transport_for
                reached.add(type(choose(wire.client)).__name__)
    finally:
        loop.stop()
    assert reached == defined
    assert set(RAISING) | {"urllib3", "urllib3.PoolManager", "aiohttp"} == set(EVERY), (
        "only these have nothing that raises"
    )


def _read(wire: Wire, url: str, **more: Any) -> bytes:
    options: dict[str, Any] = {"client": wire.client, "retry": NONE, "live": False, **more}

    async def read() -> bytes:
        async with astream(url, **options) as res:
            return await res.read_bytes()

    if wire.is_async:
        return bytes(wire.wait(read()))
    with stream(url, **options) as res:
        return res.read_bytes()


def _append(wire: Wire, url: str) -> Any:
    options: dict[str, Any] = {"client": wire.client, "retry": NONE, "content_type": "text/plain"}
    handle: Any = (AsyncDurableStream if wire.is_async else DurableStream)(url, **options)
    return wire.wait(handle.append("x"))


@pytest.mark.parametrize("name", EVERY)
def test_b3_b6_a_status_and_credentials(name: str, loop: Loop, scripted: ScriptedServer) -> None:
    def answer(request: Received) -> bytes:
        if request.headers.get("authorization") != BASIC or "token=hidden" not in request.target:
            return scripted.response(401)
        if "missing" in request.target:
            return scripted.response(404, b"it is not here")
        return scripted.response(200, b"data", stream_next_offset="1", stream_up_to_date="true")

    scripted.answer = answer
    root = scripted.root.replace("://", "://user:hidden@")
    with wire_over(name, loop) as wire:
        others = [Wire(name, client, loop) for client in clients_that_raise(wire)] if name in RAISING else []
        try:
            for one in (wire, *others):
                assert _read(one, f"{root}/s?token=hidden") == b"data"
                assert _append(one, f"{root}/s?token=hidden").next_offset == "1"
                for call in (_read, _append):
                    with pytest.raises(StreamNotFoundError) as caught:
                        call(one, f"{root}/missing?token=hidden")
                    shown = f"{caught.value} {caught.value!r} {caught.value.url}"
                    assert "hidden" not in shown
        finally:
            for other in others:
                other.end()


@pytest.fixture
def environment(scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Name the scripted server as the proxy, and a network that has none."""
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(variable, scripted.root.replace("://", "://user:hidden@"))
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "192.0.2.0/25")
    proxies._proxy.cache_clear()
    yield
    proxies._proxy.cache_clear()


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", EVERY)
def test_b11_proxies_of_the_environment(name: str, loop: Loop, scripted: ScriptedServer) -> None:
    """Nothing listens at the address: only the proxy, which is the scripted server, can answer."""
    scripted.answer = lambda _: scripted.response(
        200, b"data", stream_next_offset="1", stream_up_to_date="true"
    )
    with wire_over(name, loop) as wire:
        if name in OWN or name in WITH_PROXIES:
            assert _read(wire, "http://192.0.2.200/s") == b"data"
            [request] = scripted.requests
            assert request.target.startswith("http://192.0.2.200/s")
            assert request.headers["proxy-authorization"] == BASIC
        if name in OWN:
            with pytest.raises(DurableStreamError) as caught:
                _read(wire, "http://192.0.2.7/s", timeout=(0.2, 0.2))
            assert "hidden" not in str(caught.value)
            assert len(scripted.requests) == 1, "the network has no proxy"
        elif name not in WITH_PROXIES:
            with pytest.raises(DurableStreamError):
                _read(wire, "http://192.0.2.200/s", timeout=(0.2, 0.2))
            assert scripted.requests == [], "a client of the caller's goes where it goes"
