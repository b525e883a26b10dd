"""The place in a stream that a request points at, and the headers of a range."""

from __future__ import annotations

from typing import NamedTuple

from durable_streams.protocol import headers as names
from durable_streams.protocol import jsonmode, retention, rules
from durable_streams.protocol.offsets import format_offset, is_exact, parse_offset
from durable_streams.protocol.state import StreamState
from durable_streams.server import parse
from durable_streams.server.http import READ_HEADERS, Headers

__all__ = ["Place", "cache_control", "content", "etag", "is_known", "place_of", "range_headers"]

_CACHED = "max-age=60, stale-while-revalidate=300, immutable"


class Place(NamedTuple):
    """Where a request points: a byte position, and whether it is read from there or from the start of its append."""

    position: int
    is_exact: bool = True


def place_of(offset: str | None, state: StreamState) -> Place:
    """Return the place an offset stands for in a stream; raises its 400, or the 410 of one that is gone."""
    if offset is None or offset == names.OFFSET_START:
        return Place(state.earliest)
    if offset == names.OFFSET_NOW:
        return Place(state.tail)
    position = parse_offset(offset)
    if position is None:
        raise parse.bad_request(f"{offset[:80]!r} is no offset: use one from an answer, -1, or now")
    if position > state.tail:
        raise rules.unknown_offset(position)
    retention.check_retained(state, position)
    return Place(position, is_exact(offset) or position in (state.earliest, state.tail))


def content(state: StreamState, payload: bytes) -> bytes:
    """Return the body for stored bytes: of JSON, one array."""
    return jsonmode.response_body(payload) if state.is_json else payload


def range_headers(state: StreamState, end: int) -> Headers:
    """Return the headers of a read that reaches ``end``: next offset, up to date, closed (section 5)."""
    headers = [*READ_HEADERS, (names.STREAM_NEXT_OFFSET, format_offset(end))]
    if end == state.tail:
        headers.append((names.STREAM_UP_TO_DATE, "true"))
        if state.closed:
            headers.append((names.STREAM_CLOSED, "true"))
    return headers


def etag(identity: str, state: StreamState, start: int, end: int) -> str:
    """Return the entity tag of a range: whose stream, start, end, and whether it reaches the tail, or the close.

    ``identity``: of the store (``Store.identity``), since a restored backup may go on differently.

    Of one range it changes with what `range_headers` says: a cache that hears "not modified" keeps its old headers.
    """
    end_mark = "" if end != state.tail else "c" if state.closed else "t"
    return f'"{identity}.{state.id:x}.{start}.{end}{end_mark}"'


def is_known(if_none_match: str | None, tag: str) -> bool:
    """Whether a request has the answer with this tag already."""
    if if_none_match is None:
        return False
    known = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return tag in known or "*" in known


def cache_control(scope: str, state: StreamState, end: int, *, exact: bool = True) -> str:
    """Return how long caches may keep a read that ends at ``end``; ``scope``: public or private.

    What reaches the tail of an open stream is asked for again each time: a browser would show an old end for a minute.
    ``exact``: the request named an offset. One that did not has the URL of a HEAD, which caches answer from it too.
    """
    if end == state.tail and not state.closed:
        return "no-cache"
    if end != state.tail and not exact:
        return "no-cache"
    return f"{scope}, {_CACHED}"
