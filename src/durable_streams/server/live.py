"""Live reads: long-poll and server-sent events (protocol section 5).

Invariants: a reader is woken once per commit however much it holds; what a commit brings is encoded once for all
readers that keep up, the others read from the store; an event stream ends at a control event, never in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from random import random

from durable_streams.protocol import headers as names
from durable_streams.protocol import rules, sse
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.cursors import next_cursor
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import StreamState
from durable_streams.server import parse
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import READ_HEADERS, Headers, Request, Response
from durable_streams.server.positions import cache_control, content, etag, is_known, range_headers
from durable_streams.stores.base import Chunk, Store, StoreError, StoreUnavailableError, Watch

__all__ = ["LiveReads"]

_HEARTBEAT = b": keep-alive\n\n"
_SHARED_BYTES = 4 << 20  # of events kept for other readers: whoever catches up brings ever new ones
_HELD = "held"
_OUTAGE_PAUSE = 1.0  # seconds: what cannot be read now is waited for like what is not there yet
_log = logging.getLogger("durable_streams.server")
_MAX_CHARACTER = 4  # bytes of the longest UTF-8 character

Event = tuple[bytes, int, int, bool]
"""Data and control events: their bytes, the position that they commit, the one that they looked at (further by what is
there of a character that is not whole yet), and whether the stream ends there."""


class LiveReads:
    """All live reads of a server; ``stop`` ends them."""

    def __init__(self, store: Store, config: ServerConfig) -> None:
        self._store = store
        self._config = config
        self._stopping = False
        self._watches: set[Watch] = set()

    def start(self) -> None:
        """Let live reads wait, also after a `stop`."""
        self._stopping = False

    def stop(self) -> None:
        """End every live read at its next safe point, now."""
        self._stopping = True
        for watch in list(self._watches):
            watch.wake()

    async def read(
        self, mode: str, request: Request, path: str, position: int, cursor: str | None
    ) -> Response:
        """Answer a live read from ``position``."""
        if mode == "long-poll":
            return await self._long_poll(request, path, position, cursor)
        if mode == "sse":
            return await self._sse(request, path, position, cursor)
        raise parse.bad_request(f"live is long-poll or sse, not {mode[:80]!r}")

    # -- long-poll

    async def _long_poll(self, request: Request, path: str, position: int, cursor: str | None) -> Response:
        with await self._store.watch(path) as watch:
            state = rules.require(watch.state)
            if position >= state.tail and not state.closed:
                identity = state.id
                await self._wait(watch, request, state, position)
                state = rules.require(watch.state)
                if position >= state.tail and not state.closed:
                    # About to say "up to date": to a server that was cut off it only looks as if nothing had come.
                    state = rules.require(await self._store.get(path))
                if state.id != identity:
                    raise rules.not_found()  # what is at the path now is another stream, with other offsets
            chunk = Chunk(position, position, b"")
            if position < state.tail:
                chunk = await self._chunk(watch, state, position)
        headers = self._live_headers(state, chunk.end, cursor)
        if chunk.end == position:
            headers.append(("cache-control", "no-store"))
            return Response(204, headers)
        headers.append(("content-type", state.content_type))
        tag = etag(state, chunk.start, chunk.end)
        headers.append(("etag", tag))
        headers.append(("cache-control", cache_control(self._config.cache, state, chunk.end)))
        if is_known(request.listed("if-none-match"), tag):
            return Response(304, headers)
        return Response(200, headers, content(state, chunk.payload))

    async def _wait(self, watch: Watch, request: Request, state: StreamState, position: int) -> None:
        """Wait until there is something past ``position``, the stream ends, or the time is up."""
        gone = request.disconnected()
        gone.add_done_callback(lambda _: watch.wake())
        deadline = time.monotonic() + self._config.long_poll_timeout
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

    async def _chunk(self, watch: Watch, state: StreamState, position: int) -> Chunk:
        return watch.recent(position) or await self._store.read(state, position, self._config.chunk_size)

    # -- server-sent events

    async def _sse(self, request: Request, path: str, position: int, cursor: str | None) -> Response:
        watch = await self._store.watch(path)
        state = rules.require(watch.state)
        headers = [
            *READ_HEADERS,
            ("content-type", names.SSE_CONTENT_TYPE),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),
        ]
        text = names.is_text(state.content_type) and not await self._is_torn(state, position)
        if not text:
            headers.append((names.SSE_DATA_ENCODING, "base64"))
        return Response(200, headers, self._events(request, watch, state, position, cursor, text=text))

    async def _is_torn(self, state: StreamState, position: int) -> bool:
        """Whether what is read from a position begins inside a character, so that it is no text by itself."""
        if not state.is_json and 0 < position < state.tail:  # read from the start of the append that holds it
            position = (await self._store.read(state, position, 1)).start
        if state.is_json or position == 0:
            return False
        before = max(0, position - _MAX_CHARACTER + 1)
        chunk = await self._store.read(state, before, position - before)
        return _incomplete(chunk.payload[: position - chunk.start]) > 0

    async def _events(
        self,
        request: Request,
        watch: Watch,
        state: StreamState,
        position: int,
        cursor: str | None,
        *,
        text: bool,
    ) -> AsyncGenerator[bytes, None]:
        gone = request.disconnected()
        del request  # thousands of idle readers need no more of theirs
        gone.add_done_callback(lambda _: watch.wake())
        deadline = time.monotonic() + self._config.sse_max_age
        budget = self._config.sse_max_bytes
        identity, reached = state.id, -1
        with watch:
            self._watches.add(watch)
            try:
                while not gone.done():
                    now = watch.state
                    if now is None or now.id != identity or now.deleted:
                        return
                    pause = self._config.sse_heartbeat
                    if reached < now.tail or now.closed:
                        event = await self._event(watch, now, position, cursor, text)
                        if event is None:
                            pause = min(pause, _OUTAGE_PAUSE)
                        else:
                            sent, position, reached, done = event
                            yield sent
                            budget -= len(sent)
                            if done or budget <= 0:
                                return
                            if reached < now.tail:
                                continue
                    if self._stopping or time.monotonic() >= deadline:
                        return
                    if not await watch.changed(min(pause, deadline - time.monotonic())):
                        yield _HEARTBEAT
            except (Rejection, StoreError) as error:
                # The stream went while it was read, or the disk failed: the client reconnects and hears of it.
                _log.info("an event stream ended early: %s", error)
            finally:
                self._watches.discard(watch)
                gone.cancel()

    async def _event(
        self, watch: Watch, state: StreamState, position: int, cursor: str | None, text: bool
    ) -> Event | None:
        """Return the data and control events from ``position``; None if the store cannot read them now."""
        key = (state.id, position, state.tail, state.closed, cursor, text)
        known: Event | None = watch.shared.get(key)
        if known is not None:
            return known
        chunk = Chunk(position, position, b"")
        if position < state.tail:
            try:
                chunk = await self._chunk(watch, state, position)
            except StoreUnavailableError as outage:
                _log.info("an event stream waits for the store: %s", outage)
                return None
        end, data = chunk.end, b""
        at_tail = end == state.tail
        if chunk.payload:
            data, held = self._data(state, chunk.payload, text=text, last=at_tail and state.closed)
            end -= held
        done = at_tail and state.closed
        control = sse.encode_control(
            format_offset(end),
            cursor=None if done else next_cursor(time.time(), cursor, random),
            up_to_date=at_tail,
            closed=done,
            with_id=True,
        )
        event = (data + control, end, chunk.end, done)
        held = watch.shared.get(_HELD, 0) + len(event[0])
        if held <= _SHARED_BYTES or held == len(event[0]):
            watch.shared[_HELD] = held
            watch.shared[key] = event
        return event

    def _data(self, state: StreamState, payload: bytes, *, text: bool, last: bool) -> tuple[bytes, int]:
        """Return the data event, and how many bytes of a character that is not whole yet it leaves out."""
        if not text:
            return sse.encode_data(payload, text=False), 0
        if state.is_json:
            return sse.encode_data(content(state, payload), text=True), 0
        held = 0 if last else _incomplete(payload)
        whole = payload[: len(payload) - held]
        if not whole.isascii():
            whole = whole.decode("utf-8", errors="replace").encode()
        return (sse.encode_data(whole, text=True) if whole else b""), held


def _incomplete(payload: bytes) -> int:
    """Return how many bytes at the end begin a UTF-8 character that is not complete."""
    for size in range(1, min(_MAX_CHARACTER, len(payload)) + 1):
        byte = payload[-size]
        if byte < 0x80:
            return 0
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return size if size < length else 0
    return 0
