"""``__ds/stats``: what the server counts, as JSON, for a page or a program that asks now and then.

Invariants: a request costs nothing for it; the answer's size is bounded, and so is what is kept: one look each ten
seconds, of the last 15 minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque

import msgspec

from durable_streams.server import parse
from durable_streams.server.control import json_response
from durable_streams.server.http import ServerRequest, ServerResponse
from durable_streams.server.metrics import Metrics
from durable_streams.stores.base import StoreError
from durable_streams.stores.figures import Measured
from durable_streams.version import __version__

__all__ = ["Stats"]

_EVERY = 10.0  # seconds between two looks
_SPAN = 900.0  # seconds that they are kept
_encode = msgspec.json.Encoder().encode


class Stats:
    """The figures of one server, and what they were.

    Args:
        metrics: What they are made of.
        every: Seconds between two looks at them that are kept.
        most: How many looks are kept.
    """

    def __init__(self, metrics: Metrics, *, every: float = _EVERY, most: int = int(_SPAN / _EVERY)) -> None:
        self._metrics = metrics
        self._began = time.monotonic()
        self._instance = secrets.token_hex(8)
        self._every = every
        self._past: deque[msgspec.Raw] = deque(maxlen=most)
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep what the figures are."""
        self._looking = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """End that; what is kept stays."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.wait([looking])

    async def _look(self) -> None:
        while self._looking is not None:
            with contextlib.suppress(StoreError):
                self._past.append(msgspec.Raw(_encode(await self._now())))
            if self._looking is not None:  # `wait_for` of Python before 3.12 may swallow a cancellation
                await asyncio.sleep(self._every)

    async def read(self, request: ServerRequest, path: str) -> ServerResponse:  # noqa: ARG002 - of a resource
        """GET: counters since the start of the server, in bytes and seconds, and what is there now.

        With ``history=true`` also what they were in the last 15 minutes, the oldest first.
        """
        answer = {"version": __version__, "instance": self._instance, **await self._now()}
        if parse.query(request.query).get("history") == "true":
            answer["history"] = list(self._past)
        return json_response(200, answer)

    async def _now(self) -> dict[str, object]:
        known = self._metrics
        store, counts = known.store, known.counts
        answer: dict[str, object] = {
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
        return answer
