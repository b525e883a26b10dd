"""Many streams over one connection, as a program follows them: `follow` and `afollow`."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import (
    DurableStream,
    DurableStreamError,
    Followed,
    RetentionGoneError,
    RetryPolicy,
    StreamNotFoundError,
    afollow,
)
from durable_streams.embedded import DurableStreams
from durable_streams.server import ServerConfig
from durable_streams.testing import InMemoryStreamServer

PATIENT = RetryPolicy(max_retries=-1, initial_delay=0.02, max_delay=0.2)
TYPES = ["application/json", "text/plain", "application/octet-stream"]


def below(url: str) -> tuple[str, str]:
    """Return the root of a server's streams, and the path below it."""
    root, _, path = url.partition("/v1/stream/")
    return f"{root}/v1/stream", path


def test_each_streams_data_and_end(facade: Facade, url: str) -> None:
    root, path = below(url)
    handles = [DurableStream.create(f"{url}/{n}", content_type=kind) for n, kind in enumerate(TYPES)]
    sent: list[Any] = [{"n": [1]}, "h\u00e9\r\n", b"\0\xff"]
    for handle, value in zip(handles, sent, strict=True):
        handle.append(value)
    with facade.follow(root, [f"{path}/0", f"{path}/1", f"{path}/2", f"{path}/none"]) as events:
        first = {event.stream: event for _, event in zip(range(4), events, strict=False)}
        assert [first[f"{path}/{n}"].data for n in range(3)] == [
            b'[{"n":[1]}]',
            "h\u00e9\r\n".encode(),
            b"\0\xff",
        ]
        assert isinstance(first[f"{path}/none"].error, StreamNotFoundError)
        for handle, value in zip(handles, sent, strict=True):
            handle.close_stream(value)
        rest = list(events)
        assert sum(event.closed for event in rest) == 3
        assert sorted(event.data for event in rest if event.data) == sorted(
            first[f"{path}/{n}"].data for n in range(3)
        )
        offsets = events.offsets
    assert offsets[f"{path}/0"] == handles[0].head().offset
    # From the offsets on there is nothing but the ends; below a path the names are shorter.
    with facade.follow(url, ["0", "1", "2"], offsets={n: offsets[f"{path}/{n}"] for n in "012"}) as events:
        assert [(event.data, event.closed) for event in events] == [(b"", True)] * 3


def test_a_stream_that_has_given_up_its_start(facade: Facade, url: str) -> None:
    handle = DurableStream.create(url, content_type="text/plain")
    first = handle.append("abc").next_offset
    handle.append("def")
    handle.trim(before=first)
    root, path = below(url)
    with facade.follow(root, [path], offsets="0000000000000000_0000000000000000") as events:
        (end,) = list(events)
    assert isinstance(end.error, RetentionGoneError)
    assert end.error.earliest == first
    with facade.follow(root, [path], offsets=end.error.earliest) as events:
        assert next(iter(events)).data == b"def"


def test_a_refusal_and_fresh_credentials(facade: Facade, scripted: ScriptedServer) -> None:
    refusal = scripted.send(scripted.response(401, b'{"error":{"code":"UNAUTHORIZED","message":"no"}}'))
    events = scripted.events(b'event:end\ndata:{"stream":"a","offset":"7","closed":true}\n\n')
    scripted.replies += [refusal, refusal, scripted.send(events, close=True)]
    with facade.follow(scripted.root, ["a"]) as events, pytest.raises(DurableStreamError) as caught:
        list(events)
    assert caught.value.status == 401
    assert list(events) == []  # it has ended
    refused: list[int | None] = []

    def fresh(error: DurableStreamError) -> dict[str, Any]:
        refused.append(error.status)
        return {"headers": {"x-token": "fresh"}}

    with facade.follow(scripted.root, ["a"], on_error=fresh) as events:
        assert [(event.closed, event.next_offset) for event in events] == [(True, "7")]
    assert refused == [401]
    assert scripted.requests[-1].headers["x-token"] == "fresh"


def test_close_ends_a_wait(facade: Facade, url: str) -> None:
    DurableStream.create(url)
    root, path = below(url)
    events = facade.follow(root, [path])
    assert next(iter(events)).data == b""
    threading.Timer(0.2, events.close).start()
    assert list(events) == []


def test_arguments(facade: Facade) -> None:
    with pytest.raises(ValueError, match="absolute"):
        facade.follow("nowhere", ["a"])
    with pytest.raises(ValueError, match="list of 1 to 100"):
        facade.follow("http://host/v1/stream", [])


def test_exact_bytes_from_a_server_that_is_killed(
    facade: Facade, run_server: Callable[..., Any], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "durable_streams.cli", "serve", "--data-dir", str(tmp_path), "--port"]
    server = run_server([*command, "0"]).wait_until_ready()
    chance = random.Random(7)
    handles = [
        DurableStream.create(f"{server.root}/s{n}", content_type=TYPES[n % 3], retry=PATIENT)
        for n in range(6)
    ]
    sent: list[list[Any]] = [[] for _ in handles]
    got: dict[str, list[Any]] = {f"s{n}": [] for n in range(6)}

    def write(count: int) -> None:
        for _ in range(count):
            n = chance.randrange(6)
            value: Any = chance.randbytes(chance.randrange(1, 400))
            value = value.hex() if n % 3 == 1 else value if n % 3 == 2 else {"n": value.hex()}
            handles[n].append(value)
            sent[n].append(value)

    with facade.follow(server.root, list(got), retry=PATIENT) as events:
        reading = threading.Thread(target=lambda: [got[event.stream].append(event.data) for event in events])
        reading.start()
        for _ in range(2):
            write(60)
            port = server.port
            server.kill()
            server = run_server([*command, str(port)]).wait_until_ready()
        write(40)
        for handle in handles:
            handle.close_stream()
        reading.join(60)
        assert not reading.is_alive()
    for n, values in enumerate(sent):
        if n % 3 == 0:
            assert [message for data in got[f"s{n}"] if data for message in json.loads(data)] == values
        else:
            whole = b"".join(value.encode() if n % 3 == 1 else value for value in values)
            assert b"".join(got[f"s{n}"]) == whole


def test_a_cancelled_wait_goes_on_where_it_was() -> None:
    async def work(root: str) -> None:
        handle = DurableStream(f"{root}/s", content_type="text/plain")
        async with afollow(root, ["s"]) as events:
            got: list[Followed] = [await anext(events)]
            for number in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(events), 0.1)
                await asyncio.to_thread(handle.append, f"{number}")
                while not (event := await anext(events)).data:
                    got.append(event)
                got.append(event)
        assert b"".join(event.data for event in got) == b"012"

    with InMemoryStreamServer() as server:
        DurableStream.create(server.url("/s"), content_type="text/plain")
        asyncio.run(work(server.url("/s").removesuffix("/s")))


def test_in_process(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text("")  # nobody else may do anything

    async def work() -> None:
        streams = DurableStreams(config=ServerConfig(auth=keys))  # the application itself needs none
        async with streams.lifespan():
            handles = [await streams.create(f"a/{n}", content_type="text/plain") for n in range(2)]
            names = ["a/0", "a/1"]

            def in_a_thread() -> list[bytes]:
                with streams.sync_follow(names) as events:
                    return sorted(event.data for event in events if event.data)

            thread = asyncio.create_task(asyncio.to_thread(in_a_thread))
            async with streams.follow(names, offsets="now") as events:
                assert {(await anext(events)).stream for _ in names} == set(names)
                for handle in handles:
                    await handle.close_stream(handle.url[-1])
                assert sorted([event.data async for event in events if event.data]) == [b"0", b"1"]
            assert await thread == [b"0", b"1"]

    asyncio.run(work())
