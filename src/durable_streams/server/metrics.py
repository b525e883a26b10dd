"""``/metrics``: what the server counts, as Prometheus reads it.

Invariants: nothing is computed before it is asked for; no label has a value that a client chooses, but for the ids of
the first subscriptions that wait, and of paths only the configured beginnings are labels, so that the number of series
is bounded; a disk or a NATS that does not answer leaves out what it would have said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from durable_streams.protocol.commands import Rejection
from durable_streams.server.bodies import Bodies
from durable_streams.server.counts import Counts
from durable_streams.server.http import BASE_HEADERS, ServerRequest, ServerResponse
from durable_streams.server.outlets import Outlets
from durable_streams.server.subscriptions.engine import Engine
from durable_streams.server.subscriptions.lag import NAMED, Lags, lags_of
from durable_streams.stores.base import Store, StoreError
from durable_streams.stores.figures import CommitFigures, Histogram, Measured, StoreFigures

if TYPE_CHECKING:  # an extra: imported when metrics are asked for
    from prometheus_client.core import Metric

__all__ = ["INSTALL", "Metrics", "is_available"]

INSTALL = 'pip install "prometheus-client>=0.20"'
"""How to install what the format needs."""

_NAME = "durable_streams"
_LAG_SECONDS = 1.0  # that it waits for how far behind subscriptions are


def is_available() -> bool:
    """Whether the library that writes the format is installed (the extra ``metrics``)."""
    return find_spec("prometheus_client") is not None


class Metrics:
    """The metrics of one server, from what it counts and from what its parts know of themselves.

    Args:
        store: The store.
        counts: What is counted of requests.
        readers: Returns how many live readers there are, by mode.
        bodies: The request bodies.
        outlets: The answers on their way.
        subscriptions: The subscriptions, None for a store that keeps none.
    """

    def __init__(
        self,
        store: Store,
        counts: Counts,
        readers: Callable[[], dict[str, int]],
        bodies: Bodies,
        outlets: Outlets,
        *,
        subscriptions: Engine | None,
    ) -> None:
        self.store = store
        self.counts = counts
        self.readers = readers
        self.bodies = bodies
        self.outlets = outlets
        self.subscriptions = subscriptions

    async def read(self, request: ServerRequest, path: str = "") -> ServerResponse:  # noqa: ARG002 - of a resource
        """GET: all metrics, in the format that the request asks for; raises the 404 where they cannot be written."""
        if not is_available():
            raise Rejection(404, "NOT_FOUND", f"metrics need prometheus-client: {INSTALL}")
        text, content_type = await self.text(request.header("accept") or "")
        headers = [*BASE_HEADERS, ("content-type", content_type), ("cache-control", "no-store")]
        return ServerResponse(200, headers, text)

    async def text(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics and their content type.

        Args:
            accept: What the ``Accept`` header of the request says.
        """
        from prometheus_client import CollectorRegistry, ProcessCollector  # noqa: PLC0415 - an extra
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

        figures = await self.store.figures() if isinstance(self.store, Measured) else None
        lags = await self._lags()
        registry = CollectorRegistry()
        registry.register(_Collected(lambda: _metrics(self, figures, lags)))
        ProcessCollector(registry=registry)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    async def _lags(self) -> Lags | None:
        if self.subscriptions is None:
            return None
        try:
            return await asyncio.wait_for(lags_of(self.subscriptions), _LAG_SECONDS)
        except (StoreError, asyncio.TimeoutError):
            return None


class _Collected:
    """A collector of the library."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self.collect = collect


def _metrics(seen: Metrics, figures: StoreFigures | None, lags: Lags | None = None) -> Iterator[Metric]:
    yield from _of_requests(seen)
    yield from _of_prefixes(seen)
    yield from _of_memory(seen)
    if lags is not None:
        yield from _of_subscriptions(lags)
    if figures is not None:
        yield from _of_commits(figures.commits)
        yield from _of_store(figures)


def _of_requests(seen: Metrics) -> Iterator[Metric]:
    counts = seen.counts
    reads = {"catch-up": counts.catch_up, "long-poll": counts.long_poll, "sse": counts.sse}
    yield _counter("reads", "Reads by mode.", "mode", reads)
    yield _counter("refusals", "Answers that are errors, by code.", "code", counts.refusals)
    yield _counter(
        "fenced_producers",
        "Appends refused because the producer has a newer epoch.",
        "",
        {"": counts.refusals.get("STALE_EPOCH", 0)},
    )
    yield _counter(
        "duplicates", "Appends of producers that were stored already.", "", {"": counts.duplicates}
    )
    yield _gauge("live_readers", "Readers that wait for data or are sent data now.", "mode", seen.readers())


def _of_prefixes(seen: Metrics) -> Iterator[Metric]:
    prefixes = seen.counts.prefixes
    if not prefixes:
        return
    yield _counter(
        "prefix_appends",
        "Appends stored, by prefix.",
        "prefix",
        {one.prefix: one.appends for one in prefixes},
    )
    yield _counter(
        "prefix_append_bytes",
        "Bytes appended, by prefix.",
        "prefix",
        {one.prefix: one.bytes for one in prefixes},
    )
    yield _counter("prefix_reads", "Reads by prefix.", "prefix", {one.prefix: one.reads for one in prefixes})


def _of_memory(seen: Metrics) -> Iterator[Metric]:
    held = {
        "request-bodies": seen.bodies.used,
        "read-ahead": seen.outlets.budget.used,
        "handed-over": seen.outlets.handed,
    }
    yield _gauge(
        "held_bytes", "Bytes held for clients: their requests, and answers not taken yet.", "kind", held
    )
    yield _gauge("open_answers", "Streamed answers on their way.", "", {"": seen.outlets.open})


def _of_subscriptions(lags: Lags) -> Iterator[Metric]:
    yield _gauge(
        "subscriptions",
        "Subscriptions: idle, waiting for a worker, with one that works, or failed to be delivered.",
        "state",
        lags.states,
    )
    yield _gauge(
        "subscriptions_lag_bytes", "Bytes past the cursors of all subscriptions.", "", {"": lags.bytes}
    )
    yield _gauge(
        "subscriptions_unknown_links",
        "Streams of subscriptions with a wake that the lag leaves out, because there are very many.",
        "",
        {"": lags.unknown},
    )
    yield _gauge(
        "subscriptions_oldest_wake_seconds",
        "Age of the oldest wake in flight.",
        "",
        {"": lags.oldest},
    )
    yield _gauge(
        "subscription_lag_bytes",
        f"Bytes past the cursors of a subscription, of the {NAMED} that are awake for the longest time.",
        "subscription",
        lags.named,
    )


def _of_commits(commits: CommitFigures) -> Iterator[Metric]:
    yield _counter("appends", "Appends stored.", "", {"": commits.appends})
    yield _counter("append_bytes", "Bytes stored.", "", {"": commits.bytes})
    yield _counter("failed_commits", "Commits that failed.", "", {"": commits.failed})
    yield _histogram("commit_seconds", "Time of a commit, the sync included.", commits.seconds)
    yield _histogram("commit_commands", "Commands that one commit answers.", commits.commands)


def _of_store(figures: StoreFigures) -> Iterator[Metric]:
    yield _gauge(
        "commit_queue_commands", "Commands that wait to be stored.", "", {"": figures.queued_commands}
    )
    yield _gauge("commit_queue_bytes", "Bytes that wait to be stored.", "", {"": figures.queued_bytes})
    yield _gauge(
        "streams_in_memory", "Streams whose state is in memory.", "", {"": figures.streams_in_memory}
    )
    if figures.sizes:
        yield _gauge("store_bytes", "Size of each part of the store.", "part", figures.sizes)
    if figures.purge_backlog is not None:
        backlog = {"": figures.purge_backlog}
        yield _gauge("purge_backlog_streams", "Deleted streams whose bytes are not removed yet.", "", backlog)
    if figures.connected is not None:
        yield _gauge("nats_connected", "Whether NATS can be reached.", "", {"": int(figures.connected)})
        yield _counter("nats_reconnects", "Reconnects to NATS.", "", {"": figures.reconnects})


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415 - an extra

    return _family(CounterMetricFamily, name, text, label, values)


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - an extra

    return _family(GaugeMetricFamily, name, text, label, values)


def _family(kind: Any, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = kind(f"{_NAME}_{name}", text, labels=[label] if label else [])
    for value, count in values.items():
        family.add_metric([value] if label else [], count)
    metric: Metric = family
    return metric


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415 - an extra

    total, buckets = 0, []
    for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(f"{_NAME}_{name}", text, buckets=buckets, sum_value=histogram.sum)
