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

from durable_streams.protocol import rules
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import StoreError, StoreUnavailableError, StoreUncertainError
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.jetstream.records import Base, LogRecord, with_meta, with_tail
from durable_streams.stores.slots import Slot

__all__ = ["JetSlot", "WaitingCommand"]


class WaitingCommand:
    """A command that waits for its decision.

    Attributes:
        decide: Decides the command on a batch.
        slots: The slot of the command, then the other slots that it needs.
        future: The result.
        since: The moment of arrival: a question to the leader after it proves a refusal.
        until: How long the command is retried, on the loop's clock.
        deadline: How long the command waits for an attempt while NATS is away, on the loop's clock.
        size: The bytes of its payload.
        header: About how many bytes it adds to the header of a record.
        stamped: Whether a producer sent it.
        single: Whether it is decided without other commands of its stream: it creates or ends the stream.
        repeatable: Whether a retry is harmless even if the command was stored.
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
        """Answer with an error."""
        if not self.future.done():
            self.future.set_exception(type(error)(*error.args))

    def fail_in_doubt(self) -> None:
        """Answer that the outcome is unknown."""
        if self.repeatable:
            self.fail(
                StoreUnavailableError(
                    "NATS does not answer; retry the request, it is stored once in any case"
                )
            )
        else:
            self.fail(
                StoreUncertainError(
                    "NATS did not confirm the request: it may have been stored; read the stream to find out"
                )
            )


class JetSlot(Slot):
    """One path: its state, its position in NATS, and the commands that wait for it."""

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
        self.revision = 0  # sequence of the meta
        self.base: Base | None = None
        self.complete = False  # whether `producers` holds all producers
        self.check: asyncio.Task[None] | None = None  # the running question to the leader
        self.checked = 0  # the moment of the last answered question
        self.verified = float("-inf")  # when everything was read last, on the loop's clock
        self.busy = False
        self.behind = False  # another gateway committed while it was busy
        self.waiting: deque[WaitingCommand] | None = None
        self.conflict_at = -1  # its last known record at the last conflict
        self.conflicts = 0  # since the last stored message
        self.rests_until = 0.0  # until then another gateway goes first
        self.alone_until = 0.0  # after a conflict: until then it is published alone
        self._partial: tuple[int, int] | None = None

    @property
    def version(self) -> tuple[int, int]:
        """A value that changes whenever the slot does."""
        return self.seq, self.revision

    def expired(self, state: StreamState, now: float) -> bool:
        """Whether a state of this slot has expired; never while it has an audience.

        Other gateways touch the stream too, so the stored deadline decides; a touch here can only delay it.
        """
        if self.audience is not None:
            return False
        if state.ttl is not None and self.touched is not None and now < self.touched + state.ttl:
            return False
        return rules.is_expired(state, None, now)

    def become(self, state: StreamState | None, seq: int, n: int, revision: int, base: Base | None) -> None:
        """Replace everything with the present content of the path."""
        before = self.state
        if before is None or state is None or before.id != state.id:
            self.complete = False
        elif self.seq != seq:
            self._forget_producers()  # records with new producers may have been skipped
            self.complete = False
        self.publish(state)
        self.seq, self.n, self.revision, self.base = seq, n, revision, base
        self._partial = None
        if self.audience is not None and before != state:
            self.audience.notify()

    def learn_meta(self, meta: StreamState, revision: int) -> None:
        """Apply a meta, unless a newer one is known."""
        before = self.state
        if before is None or revision < self.revision:
            return
        self.revision = revision
        self.publish(with_meta(before, meta))
        if self.audience is not None and before != self.state:
            self.audience.notify()

    def follow(self, seq: int, record: LogRecord, payload: bytes) -> bool:
        """Apply the next record of the log; False if the record does not follow, or ends the log."""
        if seq <= self.seq:
            return True
        state = self.state
        n, tail = self._partial or (self.n, 0 if state is None else state.tail)
        self._partial = None
        if state is None or record.end or record.n != n + 1 or record.start != tail:
            return False
        if record.trims > state.trims:
            return False  # only the meta says what is kept
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
        """Move the beginning of the fold of producers to ``base``, if that is later."""
        if base is not None and (self.base is None or base.seq > self.base.seq):
            self.base = base

    def learn_producer(self, producer_id: str, state: ProducerState) -> None:
        """Keep a producer. None is dropped: a decision needs all of them, and no table holds them."""
        if not isinstance(self.producers, dict):
            self.producers = {}
        self.producers[producer_id] = state

    def learn_all_producers(self, producers: dict[str, ProducerState]) -> None:
        """Keep the complete set of producers."""
        self.producers = producers
        self.complete = True
