"""From the decisions of a batch to messages that expect the state of the decision.

No I/O. Invariants: every changed slot of a batch has a message with an expectation; the first message of a log or a key
carries it, and the others follow in the same atomic batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from durable_streams.protocol.retention import due_at
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.jetstream.layout import EXPECT, OPERATION, RECORD, ROLLUP, TTL, Layout
from durable_streams.stores.jetstream.nats.messages import Message
from durable_streams.stores.jetstream.records import (
    Base,
    LogRecord,
    encode_meta,
    encode_record,
    same_meta,
    with_meta,
)
from durable_streams.stores.jetstream.slots import JetSlot

__all__ = ["MARKER_SECONDS", "Change", "PublishPlan", "Witness", "plan"]

MARKER_SECONDS = 3600
"""Seconds that a deletion is visible in the log; a gateway that was away longer reads everything again."""

Appends = list[tuple[int, bytes]]
Producers = list[tuple[str, int, int]]


class Change(msgspec.Struct, gc=False):
    """The change of one slot once its messages are stored.

    ``log`` and ``meta`` are the indices of the last log message and of the meta. ``n`` and ``base`` are those of the
    log after the change, ``seq`` is that of the slot before it.
    """

    slot: JetSlot
    state: StreamState | None
    appends: Appends
    producers: Producers
    seq: int
    n: int
    base: Base | None
    log: int | None = None
    meta: int | None = None

    def apply(self, first: int, moment: int, now: float) -> None:
        """Apply the change to the slot.

        ``first`` is the sequence of the first message of the plan, ``moment`` that of the decision, ``now`` the time of
        the loop.
        """
        slot, state = self.slot, self.state
        revision = slot.revision if self.meta is None else first + self.meta
        if revision < slot.revision:
            return  # a later change was read already
        if self.meta is None and state is not None:
            known = slot.state
            if known is None or known.id != state.id:
                return  # another gateway removed the stream since
            state = with_meta(state, known)  # records do not contain that
        slot.revision = revision
        if self.log is not None:
            slot.checked = max(slot.checked, moment)  # its expectation held: the slot was current
        if state is None:
            slot.become(None, 0, 0, revision, None)
        elif slot.state is not None and slot.state.id == state.id and self._is_known(slot, first):
            # A read of the log returned these records already, and perhaps later ones.
            slot.publish(with_meta(slot.state, state))
        else:
            self._advance(state, first, now)
        if slot.audience is not None:
            slot.audience.notify()

    def _is_known(self, slot: JetSlot, first: int) -> bool:
        """Whether the slot knows the log up to the end of this change already."""
        return slot.seq > self.seq and (self.log is None or slot.seq >= first + self.log)

    def _advance(self, state: StreamState, first: int, now: float) -> None:
        slot, new = self.slot, self.slot.state is None
        slot.publish(state)
        if self.log is not None:
            slot.seq, slot.n = first + self.log, self.n
        slot.raise_base(self.base)
        if new:
            slot.learn_all_producers({})
            slot.verified = now
        elif slot.complete:
            for name, epoch, seq in self.producers:
                slot.learn_producer(name, ProducerState(epoch, seq))
        if slot.audience is not None:
            for start, payload in self.appends:
                slot.audience.publish(start, payload)


class Witness(NamedTuple):
    """The first message of a log in a plan: it shows later whether the plan was stored.

    ``seq``: the sequence that it expects, ``n``: its number in the log, ``at``: its index in the plan.
    """

    subject: str
    seq: int
    n: int
    at: int


class PublishPlan(msgspec.Struct, gc=False):
    """Messages to publish, all or none, and their changes. ``moment``: see `CatchUp.tick`."""

    nonce: str
    moment: int
    messages: list[Message]
    changes: list[Change]
    witnesses: list[Witness] = []


def plan(batch: CommitBatch, layout: Layout, nonce: str, moment: int, room: int) -> PublishPlan:
    """Return the messages for a batch.

    ``nonce`` identifies the messages, ``moment`` is that of the decision, ``room`` the most bytes of one message.
    """
    appends: dict[int, Appends] = {}
    for stream_id, start, payload, _ in batch.records:
        appends.setdefault(stream_id, []).append((start, payload))
    producers: dict[int, Producers] = {}
    for (stream_id, name), (producer, _) in batch.producers.items():
        producers.setdefault(stream_id, []).append((name, producer.epoch, producer.seq))
    planned = PublishPlan(nonce, moment, [], [])
    for slot, state in batch.changed.items():
        if not isinstance(slot, JetSlot):
            raise TypeError(f"{type(slot)} is not a slot of this store")
        stream_id = 0 if state is None else state.id
        change = Change(
            slot,
            state,
            appends.get(stream_id, []),
            producers.get(stream_id, []),
            slot.seq,
            slot.n,
            slot.base,
        )
        planned.changes.append(change)
        _plan_change(planned, change, layout, room, batch.now)
    if batch.probe:
        planned.messages.append(Message(layout.probe, b"", {ROLLUP: "sub"}))
    return planned


def _plan_change(planned: PublishPlan, change: Change, layout: Layout, room: int, now: float) -> None:
    slot, state, before = change.slot, change.state, change.slot.state
    if state is None:
        if before is not None:
            _plan_end(planned, change, before, layout, goes=True)
            planned.messages.append(Message(layout.gone(before.id), b"", {ROLLUP: "sub"}))
            marker = {OPERATION: "PURGE", ROLLUP: "sub", TTL: f"{MARKER_SECONDS}s"}
            _plan_meta(planned, change, layout, b"", marker)
        return
    if before is None:
        change.seq = change.n = 0
        change.base = None
    if before is not None and state.deleted and not before.deleted:
        _plan_end(planned, change, before, layout, goes=False)
    elif (
        before is None
        or change.appends
        or change.producers
        or state.closed is not before.closed
        or state.trims != before.trims
    ):
        _plan_records(planned, change, state, layout, room)
    if before is None or not same_meta(before, state):
        _plan_meta(planned, change, layout, encode_meta(state), {ROLLUP: "sub"})
        if before is not None and state.floor > before.floor:
            planned.messages.append(Message(layout.trimmed(state.id), slot.path.encode(), {ROLLUP: "sub"}))
        when = due_at(state)
        if when is not None and (before is None or due_at(before) != when):
            due = layout.due(max(when, now), slot.path)
            planned.messages.append(Message(due, slot.path.encode(), {ROLLUP: "sub"}))


def _plan_meta(
    planned: PublishPlan, change: Change, layout: Layout, value: bytes, headers: dict[str, str]
) -> None:
    change.meta = len(planned.messages)
    headers = {EXPECT: str(change.slot.revision), **headers}
    planned.messages.append(Message(layout.meta(change.slot.path), value, headers))


def _plan_end(
    planned: PublishPlan, change: Change, before: StreamState, layout: Layout, *, goes: bool
) -> None:
    """End the log. A stream whose data are removed ends once more, for readers that missed the first end."""
    change.n += 1
    record = LogRecord(
        planned.nonce,
        change.n,
        before.tail,
        closed=before.closed,
        closed_by=before.closed_by,
        last_seq=before.last_seq,
        end=True,
        base=change.base,
        trims=before.trims,
        records=before.records,
        appended=before.appended,
    )
    _add_record(planned, change, layout.log(before.id), record, b"", first=True)
    if goes:
        headers = planned.messages[-1].headers
        assert headers is not None  # noqa: S101 - for the type checker: a record always has some
        headers[TTL] = f"{MARKER_SECONDS}s"


def _plan_records(
    planned: PublishPlan, change: Change, state: StreamState, layout: Layout, room: int
) -> None:
    before = change.slot.state
    if change.base is None and change.producers and before is not None:
        change.base = Base(change.seq, change.n, before.tail)
    subject = layout.log(state.id)
    pieces = list(_pieces(change.appends, room)) or [(state.tail, [b""], False)]
    for index, (start, payloads, more) in enumerate(pieces):
        last = index == len(pieces) - 1
        change.n += 1
        record = LogRecord(
            planned.nonce,
            change.n,
            start,
            lengths=[len(payload) for payload in payloads] if len(payloads) > 1 else [],
            closed=state.closed and last,
            closed_by=state.closed_by if last else None,
            last_seq=state.last_seq,
            producers=change.producers if last else [],
            more=more,
            base=change.base,
            trims=state.trims,
            records=state.records,
            appended=state.appended,
        )
        _add_record(planned, change, subject, record, b"".join(payloads), first=index == 0)


def _add_record(
    planned: PublishPlan, change: Change, subject: str, record: LogRecord, data: bytes, *, first: bool
) -> None:
    headers = {RECORD: encode_record(record)}
    if first:
        headers[EXPECT] = str(change.seq)
        planned.witnesses.append(Witness(subject, change.seq, record.n, len(planned.messages)))
    change.log = len(planned.messages)
    planned.messages.append(Message(subject, data, headers))


def _pieces(appends: Appends, room: int) -> Iterator[tuple[int, list[bytes], bool]]:
    """Yield each record: its start, its appends or a piece of one, and whether that append continues."""
    start, payloads, size = 0, list[bytes](), 0
    for at, payload in appends:
        if payloads and size + len(payload) > room:
            yield start, payloads, False
            payloads, size = [], 0
        if len(payload) > room:
            for cut in range(0, len(payload), room):
                yield at + cut, [payload[cut : cut + room]], cut + room < len(payload)
            continue
        if not payloads:
            start = at
        payloads.append(payload)
        size += len(payload)
    if payloads:
        yield start, payloads, False
