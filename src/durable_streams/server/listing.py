"""``__ds/streams``: the list of streams, page by page, and what is known of one of them.

Invariants: a page costs what its streams cost, however many there are, and looks at a bounded number of those that the
caller may not see; nothing in an answer is or names a stream that the caller may not see, ``next`` neither.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from durable_streams.protocol import rules
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.grants import Grant, Reach
from durable_streams.protocol.listing import DEFAULT_LIMIT, MAX_LIMIT, Page, describe, prefix_end
from durable_streams.protocol.state import StreamState
from durable_streams.server import parse, places
from durable_streams.server.control import invalid, json_response
from durable_streams.server.http import ServerRequest, ServerResponse
from durable_streams.stores.base import Store, StoreUnavailableError
from durable_streams.stores.pace import Paced
from durable_streams.types import StreamInfo

__all__ = ["Listing", "asked_limit"]

_MOST_LOOKS = 10_000  # streams, or a few more, that a page looks at
_AT_ONCE = 256  # of them, where the first ones were not enough
_EVERYTHING = [Reach("")]


class Listing:
    """The list of the streams of one store.

    Args:
        store: The store.
        key: Returns the secret under which a place is hidden; without it, one that ends with the process.
    """

    def __init__(self, store: Store, key: Callable[[], Awaitable[bytes]] | None = None) -> None:
        self._store = store
        self._own_key = secrets.token_bytes(places.KEY_BYTES)
        self._key = key

    async def read(self, request: ServerRequest, path: str) -> ServerResponse:
        """GET: a page of the list; below ``streams/``, one stream."""
        if path:
            return json_response(200, await self._one(path, request.grant))
        query = parse.query(request.query)
        prefix, limit = _text("prefix", query.get("prefix", "")), asked_limit(query.get("limit"))
        after = await self._after(query.get("after", ""))
        search = _Search(request.grant, after, limit)
        following = await search.run(self._store, prefix)
        if following is not None and not search.is_full:  # it may be that of a stream that is not to be seen
            following = places.place_of(following, await self._secret())
        return json_response(
            200, Page([_described(state, request.grant) for state in search.found], following)
        )

    async def _one(self, path: str, grant: Grant | None) -> StreamInfo:
        path = parse.stream_path(path)
        if not _sees(grant, path):
            raise rules.not_found()
        state = rules.require(await self._store.get(path))
        pace = None
        if isinstance(self._store, Paced):
            with contextlib.suppress(StoreUnavailableError):
                pace = await self._store.records_per_second(state)
        return _described(state, grant, pace)

    async def _after(self, text: str) -> str:
        if not places.is_place(text):
            return _text("after", text)
        try:
            return places.path_of(text, await self._secret())
        except ValueError:
            raise invalid(
                "after is the next of an answer, and this one is of another server: begin again"
            ) from None

    async def _secret(self) -> bytes:
        return self._own_key if self._key is None else await self._key()


@dataclass
class _Search:
    """What a caller may see of the list, after a path, up to a limit.

    Attributes:
        found: The streams.
        is_full: Whether there are more than that.
    """

    grant: Grant | None
    after: str
    limit: int
    found: list[StreamState] = field(default_factory=list)
    is_full: bool = False
    _looks: int = 0

    async def run(self, store: Store, prefix: str) -> str | None:
        """Find them; return where the list goes on, None at its end: the last one found if there are more."""
        reach = _EVERYTHING if self.grant is None else self.grant.reach("list")
        for part in filter(None, (one.within(prefix) for one in reach)):
            end = part.text if part.is_whole else prefix_end(part.text)
            at = None if end is not None and end <= self.after else self.after
            while at is not None:
                at = await self._look(store, part, at)
                if self.is_full:
                    return self.found[-1].path
                if self._looks >= _MOST_LOOKS and at is not None:
                    return at
        return None

    async def _look(self, store: Store, part: Reach, at: str) -> str | None:
        """Take what is to be seen in a piece of a part; return where the part goes on."""
        asked = self.limit + 1 - len(self.found)
        if part.is_whole:
            asked = 1
        elif self._looks:
            asked = max(asked, _AT_ONCE)
        listed = await store.list_streams(part.text, at, asked)
        self._looks += asked
        for state in listed.states:
            if not _sees(self.grant, state.path) or (part.is_whole and state.path != part.text):
                continue
            if len(self.found) == self.limit:
                self.is_full = True
                return None
            self.found.append(state)
        return None if part.is_whole else listed.after


def _sees(grant: Grant | None, path: str) -> bool:
    return grant is None or grant.allows("list", path)


def _described(state: StreamState, grant: Grant | None, pace: float | None = None) -> StreamInfo:
    """Return what the caller may know of a stream that it sees: not where it comes from, if that is hidden."""
    info = describe(state, pace)
    if grant is None or info.forked_from is None:
        return info
    may_know = grant.allows("list", info.forked_from) or grant.allows("read", info.forked_from)
    return info if may_know else replace(info, forked_from=None)


def _text(name: str, value: str) -> str:
    try:
        return parse.stream_path(value) if value else value
    except Rejection as refusal:
        raise invalid(
            f"{name} is the beginning of a stream's path, or a whole one: {refusal.message}"
        ) from None


def asked_limit(value: str | None) -> int:
    """Return how many entries of a page are asked for; raises the 400 of what is no such number."""
    if value is None:
        return DEFAULT_LIMIT
    if not (value.isascii() and value.isdigit() and len(value) <= 4 and 1 <= int(value) <= MAX_LIMIT):
        raise invalid(f"limit is a whole number from 1 to {MAX_LIMIT}, not {value[:80]!r}")
    return int(value)
