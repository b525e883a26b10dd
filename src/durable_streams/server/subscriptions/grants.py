"""Who may do what with a subscription: it shows its caller nothing that the caller's own grants do not show.

| request | needs, on the whole pattern and on each named stream |
| --- | --- |
| PUT | subscribe and read, also append on the wake stream |
| GET, claim | subscribe and read |
| POST ``streams`` | subscribe and read, also on the streams that it adds |
| DELETE, also of a stream | subscribe |
| ack, callback, release | nothing: the token of the wake |

Invariants: a pattern is compared as a whole, so that what it matches later is allowed too; a path with an empty
segment, which patterns of subscriptions and of grants understand differently, is linked by its name only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.globs import Glob, is_regular
from durable_streams.protocol.grants import Grant, Operation
from durable_streams.protocol.subscription import Subscription, SubscriptionConfig
from durable_streams.server.access import forbidden

__all__ = ["MANAGE", "SEE", "check", "check_config", "check_streams", "is_visible"]

MANAGE: tuple[Operation, ...] = ("subscribe",)
SEE: tuple[Operation, ...] = ("subscribe", "read")


def check_config(grant: Grant, config: SubscriptionConfig) -> None:
    """Raise the 403 of a caller that may not create such a subscription.

    Args:
        grant: What the caller may do.
        config: The configuration that it asks for.
    """
    check_streams(grant, SEE, config.pattern, config.streams)
    if config.wake_stream is not None:
        check_streams(grant, ("append",), None, [config.wake_stream])


def check(grant: Grant, operations: Iterable[Operation], subscription: Subscription) -> None:
    """Raise the 403 of a caller that may not do all of ``operations`` on what a subscription is linked to.

    Args:
        grant: What the caller may do.
        operations: What it needs: `MANAGE` or `SEE`.
        subscription: The subscription.
    """
    check_streams(grant, operations, subscription.config.pattern, _named(subscription))


def check_streams(
    grant: Grant, operations: Iterable[Operation], pattern: str | None, paths: Collection[str]
) -> None:
    """Raise the 403 of a caller that may not do all of ``operations`` on a pattern and on paths.

    Args:
        grant: What the caller may do.
        operations: What it needs.
        pattern: The pattern, None without one.
        paths: The paths.
    """
    for operation in operations:
        if grant.allows_everywhere(operation):
            continue
        if pattern is not None and not grant.covers(operation, Glob(pattern)):
            raise forbidden(operation, pattern)
        for path in paths:
            if not grant.allows(operation, path):
                raise forbidden(operation, path)


def is_visible(grant: Grant, subscription: Subscription) -> bool:
    """Whether a subscription is in the list that a caller gets."""
    try:
        check(grant, SEE, subscription)
    except Rejection:
        return False
    return True


def _named(subscription: Subscription) -> list[str]:
    """Return the paths that the pattern does not speak for."""
    return [path for path, link in subscription.links.items() if link.explicit or not is_regular(path)]
