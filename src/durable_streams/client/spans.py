"""Spans of OpenTelemetry for the requests of clients, where they are asked for.

Invariants: without `trace_requests` nothing is imported, and a request costs one comparison; no query, no credential,
no header and no content is in a span; a span ends with the head of the answer, as the server's does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from durable_streams.client.transports import AsyncExchange, AsyncTransport, Exchange, Interrupt, Transport
from durable_streams.protocol.request import Request, without_query
from durable_streams.version import __version__

__all__ = ["SPANS", "AsyncTracedTransport", "Spans", "TracedTransport", "trace_requests"]

_CARRIED = ("traceparent", "tracestate")


class Spans:
    """Where the spans of this process's clients go.

    Attributes:
        tracer: The tracer of OpenTelemetry; None for no spans.
    """

    def __init__(self) -> None:
        self.tracer: Any = None

    @contextmanager
    def of(self, request: Request) -> Iterator[tuple[Request, Any]]:
        """Give a span that ends with the block, and the request that says of which trace it is a part."""
        from opentelemetry import propagate, trace  # noqa: PLC0415 - an extra

        url = urlsplit(request.url)
        attributes = {
            "http.request.method": request.method,
            "url.full": without_query(request.url),
            "server.address": url.hostname or "",
            **({} if url.port is None else {"server.port": url.port}),
        }
        with self.tracer.start_as_current_span(
            request.method, None, trace.SpanKind.CLIENT, attributes
        ) as span:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            sent = {name.lower() for name in request.headers}
            added = {name: carrier[name] for name in _CARRIED if name in carrier}
            if not sent.intersection(_CARRIED):  # the caller's own go first
                request = replace(request, headers={**request.headers, **added})
            yield request, span


SPANS = Spans()
"""The one of this process."""


def trace_requests(tracer_provider: Any = None, *, on: bool = True) -> None:
    """Make a span of OpenTelemetry of each request of this process's clients from now on, sync and async.

    A span is a child of the caller's present one, and its ``traceparent`` goes with the request, so that the server's
    span is a child of it. A request that is repeated is a span each time. A live read's ends with the answer's head:
    what it delivers for minutes is no part of it. A ``traceparent`` among the caller's own headers is left alone.

    Args:
        tracer_provider: Where the spans go; None for the provider that the process has set.
        on: False for no spans any more.

    Raises:
        ImportError: OpenTelemetry is not installed.
    """
    if not on:
        SPANS.tracer = None
        return
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ImportError(
            'spans of requests need OpenTelemetry: pip install "opentelemetry-sdk>=1.25"', name=error.name
        ) from error
    SPANS.tracer = trace.get_tracer("durable_streams", __version__, tracer_provider=tracer_provider)


class TracedTransport:
    """A transport whose requests are spans.

    Args:
        transport: What sends them.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def open(self, request: Request, interrupt: Interrupt, timeout: float | None) -> Exchange:
        """Send, in a span; see `Transport.open`."""
        with SPANS.of(request) as (sent, span):
            exchange = self._transport.open(sent, interrupt, timeout)
            _note(span, exchange.status)
            return exchange


class AsyncTracedTransport:
    """An async transport whose requests are spans.

    Args:
        transport: What sends them.
    """

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def open(self, request: Request, timeout: float | None) -> AsyncExchange:
        """Send, in a span; see `AsyncTransport.open`."""
        with SPANS.of(request) as (sent, span):
            exchange = await self._transport.open(sent, timeout)
            _note(span, exchange.status)
            return exchange


def _note(span: Any, status: int) -> None:
    from opentelemetry.trace import StatusCode  # noqa: PLC0415 - an extra

    span.set_attribute("http.response.status_code", status)
    if status >= 400:
        span.set_attribute("error.type", str(status))
        span.set_status(StatusCode.ERROR)
