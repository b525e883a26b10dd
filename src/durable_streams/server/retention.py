"""What streams keep: the headers of a creation, the server's own rules, ``__ds/streams/{path}/trim``, ``…/retention``.

Invariants: a stream has its own policy, or that of the first rule of the server that matches its path, or none; a
server without rules pays a comparison for each append.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import msgspec

from durable_streams.protocol import headers as names
from durable_streams.protocol import rules
from durable_streams.protocol.commands import Rejection, SetRetention, Trim
from durable_streams.protocol.globs import Glob, segments
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import Policy, StreamState
from durable_streams.server import parse
from durable_streams.server.config import RetentionRule
from durable_streams.server.control import invalid, json_body, json_response
from durable_streams.server.http import Headers, ServerRequest, ServerResponse
from durable_streams.server.positions import place_of
from durable_streams.server.space import Writes
from durable_streams.stores.base import Store

__all__ = ["RetentionActions", "RetentionRules", "retention_headers"]

_PATHS = 10_000  # whose rule is remembered
_MAX_AGE = 10**10  # seconds


def retention_headers(policy: Policy) -> Headers:
    """Return the headers that tell a stream's policy."""
    headers = []
    if policy.max_age is not None:
        headers.append((names.STREAM_RETENTION_MAX_AGE, str(policy.max_age)))
    if policy.max_bytes is not None:
        headers.append((names.STREAM_RETENTION_MAX_BYTES, str(policy.max_bytes)))
    return headers


class RetentionRules:
    """The policies that a server gives to streams without one of their own.

    Attributes:
        has_rules: Whether there are any.

    Args:
        store: The store.
        configured: The rules; the first one that matches a path counts.
    """

    def __init__(self, store: Store, configured: tuple[RetentionRule, ...]) -> None:
        self._store = store
        self._rules = [
            (Glob(pattern), Policy(max_age, max_bytes, is_default=True))
            for pattern, max_age, max_bytes in configured
        ]
        self.has_rules = bool(self._rules)
        self._default = lru_cache(maxsize=_PATHS)(self._find) if self._rules else self._none

    def _find(self, path: str) -> Policy | None:
        parts = segments(path)
        return next((policy for pattern, policy in self._rules if pattern.matches(parts)), None)

    @staticmethod
    def _none(_: str) -> Policy | None:
        return None

    def asked_for(self, path: str, header: Callable[[str], str | None]) -> Policy | None:
        """Return the policy of a creation: by its headers, else by the rules."""
        max_age = parse.positive(names.STREAM_RETENTION_MAX_AGE, header(names.STREAM_RETENTION_MAX_AGE))
        max_bytes = parse.positive(names.STREAM_RETENTION_MAX_BYTES, header(names.STREAM_RETENTION_MAX_BYTES))
        if max_age is None and max_bytes is None:
            return self._default(path)
        return Policy(max_age, max_bytes)

    async def update(self, path: str, state: StreamState) -> None:
        """Give a stream the policy that the rules give it now, unless it has one of its own."""
        present, default = None if state.retention is None else state.retention.policy, self._default(path)
        if present != default and (present is None or present.is_default):
            await self._store.retain(path, SetRetention(default))


class TrimRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a trim: one of the three."""

    before: str | None = None
    max_bytes: int | None = None
    max_age: int | None = None


class RetentionRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a change of policy; without limits, everything is kept."""

    max_age: int | None = None
    max_bytes: int | None = None


class RetentionActions:
    """``POST __ds/streams/{path}/trim`` and ``…/retention``.

    Args:
        store: The store.
        writes: What changes it.
    """

    def __init__(self, store: Store, writes: Writes) -> None:
        self._store = store
        self._writes = writes

    async def post(self, request: ServerRequest, rest: str) -> ServerResponse:
        """Do what the last segment of a path below ``__ds/streams/`` says to the stream before it."""
        path, _, action = rest.rpartition("/")
        if action == "trim" and path:
            return _told(await self._trim(path, await json_body(request, TrimRequest)))
        if action == "retention" and path:
            return _told(await self._set(path, await json_body(request, RetentionRequest)))
        raise Rejection(404, "NOT_FOUND", "what can be posted here is __ds/streams/PATH/trim and …/retention")

    async def _trim(self, path: str, asked: TrimRequest) -> StreamState:
        state = rules.require(await self._store.get(path))
        if [asked.before, asked.max_bytes, asked.max_age].count(None) != 2:
            raise invalid('a trim says one of "before", "max_bytes" and "max_age"')
        if asked.before is not None:
            position = await self._append_at(state, asked.before)
        elif asked.max_bytes is not None:
            _check("max_bytes", asked.max_bytes, 0, names.MAX_SAFE_INTEGER)
            position = await self._last_bytes(state, asked.max_bytes)
        else:
            _check("max_age", asked.max_age or 0, 1, _MAX_AGE)
            return await self._writes.retain(path, Trim(state.id, 0, asked.max_age))
        return await self._writes.retain(path, Trim(state.id, position))

    async def _append_at(self, state: StreamState, offset: str) -> int:
        """Return where the append begins that holds an offset."""
        if offset == names.OFFSET_START:
            return state.earliest
        try:
            place = place_of(offset, state)
        except Rejection as refusal:
            if refusal.status == 410:
                return state.earliest  # it was given up before
            raise
        if place.position in (state.earliest, state.tail):
            return place.position
        return (await self._store.read_piece(state, place.position, 1, aligned=True)).start

    async def _last_bytes(self, state: StreamState, size: int) -> int:
        """Return where the first append begins within the last ``size`` bytes."""
        position = state.tail - size
        return state.earliest if position <= state.earliest else await self._store.boundary(state, position)

    async def _set(self, path: str, asked: RetentionRequest) -> StreamState:
        policy = None
        if asked.max_age is not None or asked.max_bytes is not None:
            if asked.max_age is not None:
                _check("max_age", asked.max_age, 1, _MAX_AGE)
            if asked.max_bytes is not None:
                _check("max_bytes", asked.max_bytes, 1, names.MAX_SAFE_INTEGER)
            policy = Policy(asked.max_age, asked.max_bytes)
        state = await self._writes.retain(path, SetRetention(policy))
        if asked.max_bytes is None or state.tail - state.earliest <= asked.max_bytes:
            return state
        # The marks begin now: what is there by now is measured once, in the stream itself.
        return await self._writes.retain(path, Trim(state.id, await self._last_bytes(state, asked.max_bytes)))


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise invalid(f"{name} is a whole number from {least} to {most}, not {value}")


def _told(state: StreamState) -> ServerResponse:
    policy = None if state.retention is None else state.retention.policy
    return json_response(
        200,
        {
            "path": state.path,
            "earliest_offset": format_offset(state.earliest),
            "next_offset": format_offset(state.tail),
            "max_age": None if policy is None else policy.max_age,
            "max_bytes": None if policy is None else policy.max_bytes,
        },
    )
