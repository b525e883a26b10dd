"""What a gateway keeps in memory of one stream, and the commands that wait for it.

Invariants: a slot holds what NATS acknowledged or what a read returned, never what is being published; ``seq`` and
``revision`` are the sequences of the last messages that the slot knows, and every write expects them; while a slot is
``busy``, exactly one commit attempt decides for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from durable_streams.protocol import rules
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import StoreError, StoreUnavailableError, StoreUncertainError
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.jetstream.records import Base, LogRecord, with_tail
from durable_streams.stores.slots import Slot

__all__ = ["JetSlot", "WaitingCommand"]


class WaitingCommand:
    """Something to decide, and who waits for it.

    ``slots``: the one that it is about, then those that it also needs. ``since``: what has been asked of the leader
    after this moment proves a refusal. ``until``: how long it is tried again, ``deadline``: how long it waits for a
    try while NATS is away, on the loop's clock. ``single``: it is decided without others of its stream, since it makes
    or ends it. ``repeatable``: its sender may repeat it though it was stored.
    """

    __slots__ = (
        "deadline",
        "decide",
        "future",
        "header",
        "repeatable",
        "since",
        "single",
        "size",
        "slots",
        "stamped",
        "until",
    )

    def __init__(
        self,
        decide: Callable[[CommitBatch], Any],
        slots: tuple[JetSlot, ...],
        *,
        future: asyncio.Future[Any],
        since: int,
        until: float,
        deadline: float,
        size: int = 0,
        header: int = 0,
        stamped: bool = False,
        single: bool = False,
        repeatable: bool = False,
    ) -> None:
        self.decide = decide
        self.slots = slots
        self.future = future
        self.since = since
        self.until = until
        self.deadline = deadline
        self.size = size
        self.header = header
        self.stamped = stamped
        self.single = single
        self.repeatable = repeatable

    def fail(self, error: StoreError) -> None:
        """Tell who waits that the store failed."""
        if not self.future.done():
            self.future.set_exception(type(error)(*error.args))

    def fail_in_doubt(self) -> None:
        """Tell who waits that nobody knows."""
        if self.repeatable:
            self.fail(
                StoreUnavailableError(
                    "NATS does not answer; repeat the request, it is stored once in any case"
                )
            )
        else:
            self.fail(
                StoreUncertainError(
                    "NATS did not confirm the request: it may have been stored or not; read the stream to find out"
                )
            )


class JetSlot(Slot):
    """One path: its state, where in NATS that stands, and who waits for it."""

    __slots__ = (
        "_partial",
        "alone_until",
        "base",
        "behind",
        "busy",
        "check",
        "checked",
        "complete",
        "conflict_at",
        "conflicts",
        "n",
        "rests_until",
        "revision",
        "seq",
        "verified",
        "waiting",
    )

    def __init__(self, path: str) -> None:
        super().__init__(path, None)
        self.seq = 0  # of the last record of the log
        self.n = 0  # records that the log holds
        self.revision = 0  # sequence of what is kept beside the log
        self.base: Base | None = None
        self.complete = False  # whether `producers` are all that there are
        self.check: asyncio.Task[None] | None = None  # a question to the leader that is under way
        self.checked = 0  # the moment at which the last answered question was asked
        self.verified = float("-inf")  # when all of it was read, on the loop's clock
        self.busy = False
        self.behind = False  # something was committed elsewhere while it was busy
        self.waiting: deque[WaitingCommand] | None = None
        self.conflict_at = -1  # the last record that was known when it met its last conflict
        self.conflicts = 0  # since something was stored
        self.rests_until = 0.0  # so long it lets another gateway go first
        self.alone_until = 0.0  # it met a conflict: until then it shares no batch with others
        self._partial: tuple[int, int] | None = None

    @property
    def version(self) -> tuple[int, int]:
        """What changes whenever the slot does."""
        return self.seq, self.revision

    def expired(self, state: StreamState, now: float) -> bool:
        """Whether a state of this slot is past its end; never while somebody watches.

        Others touch the stream too, so that what is stored decides; our own touch only makes it later.
        """
        if self.audience is not None:
            return False
        if state.ttl is not None and self.touched is not None and now < self.touched + state.ttl:
            return False
        return rules.is_expired(state, None, now)

    def become(self, state: StreamState | None, seq: int, n: int, revision: int, base: Base | None) -> None:
        """Take over what is at the path now, whatever was there before."""
        before = self.state
        if before is None or state is None or before.id != state.id:
            self.complete = False
        elif self.seq != seq:
            self._forget_producers()  # records that brought new ones may have been skipped
            self.complete = False
        self.publish(state)
        self.seq, self.n, self.revision, self.base = seq, n, revision, base
        self._partial = None
        if self.audience is not None and before != state:
            self.audience.notify()

    def learn_meta(self, meta: StreamState, revision: int) -> None:
        """Take over what is kept beside the log, if it is not older than what is known."""
        before = self.state
        if before is None or revision < self.revision:
            return
        self.revision = revision
        self.publish(replace(before, deadline=meta.deadline, forks=meta.forks, deleted=meta.deleted))
        if self.audience is not None and before != self.state:
            self.audience.notify()

    def follow(self, seq: int, record: LogRecord, payload: bytes) -> bool:
        """Take over the next record of the log; False if it is not the next, or the last that there will be."""
        if seq <= self.seq:
            return True
        state = self.state
        n, tail = self._partial or (self.n, 0 if state is None else state.tail)
        self._partial = None
        if state is None or record.end or record.n != n + 1 or record.start != tail:
            return False
        if record.more:
            self._partial = record.n, tail + len(payload)
            return True
        self.seq, self.n = seq, record.n
        self.raise_base(record.base)
        if self.complete:
            for name, epoch, number in record.producers:
                self.learn_producer(name, ProducerState(epoch, number))
        self.publish(with_tail(state, record, len(payload)))
        if self.audience is not None:
            if payload and tail == state.tail:
                self.audience.publish(tail, payload)
            self.audience.notify()
        return True

    def raise_base(self, base: Base | None) -> None:
        """Let the fold of producers begin later, if ``base`` is."""
        if base is not None and (self.base is None or base.seq > self.base.seq):
            self.base = base

    def learn_producer(self, producer_id: str, state: ProducerState) -> None:
        """Remember a producer. None is forgotten: a decision needs them all, and they are in no table."""
        if not isinstance(self.producers, dict):
            self.producers = {}
        self.producers[producer_id] = state

    def learn_all_producers(self, producers: dict[str, ProducerState]) -> None:
        """Remember all the producers that there are."""
        self.producers = producers
        self.complete = True
