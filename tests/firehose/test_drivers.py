"""The sync and the async driver over every kind of client, against servers that say what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import gzip
import logging
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from pydantic import BaseModel
from scripted import ScriptedServer

from durable_streams.firehose import (
    AsyncFirehoseStream,
    FirehoseStream,
    StreamConfig,
    StreamError,
    StreamErrorType,
    astream_with_retry,
    backfill,
    stream_with_retry,
)

SYNC: dict[str, Any] = {"own": lambda: None, "requests": requests.Session, "httpx": httpx.Client}
ASYNC: dict[str, Any] = {
    "own-async": lambda: None,
    "aiohttp": aiohttp.ClientSession,
    "httpx-async": httpx.AsyncClient,
}
EVERY = (*SYNC, *ASYNC)
LINES = b'{"data":{"id":1}}\r\n\r\n{"data":{"id":2}}\r\n'
VALUES = [{"data": {"id": 1}}, {"data": {"id": 2}}]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
send, response = ScriptedServer.send, ScriptedServer.response


def quick(**settings: Any) -> StreamConfig:
    return StreamConfig(**{"initial_backoff": 0.01, "max_backoff": 0.05, **settings})


class Run:
    """A feed read by a thread: what came, what ended it."""

    def __init__(self, kind: str, url: str, config: StreamConfig | None = None, **options: Any) -> None:
        self.values: list[Any] = []
        self.times: list[float] = []
        self.error: BaseException | None = None
        self.feed: Any = None
        self._made = threading.Event()
        self._arguments = (kind, url, config or quick(), options)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self._made.wait(20)

    def _run(self) -> None:
        kind, url, config, options = self._arguments
        try:
            if kind in SYNC:
                self._run_sync(SYNC[kind](), url, config, options)
            else:
                asyncio.run(self._run_async(kind, url, config, options))
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.error = error
        finally:
            self._made.set()

    def _run_sync(self, client: Any, url: str, config: StreamConfig, options: dict[str, Any]) -> None:
        try:
            with FirehoseStream(url, config=config, client=client, **options) as self.feed:
                self._made.set()
                for value in self.feed:
                    self._note(value)
        finally:
            if client is not None:
                client.close()

    async def _run_async(self, kind: str, url: str, config: StreamConfig, options: dict[str, Any]) -> None:
        client = ASYNC[kind]()
        try:
            async with AsyncFirehoseStream(url, config=config, client=client, **options) as self.feed:
                self._made.set()
                async for value in self.feed:
                    self._note(value)
        finally:
            if client is not None:
                await (client.close() if kind == "aiohttp" else client.aclose())

    def _note(self, value: Any) -> None:
        self.times.append(time.monotonic())
        self.values.append(value)

    def join(self) -> Run:
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self

    def wait_for(self, count: int) -> Run:
        deadline = time.monotonic() + 20
        while len(self.values) < count:
            assert time.monotonic() < deadline, (self.values, self.error)
            time.sleep(0.002)
        return self


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


GONE = send(response(404, b'{"title":"Gone"}'))


@pytest.mark.parametrize("kind", ["own", "own-async"])
def test_g8_a_very_long_retry_after_is_logged(
    kind: str, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.replies = [send(response(429, retry_after="3000"))]
    told: list[Any] = []
    run = Run(kind, server.root, quick(on_error=told.append))
    deadline = time.monotonic() + 20
    while "3000 seconds" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.feed.stop()
    run.join()
    assert [error.retry_after for error in told] == [3000]


@pytest.mark.parametrize("kind", EVERY)
def test_records_come_across_every_kind_of_end(kind: str, server: ScriptedServer) -> None:
    server.replies = [
        send(response(200, LINES)),
        send(response(200, LINES + b'{"data":', length=500), close=True),
        send(HEAD + b"connection: close\r\n\r\n" + LINES, close=True),
        send(
            response(408) if kind == "aiohttp" else b"", close=True
        ),  # a session of aiohttp tries again itself
        send(response(503, b"busy", retry_after="0")),
        send(response(200, LINES + b'{"errors":[{"title":"x"}]}\r\n')),
        GONE,
    ]
    told: list[Any] = []
    config = quick(
        on_connect=lambda: told.append("connect"),
        on_disconnect=lambda error: told.append(type(error)),
        on_error=lambda error: told.append(error.error_type.value),
    )
    run = Run(kind, f"{server.root}/feed?a=1", config, params={"b": [1, True]}, headers={"X-Id": lambda: "k"})
    run.join()
    assert run.values == VALUES * 4
    assert isinstance(run.error, StreamError)
    assert run.error.status_code == 404
    none = type(None)
    expected = [
        *("connect", none, "connect", StreamError, "stream_interrupted", "connect", none),
        *(
            "timeout" if kind == "aiohttp" else "connection_error",
            "server_error",
            "connect",
            StreamError,
            "stream_interrupted",
            "client_error",
        ),
    ]
    assert told == expected
    assert (run.feed.state.connects, run.feed.state.partial) == (4, 1)
    assert {request.target for request in server.requests} == {"/feed?a=1&b=1&b=true"}
    assert {request.headers["x-id"] for request in server.requests} == {"k"}


@pytest.mark.parametrize("kind", EVERY)
def test_stop_wakes_a_read_that_is_blocked(kind: str, server: ScriptedServer) -> None:
    server.replies = [server.stall(HEAD + b"\r\n" + LINES)]
    told: list[Any] = []
    config = quick(on_disconnect=told.append, on_error=told.append)
    run = Run(kind, server.root, config).wait_for(2)
    began = time.monotonic()
    run.feed.stop()
    run.join()
    assert time.monotonic() - began < 2
    assert (run.error, told, run.feed.closed) == (None, [None], True)
    assert server.gone.acquire(timeout=20)


@pytest.mark.parametrize("kind", EVERY)
def test_stop_wakes_the_wait_for_an_answer(kind: str, server: ScriptedServer) -> None:
    server.replies = [server.stall()]
    run = Run(kind, server.root)
    assert server.arrived.acquire(timeout=20)
    time.sleep(0.05)
    run.feed.stop()
    run.join()
    assert run.error is None


@pytest.mark.parametrize("kind", ["own", "own-async"])
def test_stop_wakes_a_pause(kind: str, server: ScriptedServer) -> None:
    """Pitfall 22."""
    server.replies = [send(response(503))]
    paused = threading.Event()
    config = StreamConfig(initial_backoff=60, on_reconnect=lambda *_: paused.set())
    run = Run(kind, server.root, config)
    assert paused.wait(20)
    time.sleep(0.05)
    run.feed.stop()
    run.join()
    assert run.error is None


@pytest.mark.parametrize("kind", EVERY)
def test_silence_ends_a_connection_and_heartbeats_end_silence(kind: str, server: ScriptedServer) -> None:
    def beating(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"\r\n" + LINES)
        for _ in range(8):
            time.sleep(0.1)
            connection.sendall(b"\r\n")
        server.stall()(connection)

    server.replies = [beating, GONE]
    began = time.monotonic()
    kinds: list[StreamErrorType] = []
    config = quick(stall_timeout=0.5, on_error=lambda error: kinds.append(error.error_type))
    run = Run(kind, server.root, config).join()
    assert kinds == [StreamErrorType.TIMEOUT, StreamErrorType.CLIENT_ERROR]
    assert 1.2 < time.monotonic() - began < 20
    assert run.values == VALUES


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def deflated(form: str) -> tuple[bytes, list[bytes]]:
    """Return the header and the records, each compressed so far that it can be read at once."""
    if form == "plain":
        return b"", [LINES, LINES]
    coder = zlib.compressobj(wbits=31)
    first = coder.compress(LINES) + coder.flush(zlib.Z_SYNC_FLUSH)
    return b"content-encoding: gzip\r\n", [first, coder.compress(LINES) + coder.flush()]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("form", ["plain", "gzip"])
def test_the_first_record_is_handed_over_at_once(
    kind: str, framing: str, form: str, server: ScriptedServer
) -> None:
    """Pitfall 27: whatever the transfer coding, compressed or not."""
    header, (first, second) = deflated(form)
    sizes = {"chunked": b"transfer-encoding: chunked", "close": b"connection: close"}
    size = sizes.get(framing, b"content-length: %d" % (len(first) + len(second)))
    going_on = threading.Event()
    sent: list[float] = []

    def slow(connection: socket.socket) -> None:
        wrapped = chunked if framing == "chunked" else b"".join
        connection.sendall(HEAD + header + size + b"\r\n\r\n")
        time.sleep(0.05)
        sent.append(time.monotonic())
        connection.sendall(wrapped(first) if framing == "chunked" else first)
        assert going_on.wait(20)
        connection.sendall((wrapped(second) + b"0\r\n\r\n") if framing == "chunked" else second)
        raise ConnectionAbortedError

    server.replies = [slow, GONE]
    run = Run(kind, server.root).wait_for(2)
    assert run.times[0] - sent[0] < 1
    going_on.set()
    assert run.join().values == VALUES * 2


def test_closing_the_generator_releases_the_connection(server: ScriptedServer) -> None:
    """Pitfall 28."""
    server.replies = [server.stall(HEAD + b"\r\n" + LINES)]
    for client in (None, requests.Session(), httpx.Client()):
        told: list[Any] = []
        records = stream_with_retry(client, "get", server.root, quick(on_disconnect=told.append))
        assert next(records) == VALUES[0]
        records.close()
        assert server.gone.acquire(timeout=20)
        assert told == [None]
        if client is not None:
            client.close()


def test_throwing_into_the_generator_reaches_the_caller(server: ScriptedServer) -> None:
    """Pitfall 28."""
    server.replies = [server.stall(HEAD + b"\r\n" + LINES)]
    told: list[Any] = []
    records = stream_with_retry(None, "get", server.root, quick(on_disconnect=told.append))
    next(records)
    mine = RuntimeError("mine")
    with pytest.raises(RuntimeError) as caught:
        records.throw(mine)
    assert caught.value is mine
    assert told == [mine]
    assert server.gone.acquire(timeout=20)
    assert list(records) == []


def test_the_async_generator_does_the_same(server: ScriptedServer) -> None:
    """Pitfall 28."""
    server.replies = [server.stall(HEAD + b"\r\n" + LINES)]
    told: list[Any] = []

    async def on_disconnect(error: Exception | None) -> None:
        await asyncio.sleep(0)
        told.append(error)

    async def main() -> None:
        records = astream_with_retry(None, "get", server.root, quick(on_disconnect=on_disconnect))
        await anext(records)
        await records.aclose()
        assert await asyncio.to_thread(server.gone.acquire, timeout=20)
        records = astream_with_retry(None, "get", server.root, quick(on_disconnect=on_disconnect))
        await anext(records)
        with pytest.raises(RuntimeError, match="mine"):
            await records.athrow(RuntimeError("mine"))
        assert await asyncio.to_thread(server.gone.acquire, timeout=20)

    asyncio.run(main())
    assert [str(error) for error in told] == ["None", "mine"]


def test_a_cancelled_task_stays_cancelled_and_leaves_nothing_open(server: ScriptedServer) -> None:
    server.replies = [server.stall(HEAD + b"\r\n" + LINES)]

    async def main() -> None:
        async def read() -> None:
            async with AsyncFirehoseStream(server.root) as feed:
                async for _ in feed:
                    pass

        task = asyncio.create_task(read())
        assert await asyncio.to_thread(server.arrived.acquire, timeout=20)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.gone.acquire, timeout=20)

    asyncio.run(main())


def test_a_feed_that_nobody_holds_leaves_nothing_open(server: ScriptedServer) -> None:
    server.replies = [server.stall(HEAD + b"\r\n" + LINES)]
    gc.disable()
    try:
        feed = FirehoseStream(server.root)
        assert next(feed) == VALUES[0]
        del feed
        assert server.gone.acquire(timeout=20)
    finally:
        gc.enable()


def test_a_feed_stopped_by_its_own_callback_or_consumer_ends_there(server: ScriptedServer) -> None:
    server.replies = [server.stall(HEAD + b"\r\n" + LINES)]
    for feed in (FirehoseStream(server.root), FirehoseStream(server.root, config=quick())):
        seen = []
        for value in feed:
            seen.append(value)
            feed.stop()
        assert seen == VALUES[:1]
        assert server.gone.acquire(timeout=20)
    early = FirehoseStream(server.root)
    early.stop()
    assert list(early) == []


@pytest.mark.parametrize("kind", EVERY)
def test_a_callback_may_stop_the_feed(kind: str, server: ScriptedServer) -> None:
    server.replies = [send(response(200, LINES)), send(response(503))]
    run: list[Run] = []
    made = threading.Event()

    def on_error(_: StreamError) -> None:
        assert made.wait(20)
        run[0].feed.stop()

    run.append(Run(kind, server.root, quick(on_error=on_error)))
    made.set()
    run[0].join()
    assert (run[0].error, run[0].values, len(server.requests)) == (None, VALUES, 2)


def test_callbacks_that_raise_are_logged(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a callback's own")

    names = ("on_connect", "on_disconnect", "on_reconnect", "on_error", "on_gap", "on_invalid")
    server.replies = [
        send(response(200, LINES + b"nope\n", length=99), close=True),
        send(response(200, LINES)),
        GONE,
    ]
    with caplog.at_level(logging.ERROR, "durable_streams"):
        run = Run("own", server.root, quick(**dict.fromkeys(names, broken))).join()
    assert run.values == VALUES * 2
    for name in names:
        assert f"callback {name} " in caplog.text


def test_a_callable_that_fails_is_a_failed_attempt(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A token that cannot be had now may be had later."""
    server.replies = [send(response(200, LINES)), GONE]
    tries: list[int] = []

    def token() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no route to the token")
        return f"Bearer {len(tries)}"

    run = Run("own", server.root, headers={"Authorization": token}).join()
    assert run.values == VALUES
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer 2", "Bearer 3"]


@pytest.mark.parametrize("kind", ["own", "own-async"])
def test_credentials_are_fresh_in_every_attempt(kind: str, server: ScriptedServer) -> None:
    """Pitfall 29."""
    server.replies = [send(response(200, LINES)), send(response(401)), send(response(200, LINES)), GONE]
    number = iter(range(9))
    run = Run(kind, server.root, headers=lambda _attempt: {"authorization": f"{next(number)}"}).join()
    assert run.values == VALUES * 2
    assert [request.headers["authorization"] for request in server.requests] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("kind", ["own", "own-async"])
def test_what_was_missed_is_asked_for(kind: str, server: ScriptedServer) -> None:
    """Pitfall 30."""
    server.replies = [send(response(200, LINES)), send(response(200, LINES)), GONE]
    gaps: list[Any] = []
    config = quick(dedupe_key="data.id", on_gap=lambda last, down_for: gaps.append((last, down_for)))
    run = Run(kind, server.root, config, params=backfill({"expansions": "author_id"})).join()
    assert run.values == VALUES
    assert run.feed.state.duplicates == 2
    assert [request.query.get("backfill_minutes") for request in server.requests] == [None, "1", "1"]
    assert [last for last, _ in gaps] == [VALUES[1]]
    assert 0.005 < gaps[0][1] < 20


@pytest.mark.parametrize("kind", ["own", "own-async"])
def test_a_quiet_feed_is_kept_alive_by_tcp(kind: str, server: ScriptedServer) -> None:
    server.replies = [server.stall(HEAD + b"\r\n" + LINES)]
    run = Run(kind, server.root).wait_for(2)
    peer = server.connections[0].getpeername()
    found = [sock for sock in gc.get_objects() if isinstance(sock, socket.socket) and sock.fileno() >= 0]
    options = [
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for sock in found
        if sock.getsockname() == peer
    ]
    assert options == [1]
    run.feed.stop()
    run.join()


class Data(BaseModel):
    id: int


class Post(BaseModel):
    data: Data


@pytest.mark.parametrize("kind", ["own", "own-async", "requests"])
def test_records_become_models(kind: str, server: ScriptedServer) -> None:
    """Pitfall 23."""
    server.replies = [send(response(200, LINES + b'{"data":{"id":"x"}}\n{"data":{"id":3,"new":1}}\n')), GONE]
    refused: list[Any] = []
    config = quick(on_invalid=lambda raw, error: refused.append((raw, error.original_exception)))
    run = Run(kind, server.root, config, response_model=Post).join()
    assert run.values == [Post(data=Data(id=number)) for number in (1, 2, 3)]
    assert run.feed.state.invalid == 1
    assert refused[0][0] == b'{"data":{"id":"x"}}'
    assert "ValidationError" in type(refused[0][1]).__name__


def test_an_event_stream_is_a_feed_too(server: ScriptedServer) -> None:
    server.replies = [
        send(ScriptedServer.events(b": hi\n\nevent: message\ndata: [1]\n\ndata: [2]\n\ndata: [")),
        GONE,
    ]
    server.replies[0] = send(
        ScriptedServer.events(b": hi\n\nevent: x\ndata: [1]\n\ndata: [2]\n\ndata: ["), close=True
    )
    run = Run("own", server.root).join()
    assert run.values == [[1], [2]]
    assert run.feed.state.partial == 1


def test_a_body_is_sent_as_json(server: ScriptedServer) -> None:
    server.replies = [send(response(200, LINES))]
    for client in (None, requests.Session()):
        records = stream_with_retry(client, "post", server.root, json_data={"q": "ü"})
        next(records)
        records.close()
        if client is not None:
            client.close()
    for request in server.requests:
        assert (request.method, request.body) == ("POST", '{"q": "\\u00fc"}')
        assert request.headers["content-type"] == "application/json"


def test_a_session_keeps_its_ways(server: ScriptedServer) -> None:
    """Its headers, its authentication, its redirects, its own ``request``."""

    class Signed(requests.Session):
        def request(self, *args: Any, **options: Any) -> Any:
            options["headers"] = {**options["headers"], "x-signed": "yes"}
            return super().request(*args, **options)

    session = Signed()
    session.headers["Accept-Encoding"] = "gzip"
    session.auth = ("user", "pass")
    server.replies = [
        send(response(302, location="/moved")),
        send(response(200, gzip.compress(LINES), content_encoding="gzip")),
    ]
    records = stream_with_retry(session, "get", server.root)
    assert [next(records), next(records)] == VALUES
    records.close()
    session.close()
    assert server.requests[1].target == "/moved"
    for request in server.requests:
        assert request.headers["x-signed"] == "yes"
        assert request.headers["accept-encoding"] == "gzip"
        assert request.headers["authorization"].startswith("Basic ")


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("kind", EVERY)
def test_what_no_server_answers(kind: str) -> None:
    run = Run(kind, f"http://127.0.0.1:{unused_port()}/", quick(max_retries=2)).join()
    assert isinstance(run.error, StreamError)
    assert run.error.error_type is StreamErrorType.FATAL_ERROR
    assert run.error.__cause__.error_type is StreamErrorType.CONNECTION_ERROR
    assert "after 2 retries" in str(run.error)


@pytest.fixture
def no_tls() -> Iterator[str]:
    """Give the https URL of a server that does not speak TLS."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}/"
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(20)


@pytest.mark.parametrize("kind", EVERY)
def test_tls_that_fails_is_fatal(kind: str, no_tls: str) -> None:
    """Pitfall 26."""
    run = Run(kind, no_tls).join()
    assert isinstance(run.error, StreamError)
    assert run.error.error_type is StreamErrorType.FATAL_ERROR
    assert len(run.error.message) < 400


@pytest.mark.parametrize("kind", ["own", "requests", "own-async"])  # httpx does not tell it from a refusal
def test_a_proxy_that_fails_is_fatal(
    kind: str, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 26."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    run = Run(kind, "http://feed.test/", quick(max_retries=1)).join()
    assert isinstance(run.error, StreamError)
    assert run.error.error_type is StreamErrorType.FATAL_ERROR


def test_arguments_that_make_no_sense_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="absolute"):
        stream_with_retry(None, "get", "/feed")
    with pytest.raises(TypeError, match=r"requests\.Session"):
        FirehoseStream("http://x/", client=object())
    with pytest.raises(TypeError, match="response_model"):
        FirehoseStream("http://x/", response_model=3)


def test_errors_pickle() -> None:
    error = StreamError("m", StreamErrorType.TIMEOUT, OSError("x"), 408, "body", {"a": "b"})
    twin = copy.copy(error)
    assert (twin.error_type, twin.status_code, twin.headers, str(twin)) == (
        StreamErrorType.TIMEOUT,
        408,
        {"a": "b"},
        "m",
    )
    assert twin.is_retryable
