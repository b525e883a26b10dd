"""What belongs to the caller of a transport: the client that was passed, and the moment at which a read ends."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import pytest
from facade import Loop
from scripted import ScriptedServer
from wires import ALL, ASYNC, OWN, SYNC, Wire, failure, wire_over

from durable_streams import DurableStreamError, FetchError
from durable_streams.client.transports import Interrupt, async_transport_for, transport_for
from durable_streams.protocol.request import Request

GIVEN = [name for name in ALL if name not in OWN]
AT_ONCE = 10.0  # seconds that something may take that must not wait for a timeout


# -- the caller's client


@pytest.mark.parametrize("name", GIVEN)
def test_the_callers_client_stays_open_and_keeps_its_timeout(
    name: str, loop: Loop, scripted: ScriptedServer
) -> None:
    """Pitfall 8."""
    scripted.replies = [
        scripted.send(scripted.response(200, b"abc")),
        scripted.stall(),
        scripted.send(scripted.response(200, b"x")),
    ]
    with wire_over(name, loop, timeout=0.3) as wire:
        assert wire.get(scripted.root + "/x") == b"abc"
        assert failure(wire, scripted.root + "/x", streaming=True).code == "TIMEOUT"
        assert not wire.is_closed
        assert wire.get(scripted.root + "/x") == b"x"


@pytest.mark.parametrize("name", GIVEN)
def test_a_timeout_that_the_call_names_wins(name: str, loop: Loop, scripted: ScriptedServer) -> None:
    def slow(connection: socket.socket) -> None:
        time.sleep(0.5)
        connection.sendall(scripted.response(200, b"late"))

    scripted.replies = [slow, slow, scripted.stall()]
    with wire_over(name, loop, timeout=0.1) as wire:
        assert wire.get(scripted.root + "/x", timeout=30.0) == b"late"
        assert wire.get(scripted.root + "/x", timeout=float("inf")) == b"late"
    with wire_over(name, loop) as wire:
        assert failure(wire, scripted.root + "/x", timeout=0.1).code == "TIMEOUT"


@pytest.mark.parametrize("name", [name for name in GIVEN if not name.startswith("urllib3")])
def test_a_client_that_its_owner_closed(name: str, loop: Loop, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(200))]
    with wire_over(name, loop) as wire:
        wire.end()
        with pytest.raises(DurableStreamError) as caught:
            wire.get(scripted.root + "/x")
    assert caught.value.code == "CLIENT_CLOSED"
    assert not isinstance(caught.value, FetchError), "no retry mends it"
    assert not scripted.requests


@pytest.mark.parametrize("name", ALL)
def test_a_client_of_the_other_kind_is_refused(name: str, loop: Loop) -> None:
    if name in OWN:
        pytest.skip("there is no client to be confused")
    with wire_over(name, loop) as wire, pytest.raises(TypeError, match=r"^client= .*takes .* not .*\.$"):
        (transport_for if name in ASYNC else async_transport_for)(wire.client)


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_subclasses_of_a_client_are_clients(library: str) -> None:
    module = pytest.importorskip(library)
    kinds = [type("Mine", (getattr(module, kind),), {}) for kind in ("Client", "AsyncClient")]
    with kinds[0]() as client:
        assert transport_for(client) is not None
    assert async_transport_for(kinds[1]()) is not None


def test_a_test_client_of_starlette_is_a_client() -> None:
    testclient = pytest.importorskip("starlette.testclient")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["path"].encode())]}
        )
        await send({"type": "http.response.body", "body": b"abc"})

    wire = Wire("httpx.Client", testclient.TestClient(app), None)  # type: ignore[arg-type]
    with wire.open("http://testserver/v1/stream/x") as answer:
        assert (answer.status, answer.headers["x-path"], answer.body()) == (200, "/v1/stream/x", b"abc")


# -- waking and releasing


@pytest.mark.parametrize("name", [name for name in SYNC if name != "urllib3.PoolManager"])
@pytest.mark.parametrize("used_before", [False, True], ids=["new connection", "used connection"])
def test_an_interrupt_wakes_a_wait_for_the_head(
    name: str, used_before: bool, loop: Loop, scripted: ScriptedServer
) -> None:
    """Pitfall 10: a long poll waits for its head."""
    scripted.replies = [scripted.send(scripted.response(200))] * used_before + [scripted.stall()]
    with wire_over(name, loop, timeout=60.0) as wire:
        if used_before:
            wire.get(scripted.root + "/x")
            assert scripted.arrived.acquire(timeout=AT_ONCE)
        interrupt = Interrupt()
        waker = threading.Thread(target=lambda: (scripted.arrived.acquire(timeout=AT_ONCE), interrupt.set()))
        waker.start()
        began = time.monotonic()
        assert failure(wire, scripted.root + "/x", streaming=True, interrupt=interrupt).code == "CLOSED"
        assert time.monotonic() - began < AT_ONCE
        waker.join()
        assert len(scripted.connections) == 1
        scripted.replies = [scripted.send(scripted.response(200, b"abc"))]
        assert wire.get(scripted.root + "/x") == b"abc"


@pytest.mark.parametrize("name", SYNC)
def test_an_interrupt_wakes_a_read(name: str, loop: Loop, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.stall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")]
    with wire_over(name, loop, timeout=60.0) as wire:
        interrupt = Interrupt()
        with wire.open(scripted.root + "/x", streaming=True, interrupt=interrupt) as answer:
            assert answer.read() == b"abc"
            waker = threading.Timer(0.05, interrupt.set)
            waker.start()
            began = time.monotonic()
            with pytest.raises(FetchError) as caught:
                answer.read()
            assert caught.value.code == "CLOSED"
            assert time.monotonic() - began < AT_ONCE
            waker.join()


@pytest.mark.parametrize("name", SYNC)
def test_an_interrupt_after_the_end_breaks_nobody_else(
    name: str, loop: Loop, scripted: ScriptedServer
) -> None:
    go_on = threading.Event()

    def in_two(connection: socket.socket) -> None:
        connection.sendall(scripted.response(200, b"ab", length=3))
        go_on.wait(AT_ONCE)
        connection.sendall(b"c")

    scripted.replies = [scripted.send(scripted.response(200, b"abc")), in_two]
    with wire_over(name, loop) as wire:
        first = Interrupt()
        with wire.open(scripted.root + "/x", interrupt=first) as ended:
            assert ended.body() == b"abc"
            with wire.open(scripted.root + "/x") as answer:
                first.set()
                go_on.set()
                assert answer.body() == b"abc"
        assert len(scripted.connections) == 1


@pytest.mark.parametrize("name", SYNC)
def test_an_interrupt_before_the_request_sends_nothing_for_long(
    name: str, loop: Loop, scripted: ScriptedServer
) -> None:
    if name == "urllib3.PoolManager":
        pytest.skip("it cannot be woken before the head is there")
    scripted.replies = [scripted.stall()]
    with wire_over(name, loop, timeout=60.0) as wire:
        interrupt = Interrupt()
        interrupt.set()
        began = time.monotonic()
        assert failure(wire, scripted.root + "/x", interrupt=interrupt).code == "CLOSED"
        assert time.monotonic() - began < AT_ONCE


@pytest.mark.parametrize("name", ASYNC)
def test_closing_an_answer_that_was_not_read_is_quick(
    name: str, loop: Loop, scripted: ScriptedServer
) -> None:
    scripted.replies = [scripted.stall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nabc")]
    with wire_over(name, loop) as wire:
        answer = wire.open(scripted.root + "/x")
        began = time.monotonic()
        answer.close()
        assert time.monotonic() - began < 1.0
        assert scripted.gone.acquire(timeout=AT_ONCE)


@pytest.mark.parametrize("name", ASYNC)
@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"], ids=["head", "body"]
)
def test_a_cancelled_request_leaves_nothing_open(
    name: str, first: bytes, loop: Loop, scripted: ScriptedServer
) -> None:
    scripted.replies = [scripted.stall(first), scripted.send(scripted.response(200, b"abc"))]
    with wire_over(name, loop) as wire:

        async def read() -> None:
            exchange = await async_transport_for(wire.client).open(Request("GET", scripted.root + "/x"), None)
            try:
                while await exchange.read():
                    pass
            finally:
                await exchange.close()

        async def cancel() -> None:
            task = asyncio.ensure_future(read())
            await asyncio.to_thread(scripted.arrived.acquire, timeout=AT_ONCE)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        loop.run(cancel())
        assert scripted.gone.acquire(timeout=AT_ONCE)
        assert wire.get(scripted.root + "/x") == b"abc"
