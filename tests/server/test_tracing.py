"""Spans of requests: children of what the client says, without its secrets, and none where none are wanted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scripted import Received, ScriptedServer

from durable_streams import DurableStream
from durable_streams.server import tracing
from durable_streams.server.http import ServerResponse, repeated

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


class _Request:
    scheme, query = "http", "token=secret"

    def __init__(self, path: str, parent: str | None) -> None:
        self.method, self.path, self._parent = "POST", path, parent

    def header(self, name: str) -> str | None:
        if self._parent == "twice" and name == "traceparent":
            raise repeated(name)
        return self._parent if name == "traceparent" else None

    def peer(self) -> str:
        return "127.0.0.1"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def answer(path: str = "/v1/stream/jobs/1", parent: str | None = PARENT, status: int = 204) -> None:
    async def handle(_: object) -> ServerResponse:
        return ServerResponse(status, [])

    assert asyncio.run(tracing.traced(handle)(_Request(path, parent))).status == status


def test_a_span_is_a_child_of_the_one_that_the_client_names(spans: InMemorySpanExporter) -> None:
    answer()
    [span] = spans.get_finished_spans()
    assert span.name == "POST /v1/stream/{path}"
    assert span.kind is trace.SpanKind.SERVER
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == SPAN
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/stream/{path}",
        "url.path": "/v1/stream/jobs/1",
        "url.scheme": "http",
        "client.address": "127.0.0.1",
        "http.response.status_code": 204,
    }
    assert span.status.is_unset


@pytest.mark.parametrize("parent", [None, "twice", "00-nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_parent_that_makes_sense_a_trace_begins(
    spans: InMemorySpanExporter, parent: str | None
) -> None:
    answer(parent=parent)
    [span] = spans.get_finished_spans()
    assert span.parent is None


def test_a_failure_of_the_server_is_one_of_the_span(spans: InMemorySpanExporter) -> None:
    for status, failed in ((404, False), (503, True)):
        spans.clear()
        answer(path="/health", status=status)
        [span] = spans.get_finished_spans()
        assert span.name == "POST /health"
        assert (span.status.status_code is trace.StatusCode.ERROR) is failed


class _Collector:
    """What spans are sent to."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.services: set[str] = set()
        self.server = ScriptedServer(answer=self._take)

    def _take(self, request: Received) -> bytes:
        if "content-encoding" not in request.headers:
            for resource in ExportTraceServiceRequest.FromString(request.content).resource_spans:
                named = {one.key: one.value.string_value for one in resource.resource.attributes}
                self.services.add(named["service.name"])
                self.names += [span.name for scope in resource.scope_spans for span in scope.spans]
        return ScriptedServer.response(200)


@pytest.fixture
def collector() -> Iterator[_Collector]:
    collector = _Collector()
    with collector.server:
        yield collector


def test_serve_sends_its_spans_before_it_ends(collector: _Collector, run_server: Callable) -> None:
    command = [sys.executable, "-m", "durable_streams.cli", "serve", "--memory", "--port", "0", "--otel"]
    endpoint = collector.server.root
    server = run_server(command, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}).wait_until_ready()
    DurableStream.create(f"{server.root}/x").close()
    assert server.terminate() == 0
    assert "PUT /v1/stream/{path}" in collector.names
    assert collector.services == {"durable-streams"}


def test_a_collector_that_is_not_there_holds_nothing_up(run_server: Callable) -> None:
    command = [sys.executable, "-m", "durable_streams.cli", "serve", "--memory", "--port", "0", "--otel"]
    server = run_server(command, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}).wait_until_ready()
    DurableStream.create(f"{server.root}/x").close()
    assert server.terminate(within=30) == 0


def test_what_is_not_installed_is_named() -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
from durable_streams.cli import main
sys.exit(main())
"""
    command = [sys.executable, "-c", program, "serve", "--memory", "--port", "0", "--otel"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"opentelemetry-sdk" in done.stderr
    assert done.stderr.count(b"\n") == 1
