"""Random interleavings of appends, claims, acknowledgements, expiries, deliveries and restarts, against a model."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.subscription import Ack, Link, Subscription, configure, new_subscription

PATHS = ("a", "b", "c")
LEASE = 5.0


class Subscriptions(RuleBasedStateMachine):
    """Workers that keep every wake they ever had, and may show it at any time.

    The server's promise, checked after each step: an idle subscription has nothing pending.
    """

    @initialize(webhook=st.booleans())
    def begin(self, webhook: bool) -> None:
        where = {"webhook": {"url": "https://example.com"}} if webhook else {"wake_stream": "wakes"}
        asked = {
            "type": "webhook" if webhook else "pull-wake",
            "streams": list(PATHS),
            "lease_ttl_ms": 5000,
            **where,
        }
        made = new_subscription("one", configure(asked), 0.0, "x")
        self.subscription: Subscription = made.linked({path: Link(1, -1, explicit=True) for path in PATHS})
        self.tails = dict.fromkeys(PATHS, 0)
        self.now = 0.0
        self.wakes: list[tuple[str, int]] = []
        self.cursors = dict.fromkeys(PATHS, -1)
        self.generation = 0

    def become(self, after: Subscription) -> None:
        """Commit, as a server does: what ends a wake begins the next one in the same step."""
        after = after.woken(self.tails, f"w_{len(self.wakes)}", self.now)
        if after.generation != self.generation:
            assert after.generation == self.generation + 1
            self.wakes.append((str(after.wake_id), after.generation))
        self.generation = after.generation
        self.subscription = after

    @rule(path=st.sampled_from(PATHS), size=st.integers(1, 9))
    def append(self, path: str, size: int) -> None:
        self.tails[path] += size
        self.become(self.subscription)

    @rule(seconds=st.sampled_from([0.0, 0.5, LEASE, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = self.subscription.lease_until
        after = self.subscription.expired(self.now)
        assert after is self.subscription or (due is not None and due <= self.now)
        self.become(after)

    @precondition(lambda self: not self.subscription.is_webhook)
    @rule()
    def claim(self) -> None:
        before = self.subscription
        try:
            after = before.claimed("worker", self.now)
        except Rejection:
            assert before.holder or before.idle
            return
        assert before.holder is None
        self.become(after)

    @precondition(lambda self: self.wakes)
    @rule(data=st.data(), done=st.booleans())
    def acknowledge(self, data: st.DataObject, done: bool) -> None:
        wake_id, generation = data.draw(st.sampled_from(self.wakes))
        chosen = data.draw(st.dictionaries(st.sampled_from(PATHS), st.integers(0, 30)))
        before = self.subscription
        acks = [Ack(format_offset(position), path) for path, position in chosen.items()]
        try:
            before.check_fence(wake_id, generation, generation)
            after = before.acknowledged(acks, self.tails, self.now, done=done)
        except Rejection as refusal:
            if refusal.code == "FENCED":
                assert before.wake_id != wake_id
            else:
                low = before.links
                assert any(not max(0, low[p].acked) <= at <= self.tails[p] for p, at in chosen.items())
            return
        assert before.wake_id == wake_id
        assert {path: after.links[path].acked for path in chosen} == {
            path: at if at or before.links[path].acked >= 0 else 0 for path, at in chosen.items()
        }
        self.become(after)

    @precondition(lambda self: self.subscription.holder)
    @rule()
    def release(self) -> None:
        self.become(self.subscription.released())

    @precondition(lambda self: self.wakes and self.subscription.is_webhook)
    @rule(data=st.data(), outcome=st.sampled_from(["done", "accepted", "failed"]), again=st.booleans())
    def deliver(self, data: st.DataObject, outcome: str, again: bool) -> None:
        if again and self.subscription.next_attempt_at is not None:
            self.subscription = self.subscription.attempted(self.tails)
        wake_id, _ = data.draw(st.sampled_from(self.wakes[-2:]))
        before = self.subscription
        if outcome == "failed":
            after = before.failed(wake_id, self.now, 0.5)
        else:
            after = before.delivered(wake_id, done=outcome == "done", now=self.now)
        assert after is before or (before.wake_id == wake_id and before.next_attempt_at is not None)
        self.become(after)

    @rule()
    def restart(self) -> None:
        self.subscription = msgspec.json.decode(msgspec.json.encode(self.subscription), type=Subscription)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "subscription"):
            return
        now = self.subscription
        assert not (now.idle and now.pending(self.tails)), "a wake is lost"
        cursors = {path: link.acked for path, link in now.links.items()}
        assert all(cursors[path] >= self.cursors[path] for path in PATHS), "a cursor moved back"
        assert all(cursors[path] <= self.tails[path] for path in PATHS)
        self.cursors = cursors
        assert now.lease_until is None or now.next_attempt_at is None
        assert now.idle == (now.wake_id is None)
        if now.idle:
            assert (now.holder, now.due, now.snapshot, now.retry_count) == (None, None, {}, 0)
        if now.is_webhook and not now.idle:
            assert now.due is not None, "nothing would ever end this wake"


TestSubscriptions = Subscriptions.TestCase
TestSubscriptions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
