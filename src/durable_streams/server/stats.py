"""``__ds/stats``: what the server counts, as JSON, for a page or a program that asks now and then.

Invariants: as of `metrics`: nothing is computed before it is asked for, and the answer's size is bounded.
"""

from __future__ import annotations

import time

from durable_streams.server.control import json_response
from durable_streams.server.http import ServerRequest, ServerResponse
from durable_streams.server.metrics import Metrics
from durable_streams.stores.figures import Measured
from durable_streams.version import __version__

__all__ = ["Stats"]


class Stats:
    """The figures of one server.

    Args:
        metrics: What they are made of.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.monotonic()

    async def read(self, request: ServerRequest, path: str) -> ServerResponse:  # noqa: ARG002 - of a resource
        """GET: counters since the start of the server, in bytes and seconds, and what is there now."""
        known = self._metrics
        store, counts = known.store, known.counts
        answer: dict[str, object] = {
            "version": __version__,
            "uptime": round(time.monotonic() - self._began, 3),
            "reads": {"catch-up": counts.catch_up, "long-poll": counts.long_poll, "sse": counts.sse},
            "readers": known.readers(),
            "refusals": counts.refusals,
            "duplicates": counts.duplicates,
            "held_bytes": known.bodies.used + known.outlets.budget.used + known.outlets.handed,
        }
        if isinstance(store, Measured):
            figures = await store.figures()
            commits = figures.commits
            answer |= {
                "appends": commits.appends,
                "append_bytes": commits.bytes,
                "commits": sum(commits.seconds.counts),
                "commit_seconds": round(commits.seconds.sum, 6),
                "failed_commits": commits.failed,
                "queued_commands": figures.queued_commands,
                "queued_bytes": figures.queued_bytes,
                "streams_in_memory": figures.streams_in_memory,
                "sizes": figures.sizes,
                "purge_backlog": figures.purge_backlog,
                "connected": figures.connected,
            }
        return json_response(200, answer)
