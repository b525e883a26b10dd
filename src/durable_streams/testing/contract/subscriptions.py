"""What a store promises of the subscriptions that it keeps (`durable_streams.stores.subscriptions`)."""
# ruff: noqa: S101 - these are tests

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from msgspec.structs import replace

from durable_streams.protocol.subscription import Link, Subscription, configure, new_subscription
from durable_streams.stores.base import Store, StoreError
from durable_streams.stores.subscriptions import KeepsSubscriptions, Kept, RevisionError, SubscriptionStore
from durable_streams.testing.contract.harness import Harness, StoreFactory, on_a_loop

__all__ = ["SubscriptionContract"]

_numbers = count()


def _kept_by(store: Store) -> SubscriptionStore:
    if not isinstance(store, KeepsSubscriptions) or store.subscriptions is None:
        pytest.skip("this store keeps no subscriptions")
    return store.subscriptions


def _made(name: str = "one") -> Subscription:
    config = configure(
        {"type": "pull-wake", "pattern": "events/**", "wake_stream": "wakes", "description": "ä"}
    )
    made = new_subscription(name, config, 12.5, f"incarnation-{next(_numbers)}")
    return made.linked({f"events/{n} é": Link(n, n * 10 - 1, explicit=n == 1, glob=True) for n in range(3)})


def _woken(subscription: Subscription) -> Subscription:
    return subscription.woken({"events/0 é": 5}, "w_1", 20.0).claimed("worker", 21.0)


class SubscriptionContract(StoreFactory):
    """Part of the Store contract, for stores that keep subscriptions."""

    @on_a_loop
    async def test_a_subscription_is_found_as_it_was_saved(self, store: Harness) -> None:
        """All of it, with its links and a lease."""
        kept = _kept_by(store.store)
        assert await kept.find("one") is None
        made = _made()
        first = Kept(made, await kept.save(made, None))
        assert await kept.find("one") == first
        woken = _woken(made)
        second = Kept(woken, await kept.save(woken, first))
        assert await kept.find("one") == second
        assert second.revision != first.revision

    @on_a_loop
    async def test_links_come_move_and_go(self, store: Harness) -> None:
        """The links that are stored are those of the last save."""
        kept = _kept_by(store.store)
        before = Kept(_made(), await kept.save(_made(), None))
        before = Kept(_made(), before.revision)
        for links in (
            {"events/0 é": Link(0, 7, glob=True), "other": Link(9, 0, explicit=True)},
            {},
            {f"events/{n}": Link(n, n) for n in range(1, 3000)},
            {"events/1": Link(1, 1), "events/2": Link(2, 9)},
        ):
            after = replace(before.subscription, links=links)
            before = Kept(after, await kept.save(after, before))
            assert await kept.find("one") == before

    @on_a_loop
    async def test_only_the_present_revision_is_replaced(self, store: Harness) -> None:
        """Of two that decide on the same state one is refused, and changes nothing."""
        kept = _kept_by(store.store)
        made = _made()
        first = Kept(made, await kept.save(made, None))
        with pytest.raises(RevisionError):
            await kept.save(_made(), None)
        woken = _woken(made)
        outcomes = await asyncio.gather(
            *(kept.save(replace(woken, holder=name), first) for name in ("a", "b")), return_exceptions=True
        )
        assert sorted(isinstance(outcome, RevisionError) for outcome in outcomes) == [False, True]
        present = await kept.find("one")
        assert present is not None
        assert present.subscription.holder == ("a" if isinstance(outcomes[1], RevisionError) else "b")
        with pytest.raises(RevisionError):
            await kept.remove(first)
        assert await kept.find("one") == present

    @on_a_loop
    async def test_a_removed_one_is_gone_and_its_id_free(self, store: Harness) -> None:
        """With its links."""
        kept = _kept_by(store.store)
        made = _made()
        first = Kept(made, await kept.save(made, None))
        await kept.remove(first)
        assert await kept.find("one") is None
        assert await kept.load() == []
        with pytest.raises(RevisionError):
            await kept.save(_woken(made), first)
        again = replace(_made(), links={})
        assert await kept.find("one") is None
        second = Kept(again, await kept.save(again, None))
        assert await kept.load() == [second]

    @on_a_loop
    async def test_what_was_saved_survives(self, store: Harness) -> None:
        """Subscriptions and secrets are as durable as streams."""
        kept = _kept_by(store.store)
        names = [f"s{n}" for n in range(20)]
        saved = [_woken(_made(name)) for name in names]
        revisions = await asyncio.gather(*(kept.save(one, None) for one in saved))
        assert await kept.secret("key", b"\x00first") == b"\x00first"
        await store.restart()
        kept = _kept_by(store.store)
        found = {one.subscription.id: one for one in await kept.load()}
        if not self.durable:
            assert found == {}
            return
        expected = {one.id: Kept(one, number) for one, number in zip(saved, revisions, strict=True)}
        assert found == expected
        assert await kept.secret("key", b"second") == b"\x00first"
        await kept.remove(found["s7"])
        assert await kept.find("s7") is None

    @on_a_loop
    async def test_a_failed_save_changes_nothing(self, store: Harness) -> None:
        """The same change can be made afterwards."""
        if not self.durable:
            pytest.skip("what is kept in memory cannot fail to be stored")
        kept = _kept_by(store.store)
        made = _made()
        first = Kept(made, await kept.save(made, None))
        with self.failing_commits(store.store):
            large = replace(made, links={f"{n:0100}": Link(n, n) for n in range(5000)})
            with pytest.raises(StoreError):
                await kept.save(large, first)
        assert await kept.find("one") == first
        woken = _woken(made)
        assert await kept.find("one") == Kept(made, first.revision)
        second = Kept(woken, await kept.save(woken, first))
        assert await kept.find("one") == second

    @on_a_loop
    async def test_a_secret_is_made_once_and_replaced_by_who_knows_it(self, store: Harness) -> None:
        """Servers that start together have one secret."""
        kept = _kept_by(store.store)
        assert await kept.secret("key", None) is None
        found = await asyncio.gather(*(kept.secret("key", f"key{n}".encode()) for n in range(5)))
        assert len(set(found)) == 1
        secret = found[0]
        assert secret is not None
        assert not await kept.replace_secret("key", b"other", b"new")
        assert await kept.replace_secret("key", secret, b"new")
        assert await kept.secret("key", None) == b"new"
        assert await kept.secret("another", None) is None

    @on_a_loop
    async def test_paths_of_streams_come_in_pages(self, store: Harness) -> None:
        """Each stream that exists is on one of them."""
        kept = _kept_by(store.store)
        for number in range(7):
            await store.create(f"events/{number}")
        await store.store.delete("events/3")
        found: list[str] = []
        while page := await kept.paths(found[-1] if found else "", 2):
            found += page
        assert sorted(set(found)) == [f"events/{number}" for number in (0, 1, 2, 4, 5, 6)]
