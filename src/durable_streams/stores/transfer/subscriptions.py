"""Copies subscriptions from one place to another: cursors, generations, leases and back-offs, and the keys of tokens.

Invariant: what has gone on in the target is not taken back; a copy that was interrupted is completed by the next one.
"""

from __future__ import annotations

from durable_streams.protocol.subscription import Subscription
from durable_streams.stores.base import StoreError
from durable_streams.stores.subscriptions import SECRETS, RevisionError, SubscriptionStore

__all__ = ["copy_subscriptions"]


async def copy_subscriptions(source: SubscriptionStore, target: SubscriptionStore) -> int:
    """Copy all subscriptions, and return how many there are.

    Args:
        source: Where they are read.
        target: Where they are written.

    Raises:
        StoreError: One has gone on in the target, or cannot be written.
    """
    present = {kept.subscription.id: kept for kept in await target.load()}
    copied = await source.load()
    for name in SECRETS if copied else ():
        secret = await source.secret(name, None)
        if secret is not None:
            await target.secret(name, secret)
    for kept in copied:
        subscription = kept.subscription
        before = present.get(subscription.id)
        if before is not None and before.subscription == subscription:
            continue
        if before is not None and _went_on(before.subscription, subscription):
            raise StoreError(
                f"the subscription {subscription.id!r} has gone on in the target since it was copied; "
                "delete it there, or choose another target"
            )
        try:
            await target.save(subscription, before)
        except RevisionError:
            raise StoreError("another program changes the subscriptions in the target: stop it") from None
    return len(copied)


def _went_on(there: Subscription, here: Subscription) -> bool:
    """Whether the subscription in the target is not an earlier state of that in the source."""
    if there.incarnation != here.incarnation or there.generation != here.generation:
        return there.incarnation != here.incarnation or there.generation > here.generation
    if there.holder not in (None, here.holder):
        return True
    return any(
        path in here.links and link.acked > here.links[path].acked for path, link in there.links.items()
    )
