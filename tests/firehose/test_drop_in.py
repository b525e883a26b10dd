"""What users of the X SDK's own `streaming`, and of feeds elsewhere, rely on: over every kind of client."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import urljoin

import aiohttp
import httpx
import pytest
import requests
import urllib3
from pydantic import BaseModel
from scripted import ScriptedServer

from durable_streams.client.transports import Gate
from durable_streams.firehose import (
    AsyncFirehoseStream,
    FirehoseStream,
    StreamConfig,
    StreamError,
    StreamErrorType,
)
from durable_streams.version import USER_AGENT
from xdk import streaming

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


@pytest.mark.parametrize("kind", CLIENTS)
def test_d1_an_empty_object_is_a_heartbeat_where_that_is_asked_for(kind: str, server: ScriptedServer) -> None:
    server.replies = [send(response(200, b'{}\r\n{"n":1}\n {} \n{"a":{}}\n')), GONE] * 2
    quick = {"initial_backoff": 0.01, "max_backoff": 0.01}
    assert follow(kind, server.root, streaming.StreamConfig(**quick))[0] == [{"n": 1}, {"a": {}}]
    assert follow(kind, server.root, StreamConfig(**quick))[0] == [{}, {"n": 1}, {}, {"a": {}}]


@pytest.mark.parametrize("kind", ["requests", "httpx", "urllib3", "aiohttp", "httpx-async"])
@pytest.mark.parametrize("how", ["value", "callable", "all"])
def test_d2_none_leaves_out_a_header_of_the_client(kind: str, how: str, server: ScriptedServer) -> None:
    own = {"X-Secret": "1", "X-Own": "2"}
    headers: Any = {"x-secret": None}
    if how == "callable":
        headers = {"x-secret": lambda: None}
    elif how == "all":
        headers = lambda _attempt: {"x-secret": None}  # noqa: E731
    values, error = follow(kind, server.root, own=own, headers=headers)
    assert values == [{"n": 1}], error
    assert sent(server, "x-secret") == [None, None]
    assert sent(server, "x-own") == ["2", "2"]


class Valued:
    """Has `model_validate` and nothing else."""

    def __init__(self, n: int) -> None:
        self.n = n

    @classmethod
    def model_validate(cls, value: Any) -> Valued:
        return cls(value["n"])


class Overridden(BaseModel):
    n: int

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Overridden:
        return super().model_validate({"n": obj["n"] + 100}, **options)


class Patched(BaseModel):
    n: int


class Adapter:
    """Has `validate_python` and nothing else."""

    @staticmethod
    def validate_python(value: Any) -> Any:
        return value["n"]


@pytest.mark.parametrize("kind", ["own", "own-async"])
def test_d3_a_models_own_validation_is_the_one_that_counts(
    kind: str, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = MagicMock()
    double.model_validate.side_effect = lambda value: value["n"]
    monkeypatch.setattr(Patched, "model_validate", staticmethod(lambda value: value["n"] + 1000))
    found = []
    for model in (Valued, Overridden, Patched, Adapter(), double):
        server.requests.clear()
        server.replies = [send(response(200, b'{"n":1}\n')), GONE]
        values, _ = follow(kind, server.root, response_model=model)
        found += [getattr(value, "n", value) for value in values]
    assert found == [1, 101, 1001, 1, 1]


@pytest.mark.parametrize("kind", CLIENTS)
def test_d4_parameters_in_every_form(kind: str, server: ScriptedServer) -> None:
    server.replies = [GONE]
    forms: list[Any] = [
        [("a", "1"), ("b", "x"), ("a", "2")],
        (("a", 1),),
        "a=1&b=x%20y",
        b"?a=1",
        {"a": b"1 2", "b": None, b"c": [b"x", True]},
        lambda _attempt: [("a", "1")],
        lambda _attempt: "a=1",
        "",
        None,
    ]
    for params in forms:
        _, error = follow(kind, f"{server.root}/f", params=params)
        assert isinstance(error, StreamError), error
        assert error.status_code == 404
    targets = [request.target for request in server.requests]
    assert targets == [
        "/f?a=1&a=2&b=x",
        "/f?a=1",
        "/f?a=1&b=x%20y",
        "/f?a=1",
        "/f?a=1+2&c=x&c=true",
        "/f?a=1",
        "/f?a=1",
        "/f",
        "/f",
    ]


@pytest.mark.parametrize("kind", ["own", "own-async"])
@pytest.mark.parametrize("where", ["params", "headers"])
def test_d4_what_makes_no_sense_is_refused_at_once(kind: str, where: str, server: ScriptedServer) -> None:
    for given in (7, [1], lambda _attempt: 7):
        values, error = follow(kind, server.root, **{where: given})
        assert (values, type(error)) == ([], TypeError), error
    assert server.requests == []


@pytest.mark.parametrize(
    ("kind", "original"),
    [
        ("requests", requests.HTTPError),
        ("httpx", httpx.HTTPStatusError),
        ("httpx-async", httpx.HTTPStatusError),
        ("aiohttp", aiohttp.ClientResponseError),
    ],
)
def test_d5_the_librarys_own_error_is_behind_a_refusal(
    kind: str, original: type[Exception], server: ScriptedServer
) -> None:
    server.replies = [GONE]
    _, error = follow(kind, server.root)
    assert isinstance(error, StreamError)
    assert isinstance(error.original_exception, original)
    assert getattr(error.original_exception, "status", 404) == 404
    if kind != "aiohttp":
        answer = error.original_exception.response
        assert (answer.status_code, answer.text) == (404, '{"title":"Gone"}')
    server.replies = [send(response(503, b"busy"))]
    _, error = follow(kind, server.root, StreamConfig(max_retries=1, initial_backoff=0.01))
    assert isinstance(error, StreamError)
    assert isinstance(error.original_exception, original)


def test_d5_the_error_behind_a_break_is_one_of_requests(server: ScriptedServer) -> None:
    seen: list[Any] = []
    config = StreamConfig(initial_backoff=0.01, on_error=seen.append, timeout=0.3)
    cut = send(response(200, b'{"n":1}\n', length=500), close=True)
    silent = server.stall(response(200, b'{"n":1}\n', length=500))
    server.replies = [cut, silent, GONE]
    follow("requests", server.root, config)
    kinds = [type(error.original_exception) for error in seen]
    assert kinds == [
        requests.exceptions.ChunkedEncodingError,
        requests.exceptions.ConnectionError,
        requests.HTTPError,
    ]


def test_d6_the_type_of_an_error_may_be_given_by_its_name() -> None:
    for given in ("timeout", "TIMEOUT", StreamErrorType.TIMEOUT):
        error = StreamError("m", given)
        assert (error.error_type, error.code, error.is_retryable) == (
            StreamErrorType.TIMEOUT,
            "TIMEOUT",
            True,
        )
    assert StreamError("m", "no such type").error_type is StreamErrorType.FATAL_ERROR
    assert not StreamError("m", "no such type").is_retryable


class Prefixed(requests.Session):
    """Completes URLs, as sessions of several packages do."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root

    def request(self, method: Any, url: Any, *arguments: Any, **options: Any) -> Any:
        return super().request(method, urljoin(self.root, url), *arguments, **options)


class Getting(requests.Session):
    """Has a `get` of its own."""

    def get(self, url: Any, **options: Any) -> Any:
        options["headers"] = {**options["headers"], "X-Mine": "yes"}
        return super().get(url, **options)


class Double:
    """The least that a session must have."""

    def __init__(self, pieces: list[Any]) -> None:
        self.asked: list[Any] = []
        self._answer = MagicMock(status_code=200, headers={"Content-Type": "application/json"})
        self._answer.iter_content.return_value = pieces

    def get(self, url: str, params: Any, headers: Any, stream: bool, timeout: Any) -> Any:
        self.asked.append((url, params, stream, "user-agent" in headers, timeout is not None))
        return self._answer


def test_d7_sessions_of_the_callers_own_making(server: ScriptedServer) -> None:
    with Prefixed(server.root) as session:
        records = streaming.stream_with_retry(session, "get", "/2/stream", params={"a": 1})
        assert next(records) == {"n": 1}
        records.close()
    server.replies = [send(response(200, b'{"n":1}\n'))]
    with Getting() as session:
        records = streaming.stream_with_retry(session, "get", server.root, json_data={})
        assert next(records) == {"n": 1}
        records.close()
    assert [request.target for request in server.requests] == ["/2/stream?a=1", "/"]
    assert sent(server, "x-mine") == [None, "yes"]
    assert sent(server, "content-type") == [None, None]
    with pytest.raises(ValueError, match="absolute"):
        streaming.stream_with_retry(requests.Session(), "get", "/2/stream")


@pytest.mark.parametrize("kind", ["httpx", "httpx-async", "aiohttp"])
def test_d7_clients_with_a_base_url(kind: str, server: ScriptedServer) -> None:
    async def read(client: Any) -> Any:
        async with client, AsyncFirehoseStream("/2/stream", client=client, params={"a": 1}) as feed:
            return await anext(feed)

    async def main() -> Any:
        made: Any = aiohttp.ClientSession if kind == "aiohttp" else httpx.AsyncClient
        return await read(made(base_url=server.root))

    if kind == "httpx":
        with (
            httpx.Client(base_url=server.root) as client,
            FirehoseStream("/2/stream", client=client, params={"a": 1}) as feed,
        ):
            assert next(feed) == {"n": 1}
    else:
        assert asyncio.run(main()) == {"n": 1}
    assert server.requests[0].target == "/2/stream?a=1"


def test_d7_doubles_of_a_session() -> None:
    double: Any = Double([b'{"n":', b"", '1}\n{"n":2}\n'])
    records = streaming.stream_with_retry(double, "get", "http://x.test/s", params={"a": 1})
    assert [next(records), next(records)] == [{"n": 1}, {"n": 2}]
    records.close()
    assert double.asked == [("http://x.test/s", {"a": 1}, True, True, True)]
    session = MagicMock()
    session.get.return_value.iter_content.return_value = [b'{"n":1}\n']
    with streaming.FirehoseStream("http://x.test/s", client=session) as feed:
        assert next(feed) == {"n": 1}
    assert session.get.call_args.args == ("http://x.test/s",)
    session = MagicMock()
    refused = requests.HTTPError(response=MagicMock(status_code=401, text="no"))
    session.get.return_value.raise_for_status.side_effect = refused
    with pytest.raises(StreamError) as caught:
        next(streaming.stream_with_retry(session, "get", "http://x.test/s"))
    assert (caught.value.status_code, caught.value.original_exception) == (401, refused)


@pytest.mark.parametrize("double", [MagicMock, requests.Session])
def test_d7_what_a_double_raises_is_judged_as_if_a_connection_had(double: Any) -> None:
    session, seen = double(), []
    session.get = MagicMock(side_effect=[requests.ConnectionError("x"), requests.Timeout("y"), KeyError("z")])
    config = streaming.StreamConfig(
        initial_backoff=0.01, on_error=lambda error: seen.append(error.error_type)
    )
    with pytest.raises(StreamError):
        next(streaming.stream_with_retry(session, "get", "http://x.test/s", config))
    assert [kind.value for kind in seen] == ["connection_error", "timeout", "fatal_error"]


def test_d7_reports_are_logged_under_the_name_of_the_module(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(_: object) -> None:
        raise RuntimeError

    caplog.set_level("INFO")
    for settings, name in ((streaming.StreamConfig, "xdk.streaming"), (StreamConfig, "durable_streams")):
        caplog.clear()
        server.requests.clear()
        follow("own", server.root, settings(initial_backoff=0.01, max_backoff=0.01, on_error=raises))
        levels = {record.levelname for record in caplog.records if record.name == name}
        assert levels == ({"INFO", "WARNING", "ERROR"} if "xdk" in name else {"INFO", "ERROR"})
        assert {record.name for record in caplog.records} == {name}


def test_b9_threads_share_one_feed(server: ScriptedServer) -> None:
    lines = b"".join(b'{"n":%d}\n' % number for number in range(3000))
    server.replies = [send(response(200, lines)), GONE]
    values: list[int] = []
    errors: list[Exception] = []

    def read(feed: Any) -> None:
        try:
            values.extend(record["n"] for record in feed)
        except Exception as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    with FirehoseStream(server.root, config=StreamConfig(initial_backoff=0.01)) as feed:
        threads = [threading.Thread(target=read, args=(feed,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(values) == list(range(3000))
    assert [type(error) for error in errors] == [StreamError]


def test_b9_tasks_share_one_feed(server: ScriptedServer) -> None:
    lines = b"".join(b'{"n":%d}\n' % number for number in range(500))
    server.replies = [send(response(200, lines)), GONE]

    async def main() -> tuple[list[int], list[Any]]:
        values: list[int] = []

        async def read(feed: Any) -> None:
            async for record in feed:
                values.append(record["n"])
                await asyncio.sleep(0)

        async with AsyncFirehoseStream(server.root, config=StreamConfig(initial_backoff=0.01)) as feed:
            ends = await asyncio.gather(*(read(feed) for _ in range(3)), return_exceptions=True)
        return values, ends

    values, ends = asyncio.run(main())
    assert sorted(values) == list(range(500))
    assert sum(isinstance(end, StreamError) for end in ends) == 1
    assert sum(end is None for end in ends) == 2


@pytest.mark.parametrize("how", ["close", "stop"])
def test_b9_another_thread_ends_a_feed_that_is_read(how: str, server: ScriptedServer) -> None:
    server.replies = [server.stall(response(200, b'{"n":1}\n', length=500))]
    feed = FirehoseStream(server.root)
    assert next(feed) == {"n": 1}
    rest: list[Any] = []
    threads = [threading.Thread(target=lambda: rest.append(list(feed))) for _ in range(3)]
    for thread in threads:
        thread.start()
    getattr(feed, how)()
    for thread in threads:
        thread.join(30)
    assert rest == [[], [], []]
    assert server.gone.acquire(timeout=20)


def test_b9_a_task_closes_a_feed_that_another_one_reads(server: ScriptedServer) -> None:
    server.replies = [server.stall(response(200, b'{"n":1}\n', length=500))]

    async def main() -> list[Any]:
        feed = AsyncFirehoseStream(server.root)
        assert await anext(feed) == {"n": 1}

        async def read() -> list[Any]:
            return [record async for record in feed]

        tasks = [asyncio.create_task(read()) for _ in range(2)]
        await asyncio.sleep(0.05)
        await feed.aclose()
        return await asyncio.wait_for(asyncio.gather(*tasks), 20)

    assert asyncio.run(main()) == [[], []]


HANDLED = """
import signal, sys
from durable_streams.firehose import FirehoseStream, StreamConfig

for _ in range(300):
    config = StreamConfig(max_retries=-1, initial_backoff=0.0005, max_backoff=0.0005, jitter=False)
    feed = FirehoseStream("http://127.0.0.1:1/", config=config)
    signal.signal(signal.SIGALRM, lambda *_: feed.stop())
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.003)
    assert list(feed) == []
    signal.setitimer(signal.ITIMER_REAL, 0)
print("ended")
"""


def test_b9_a_signal_handler_may_stop_a_feed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANDLED], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.returncode) == ("ended\n", 0), done.stderr


def test_b9_a_gate_opened_in_the_middle_of_its_own_wait() -> None:
    gate = Gate()
    assert not gate.wait(0.01)
    waiting = [threading.Thread(target=gate.wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
    gate.set()
    gate.set()
    for thread in waiting:
        thread.join(20)
    assert (gate.is_set(), gate.wait(), gate.wait(0)) == (True, True, True)
