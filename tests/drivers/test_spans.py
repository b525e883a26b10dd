"""Spans of a client's requests: children of the caller's, parents of the server's, and none where none are wanted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scripted import ScriptedServer

from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    FetchError,
    RetryPolicy,
    StreamNotFoundError,
    stream,
    trace_requests,
)
from durable_streams.client.spans import SPANS
from durable_streams.server import ServerConfig
from durable_streams.server.run import run_server
from durable_streams.testing.background import Background

Traced = tuple[TracerProvider, InMemorySpanExporter]

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_requests(provider)
    yield provider, exporter
    trace_requests(on=False)


def shown(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def sync_writes(url: str) -> None:
    with DurableStream.create(f"{url}?token=secret", content_type="text/plain") as handle:
        handle.append("some text")


def async_writes(url: str) -> None:
    async def main() -> None:
        async with await AsyncDurableStream.create(
            f"{url}?token=secret", content_type="text/plain"
        ) as handle:
            await handle.append("some text")

    asyncio.run(main())


@pytest.mark.parametrize("writes", [sync_writes, async_writes], ids=["sync", "async"])
def test_requests_are_spans_within_the_callers(
    url: str, spans: Traced, writes: Callable[[str], None]
) -> None:
    provider, exporter = spans
    with provider.get_tracer("caller").start_as_current_span("outer") as outer:
        writes(url)
    create, append, last = exporter.get_finished_spans()
    assert last.name == "outer"
    for span, method, status in ((create, "PUT", 201), (append, "POST", 204)):
        assert (span.name, span.kind) == (method, trace.SpanKind.CLIENT)
        assert span.parent.span_id == outer.get_span_context().span_id
        seen = shown(span)
        assert (seen["http.request.method"], seen["http.response.status_code"]) == (method, status)
        assert seen["url.full"] == url, "without its query"
        assert seen["server.port"] == int(url.split(":")[2].partition("/")[0])
        assert "secret" not in span.to_json()
        assert "some text" not in span.to_json()


def test_the_traceparent_goes_along_and_the_callers_own_goes_first(
    scripted: ScriptedServer, spans: Traced
) -> None:
    _, exporter = spans
    head = {"Stream-Next-Offset": "1", "Content-Type": "text/plain"}
    scripted.replies = [scripted.send(scripted.response(200, b"", **head))]
    for number, headers in enumerate(({}, {"traceparent": PARENT})):
        DurableStream(f"{scripted.root}/v1/stream/x", headers=headers).head()
        sent = scripted.requests[number].headers["traceparent"]
        span = exporter.get_finished_spans()[number]
        own = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-"
        assert sent == PARENT if headers else sent.startswith(own)


def test_the_servers_span_is_a_child_of_the_clients(spans: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, exporter = spans
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)

    async def main(stop: asyncio.Event, ready: Callable[[str], None]) -> None:
        await run_server(ServerConfig(port=0, tracing=True), stop, ready)

    background = Background("traced-server", main)
    try:
        DurableStream.create(f"{background.value}/s", content_type="text/plain").close()
    finally:
        background.stop()
    served, asked = sorted(exporter.get_finished_spans(), key=lambda span: span.kind.value)
    assert (served.kind, asked.kind) == (trace.SpanKind.SERVER, trace.SpanKind.CLIENT)
    assert served.parent is not None
    assert asked.context is not None
    assert (served.parent.trace_id, served.parent.span_id) == (asked.context.trace_id, asked.context.span_id)


def test_errors_are_in_the_span(url: str, spans: Traced) -> None:
    _, exporter = spans
    once = RetryPolicy(max_retries=0)
    with pytest.raises(StreamNotFoundError):
        DurableStream(url).head()
    with pytest.raises(FetchError):
        DurableStream("http://127.0.0.1:1/v1/stream/x", retry=once).head()
    missing, unreachable = exporter.get_finished_spans()
    assert (shown(missing)["error.type"], missing.status.status_code) == ("404", trace.StatusCode.ERROR)
    assert unreachable.status.status_code is trace.StatusCode.ERROR
    assert "http.response.status_code" not in shown(unreachable)


def test_a_live_read_is_a_span_that_ends_with_its_head(url: str, spans: Traced) -> None:
    _, exporter = spans
    with DurableStream.create(url, content_type="application/json", body=b'{"n":1}') as handle:
        with stream(url, live="sse") as response:
            assert next(response.iter_json()) == {"n": 1}
            assert [one.name for one in exporter.get_finished_spans()][:2] == ["PUT", "GET"]
        handle.delete()


def test_without_it_nothing_is_imported() -> None:
    assert SPANS.tracer is None
    code = (
        "import sys; from durable_streams import DurableStream, FetchError, RetryPolicy\n"
        "try: DurableStream('http://127.0.0.1:1/v1/stream/x', retry=RetryPolicy(max_retries=0)).head()\n"
        "except FetchError: print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_missing_library_is_one_sentence() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from durable_streams import trace_requests\n"
        "try: trace_requests()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install" in done.stdout
    assert done.stdout.count("\n") == 1
