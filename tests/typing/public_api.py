"""The public surface as a type checker sees it: `make types` fails where one of these types changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import msgspec
from typing_extensions import assert_type

from durable_streams import (
    AppendResult,
    AsyncDurableStream,
    AsyncStreamResponse,
    CheckpointStore,
    CloseResult,
    DurableStream,
    DurableStreamError,
    FetchError,
    FileCheckpoint,
    HeadResult,
    IdempotentAppendResult,
    IdempotentProducer,
    LiveMode,
    Offset,
    RetryPolicy,
    StreamClosedError,
    StreamEvent,
    StreamParseError,
    StreamResponse,
    SyncIdempotentProducer,
    astream,
    stream,
)
from durable_streams.ai import Run, Runs
from durable_streams.embedded import DurableStreams
from durable_streams.server import (
    AsgiApp,
    Grant,
    Operation,
    ServerConfig,
    ServerRequest,
    asgi_app,
    sign_url,
)
from durable_streams.testing import InMemoryStreamServer


class Event(TypedDict):
    """A message as a dictionary."""

    id: str


@dataclass
class Record:
    """A message as a dataclass."""

    id: str


class Struct(msgspec.Struct):
    """A message as a msgspec Struct."""

    id: str


def number(item: Any) -> int:
    """Return a message's number."""
    return int(item["n"])


def check_handle(handle: DurableStream) -> None:
    """One-shot operations give frozen results."""
    assert_type(handle.append({"message": "hello"}), AppendResult)
    assert_type(handle.append(b"raw", seq="1").next_offset, str)
    assert_type(handle.head(), HeadResult)
    assert_type(handle.head().ttl_seconds, int | None)
    assert_type(handle.close_stream(), CloseResult)
    assert_type(handle.close_stream({"last": True}).final_offset, str)
    assert_type(handle.fork("http://localhost/v1/stream/fork"), DurableStream)
    assert_type(handle.stream(live=False), StreamResponse)
    assert_type(DurableStream.create("http://localhost/v1/stream/new", ttl_seconds=60), DurableStream)
    assert_type(DurableStream.connect("http://localhost/v1/stream/new", batching=False), DurableStream)
    assert_type(DurableStream.head_static("http://localhost/v1/stream/new"), HeadResult)
    with handle as entered:
        assert_type(entered, DurableStream)


async def check_async_handle(handle: AsyncDurableStream) -> None:
    """The same, awaited."""
    assert_type(await handle.append({"message": "hello"}), AppendResult)
    assert_type(await handle.head(), HeadResult)
    assert_type(await handle.close_stream(), CloseResult)
    assert_type(await handle.fork("http://localhost/v1/stream/fork"), AsyncDurableStream)
    assert_type(await handle.stream(live=False), AsyncStreamResponse)
    assert_type(await AsyncDurableStream.create("http://localhost/v1/stream/new"), AsyncDurableStream)
    assert_type(await AsyncDurableStream.connect("http://localhost/v1/stream/new"), AsyncDurableStream)
    async with handle as entered:
        assert_type(entered, AsyncDurableStream)
    async with handle.stream() as response:
        assert_type(response, AsyncStreamResponse)


def check_response(url: str) -> None:
    """Every way to consume a response has its type."""
    with stream(url, offset="-1", live="sse") as response:
        assert_type(response, StreamResponse)
        assert_type(response.offset, str)
        assert_type(response.etag, str | None)
        assert_type(response.status, int | None)
        assert_type(iter(response), Iterator[bytes])
        assert_type(response.iter_json(), Iterator[Any])
        assert_type(response.iter_json(decode=len), Iterator[int])
        assert_type(response.iter_json_batches(), Iterator[list[Any]])
        assert_type(response.iter_text(), Iterator[str])
        assert_type(response.iter_events(), Iterator[StreamEvent])
        assert_type(response.read_bytes(), bytes)
        assert_type(response.read_text(), str)
        assert_type(response.read_json(), list[Any])
        assert_type(response.read_json_batches(), list[list[Any]])


def check_decoding(response: StreamResponse) -> None:
    """A type or a callable gives its own items."""
    assert_type(next(response.iter_json(decode=Event)), Event)
    assert_type(next(response.iter_json(decode=Event))["id"], str)
    assert_type(next(response.iter_json(decode=Record)), Record)
    assert_type(next(response.iter_json(decode=Struct)), Struct)
    assert_type(next(response.iter_json(decode=number)), int)
    assert_type(response.read_json(decode=Record), list[Record])
    assert_type(response.read_json(decode=number), list[int])
    assert_type(next(response.iter_json_batches(decode=Struct)), list[Struct])
    assert_type(response.read_json_batches(decode=Event), list[list[Event]])


async def check_async_response(url: str) -> None:
    """The same, awaited; in both forms."""
    async with astream(url, live="long-poll") as response:
        assert_type(response, AsyncStreamResponse)
        assert_type(response.iter_json(), AsyncIterator[Any])
        assert_type(response.iter_text(), AsyncIterator[str])
        assert_type(response.iter_events(), AsyncIterator[StreamEvent])
        assert_type(await response.read_bytes(), bytes)
        assert_type(await response.read_json(), list[Any])
        assert_type(await response.read_json(decode=Record), list[Record])
        assert_type(await response.read_json_batches(decode=Event), list[list[Event]])
        async for chunk in response:
            assert_type(chunk, bytes)
        async for event in response.iter_json(decode=Event):
            assert_type(event, Event)
        async for item in response.iter_json(decode=number):
            assert_type(item, int)
        async for batch in response.iter_json_batches(decode=Struct):
            assert_type(batch, list[Struct])
    assert_type(await astream(url), AsyncStreamResponse)


class Row:
    """A checkpoint store of the user's own."""

    def load(self) -> str | None:
        """Return the place."""
        return None

    def save(self, offset: str) -> None:
        """Keep the place."""


def check_checkpoints(url: str) -> None:
    """A path, a file, or anything that loads and saves."""
    store: CheckpointStore = FileCheckpoint("place")
    assert_type(store.load(), str | None)
    for checkpoint in ("place", Path("place"), store, Row()):
        with stream(url, checkpoint=checkpoint, etag='"tag"') as response:
            response.checkpoint(Row())


def check_producer(producer: SyncIdempotentProducer) -> None:
    """An append can be followed to its offset."""
    assert_type(producer.submit({"n": 1}), Future[IdempotentAppendResult])
    assert_type(producer.append({"n": 1}), None)
    assert_type(producer.close_stream({"last": True}), IdempotentAppendResult)
    assert_type(producer.epoch, int)
    with producer as entered:
        assert_type(entered, SyncIdempotentProducer)


async def check_async_producer(url: str) -> None:
    """Its appends are plain calls; what waits is awaited."""
    async with IdempotentProducer(url=url, producer_id="p", epoch=0, auto_claim=True) as producer:
        assert_type(producer, IdempotentProducer)
        producer.append(b"{}")
        producer.append_nowait({"n": 1})
        assert_type(producer.submit({"n": 1}), asyncio.Future[IdempotentAppendResult])
        assert_type(await producer.submit({"n": 1}), IdempotentAppendResult)
        await producer.put({"n": 1})
        await producer.flush()
        assert_type(await producer.close_stream(), IdempotentAppendResult)


def token() -> str:
    """Return credentials."""
    return "Bearer x"


async def fetched_token() -> str:
    """Return credentials that take a while."""
    return "Bearer x"


def on_error(error: DurableStreamError) -> dict[str, Any] | None:
    """Fix what can be fixed."""
    return {"headers": {"authorization": token}} if error.status == 401 else None


async def on_error_async(error: DurableStreamError) -> dict[str, Any] | None:
    """Fix it, with a pause."""
    return on_error(error)


async def check_arguments(url: str, live: LiveMode, offset: Offset) -> None:
    """Plain dictionaries of text and callables are taken; async callables on the async side."""
    headers: dict[str, str | Callable[[], str]] = {"authorization": token, "x": "y"}
    retry = RetryPolicy(max_retries=3)
    stream(
        url, live=live, offset=offset, headers=headers, params={"k": token}, on_error=on_error, retry=retry
    )
    await astream(url, headers=headers, params={"k": fetched_token}, on_error=on_error_async)
    await astream(url, headers={"authorization": fetched_token}, on_error=on_error, timeout=1.5)


def check_errors(error: DurableStreamError) -> None:
    """Errors carry typed attributes."""
    assert_type(error.code, str)
    assert_type(error.status, int | None)
    assert_type(error.retry_after, float | None)
    if isinstance(error, StreamClosedError):
        assert_type(error.final_offset, str | None)
    elif isinstance(error, StreamParseError):
        assert_type(error.offset, str | None)
    elif isinstance(error, FetchError):
        assert_type(error.may_have_been_sent, bool)


def check_server() -> None:
    """The server mounts and the test server has a URL."""
    assert_type(asgi_app(ServerConfig(data_dir=None)), AsgiApp)
    with InMemoryStreamServer() as server:
        assert_type(server.url("/test"), str)


async def authorize(operation: Operation, path: str, request: ServerRequest) -> Grant | None:
    assert_type(request.header("authorization"), str | None)
    grant = Grant.of("read,append:jobs/**", subject="someone", expires=1.5)
    assert_type(grant.allows(operation, path), bool)
    return grant


def access() -> None:
    assert_type(asgi_app(ServerConfig(), authorize=authorize), AsgiApp)
    assert_type(sign_url("https://h/v1/stream/s", "secret", allow=["read", "append"], expires_in=60), str)


async def in_one_process() -> None:
    streams = DurableStreams("folder")
    assert_type(streams.asgi, AsgiApp)
    assert_type(streams.url("a"), str)
    assert_type(streams.stream("a"), AsyncDurableStream)
    assert_type(await streams.create("a", body={}), AsyncDurableStream)
    assert_type(streams.sync_stream("a"), DurableStream)
    assert_type(streams.producer("a", "p"), IdempotentProducer)
    assert_type(streams.sync_producer("a", "p"), SyncIdempotentProducer)
    async with streams.lifespan() as nothing:
        assert_type(nothing, None)
    runs = Runs(streams, format="events")
    assert_type(await runs.stop("chat"), bool)
    assert_type(await runs.current("chat"), Run | None)
