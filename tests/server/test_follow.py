"""Many streams over one event stream: ``__ds/follow``."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from durable_streams.protocol.following import MAX_STREAMS, decoded_event, joined
from durable_streams.protocol.grants import Grant
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.sse import SSEDecoder, SSEEvent
from durable_streams.server import ServerConfig, ServerRequest, asgi_app

TYPES = {"json": "application/json", "text": "text/plain", "bytes": "application/octet-stream"}


def target(paths: list[str], **query: str) -> str:
    return f"__ds/follow?{urlencode({'streams': joined(paths), **query})}"


def said(event: SSEEvent) -> dict[str, Any]:
    return json.loads(event.data)


class Connection:
    """One connection, whose events are read one by one."""

    def __init__(self, server, paths: list[str], last_event_id: str = "", **query: str) -> None:
        self._connection = server.connection()
        headers = {"last-event-id": last_event_id} if last_event_id else {}
        self._connection.request("GET", f"/v1/stream/{target(paths, **query)}", headers=headers)
        self.answer = self._connection.getresponse()
        self._decoder = SSEDecoder()
        self._events: list[SSEEvent] = []

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def __iter__(self) -> Iterator[SSEEvent]:
        return self

    def __next__(self) -> SSEEvent:
        while not self._events:
            chunk = self.answer.read1(65536)
            if not chunk:
                raise StopIteration
            self._events += self._decoder.feed(chunk)
        return self._events.pop(0)


def test_events_name_their_stream_and_one_id_goes_on_with_all(either_server, stream: str) -> None:
    paths = [f"{stream}/{name}" for name in ("json", "text,ü", "bytes")]
    for path, content_type in zip(paths, TYPES.values(), strict=True):
        assert either_server.request("PUT", quote(path), content_type=content_type).status == 201
    bodies = [b'[{"n":1},2]', "h\u00e9\r\n".encode(), b"\0\xff"]
    for path, body, content_type in zip(paths, bodies, TYPES.values(), strict=True):
        assert either_server.append(quote(path), body, content_type).status in {200, 204}
    with Connection(either_server, paths) as first:
        assert first.answer.headers["content-type"] == "text/event-stream"
        got = [said(next(first)) for _ in paths]
        assert [(one["stream"], one["offset"]) for one in got] == list(
            zip(paths, map(format_offset, (10, 5, 2)), strict=True)
        )
        assert [got[0]["messages"], got[1]["text"], got[2]["base64"]] == [
            [{"n": 1}, 2],
            "h\u00e9\r\n",
            "AP8=",
        ]
        either_server.append(quote(paths[1]), b"more", "text/plain")
        live = next(first)
        assert (live.event, said(live)["text"], said(live)["stream"]) == ("data", "more", paths[1])
        either_server.append(quote(paths[0]), b"3", "application/json")
        later = next(first)
    # The id of an event is behind that event, and before what came after it, in all streams.
    with Connection(either_server, paths, last_event_id=live.id) as second:
        assert {(one.event, said(one)["stream"]) for one in (next(second), next(second), next(second))} == {
            ("data", paths[0]),
            ("tail", paths[1]),
            ("tail", paths[2]),
        }
    with Connection(either_server, paths, last_event_id=later.id) as third:
        assert {next(third).event for _ in paths} == {"tail"}
    offsets = ",".join([format_offset(7), "now", "-1"])
    with Connection(either_server, paths, offsets=offsets) as fourth:
        got = {said(one)["stream"]: said(one) for one in (next(fourth), next(fourth), next(fourth))}
        assert got[paths[0]]["messages"] == [{"n": 1}, 2, 3]  # from the start of the append that holds it
        assert got[paths[1]] == {"stream": paths[1], "offset": format_offset(9)}
        assert got[paths[2]]["base64"] == "AP8="


def test_streams_end_one_by_one_and_then_an_event_source_stops(either_server, stream: str) -> None:
    closed, deleted, trimmed, missing = (
        f"{stream}/{name}" for name in ("closed", "deleted", "trimmed", "missing")
    )
    for path in (closed, deleted, trimmed):
        either_server.create(path, "text/plain")
    for _ in range(2):
        either_server.append(trimmed, b"abc", "text/plain")
    cut = {"before": format_offset(3)}
    trim = json.dumps(cut).encode()
    either_server.request("POST", f"__ds/streams/{trimmed}/trim", trim, content_type="application/json")
    paths = [closed, deleted, trimmed, missing]
    offsets = ",".join(["-1", "-1", format_offset(1), "-1"])
    with Connection(either_server, paths, offsets=offsets) as events:
        first = {said(one)["stream"]: (one.event, said(one)) for one in (next(events) for _ in paths)}
        assert [first[path][0] for path in paths] == ["tail", "tail", "end", "end"]
        gone, absent = first[trimmed][1]["error"], first[missing][1]["error"]
        assert (gone["status"], gone["code"], gone["earliest"]) == (410, "RETENTION_GONE", format_offset(3))
        assert (absent["status"], absent["code"]) == (404, "NOT_FOUND")
        either_server.request("DELETE", deleted)
        end = next(events)
        assert (end.event, said(end)["error"]["code"]) == ("end", "NOT_FOUND")
        either_server.append(closed, b"last", "text/plain", stream_closed="true")
        last = list(events)  # nothing is left to wait for: the answer ends
        assert [(one.event, said(one)["stream"]) for one in last] == [("data", closed), ("end", closed)]
        assert said(last[1]) == {"stream": closed, "offset": format_offset(4), "closed": True}
    with Connection(either_server, paths, last_event_id=last[1].id) as again:
        assert (again.answer.status, list(again)) == (204, [])
    with Connection(either_server, paths, last_event_id=last[0].id) as again:
        assert [(one.event, said(one)["stream"]) for one in again] == [("end", closed)]


def test_another_stream_at_the_path_is_not_taken_for_the_first(either_server, stream: str) -> None:
    either_server.create(stream, "text/plain")
    with Connection(either_server, [stream]) as events:
        assert next(events).event == "tail"
        either_server.request("DELETE", stream)
        either_server.create(stream, "text/plain")
        either_server.append(stream, b"of another", "text/plain")
        assert [one.event for one in events] == ["end"]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({}, "streams is missing"),
        ({"streams": ",".join(map(str, range(MAX_STREAMS + 1)))}, "at most 100 streams"),
        ({"streams": "a,b,a"}, "twice"),
        ({"streams": "a,,b"}, "1 to 1024 characters"),
        ({"streams": "a,..%252Fb"}, "no segment"),
        ({"streams": "a,b", "offsets": "-1,-1,-1"}, "one for each of the 2, not 3"),
        ({"streams": "a", "offsets": "12"}, "'12' is no offset"),
    ],
)
def test_what_cannot_be_followed(either_server, query: dict[str, str], text: str) -> None:
    answer = either_server.request("GET", "__ds/follow?" + "&".join(f"{k}={v}" for k, v in query.items()))
    assert (answer.status, text in answer.json["error"]["message"]) == (400, True), answer.json


def test_requests_that_are_none(either_server, stream: str) -> None:
    either_server.create(stream)
    for given in ("nonsense", "00000000.1"):
        refused = either_server.request("GET", target([stream]), last_event_id=given)
        assert (refused.status, "other streams" in refused.json["error"]["message"]) == (400, True)
    assert either_server.request("GET", "__ds/follow/more").status == 404
    assert either_server.request("POST", target([stream]), b"").status == 405
    head = either_server.request("HEAD", target([stream]))
    assert (head.status, head.headers["content-type"], head.body) == (200, "text/event-stream", b"")


def test_large_appends_and_a_busy_stream_beside_a_quiet_one(small_server, stream: str) -> None:
    """What is large comes in several events, or in one that is not held; the quiet stream does not wait for it."""
    busy, quiet, huge = (f"{stream}/{name}" for name in ("busy", "quiet", "huge"))
    small_server.create(busy, "text/plain")
    small_server.create(quiet, "text/plain")
    small_server.create(huge, "application/json")
    text = "".join(f"{number} \u00e9\r\n" for number in range(600)).encode()
    for _ in range(2):
        assert small_server.append(busy, text, "text/plain").status == 204
    small_server.append(quiet, b"short", "text/plain")
    messages = [{"text": "\u00e9\n" * 2000, "n": number} for number in range(2)]
    body = json.dumps(messages, ensure_ascii=False, indent=1).encode()
    for _ in range(2):
        assert small_server.append(huge, body, "application/json").status == 204
    for path in (busy, quiet, huge):
        small_server.request("POST", path, stream_closed="true")
    with Connection(small_server, [busy, quiet, huge]) as events:
        got: dict[str, list[bytes]] = {busy: [], quiet: [], huge: []}
        order = []
        for event in events:
            parsed = decoded_event(event.data)
            order.append(parsed.stream)
            got[parsed.stream].append(parsed.data)
    assert b"".join(got[busy]) == text * 2
    assert [json.loads(one) for one in got[huge] if one] == [messages, messages]
    assert order.index(quiet) == 1  # after one event of the busy one
    assert order.count(busy) > 5


def test_a_reader_that_does_not_read_holds_little(start_server, tmp_path: Path) -> None:
    server = start_server(tmp_path / "data", send_timeout=5.0)
    paths = [f"s{number}" for number in range(20)]
    for path in paths:
        server.create(path)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(f"GET /v1/stream/{target(paths)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        before, most = server.resident(), 0
        for number in range(60):
            assert server.append(paths[number % 20], os.urandom(1 << 20)).status == 204
            most = max(most, server.resident())
        assert most - before < 128 << 20, f"{(most - before) >> 20} MB for clients that read nothing"
    assert server.append("s0", b"goes on").status == 204
    server.terminate()
    assert b"Traceback" not in server.error_output


def test_it_ends_with_the_server_and_with_its_age(start_server, tmp_path: Path) -> None:
    server = start_server(tmp_path / "data", sse_max_age=1.0)
    server.create("s")
    with Connection(server, ["s"]) as events:
        assert [one.event for one in events] == ["tail"]
    server.terminate()
    server = start_server(tmp_path / "data")
    with Connection(server, ["s"]) as events:
        assert next(events).event == "tail"
        assert server.terminate() == 0
        with contextlib.suppress(http.client.IncompleteRead):
            assert list(events) == []


# -- what one may read


@contextlib.asynccontextmanager
async def following(config: ServerConfig, grants: dict[str, Grant], *paths: str) -> AsyncIterator[Any]:
    """Give a function that returns the events of paths for a caller's name, until it has some."""

    async def authorize(_operation: str, _path: str, request: ServerRequest) -> Grant | None:
        return grants.get(request.header("x-name") or "")

    app = asgi_app(config, authorize=authorize)
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://server/v1/stream/") as client:
        for path in paths:
            created = await client.put(
                path,
                content=b"data",
                headers={"x-name": "root", "content-type": "text/plain", "stream-closed": "true"},
            )
            assert created.status_code == 201

        async def ask(name: str, *wanted: str) -> tuple[int, list[tuple[str, str, str]]]:
            answer = await client.get(target(list(wanted)), headers={"x-name": name})
            events = SSEDecoder().feed(answer.content) if answer.status_code == 200 else []
            return answer.status_code, [
                (one.event, said(one)["stream"], said(one).get("error", {}).get("code", "")) for one in events
            ]

        try:
            yield ask
        finally:
            await app.shutdown()


def test_each_stream_needs_its_own_grant() -> None:
    grants = {"root": Grant.of("*:**"), "some": Grant.of("read:mine/**")}

    async def work() -> None:
        async with following(ServerConfig(), grants, "mine/a", "other") as ask:
            status, events = await ask("some", "mine/a", "other", "mine/none")
            assert status == 200
            assert sorted(events) == [
                ("data", "mine/a", ""),
                ("end", "mine/a", ""),
                ("end", "mine/none", "NOT_FOUND"),
                ("end", "other", "FORBIDDEN"),
            ]
            assert await ask("stranger", "mine/a") == (401, [])
        async with following(ServerConfig(hide_forbidden=True), grants, "other") as ask:
            assert await ask("some", "other") == (200, [("end", "other", "NOT_FOUND")])

    asyncio.run(work())


def test_access_that_ends_ends_its_stream() -> None:
    """The grant of one of two streams ends while it is followed; the connection, and the other one, go on."""

    async def work() -> None:
        until: float | None = None

        async def authorize(_operation: str, path: str, _request: ServerRequest) -> Grant:
            return Grant.of("*:**", expires=until if path == "short" else None)

        app = asgi_app(ServerConfig(sse_max_age=8.0), authorize=authorize)
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://server/v1/stream/") as client:
            for path in ("short", "long"):
                await client.put(path, headers={"content-type": "text/plain"})
            until = time.time() + 3
            answer = await client.get(target(["short", "long"]))
            events = [
                (one.event, said(one)["stream"], said(one).get("error", {}).get("status"))
                for one in SSEDecoder().feed(answer.content)
            ]
            assert events == [("tail", "short", None), ("tail", "long", None), ("end", "short", 401)]
        await app.shutdown()

    asyncio.run(work())


def test_a_connection_counts_as_one_live_read(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("[default]\nlive_reads = 1\n")

    async def named(_operation: str, _path: str, request: ServerRequest) -> Grant:
        return Grant.of("*:**", subject=request.header("x-name") or "")

    async def work() -> None:
        app = asgi_app(ServerConfig(limits=limits, sse_max_age=1.0), authorize=named)
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://server/v1/stream/") as client:
            await client.put("s")
            first = asyncio.create_task(client.get(target(["s"])))
            await asyncio.sleep(0.2)
            assert (await client.get(target(["s"]))).status_code == 429
            assert (await first).status_code == 200
            assert (await client.get(target(["s"]))).status_code == 200
        await app.shutdown()

    asyncio.run(work())
