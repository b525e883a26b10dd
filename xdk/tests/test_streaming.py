"""The names that users of the X API SDK know: their signatures, defaults and ways."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import types
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
from pydantic import BaseModel
from scripted import Received, ScriptedServer

from durable_streams import DurableStreamError, firehose
from xdk import streaming
from xdk.streaming import (
    AsyncFirehoseStream,
    FirehoseStream,
    StreamConfig,
    StreamError,
    StreamErrorType,
    StreamState,
    astream_with_retry,
    stream_with_retry,
)

LINES = b'{"data":{"id":"1"}}\r\n\r\n{"data":{"id":"2"}}\r\n'


def _answer(request: Received) -> bytes:
    if request.target == "/none":
        return ScriptedServer.response(404, b'{"title":"None"}')
    return ScriptedServer.response(200, LINES)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(answer=_answer) as server:
        yield server


@pytest.fixture
def url(server: ScriptedServer) -> str:
    return server.root


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def test_the_defaults_are_the_documented_ones() -> None:
    documented = {
        "max_retries": 10,
        "initial_backoff": 1.0,
        "max_backoff": 64.0,
        "backoff_multiplier": 2.0,
        "jitter": True,
        "timeout": None,
        "chunk_size": 1024,
        **dict.fromkeys(("on_connect", "on_disconnect", "on_reconnect", "on_error")),
    }
    fields = {field.name: field.default for field in dataclasses.fields(StreamConfig)}
    assert list(fields)[: len(documented)] == list(documented)
    assert {name: fields[name] for name in documented} == documented
    assert StreamConfig(3, 0.5).initial_backoff == 0.5
    state = StreamState()
    assert (state.retry_count, state.current_backoff, state.is_connected) == (0, 1.0, False)
    assert (state.total_items_received, state.last_error) == (0, None)


def test_a_dead_connection_is_noticed_here_and_a_quiet_one_left_alone_in_the_general_engine() -> None:
    assert StreamConfig().stall_timeout == 30.0
    assert firehose.StreamConfig().stall_timeout is None
    assert isinstance(StreamConfig(), firehose.StreamConfig)
    for kind in (FirehoseStream, AsyncFirehoseStream):
        assert kind.default_config is StreamConfig


def test_the_signatures_are_the_documented_ones() -> None:
    names = ["session", "method", "url", "config", "params", "headers", "json_data", "response_model"]
    parameters = inspect.signature(stream_with_retry).parameters
    assert list(parameters) == names
    assert all(parameters[name].default is None for name in names[3:])
    assert list(inspect.signature(astream_with_retry).parameters)[1:] == names[1:]
    values = {"connection_error", "timeout", "server_error", "rate_limited", "stream_interrupted"}
    values |= {"authentication_error", "client_error", "fatal_error"}
    assert {kind.value for kind in StreamErrorType} == values
    assert set(streaming.__all__) <= set(vars(streaming))


def test_an_error_is_one_of_the_tree() -> None:
    cause = OSError("gone")
    error = StreamError("it broke", StreamErrorType.CONNECTION_ERROR, cause, 503, "body")
    assert isinstance(error, DurableStreamError)
    assert (str(error), error.message) == ("it broke", "it broke")
    assert (error.error_type, error.original_exception) == (StreamErrorType.CONNECTION_ERROR, cause)
    assert (error.status_code, error.response_body, error.is_retryable) == (503, "body", True)
    assert not StreamError("no", StreamErrorType.CLIENT_ERROR).is_retryable


def test_records_are_dictionaries(session: requests.Session, server: ScriptedServer, url: str) -> None:
    records = stream_with_retry(session, "get", f"{url}/stream", StreamConfig(), params={"a": "b"})
    assert isinstance(records, types.GeneratorType)
    assert [next(records), next(records)] == [{"data": {"id": "1"}}, {"data": {"id": "2"}}]
    records.close()
    assert server.requests[-1].target == "/stream?a=b"


def test_records_are_models(session: requests.Session, url: str) -> None:
    class Post(BaseModel):
        data: dict[str, str]

    records = stream_with_retry(session, "get", f"{url}/stream", response_model=Post)
    assert next(records) == Post(data={"id": "1"})
    records.close()


def test_what_no_attempt_fixes_is_raised(session: requests.Session, url: str) -> None:
    told: list[StreamError] = []
    with pytest.raises(StreamError) as caught:
        next(stream_with_retry(session, "get", f"{url}/none", StreamConfig(on_error=told.append)))
    assert told == [caught.value]
    assert (caught.value.status_code, caught.value.error_type) == (404, StreamErrorType.CLIENT_ERROR)


def test_the_async_form(url: str) -> None:
    async def main() -> list[Any]:
        async with httpx.AsyncClient() as client:
            records = astream_with_retry(client, "get", f"{url}/stream")
            values = [await anext(records), await anext(records)]
            await records.aclose()
            return values

    assert asyncio.run(main()) == [{"data": {"id": "1"}}, {"data": {"id": "2"}}]
