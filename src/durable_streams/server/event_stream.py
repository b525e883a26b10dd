"""Reads as server-sent events (protocol section 5).

Invariants: the data of a commit is encoded once for all readers that are at the same place, unless it is large: then
each reader's event is encoded as it is sent; an event stream ends after a control event, or in the middle of a large
event that is not committed; nothing is read for a reader that left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from random import random
from typing import Any

from durable_streams.protocol import headers as names
from durable_streams.protocol import rules, sse
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.cursors import next_cursor
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import StreamState
from durable_streams.server.access import live_seconds
from durable_streams.server.config import ServerConfig
from durable_streams.server.events import Event, EventCache
from durable_streams.server.http import READ_HEADERS, Disconnection, ServerRequest, ServerResponse
from durable_streams.server.positions import Place, content
from durable_streams.server.ranges import SMALL, RangePieces, Ranges
from durable_streams.stores.base import Store, StoreError, StoreUnavailableError, Watch

__all__ = ["EventStreams"]

_HEARTBEAT = b": keep-alive\n\n"
_OUTAGE_PAUSE = 1.0  # seconds until a read that failed is tried again
_CURSOR_AGE = 20.0  # seconds that an event may be sent again: what a cursor counts
_MAX_CHARACTER = 4  # bytes of the longest UTF-8 character
_log = logging.getLogger("durable_streams.server")


class _EventReader:
    """Where one reader of events is. ``reached``: how far it looked, -1 before its first event."""

    __slots__ = ("cursor", "gone", "has_left", "position", "reached", "stream_id", "text", "watch")

    def __init__(
        self,
        watch: Watch,
        state: StreamState,
        position: int,
        cursor: str | None,
        gone: Disconnection,
        *,
        text: bool,
    ) -> None:
        self.watch = watch
        self.stream_id = state.id
        self.position = position
        self.reached = -1
        self.cursor = cursor
        self.gone = gone
        self.has_left = False
        self.text = text

    def state(self) -> StreamState | None:
        """Return the committed state of the stream; None once it is gone, or the reader is."""
        now = self.watch.state
        return None if now is None or now.id != self.stream_id or now.deleted or self.has_left else now

    def leave(self, _: object) -> None:
        """Stop reading, because the client has left."""
        self.has_left = True
        self.watch.wake()


class _Latest:
    """The event that was encoded last, and for what."""

    __slots__ = ("_cursor", "_event", "_position", "_state", "_text", "_until")

    def __init__(self, event: Event, state: StreamState | None, reader: _EventReader | None) -> None:
        self._event = event
        self._state = state
        self._position = -1 if reader is None else reader.position
        self._cursor = None if reader is None else reader.cursor
        self._text = reader is not None and reader.text
        self._until = time.monotonic() + _CURSOR_AGE

    def event_for(self, reader: _EventReader, state: StreamState) -> Event | None:
        """Return the event if it is what a reader of this state gets: it is for most, for they keep up."""
        if (
            self._state is state
            and self._position == reader.position
            and self._cursor == reader.cursor
            and self._text == reader.text
            and time.monotonic() < self._until
        ):
            return self._event
        return None


class EventStreams:
    """All event streams of a server; ``stop`` ends them."""

    def __init__(self, store: Store, config: ServerConfig, ranges: Ranges) -> None:
        self._store = store
        self._config = config
        self._ranges = ranges
        self._encoded = EventCache(ranges.budget)
        self._latest = _Latest(Event(b"", 0, 0, done=False), None, None)
        self._stopping = False
        self._watches: set[Watch] = set()

    def start(self) -> None:
        """Let readers wait, also after a `stop`."""
        self._stopping = False

    def stop(self) -> None:
        """End every event stream after its next control event, now."""
        self._stopping = True
        for watch in list(self._watches):
            watch.wake()

    @property
    def readers(self) -> int:
        """How many event streams there are now."""
        return len(self._watches)

    async def open(
        self, request: ServerRequest, path: str, place: Place, cursor: str | None
    ) -> ServerResponse:
        """Answer with the events from a place on."""
        watch = await self._store.watch(path)
        state = rules.require(watch.state)
        position = place.position
        if not place.is_exact:
            position = (await self._store.read_piece(state, position, 1, aligned=True)).start
        headers = [
            *READ_HEADERS,
            ("content-type", names.SSE_CONTENT_TYPE),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),
        ]
        text = names.is_text(state.content_type) and not await self._is_torn(state, position)
        if not text:
            headers.append((names.SSE_DATA_ENCODING, "base64"))
        reader = _EventReader(watch, state, position, cursor, request.disconnected(), text=text)
        age = live_seconds(request, self._config.sse_max_age)
        return ServerResponse(200, headers, self._events(reader, age))

    async def _is_torn(self, state: StreamState, position: int) -> bool:
        """Whether a position is inside a character, so that what follows it is no text by itself."""
        if state.is_json or position == 0:
            return False
        before = max(0, position - _MAX_CHARACTER + 1)
        chunk = await self._store.read_piece(state, before, position - before)
        return _incomplete(chunk.payload) > 0

    async def _events(self, reader: _EventReader, age: float) -> AsyncGenerator[bytes, None]:
        # A delivery is one turn of this loop. Each coroutine around the wait would be resumed for each reader and
        # commit, so that the wait is here, and an event that is ready needs no coroutine at all.
        deadline, left = time.monotonic() + age, self._config.sse_max_bytes
        with self._watched(reader):
            while left > 0 and (state := reader.state()) is not None:
                pause = self._config.sse_heartbeat
                if reader.reached < state.tail or state.closed:
                    event = self._latest.event_for(reader, state) or await self._next(reader, state)
                    if event is None:
                        pause = min(pause, _OUTAGE_PAUSE)
                    else:
                        if event.is_small:
                            yield event.data
                        else:
                            async with aclosing(self._large(event)) as parts:
                                async for part in parts:
                                    yield part
                                    del part
                        left -= event.size
                        reader.position, reader.reached = event.end, event.reached
                        if event.done:
                            return
                        del event  # a reader that waits for the next one holds no last one
                        if reader.reached < state.tail:
                            continue
                pause = min(pause, deadline - time.monotonic())
                if self._stopping or pause <= 0 or left <= 0:
                    return
                if not await reader.watch.changed(pause):
                    left -= len(_HEARTBEAT)
                    yield _HEARTBEAT

    @contextmanager
    def _watched(self, reader: _EventReader) -> Iterator[None]:
        """Watch a reader's stream, and let `stop` and the end of its connection wake it."""
        reader.gone.add_done_callback(reader.leave)
        with reader.watch:
            self._watches.add(reader.watch)
            try:
                yield
            except (Rejection, StoreError) as error:
                # The stream went while it was read, or the disk failed: the client reconnects and gets the reason.
                _log.info("an event stream ended early: %s", error)
            finally:
                self._watches.discard(reader.watch)
                reader.gone.cancel()

    async def _large(self, event: Event | _LongEvent) -> AsyncGenerator[bytes, None]:
        """Give the parts of an event that is not small: it counts in the budget of all clients while it is sent."""
        if isinstance(event, Event):
            self._encoded.take(event)
            try:
                yield event.data
            finally:
                self._encoded.drop(event)
            return
        async with aclosing(event.parts()) as parts:
            async for part in parts:
                yield part
                del part

    async def _next(self, reader: _EventReader, state: StreamState) -> Event | _LongEvent | None:
        """Return what comes next for a reader; None if the store cannot read it now."""
        end, size = state.tail, self._ranges.chunk_size
        try:
            if end - reader.position > size:
                end = await self._store.boundary(state, reader.position + size)
                if end - reader.position > 2 * size:
                    return _LongEvent(self._ranges, reader, state, end)
            return await self._event(reader, state, end)
        except StoreUnavailableError as outage:
            _log.info("an event stream waits for the store: %s", outage)
            return None

    async def _event(self, reader: _EventReader, state: StreamState, end: int) -> Event:
        """Return the data and control events of ``[position, end)``."""
        position, key = reader.position, _key(reader, state, end, time.monotonic())
        known = self._encoded.get(key)
        if known is not None:
            return known
        size = 2 * (end - position)  # what was read, and what is made of it
        charged = size if end - position > SMALL else 0
        if charged:
            await self._ranges.budget.room(charged)
        try:
            payload = b""
            if position < end:
                recent = reader.watch.recent(position)
                if recent is not None and recent.end == end:
                    payload = recent.payload
                else:
                    payload = await self._ranges.read(state, position, end)
            data, held = _data(state, payload, text=reader.text, last=state.closed and end == state.tail)
            data += _control(reader, state, end - held, end)
            event = Event(data, end - held, end, done=_is_done(state, end))
            self._encoded.keep(key, event)
            if event.is_small and end == state.tail:
                self._latest = _Latest(event, state, reader)
        finally:
            if charged:
                self._ranges.budget.release(charged)
        return event


class _LongEvent:
    """An event too large to be held: its data is read and encoded as it is sent."""

    is_small = False
    data = b""  # never held whole

    def __init__(self, ranges: Ranges, reader: _EventReader, state: StreamState, end: int) -> None:
        self.end = self.reached = end
        self.done = _is_done(state, end)
        self.size = 0
        self._ranges = ranges
        self._reader = reader
        self._state = state

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """Return the parts of the data event, and the control event."""
        encoder = sse.DataEncoder(text=self._reader.text)
        pieces = RangePieces(self._ranges, self._state, self._reader.position, self.end, self._reader.gone)
        is_list = self._state.is_json and self._reader.text
        yield self._counted(encoder.begin() + (b"[" if is_list else b""))
        try:
            while piece := await pieces.next():
                if is_list and pieces.position == self.end:
                    piece = piece[:-1] + b"]"  # the last comma goes (protocol.jsonmode)
                yield self._counted(encoder.feed(piece))
        finally:
            pieces.release()
        self.end -= 0 if self.done else encoder.held
        yield self._counted(
            encoder.end(final=self.done) + _control(self._reader, self._state, self.end, self.reached)
        )

    def _counted(self, part: bytes) -> bytes:
        self.size += len(part)
        return part


def _key(reader: _EventReader, state: StreamState, end: int, now: float) -> tuple[Any, ...]:
    """Return all that an event depends on; its cursor is good for a while."""
    place = (state.id, reader.position, end, reader.cursor, reader.text)
    return (place, state.tail, state.closed, now // _CURSOR_AGE)


def _is_done(state: StreamState, end: int) -> bool:
    return state.closed and end == state.tail


def _control(reader: _EventReader, state: StreamState, committed: int, reached: int) -> bytes:
    done = _is_done(state, reached)
    return sse.encode_control(
        format_offset(committed, exact=committed != reached),
        cursor=None if done else next_cursor(time.time(), reader.cursor, random),
        up_to_date=reached == state.tail,
        closed=done,
        with_id=True,
    )


def _data(state: StreamState, payload: bytes, *, text: bool, last: bool) -> tuple[bytes, int]:
    """Return the data event, and how many bytes of a character that is not whole yet it leaves out."""
    if not payload:
        return b"", 0
    if not text:
        return sse.encode_data(payload, text=False), 0
    if state.is_json:
        return sse.encode_data(content(state, payload), text=True), 0
    held = 0 if last else _incomplete(payload)
    kept = payload[: len(payload) - held]
    if not kept.isascii():
        kept = kept.decode("utf-8", errors="replace").encode()
    return (sse.encode_data(kept, text=True) if kept else b""), held


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
