"""``__ds/follow``: many streams over one connection, as server-sent events (`protocol.following` has their form).

Invariants: at most one event is made ahead of what the client takes, of one stream after the other, so that a busy
stream does not keep the others waiting, and what a connection holds does not depend on how many there are; a stream
that ends, for whatever reason, ends alone; each stream needs its own grant, which is asked for again as it goes on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from typing import NamedTuple

from durable_streams.protocol import following, rules, sse
from durable_streams.protocol import headers as names
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.following import MAX_STREAMS, PartError, PartPlace
from durable_streams.protocol.offsets import format_offset, parse_offset
from durable_streams.protocol.retention import check_retained
from durable_streams.protocol.state import StreamState
from durable_streams.server import parse
from durable_streams.server.access import Access, live_seconds
from durable_streams.server.config import ServerConfig
from durable_streams.server.control import invalid
from durable_streams.server.http import READ_HEADERS, Disconnection, ServerRequest, ServerResponse
from durable_streams.server.positions import place_of
from durable_streams.server.ranges import SMALL, RangePieces, Ranges
from durable_streams.stores.base import Store, StoreError, StoreUnavailableError, Watch

__all__ = ["Follow"]

_HEARTBEAT = b": keep-alive\n\n"
_LOOK = 60.0  # seconds between two looks at a stream without news
_OUTAGE_PAUSE = 1.0  # seconds until a read that failed is tried again
_log = logging.getLogger("durable_streams.server")


class _BrokenEventError(StoreError):
    """A part of an event was sent that cannot be completed: only the end of the connection can follow it."""


class _Part:
    """One stream of a connection. ``refusal``: why it ends, until its event was sent; ``until``: of its grant."""

    __slots__ = ("greeted", "path", "place", "refusal", "stream_id", "until", "watch")

    def __init__(self, path: str) -> None:
        self.path = path
        self.place = PartPlace(0)
        self.refusal: Rejection | None = None
        self.watch: Watch | None = None
        self.stream_id = 0
        self.greeted = False
        self.until = 0.0

    def state(self) -> StreamState:
        """Return the stream's state; raises the Rejection of one that is gone, or has given up what comes next."""
        assert self.watch is not None  # noqa: S101 - for the type checker
        now = self.watch.state
        if now is None or now.id != self.stream_id:
            raise rules.not_found()
        check_retained(rules.require(now), self.place.position)
        return now


class _Caller(NamedTuple):
    """Who follows. ``access``: None for one that may read everything."""

    request: ServerRequest
    access: Access | None

    async def ask_for(self, part: _Part) -> None:
        """Ask whether the caller may read a stream, and for how long; raises the 401 of one that is not known."""
        if self.access is None:
            part.until = math.inf
            return
        try:
            await self.access.admit("read", part.path, self.request)
        except Rejection as refusal:
            if refusal.status == 401 and part.watch is None:
                raise
            part.refusal = refusal
        part.until = time.monotonic() + live_seconds(self.request, math.inf)


async def _admitted(caller: _Caller, paths: Sequence[str], places: Sequence[PartPlace | None]) -> list[_Part]:
    parts = [_Part(path) for path in paths]
    for part, place in zip(parts, places, strict=True):
        part.place = place or part.place
        if not part.place.ended:
            await caller.ask_for(part)
    return parts


class Follow:
    """All connections that follow several streams; ``stop`` ends them.

    Args:
        store: The store.
        config: How long, and how large, an event stream is.
        ranges: Reads what is not in memory.
    """

    def __init__(self, store: Store, config: ServerConfig, ranges: Ranges) -> None:
        self._store = store
        self._config = config
        self._ranges = ranges
        self._stopping = False
        self._connections: set[_Connection] = set()

    def start(self) -> None:
        """Let connections wait, also after a `stop`."""
        self._stopping = False

    def stop(self) -> None:
        """End every connection after its next event, now."""
        self._stopping = True
        for connection in list(self._connections):
            connection.bell.set()

    @property
    def readers(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    async def read(self, access: Access | None, request: ServerRequest, path: str) -> ServerResponse:
        """GET: the events of the streams that the query names, from the offsets that it names.

        ``access``: asks what the caller may read, None for one that may read everything.
        """
        caller = _Caller(request, access)
        if path:
            raise Rejection(404, "NOT_FOUND", f"there is nothing under __ds/follow/{path[:80]}")
        query = parse.query(request.query)
        paths = _paths(query.get("streams"))
        offsets = _offsets(query.get("offsets"), len(paths))
        known = request.header("last-event-id")
        places: Sequence[PartPlace | None] = [None] * len(paths)
        if known:
            resumed = following.parse_event_id(known, paths)
            if resumed is None:
                raise invalid(
                    "Last-Event-ID is of other streams: leave it out, or name the streams that it is of"
                )
            places = resumed
        headers = [
            *READ_HEADERS,
            ("content-type", names.SSE_CONTENT_TYPE),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),
        ]
        if known and all(place is not None and place.ended for place in places):
            # A 204 makes an EventSource stop, where an end of the events would make it reconnect.
            return ServerResponse(204, [*headers[: len(READ_HEADERS)], ("cache-control", "no-store")])
        if request.method == "HEAD":
            return ServerResponse(200, headers)
        parts = await _admitted(caller, paths, places)
        counted = None if access is None else access.begin_live_read(request)
        await asyncio.gather(
            *[
                self._begin(part, format_offset(place.position, exact=True) if place else offset)
                for part, offset, place in zip(parts, offsets, places, strict=True)
                if part.refusal is None and not part.place.ended
            ]
        )
        response = ServerResponse(200, headers, self._events(caller, parts))
        return response if counted is None else counted.carried_by(response)

    # -- beginning

    async def _begin(self, part: _Part, offset: str) -> None:
        """Find where a stream is read from."""
        try:
            watch = await self._store.watch(part.path)
            state = rules.require(watch.state)
            place = place_of(offset, state)
            position = place.position
            if not place.is_exact:
                position = (await self._store.read_piece(state, position, 1, aligned=True)).start
        except Rejection as refusal:
            part.refusal = refusal
            return
        self._store.touch(part.path)
        part.watch, part.stream_id, part.place = watch, state.id, PartPlace(position)

    # -- the events

    async def _events(self, caller: _Caller, parts: list[_Part]) -> AsyncGenerator[bytes, None]:
        connection = _Connection(parts, caller.request.disconnected())
        deadline, left = time.monotonic() + self._config.sse_max_age, self._config.sse_max_bytes
        self._connections.add(connection)
        try:
            with connection:
                while left > 0 and not (self._stopping or connection.gone.done()):
                    part = connection.next()
                    if part is not None:
                        async with aclosing(self._step(connection, part, caller)) as pieces:
                            async for piece in pieces:
                                left -= len(piece)
                                yield piece
                                del piece
                        continue
                    pause = min(self._config.sse_heartbeat, deadline - time.monotonic())
                    if pause <= 0 or all(one.place.ended for one in parts):
                        return
                    if not await connection.changed(pause):
                        left -= len(_HEARTBEAT)
                        yield _HEARTBEAT
        except StoreError as error:
            # The client reconnects and gets the reason.
            _log.info("an event stream of several streams ended early: %s", error)
        finally:
            self._connections.discard(connection)
            connection.gone.cancel()

    async def _step(
        self, connection: _Connection, part: _Part, caller: _Caller
    ) -> AsyncGenerator[bytes, None]:
        """Give the next event of one stream, if it has one; it is asked again while there may be more."""
        if part.place.ended:
            return
        if part.refusal is None and time.monotonic() >= part.until:
            await caller.ask_for(part)
        if part.refusal is None:
            try:
                state = part.state()
                async with aclosing(self._news(connection, part, state)) as pieces:
                    async for piece in pieces:
                        yield piece
                        del piece
            except Rejection as refusal:
                part.refusal = refusal
            except StoreUnavailableError as outage:
                _log.info("an event stream waits for the store: %s", outage)
                asyncio.get_running_loop().call_later(_OUTAGE_PAUSE, connection.ring, part)
        if part.refusal is not None:
            part.place = part.place._replace(ended=True, failed=True)
            yield following.plain_event(
                "end",
                part.path,
                None if part.watch is None else part.place.position,
                connection.identifier(),
                error=_error(part.refusal),
            )

    async def _news(
        self, connection: _Connection, part: _Part, state: StreamState
    ) -> AsyncGenerator[bytes, None]:
        position = part.place.position
        if position < state.tail:
            end = await self._end(state, position)
            async with aclosing(self._data(connection, part, state, end)) as pieces:
                async for piece in pieces:
                    yield piece
                    del piece
            connection.ring(part)
        elif state.closed:
            part.place = PartPlace(position, ended=True)
            yield following.plain_event("end", part.path, position, connection.identifier(), closed=True)
        elif not part.greeted:
            yield following.plain_event("tail", part.path, position, connection.identifier())
        part.greeted = True

    async def _end(self, state: StreamState, position: int) -> int:
        """Return where the next event ends: JSON between two appends, anything else anywhere."""
        size = self._ranges.chunk_size
        if state.tail - position <= size:
            return state.tail
        return await self._store.boundary(state, position + size) if state.is_json else position + size

    async def _data(
        self, connection: _Connection, part: _Part, state: StreamState, end: int
    ) -> AsyncGenerator[bytes, None]:
        start, size = part.place.position, end - part.place.position
        head = following.data_head(part.path, end, exact=end != state.tail)
        if size > 2 * self._ranges.chunk_size:  # of JSON: one large append
            part.place = PartPlace(end)
            pieces = RangePieces(self._ranges, state, start, end, connection.gone)
            try:
                async for piece in _large(head, pieces, connection.identifier()):
                    yield piece
                    del piece
            except (Rejection, StoreError) as error:
                raise _BrokenEventError(str(error)) from error
            finally:
                pieces.release()
            return
        charged = 2 * size if size > SMALL else 0  # what was read, and what is made of it
        if charged:
            await self._ranges.budget.room(charged)
        try:
            assert part.watch is not None  # noqa: S101 - for the type checker
            recent = part.watch.recent(start)
            if recent is not None and recent.end == end:
                payload = recent.payload
            else:
                payload = await self._ranges.read(state, start, end)
            part.place = PartPlace(end)
            yield following.data_event(head, payload, connection.identifier(), state.content_type)
        finally:
            if charged:
                self._ranges.budget.release(charged)


async def _large(head: bytes, pieces: RangePieces, identifier: str) -> AsyncGenerator[bytes, None]:
    """Give a data event of JSON that is not held whole."""
    encoder = sse.DataEncoder(text=True)
    yield encoder.begin() + encoder.feed(head + b'"messages":[')
    while piece := await pieces.next():
        if pieces.position == pieces.end:
            piece = piece[:-1] + b"]}"  # the last comma goes (protocol.jsonmode)
        yield encoder.feed(piece)
        del piece
    yield sse.with_id(encoder.end(final=True), identifier)


class _Connection:
    """The streams of one connection that have news, each once, in the order in which that was noticed."""

    def __init__(self, parts: list[_Part], gone: Disconnection) -> None:
        self.gone = gone
        self.bell = asyncio.Event()
        self._parts = parts
        self._paths = [part.path for part in parts]
        self._ready = dict.fromkeys(parts)
        self._exits = ExitStack()
        self._listeners: list[asyncio.Task[None]] = []

    def __enter__(self) -> None:
        self.gone.add_done_callback(lambda _: self.bell.set())
        for part in self._parts:
            if part.watch is not None:
                self._exits.enter_context(part.watch)
                self._listeners.append(asyncio.create_task(self._listen(part, part.watch)))

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            listener.cancel()
        self._exits.close()

    async def _listen(self, part: _Part, watch: Watch) -> None:
        while not part.place.ended:
            # A time-out is no news, but the time at which a grant is looked at again may have come.
            await watch.changed(min(_LOOK, max(1.0, part.until - time.monotonic())))
            self.ring(part)

    def ring(self, part: _Part) -> None:
        """Note that a stream may have news."""
        self._ready[part] = None
        self.bell.set()

    def next(self) -> _Part | None:
        """Return the stream that has waited longest with news, None if there is none."""
        part = next(iter(self._ready), None)
        if part is not None:
            del self._ready[part]
        return part

    async def changed(self, seconds: float) -> bool:
        """Wait for news; False after some seconds without any."""
        try:
            await asyncio.wait_for(self.bell.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        self.bell.clear()
        return True

    def identifier(self) -> str:
        """Return the id of an event that is sent now."""
        return following.event_id(self._paths, [part.place for part in self._parts])


def _paths(value: str | None) -> list[str]:
    if not value:
        raise invalid("streams is missing: name the paths of 1 to 100 streams, with commas between them")
    paths = following.split(value)
    if len(paths) > MAX_STREAMS:
        raise invalid(
            f"one connection follows at most {MAX_STREAMS} streams, not {len(paths)}: use another one for the rest"
        )
    if len(set(paths)) < len(paths):
        raise invalid("streams names a stream twice: name each one once")
    return [parse.stream_path(path) for path in paths]


def _offsets(value: str | None, count: int) -> list[str]:
    """Return the offset of each stream: one for all, or one for each."""
    offsets = (value or names.OFFSET_START).split(",")
    for offset in offsets:
        if offset not in (names.OFFSET_START, names.OFFSET_NOW) and parse_offset(offset) is None:
            raise invalid(f"{offset[:80]!r} is no offset: use one from an event, -1, or now")
    if len(offsets) not in (1, count):
        raise invalid(
            f"offsets has one offset for all streams, or one for each of the {count}, not {len(offsets)}"
        )
    return offsets * count if len(offsets) == 1 else offsets


def _error(refusal: Rejection) -> PartError:
    earliest = dict(refusal.headers).get(names.STREAM_EARLIEST_OFFSET)
    return PartError(refusal.code, refusal.message, refusal.status, earliest)
