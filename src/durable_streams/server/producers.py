"""``__ds/producers``: who writes to a stream, page by page (protocol section 4).

Invariants: a page is bounded; where producers belong to their callers (``bind_producers``), it names nobody else's, but
to callers with ``admin`` on the stream.
"""

from __future__ import annotations

from durable_streams.protocol import rules
from durable_streams.protocol.resources import ProducerInfo, ProducersPage
from durable_streams.server import parse
from durable_streams.server.access import own_producer
from durable_streams.server.control import invalid, json_response
from durable_streams.server.http import ServerRequest, ServerResponse
from durable_streams.server.listing import asked_limit
from durable_streams.stores.base import Store

__all__ = ["Producers"]

_LONGEST_ID = 4096  # characters: an id has at most 1,024, and the name of its caller may be before it


class Producers:
    """The producers of the streams of one store.

    Args:
        store: The store.
        bound: Whether each caller has producer ids of its own.
    """

    def __init__(self, store: Store, *, bound: bool) -> None:
        self._store = store
        self._bound = bound

    async def read(self, request: ServerRequest, path: str) -> ServerResponse:
        """GET: a page of the producers of the stream at ``path``, in the order of their ids."""
        query = parse.query(request.query)
        after, limit = query.get("after", ""), asked_limit(query.get("limit"))
        if len(after) > _LONGEST_ID:
            raise invalid(f"after is the next of an answer, of at most {_LONGEST_ID} characters")
        state = rules.require(await self._store.get(parse.stream_path(path)))
        own, grant = "", request.grant
        if self._bound and grant is not None and not grant.allows("admin", state.path):
            own = own_producer(grant, "")
        found = await self._store.list_producers(state, own + after, limit + 1)
        mine = [
            ProducerInfo(name[len(own) :], one.epoch, one.seq) for name, one in found if name.startswith(own)
        ]
        page = mine[:limit]
        return json_response(200, ProducersPage(page, page[-1].id if len(mine) > limit else None))
