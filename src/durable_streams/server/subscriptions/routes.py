"""Which subscriptions a path concerns: asked at every append, so that an answer costs one look into a dictionary.

Invariants: ``find`` never answers from before a change; what is kept for it is bounded.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

from durable_streams.protocol.globs import Glob, is_regular, segments
from durable_streams.protocol.subscription import Subscription

__all__ = ["Routes"]

K = TypeVar("K", bound=Hashable)

_KEPT_PATHS = 100_000


class Routes:
    """The paths of all subscriptions, by their ids.

    Args:
        regular: Whether patterns leave out paths with empty segments.
    """

    def __init__(self, *, regular: bool = False) -> None:
        self._regular = regular
        self._named: dict[str, set[str]] = {}  # path of an explicit link to ids
        self._names: dict[str, frozenset[str]] = {}  # id to the paths that are named
        self._globs: dict[str, Glob] = {}
        self._by_first: dict[str | None, set[str]] = {}  # first segment to ids; None where it is a wildcard
        self._found: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def set(self, subscription: Subscription) -> None:
        """Take the present paths of a subscription."""
        config = subscription.config
        names = frozenset(path for path, link in subscription.links.items() if link.explicit)
        before = self._names.get(subscription.id)
        has_glob = subscription.id in self._globs
        if before == names and has_glob == (config.pattern is not None):
            return
        self.drop(subscription.id)
        self._names[subscription.id] = names
        for path in names:
            self._named.setdefault(path, set()).add(subscription.id)
        if config.pattern is not None:
            glob = self._globs[subscription.id] = Glob(config.pattern)
            self._by_first.setdefault(glob.prefix, set()).add(subscription.id)

    def drop(self, name: str) -> None:
        """Forget a subscription."""
        self._found.clear()
        for path in self._names.pop(name, ()):
            _discard(self._named, path, name)
        glob = self._globs.pop(name, None)
        if glob is not None:
            _discard(self._by_first, glob.prefix, name)

    def matches(self, name: str, path: str) -> bool:
        """Whether the pattern of a subscription matches a path."""
        glob = self._globs.get(name)
        return glob is not None and self._may_match(path) and glob.matches(segments(path))

    def _may_match(self, path: str) -> bool:
        return not self._regular or is_regular(path)

    def find(self, path: str) -> tuple[str, ...]:
        """Return the ids of the subscriptions that a path concerns."""
        found = self._found.get(path)
        if found is None:
            if len(self._found) >= _KEPT_PATHS:
                self._found.clear()
            found = self._found[path] = tuple(self._search(path))
        return found

    def _search(self, path: str) -> Iterable[str]:
        parts = segments(path)
        found = set(self._named.get(path, ()))
        if not self._may_match(path):
            return found
        for first in {parts[0] if parts else None, None}:
            found.update(name for name in self._by_first.get(first, ()) if self._globs[name].matches(parts))
        return found


def _discard(index: dict[K, set[str]], key: K, name: str) -> None:
    ids = index.get(key)
    if ids is not None:
        ids.discard(name)
        if not ids:
            del index[key]
