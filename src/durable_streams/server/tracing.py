"""A span of OpenTelemetry for each request, a child of the one that its ``traceparent`` names.

Invariants: without ``tracing`` nothing is in a request's way and nothing is imported; no header, no query and no
content is in a span, so that no secret is. A span ends with the head of the answer: what a live read delivers for
minutes is no part of it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec

from durable_streams.protocol.commands import Rejection
from durable_streams.server.http import STREAM_ROOT, ServerRequest, ServerResponse

__all__ = ["INSTALL", "exporting", "is_available", "traced"]

INSTALL = 'pip install "opentelemetry-sdk>=1.25" "opentelemetry-exporter-otlp-proto-http>=1.25"'
"""How to install what `exporting` needs."""

Handle = Callable[[ServerRequest], Awaitable[ServerResponse]]

_CARRIED = ("traceparent", "tracestate")
_LAST_SECONDS = 2.0  # for spans that wait at the end
_NAME = "durable_streams.server"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


def is_available() -> bool:
    """Whether what `exporting` needs is installed (the extra ``otel``)."""
    with contextlib.suppress(ModuleNotFoundError):
        return find_spec("opentelemetry.sdk") is not None and find_spec(_EXPORTER) is not None
    return False


_EXPORTER = "opentelemetry.exporter.otlp.proto.http"


def traced(handle: Handle) -> Handle:
    """Return a handler that makes a span of each request, with the tracer provider that the process has.

    Args:
        handle: Answers a request.
    """
    from opentelemetry import propagate, trace  # noqa: PLC0415 - an extra

    tracer = trace.get_tracer(_NAME)

    async def handle_in_span(request: ServerRequest) -> ServerResponse:
        method = request.method if request.method in _METHODS else "_OTHER"
        route = f"{STREAM_ROOT}{{path}}" if request.path.startswith(STREAM_ROOT) else request.path
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "url.path": request.path,
            "url.scheme": request.scheme,
            "client.address": request.peer(),
        }
        parent = propagate.extract(_carrier(request))
        name, kind = f"{method} {route}", trace.SpanKind.SERVER
        with tracer.start_as_current_span(name, parent, kind, attributes) as span:
            response = await handle(request)
            span.set_attribute("http.response.status_code", response.status)
            if response.status >= 500:
                span.set_attribute("error.type", str(response.status))
                span.set_status(trace.StatusCode.ERROR)
            return response

    return handle_in_span


def _carrier(request: ServerRequest) -> dict[str, str]:
    """Return the headers that say of which trace a request is a part."""
    carrier = {}
    for name in _CARRIED:
        with contextlib.suppress(Rejection):  # sent twice, or not ASCII: it is no part of any
            value = request.header(name)
            if value is not None:
                carrier[name] = value
    return carrier


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Send the spans of this process to where the environment says (``OTEL_EXPORTER_OTLP_ENDPOINT``)."""
    from opentelemetry import trace  # noqa: PLC0415 - an extra
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    resource = Resource.create()  # with what the environment says
    if str(resource.attributes.get(SERVICE_NAME)).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "durable-streams"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        # In a thread: a collector that does not answer must not hold up the end.
        flushing = threading.Thread(target=provider.force_flush, name="spans", daemon=True)
        flushing.start()
        flushing.join(_LAST_SECONDS)
