"""What a store keeps for subscriptions (protocol section 8), and how it is kept in memory.

Invariants, which ``durable_streams.testing.contract.subscriptions`` checks: a subscription is saved and removed in one
atomic step, with all of its cursors, and only by the caller that knows its present revision; what was saved is durable
as far as the store promises durability at all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from durable_streams.protocol.subscription import Subscription
from durable_streams.stores.base import StoreUnavailableError

__all__ = [
    "SECRETS",
    "Changed",
    "KeepsSubscriptions",
    "Kept",
    "MemorySubscriptions",
    "RevisionError",
    "SubscriptionStore",
    "kept_by",
]


SECRETS = ("token-key", "webhook-keys")
"""The names of the secrets of a server: what its tokens and its webhooks are signed with."""


class RevisionError(Exception):
    """The subscription was saved or removed since it was read. Nothing was stored."""


class Kept(NamedTuple):
    """A stored subscription, and the number that its next change has to state."""

    subscription: Subscription
    revision: int


class Changed(NamedTuple):
    """A subscription that another server changed, by its id; None where it was removed."""

    name: str
    kept: Kept | None


class SubscriptionStore(Protocol):
    """The part of a store that keeps subscriptions, for as long as the store is open.

    Every method may raise StoreError. After a StoreUncertainError only ``find`` tells what is stored.

    Attributes:
        shared: Whether other servers change the same subscriptions.
    """

    shared: bool

    async def load(self) -> list[Kept]:
        """Return all subscriptions."""

    async def find(self, name: str) -> Kept | None:
        """Return the present subscription of an id, None if there is none.

        Args:
            name: The id.
        """

    async def save(self, after: Subscription, before: Kept | None) -> int:
        """Store a subscription with its links.

        Args:
            after: What to store.
            before: What it replaces, as it was read or saved; None for a new one.

        Returns:
            Its revision.

        Raises:
            RevisionError: Something else is stored by now.
        """

    async def remove(self, before: Kept) -> None:
        """Remove a subscription with its links.

        Args:
            before: The subscription, as it was read or saved.

        Raises:
            RevisionError: Something else is stored by now.
        """

    async def paths(self, after: str, limit: int) -> Sequence[str]:
        """Return paths of streams, of expired ones too.

        Args:
            after: Where the last page ended, ``""`` for the first one.
            limit: About how many paths to return.

        Returns:
            The paths; their last one is where the next page goes on, no path says that there is none.
        """

    async def secret(self, name: str, made: bytes | None) -> bytes | None:
        """Return a secret of the server; ``made`` becomes it if there is none.

        Args:
            name: Its name, lower-case letters and dashes.
            made: A new one, None to look only.
        """

    async def replace_secret(self, name: str, before: bytes, after: bytes) -> bool:
        """Replace a secret; False if it is not ``before`` any more.

        Args:
            name: Its name.
            before: What it was.
            after: What it becomes.
        """

    async def changed(self) -> list[Changed]:
        """Wait for changes by other servers, and return them."""

    async def leads(self) -> bool:
        """Whether this server is the one that ends leases and delivers. To be asked about once a second."""


@runtime_checkable
class KeepsSubscriptions(Protocol):
    """A store that keeps subscriptions.

    Attributes:
        subscriptions: Where.
    """

    subscriptions: SubscriptionStore | None


def kept_by(store: object) -> SubscriptionStore:
    """Return the subscriptions of a store.

    Args:
        store: The store.

    Raises:
        StoreUnavailableError: It keeps none.
    """
    kept = store.subscriptions if isinstance(store, KeepsSubscriptions) else None
    if kept is None:
        raise StoreUnavailableError("this store keeps no subscriptions")
    return kept


class MemorySubscriptions:
    """Subscriptions in memory.

    Args:
        paths: Returns the paths of all streams.
    """

    shared = False

    def __init__(self, paths: Callable[[], Iterable[str]]) -> None:
        self._paths = paths
        self._kept: dict[str, Kept] = {}
        self._secrets: dict[str, bytes] = {}

    async def load(self) -> list[Kept]:
        """Return all subscriptions."""
        return list(self._kept.values())

    async def find(self, name: str) -> Kept | None:
        """Return the present subscription of an id."""
        return self._kept.get(name)

    async def save(self, after: Subscription, before: Kept | None) -> int:
        """Store a subscription with its links."""
        revision = self._check(after.id, before) + 1
        self._kept[after.id] = Kept(after, revision)
        return revision

    async def remove(self, before: Kept) -> None:
        """Remove a subscription with its links."""
        self._check(before.subscription.id, before)
        del self._kept[before.subscription.id]

    def _check(self, name: str, before: Kept | None) -> int:
        present = self._kept.get(name)
        if (present is None) != (before is None) or (
            present and before and present.revision != before.revision
        ):
            raise RevisionError
        return 0 if present is None else present.revision

    async def paths(self, after: str, limit: int) -> Sequence[str]:
        """Return paths of streams, in order."""
        found = sorted(self._paths())
        begin = bisect_right(found, after)
        return found[begin : begin + limit]

    async def secret(self, name: str, made: bytes | None) -> bytes | None:
        """Return a secret of the server."""
        if made is not None:
            self._secrets.setdefault(name, made)
        return self._secrets.get(name)

    async def replace_secret(self, name: str, before: bytes, after: bytes) -> bool:
        """Replace a secret."""
        if self._secrets.get(name) != before:
            return False
        self._secrets[name] = after
        return True

    async def changed(self) -> list[Changed]:
        """Return nothing: no other server changes anything."""
        raise NotImplementedError

    async def leads(self) -> bool:
        """Return True: there is no other server."""
        return True
