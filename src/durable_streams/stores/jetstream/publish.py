"""From what a batch decided to the messages that say it, each with the state that it stands on as its expectation.

No I/O. Invariants: every slot of a batch that changes has a message with an expectation; the first message of a log or
a key carries it, the others follow in the same atomic batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.jetstream.layout import EXPECT, OPERATION, RECORD, ROLLUP, TTL, Layout
from durable_streams.stores.jetstream.nats.messages import Message
from durable_streams.stores.jetstream.records import Base, LogRecord, encode_meta, encode_record, same_meta
from durable_streams.stores.jetstream.slots import JetSlot

__all__ = ["MARKER_SECONDS", "Change", "PublishPlan", "Witness", "plan"]

MARKER_SECONDS = 3600
"""How long a deletion can be seen in the log; whoever was not looking for longer reads everything anew."""

Appends = list[tuple[int, bytes]]
Producers = list[tuple[str, int, int]]


class Change(msgspec.Struct, gc=False):
    """What becomes of one slot when its messages are stored.

    ``log`` and ``meta``: which message is the last of its log, and which is kept beside it. ``n`` and ``base`` are the
    log's after it, ``seq`` the slot's before.
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
        """Make what was stored what is known.

        ``first`` is the sequence of the plan's first message, ``moment`` when it was decided, ``now`` the loop's time.
        """
        slot, state = self.slot, self.state
        revision = slot.revision if self.meta is None else first + self.meta
        if revision < slot.revision:
            return  # somebody read what others did since
        if self.meta is None and state is not None:
            known = slot.state
            if known is None or known.id != state.id:
                return  # others have removed the stream since
            state = _with_meta(state, known)  # our records do not speak of that
        slot.revision = revision
        if self.log is not None:
            slot.checked = max(slot.checked, moment)  # its expectation held: we knew all that there was
        if state is None:
            slot.become(None, 0, 0, revision, None)
        elif slot.state is not None and slot.state.id == state.id and self._is_known(slot, first):
            # Whoever read the log meanwhile brought our own records, and perhaps later ones.
            slot.publish(_with_meta(slot.state, state))
        else:
            self._advance(state, first, now)
        if slot.audience is not None:
            slot.audience.notify()

    def _is_known(self, slot: JetSlot, first: int) -> bool:
        """Whether the log is known beyond what this stands on, and with all that this adds to it."""
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


def _with_meta(state: StreamState, meta: StreamState) -> StreamState:
    return replace(state, deadline=meta.deadline, forks=meta.forks, deleted=meta.deleted)


class Witness(NamedTuple):
    """The first message of a log in a plan, by which it can be told whether the plan was stored.

    ``seq``: what it expects, ``n``: its number in the log, ``at``: its own in the plan.
    """

    subject: str
    seq: int
    n: int
    at: int


class PublishPlan(msgspec.Struct, gc=False):
    """Messages to publish, all or none, and what they change. ``moment``: see `CatchUp.tick`."""

    nonce: str
    moment: int
    messages: list[Message]
    changes: list[Change]
    witnesses: list[Witness] = []


def plan(batch: CommitBatch, layout: Layout, nonce: str, moment: int, room: int) -> PublishPlan:
    """Return the messages for a batch; ``room`` is how many bytes of payload one of them may carry.

    ``nonce`` tells them from all others, ``moment`` is when they were decided.
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
            raise TypeError(f"{type(slot)} is no slot of this store")
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
    elif before is None or change.appends or change.producers or state.closed is not before.closed:
        _plan_records(planned, change, state, layout, room)
    if before is None or not same_meta(before, state):
        _plan_meta(planned, change, layout, encode_meta(state), {ROLLUP: "sub"})
        if state.deadline is not None and (before is None or before.deadline != state.deadline):
            due = layout.due(max(state.deadline, now), slot.path)
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
    """End the log. That of a stream whose data go ends once more, so that whoever missed its first end sees one."""
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
    """Yield what goes into each record: where it starts, its appends or one piece of one, and whether that goes on."""
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
