"""How far behind workers are: bytes of streams past their cursors.

Invariants: an idle subscription has nothing pending, so that only those with a wake are looked at; one look at all of
them asks for a bounded number of streams, and says how many it left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from durable_streams.protocol.state import StreamState
from durable_streams.protocol.subscription import Link, Subscription
from durable_streams.server.subscriptions.engine import Engine

__all__ = ["NAMED", "Lags", "behind", "lags_of", "total"]

NAMED = 100
"""The most subscriptions that metrics name: those that are awake for the longest time."""
_MOST_LINKS = 2000  # that metrics look at


class Lags(NamedTuple):
    """What metrics say of all subscriptions.

    Attributes:
        states: How many subscriptions there are, by what becomes of them now.
        bytes: How far behind all of them are together, as far as it was looked at.
        named: How far behind some of them are, by id.
        unknown: How many links of subscriptions with a wake were not looked at.
        oldest: Seconds since the oldest wake in flight began, 0 without one.
    """

    states: dict[str, int]
    bytes: int
    named: dict[str, int]
    unknown: int
    oldest: float


def behind(link: Link, state: StreamState | None) -> int:
    """Return how many bytes of a stream are past a cursor.

    Args:
        link: The cursor.
        state: The stream, None if there is none.
    """
    if state is None or state.deleted:
        return 0
    return max(0, state.tail - max(link.acked, state.earliest))


def total(subscription: Subscription, states: Mapping[str, StreamState | None]) -> int:
    """Return how far behind a subscription is, in bytes.

    Args:
        subscription: The subscription.
        states: The streams that it is linked to, by path.
    """
    return sum(behind(link, states.get(path)) for path, link in subscription.links.items())


async def lags_of(engine: Engine) -> Lags:
    """Return how far behind the workers of a server are; raises StoreError.

    Args:
        engine: The subscriptions.
    """
    states = dict.fromkeys(("idle", "waiting", "working", "failed"), 0)
    awake = []
    for one in engine.all():
        states[_state(one)] += 1
        if not one.idle:
            awake.append(one)
    awake.sort(key=lambda one: one.woken_at)
    named: dict[str, int] = {}
    everything = looked_at = 0
    for one in awake:
        if looked_at + len(one.links) > _MOST_LINKS:
            continue
        looked_at += len(one.links)
        lag = total(one, await engine.states(one.links))
        everything += lag
        if len(named) < NAMED:
            named[one.id] = lag
    unknown = sum(len(one.links) for one in awake) - looked_at
    oldest = max(0.0, engine.clock() - awake[0].woken_at) if awake else 0.0
    return Lags(states, everything, named, unknown, oldest)


def _state(one: Subscription) -> str:
    if one.idle:
        return "idle"
    if one.retry_count:
        return "failed"
    return "working" if one.lease_until is not None else "waiting"
