"""One handler per method of a stream's URL (protocol sections 1 to 6)."""

from __future__ import annotations

from urllib.parse import quote

from msgspec.structs import replace

from durable_streams.protocol import headers as names
from durable_streams.protocol import jsonmode, rules
from durable_streams.protocol.commands import Append, Create, ForkPoint, Rejection
from durable_streams.protocol.grants import Grant, Operation
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import ProducerStamp, StreamState
from durable_streams.server import parse
from durable_streams.server.access import Access, own_producer
from durable_streams.server.addresses import Addresses
from durable_streams.server.config import ServerConfig
from durable_streams.server.counts import Counts
from durable_streams.server.http import (
    BASE_HEADERS,
    SANDBOX,
    STREAM_ROOT,
    Headers,
    ServerRequest,
    ServerResponse,
)
from durable_streams.server.live import LiveReads
from durable_streams.server.positions import (
    Place,
    cache_control,
    content,
    etag,
    is_known,
    place_of,
    range_headers,
)
from durable_streams.server.ranges import Ranges
from durable_streams.server.retention import RetentionRules, retention_headers
from durable_streams.server.space import Writes
from durable_streams.server.subscriptions.engine import Engine
from durable_streams.stores.base import Store, StoreUnavailableError

__all__ = ["Handlers"]

# Most appends have none of these headers: one look answers that for all of them.
_APPEND_OPTIONS = frozenset(
    {
        "content-encoding",
        "transfer-encoding",
        names.STREAM_CLOSED,
        names.STREAM_SEQ,
        names.IF_MATCH,
        names.PRODUCER_ID,
        names.PRODUCER_EPOCH,
        names.PRODUCER_SEQ,
    }
)
_TELLING: tuple[Operation, ...] = ("read", "append", "list")  # what answers with the state of a stream
_PLAIN: tuple[bool, str | None, ProducerStamp | None, int | None] = (False, None, None, None)


class Handlers:
    """The operations on streams."""

    def __init__(
        self,
        store: Store,
        config: ServerConfig,
        live: LiveReads,
        ranges: Ranges,
        addresses: Addresses,
        *,
        retention: RetentionRules,
        subscriptions: Engine | None = None,
        access: Access | None = None,
        writes: Writes,
        counts: Counts,
    ) -> None:
        self._retention = retention
        self._subscriptions = subscriptions
        self._counts = counts
        self._access = access
        self._ranges = ranges
        self._store = store
        self._writes = writes
        self._config = config
        self._live = live
        self._addresses = addresses

    # -- writing

    async def append(self, request: ServerRequest, path: str) -> ServerResponse:
        """POST: append, close, or both (section 4)."""
        has_options = request.has_any(_APPEND_OPTIONS)
        close, seq, producer, expected = self._append_options(request) if has_options else _PLAIN
        content_type = request.header("content-type")
        body = await request.body(self._config.max_body)
        if self._access is not None:
            self._access.count(request, len(body))
        seen = await self._store.glance(path)
        if seen is not None and (seen.retention is not None or self._retention.has_rules):
            await self._retention.update(path, seen)
        try:
            # JSON is checked here, so that a commit need not wait for it.
            payload = rules.prepare_append(seen, content_type, body, close=close)
        except Rejection:
            # The state at a glance may be older than another server's commit; a refusal needs the current one.
            state = await self._store.get(path)
            if state == seen:
                raise
            payload = rules.prepare_append(state, content_type, body, close=close)
        command = Append(content_type if payload else None, payload, close, seq, producer, expected)
        appended = await self._writes.append(path, command)
        if self._subscriptions is not None and self._subscriptions.active:
            self._subscriptions.appended(path)
        if self._counts.prefixes and payload and not appended.duplicate:
            self._counts.stored(path, len(body))
        state = appended.state
        tail = format_offset(state.tail)
        # What the next append can send as If-Match.
        headers = [*BASE_HEADERS, (names.STREAM_NEXT_OFFSET, tail), (names.ETAG, f'"{tail}"')]
        if state.closed:
            headers.append((names.STREAM_CLOSED, "true"))
        if producer is None or appended.producer is None:
            return ServerResponse(204, headers)
        headers.append((names.PRODUCER_EPOCH, str(appended.producer.epoch)))
        headers.append((names.PRODUCER_SEQ, str(appended.producer.seq)))
        self._counts.duplicates += appended.duplicate
        return ServerResponse(200 if payload and not appended.duplicate else 204, headers)

    def _append_options(
        self, request: ServerRequest
    ) -> tuple[bool, str | None, ProducerStamp | None, int | None]:
        """Return whether an append closes the stream, its Stream-Seq, its producer's stamp, and the tail it expects."""
        header = request.header
        parse.check_not_encoded(request.listed("content-encoding"), request.listed("transfer-encoding"))
        producer = parse.producer(
            header(names.PRODUCER_ID), header(names.PRODUCER_EPOCH), header(names.PRODUCER_SEQ)
        )
        expected = parse.expected_tail(header(names.IF_MATCH), producer)
        if producer is not None and self._config.bind_producers and request.grant is not None:
            producer = replace(producer, id=own_producer(request.grant, producer.id))
        close, seq = names.is_true(header(names.STREAM_CLOSED)), parse.sequence(header(names.STREAM_SEQ))
        return close, seq, producer, expected

    async def create(self, request: ServerRequest, path: str) -> ServerResponse:
        """PUT: create a stream or a fork (sections 3 and 6)."""
        header = request.header
        parse.check_not_encoded(request.listed("content-encoding"), request.listed("transfer-encoding"))
        given = header("content-type")
        content_type = parse.content_type(given) if given is not None else None
        ttl, expires = parse.ttl(header(names.STREAM_TTL)), header(names.STREAM_EXPIRES_AT)
        deadline = parse.expires_at(expires)
        if ttl is not None and expires is not None:
            raise parse.bad_request("Stream-TTL and Stream-Expires-At exclude each other: send one of them")
        fork, source = await self._fork_point(request, content_type)
        body = await request.body(self._config.max_body)
        closed = names.is_true(header(names.STREAM_CLOSED))
        if self._access is not None and (body or closed):
            self._access.count(request, len(body))
            await self._access.admit("append", path, request)
        effective = content_type or (source.content_type if source else names.DEFAULT_CONTENT_TYPE)
        if body and names.is_json(effective):
            body = rules.json_payload(body)
        command = Create(
            path=path,
            content_type=content_type,
            payload=body,
            closed=closed,
            ttl=ttl,
            expires_at=expires,
            deadline=deadline,
            fork=fork,
            policy=self._retention.asked_for(path, header),
        )
        location = self._addresses.base_url(request) + STREAM_ROOT + quote(path)
        created = await self._writes.create(command)
        if self._subscriptions is not None and created.new:
            self._subscriptions.appended(path)
        if body and created.new:
            self._counts.stored(path, len(body))
        may_know = created.new or _may_know(request.grant, path)
        headers = _description(created.state) if may_know else list(BASE_HEADERS)
        if created.new:
            headers.append(("location", location))
        return ServerResponse(201 if created.new else 200, headers)

    async def delete(self, request: ServerRequest, path: str) -> ServerResponse:  # noqa: ARG002 - one signature for all
        """DELETE: remove the stream, or keep its data for its forks only (sections 1 and 6)."""
        await self._writes.delete(path)
        if self._subscriptions is not None:
            self._subscriptions.removed(path)
        return ServerResponse(204, list(BASE_HEADERS))

    async def _fork_point(
        self, request: ServerRequest, content_type: str | None
    ) -> tuple[ForkPoint | None, StreamState | None]:
        header = request.header
        origin, offset = header(names.STREAM_FORKED_FROM), header(names.STREAM_FORK_OFFSET)
        sub_offset = parse.sub_offset(header(names.STREAM_FORK_SUB_OFFSET))
        if origin is None:
            if offset is not None or sub_offset is not None:
                raise parse.bad_request(
                    "Stream-Fork-Offset and Stream-Fork-Sub-Offset need Stream-Forked-From"
                )
            return None, None
        path = parse.stream_path(self._addresses.own_path(request, origin))
        if self._access is not None:
            await self._access.admit("read", path, request)
        source = rules.check_fork_source(await self._store.get(path), content_type)
        position, is_exact = (source.tail, True) if offset is None else place_of(offset, source)
        if not is_exact:
            # A read from inside an append begins at its start, so that a fork there ends at its start.
            position = (await self._store.read(source, position, 1)).start
        if sub_offset:
            position += await self._sub_position(source, position, sub_offset)
        return ForkPoint(path, source.id, position), source

    async def _sub_position(self, source: StreamState, position: int, sub_offset: int) -> int:
        """Return how many bytes ``sub_offset`` messages (or bytes) past ``position`` are."""
        append = await self._store.read(source, position, 1)
        size: int | None = sub_offset if sub_offset <= len(append.payload) else None
        if source.is_json:
            size = jsonmode.message_end(append.payload, sub_offset) if append.payload else None
        if size is None:
            raise parse.bad_request(
                f"Stream-Fork-Sub-Offset {sub_offset} is past the next boundary after the fork offset"
            )
        return size

    # -- reading

    async def head(self, request: ServerRequest, path: str) -> ServerResponse:  # noqa: ARG002 - one signature for all
        """HEAD: what the stream is and how far it goes; does not touch its sliding window."""
        state = rules.require(await self._store.get(path))
        headers = _description(state)
        headers += [
            SANDBOX,
            (names.STREAM_EARLIEST_OFFSET, format_offset(state.earliest)),
            ("etag", etag(self._store.identity, state, state.earliest, state.tail)),
            ("cache-control", "no-store"),
        ]
        return ServerResponse(200, headers)

    async def read(self, request: ServerRequest, path: str) -> ServerResponse:
        """GET: catch up, or go on live (section 5)."""
        query = parse.query(request.query)
        offset, live = query.get(names.QUERY_OFFSET), query.get(names.QUERY_LIVE)
        self._counts.read(live, path)
        resumed = request.header("last-event-id") if live == "sse" else None
        if resumed:
            offset = resumed  # an EventSource reconnects with the URL that it began with
        try:
            state = rules.require(await self._store.get(path))
        except StoreUnavailableError as outage:
            if live is not None:
                raise
            return await self._read_in_outage(request, path, offset, outage)
        if live is not None:
            if offset is None:
                raise parse.bad_request("a live read needs an offset: the last answer's, -1, or now")
            place = place_of(offset, state)
            self._store.touch(path)
            if resumed and state.closed and place.position == state.tail:
                # The client has everything: a 204 makes it stop, where an end of the events would make it reconnect.
                return ServerResponse(204, [*range_headers(state, state.tail), ("cache-control", "no-store")])
            return await self._live.read(live, request, path, place, query.get(names.QUERY_CURSOR))
        place = place_of(offset, state)
        self._store.touch(path)
        if offset == names.OFFSET_NOW:
            headers = _read_headers(state, state.tail)
            headers.append(("cache-control", "no-store"))
            return ServerResponse(200, headers, content(state, b""))
        # What the start is changes as a stream is trimmed.
        exact = offset is not None and (offset != names.OFFSET_START or not state.trims)
        return await self._catch_up(request, state, place, exact=exact)

    async def _read_in_outage(
        self, request: ServerRequest, path: str, offset: str | None, outage: StoreUnavailableError
    ) -> ServerResponse:
        """Answer from what is known to be stored; an answer that depends on the end of the stream has to wait."""
        seen = await self._store.glance(path)
        try:
            state = rules.require(seen)
            place = place_of(offset, state)
            if place.position >= state.tail:
                raise outage
            return await self._catch_up(request, state, place, current=False)
        except Rejection:
            raise outage from None  # of a stream that may be another one by now

    async def _catch_up(
        self,
        request: ServerRequest,
        state: StreamState,
        place: Place,
        *,
        current: bool = True,
        exact: bool = False,
    ) -> ServerResponse:
        limit = parse.max_bytes(request.header(names.STREAM_MAX_BYTES))
        if limit is not None:
            limit = min(limit, self._config.chunk_size)
        found = await self._ranges.open(request, state, place, limit)
        if not current:  # where the stream ends is not known now, so that no answer reaches its end
            state = replace(state, tail=state.tail + 1)
        tag = etag(self._store.identity, state, found.start, found.end)
        headers = _read_headers(state, found.end)
        headers.append(("etag", tag))
        # The part that one client asks for is not the whole answer for another.
        headers.append(("vary", names.STREAM_MAX_BYTES))
        headers.append(("cache-control", cache_control(self._config.cache, state, found.end, exact=exact)))
        if is_known(request.listed("if-none-match"), tag):
            await found.close()
            return ServerResponse(304, headers)
        return found.response(headers)


def _may_know(grant: Grant | None, path: str) -> bool:
    """Whether a caller may know what a stream is that it did not create just now."""
    return grant is None or any(grant.allows(operation, path) for operation in _TELLING)


def _read_headers(state: StreamState, end: int) -> Headers:
    return [*range_headers(state, end), ("content-type", state.content_type)]


def _description(state: StreamState) -> Headers:
    headers = [
        *BASE_HEADERS,
        ("content-type", state.content_type),
        (names.STREAM_NEXT_OFFSET, format_offset(state.tail)),
    ]
    if state.closed:
        headers.append((names.STREAM_CLOSED, "true"))
    if state.ttl is not None:
        headers.append((names.STREAM_TTL, str(state.ttl)))
    if state.expires_at is not None:
        headers.append((names.STREAM_EXPIRES_AT, state.expires_at))
    if state.retention is not None:
        headers += retention_headers(state.retention.policy)
    return headers
