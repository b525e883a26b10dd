"""The public surface as a type checker sees it: `make types` fails where one of these types changes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from typing_extensions import assert_type

from durable_streams import (
    AppendResult,
    CloseResult,
    DurableStream,
    HeadResult,
    IdempotentAppendResult,
    StreamEvent,
    StreamResponse,
    SyncIdempotentProducer,
    stream,
)
from durable_streams.server import AsgiApp, ServerConfig, asgi_app
from durable_streams.testing import InMemoryStreamServer


def check_handle(handle: DurableStream) -> None:
    """One-shot operations give frozen results."""
    assert_type(handle.append({"message": "hello"}), AppendResult)
    assert_type(handle.append(b"raw", seq="1").next_offset, str)
    assert_type(handle.head(), HeadResult)
    assert_type(handle.head().ttl_seconds, int | None)
    assert_type(handle.close_stream(), CloseResult)
    assert_type(handle.fork("http://localhost/v1/stream/fork"), DurableStream)
    assert_type(DurableStream.create("http://localhost/v1/stream/new", ttl_seconds=60), DurableStream)


def check_response(url: str) -> None:
    """Every way to consume a response has its type."""
    with stream(url, offset="-1", live="sse") as response:
        assert_type(response, StreamResponse)
        assert_type(response.offset, str)
        assert_type(response.iter_json(), Iterator[Any])
        assert_type(response.iter_json(decode=len), Iterator[int])
        assert_type(response.iter_text(), Iterator[str])
        assert_type(response.iter_events(), Iterator[StreamEvent])
        assert_type(response.read_bytes(), bytes)
        assert_type(response.read_json(), list[Any])


def check_producer(producer: SyncIdempotentProducer) -> None:
    """An append can be followed to its offset."""
    assert_type(producer.submit({"n": 1}), Future[IdempotentAppendResult])
    assert_type(producer.epoch, int)


def check_server() -> None:
    """The server mounts and the test server has a URL."""
    assert_type(asgi_app(ServerConfig(data_dir=None)), AsgiApp)
    with InMemoryStreamServer() as server:
        assert_type(server.url("/test"), str)
