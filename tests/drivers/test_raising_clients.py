"""Clients that raise for a status by themselves: the errors are those of the same client without its hook (B3)."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
import requests
import urllib3
from facade import Loop
from raising import RAISING, STATUSES, clients_that_raise
from requests.adapters import HTTPAdapter
from scripted import ScriptedServer
from wires import Wire, wire_over

from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    DurableStreamError,
    RetryPolicy,
    StreamClosedError,
    StreamExistsError,
    StreamNotFoundError,
    astream,
    stream,
)

NONE = RetryPolicy(max_retries=0)


@pytest.mark.parametrize("name", RAISING)
@pytest.mark.parametrize("status", STATUSES)
def test_b3_an_answer_is_handed_over_whatever_the_client_raises_for(
    name: str, status: int, loop: Loop, scripted: ScriptedServer
) -> None:
    scripted.answer = lambda _: scripted.response(status, b"", x_marked="yes")
    with wire_over(name, loop) as wire:
        for client in clients_that_raise(wire):
            other = Wire(name, client, loop)
            try:
                with other.open(scripted.root + "/s", headers={"accept": "*/*"}) as answer:
                    assert (answer.status, answer.headers["x-marked"]) == (status, "yes")
                    assert answer.body() == b""
            finally:
                other.end()


def _failures(wire: Wire, root: str) -> list[DurableStreamError]:
    """Return what a read, an append and a create raise."""
    found: list[DurableStreamError] = []
    options: dict[str, Any] = {"client": wire.client, "retry": NONE}

    async def read() -> None:
        async with astream(root + "/s", live=False, **options) as response:
            await response.read_bytes()

    async def append() -> None:
        await AsyncDurableStream(root + "/s", content_type="text/plain", **options).append("x")

    async def create() -> None:
        await AsyncDurableStream.create(root + "/s", **options)

    calls: list[Any] = [
        lambda: stream(root + "/s", live=False, **options).read_bytes(),
        lambda: DurableStream(root + "/s", content_type="text/plain", **options).append("x"),
        lambda: DurableStream.create(root + "/s", **options),
    ]
    for call in (read, append, create) if wire.is_async else calls:
        with pytest.raises(DurableStreamError) as caught:
            wire.wait(call())
        found.append(caught.value)
    return found


@pytest.mark.parametrize("name", RAISING)
@pytest.mark.parametrize(
    ("status", "kinds"),
    [
        (404, [StreamNotFoundError] * 3),
        (401, [DurableStreamError] * 3),
        (409, [StreamClosedError, StreamClosedError, StreamExistsError]),
        (503, [DurableStreamError] * 3),
    ],
)
def test_b3_errors_are_those_of_the_client_without_its_hook(
    name: str, status: int, kinds: list[type], loop: Loop, scripted: ScriptedServer
) -> None:
    headers = {409: {"stream_closed": "true"}, 503: {"retry_after": "7"}}.get(status, {})
    said = b'{"error": {"code": "SOMETHING", "message": "the reason"}}'
    scripted.answer = lambda _: scripted.response(status, said, content_type="application/json", **headers)
    with wire_over(name, loop) as wire:
        plain = [_shape(error) for error in _failures(wire, scripted.root)]
        assert [shape[0] for shape in plain] == kinds
        for client in clients_that_raise(wire):
            other = Wire(name, client, loop)
            try:
                assert [_shape(error) for error in _failures(other, scripted.root)] == plain
            finally:
                other.end()


def _shape(error: DurableStreamError) -> tuple[Any, ...]:
    return type(error), error.status, error.code, error.retry_after, error.may_have_been_sent


@pytest.mark.skipif(not hasattr(aiohttp, "ClientMiddlewareType"), reason="this aiohttp has no middlewares")
def test_b3_a_middleware_that_raises_for_a_status(loop: Loop, scripted: ScriptedServer) -> None:
    async def middleware(request: Any, handler: Any) -> Any:
        response = await handler(request)
        response.raise_for_status()
        return response

    async def made() -> Any:
        return aiohttp.ClientSession(middlewares=[middleware])

    scripted.answer = lambda _: scripted.response(409, b"ignored", stream_closed="true")
    wire = Wire("aiohttp.ClientSession", loop.run(made()), loop)
    try:
        kinds = [type(error) for error in _failures(wire, scripted.root)]
    finally:
        wire.end()
    assert kinds == [StreamClosedError, StreamClosedError, StreamExistsError]


def test_b3_a_session_raises_as_before_for_its_owner(scripted: ScriptedServer) -> None:
    scripted.answer = lambda _: scripted.response(503)
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=urllib3.Retry(1, status_forcelist=[503])))
    with pytest.raises(DurableStreamError) as caught:
        stream(scripted.root + "/s", live=False, client=session, retry=NONE)
    assert caught.value.status == 503
    with pytest.raises(requests.exceptions.RetryError):
        session.get(scripted.root + "/s")


@pytest.mark.parametrize("name", ["httpx.Client", "requests.Session"])
def test_b3_the_refusal_of_a_token_is_no_answer_of_the_stream(
    name: str, loop: Loop, scripted: ScriptedServer
) -> None:
    scripted.answer = lambda _: scripted.response(404)
    with wire_over(name, loop) as wire:

        class Token(requests.auth.AuthBase):
            def __call__(self, request: Any) -> Any:
                requests.get(scripted.root + "/token", timeout=10).raise_for_status()
                return request

        def token(request: Any) -> Any:
            with type(wire.client)() as client:
                client.get(scripted.root + "/token").raise_for_status()
            return request

        wire.client.auth = Token() if name.startswith("requests") else token
        with pytest.raises(DurableStreamError) as caught:
            stream(scripted.root + "/s", live=False, client=wire.client, retry=NONE)
    assert not isinstance(caught.value, StreamNotFoundError)
