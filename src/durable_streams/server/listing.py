"""``__ds/streams``: the list of streams, page by page, and what is known of one of them.

Invariants: a page costs what its streams cost, however many there are; a caller finds no stream that it may not see,
and a page that leaves some out still says where to go on.
"""

from __future__ import annotations

from collections.abc import Callable

from durable_streams.protocol import rules
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.listing import DEFAULT_LIMIT, MAX_LIMIT, Page, describe
from durable_streams.server import parse
from durable_streams.server.control import invalid, json_response
from durable_streams.server.http import ServerRequest, ServerResponse
from durable_streams.stores.base import Store

__all__ = ["Listing", "Visible"]

Visible = Callable[[ServerRequest], Callable[[str], bool]]
"""Returns which paths a request may see; raises the Rejection of one that may list nothing."""


class Listing:
    """The list of the streams of one store.

    Args:
        store: The store.
        visible: Says which paths a request may see.
    """

    def __init__(self, store: Store, visible: Visible) -> None:
        self._store = store
        self._visible = visible

    async def read(self, request: ServerRequest, path: str) -> ServerResponse:
        """GET: a page of the list; below ``streams/``, one stream."""
        sees = self._visible(request)
        if path:
            return await self._one(path, sees)
        query = parse.query(request.query)
        prefix, after = (_text(name, query.get(name, "")) for name in ("prefix", "after"))
        listed = await self._store.list_streams(prefix, after, _limit(query.get("limit")))
        streams = [describe(state) for state in listed.states if sees(state.path)]
        return json_response(200, Page(streams, listed.after))

    async def _one(self, path: str, sees: Callable[[str], bool]) -> ServerResponse:
        path = parse.stream_path(path)
        if not sees(path):
            raise rules.not_found()
        return json_response(200, describe(rules.require(await self._store.get(path))))


def _text(name: str, value: str) -> str:
    try:
        return parse.stream_path(value) if value else value
    except Rejection as refusal:
        raise invalid(
            f"{name} is the beginning of a stream's path, or a whole one: {refusal.message}"
        ) from None


def _limit(value: str | None) -> int:
    if value is None:
        return DEFAULT_LIMIT
    if not (value.isascii() and value.isdigit() and len(value) <= 4 and 1 <= int(value) <= MAX_LIMIT):
        raise invalid(f"limit is a whole number from 1 to {MAX_LIMIT}, not {value[:80]!r}")
    return int(value)
