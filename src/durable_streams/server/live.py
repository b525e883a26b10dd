"""Live reads: long-poll and server-sent events (protocol section 5).

Invariants: a reader is woken once per commit however much it holds; what is recent and not large is sent from memory,
the rest is read from the store as the reader takes it.
"""

from __future__ import annotations

import time
from random import random

from durable_streams.protocol import headers as names
from durable_streams.protocol import rules
from durable_streams.protocol.cursors import next_cursor
from durable_streams.protocol.state import StreamState
from durable_streams.server import parse
from durable_streams.server.access import live_seconds
from durable_streams.server.config import ServerConfig
from durable_streams.server.event_stream import EventStreams
from durable_streams.server.http import Headers, ServerRequest, ServerResponse
from durable_streams.server.positions import Place, cache_control, etag, is_known, range_headers
from durable_streams.server.ranges import SMALL, Range, Ranges, whole
from durable_streams.stores.base import Store, Watch

__all__ = ["LiveReads"]


class LiveReads:
    """All live reads of a server; ``stop`` ends them."""

    def __init__(self, store: Store, config: ServerConfig, ranges: Ranges) -> None:
        self._store = store
        self._config = config
        self._ranges = ranges
        self._events = EventStreams(store, config, ranges)
        self._stopping = False
        self._watches: set[Watch] = set()

    def start(self) -> None:
        """Let live reads wait, also after a `stop`."""
        self._stopping = False
        self._events.start()

    def stop(self) -> None:
        """End every live read at its next safe point, now."""
        self._stopping = True
        for watch in list(self._watches):
            watch.wake()
        self._events.stop()

    def readers(self) -> dict[str, int]:
        """Return how many readers there are now, by mode; of long-polls those that wait."""
        return {"long-poll": len(self._watches), "sse": self._events.readers}

    async def read(
        self, mode: str, request: ServerRequest, path: str, place: Place, cursor: str | None
    ) -> ServerResponse:
        """Answer a live read from ``position``."""
        if mode == "long-poll":
            return await self._long_poll(request, path, place, cursor)
        if mode == "sse":
            return await self._events.open(request, path, place, cursor)
        raise parse.bad_request(f"live is long-poll or sse, not {mode[:80]!r}")

    # -- long-poll

    async def _long_poll(
        self, request: ServerRequest, path: str, place: Place, cursor: str | None
    ) -> ServerResponse:
        position = place.position
        with await self._store.watch(path) as watch:
            state = rules.require(watch.state)
            if position >= state.tail and not state.closed:
                identity = state.id
                await self._wait(watch, request, state, position)
                state = rules.require(watch.state)
                if position >= state.tail and not state.closed:
                    # About to say "up to date": a server that was cut off from NATS would not know of newer data.
                    state = rules.require(await self._store.get(path))
                if state.id != identity:
                    raise rules.not_found()  # another stream is at the path now, with other offsets
            found = await self._range(watch, request, state, place)
        headers = self._live_headers(state, found.end, cursor)
        if found.end == found.start:
            headers.append(("cache-control", "no-store"))
            return ServerResponse(204, headers)
        headers.append(("content-type", state.content_type))
        tag = etag(self._store.identity, state, found.start, found.end)
        headers.append(("etag", tag))
        headers.append(("cache-control", cache_control(self._config.cache, state, found.end)))
        if is_known(request.listed("if-none-match"), tag):
            await found.close()
            return ServerResponse(304, headers)
        return found.response(headers)

    async def _range(self, watch: Watch, request: ServerRequest, state: StreamState, place: Place) -> Range:
        recent = watch.recent(place.position)
        if recent is not None and len(recent.payload) <= SMALL:
            return whole(state, recent)
        return await self._ranges.open(request, state, place, self._config.chunk_size)

    async def _wait(self, watch: Watch, request: ServerRequest, state: StreamState, position: int) -> None:
        """Wait until there is something past ``position``, the stream ends, or the time is up."""
        gone = request.disconnected()
        gone.add_done_callback(lambda _: watch.wake())
        deadline = time.monotonic() + live_seconds(request, self._config.long_poll_timeout)
        self._watches.add(watch)
        try:
            while not (self._stopping or gone.done()):
                left = deadline - time.monotonic()
                if left <= 0 or not await watch.changed(left):
                    return
                now = watch.state
                if now is None or now.id != state.id or now.tail > position or now.closed or now.deleted:
                    return
        finally:
            self._watches.discard(watch)
            gone.cancel()

    def _live_headers(self, state: StreamState, end: int, cursor: str | None) -> Headers:
        headers = range_headers(state, end)
        if not (state.closed and end == state.tail):
            headers.append((names.STREAM_CURSOR, next_cursor(time.time(), cursor, random)))
        return headers
