"""What a gateway publishes says all that it decided: another one that follows the log, and one that opens it cold,
come to the same state.

JetStream is a list here: what is published is stored if its expectations hold, under consecutive sequences.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.protocol.commands import Append, Create, Rejection
from durable_streams.protocol.state import ProducerStamp, ProducerState, StreamState
from durable_streams.stores.batch import CommitBatch, LoadedProducer
from durable_streams.stores.jetstream.layout import EXPECT, OPERATION, RECORD, Layout
from durable_streams.stores.jetstream.nats.messages import Message
from durable_streams.stores.jetstream.publish import plan
from durable_streams.stores.jetstream.records import (
    Base,
    LogRecord,
    cut_snapshot,
    decode_meta,
    decode_record,
    decode_snapshot,
    with_tail,
)
from durable_streams.stores.jetstream.slots import JetSlot

BYTES = "application/octet-stream"
NOW = 1_800_000_000.0
LAYOUT = Layout("b")


@dataclass
class Nats:
    """The stream of a bucket: all messages under their sequences."""

    seq: int = 7  # other streams were here before
    subjects: dict[str, list[tuple[int, Message]]] = field(default_factory=dict)

    def publish(self, messages: list[Message]) -> int | None:
        """Store messages and return the last sequence, None if an expectation does not hold."""
        for message in messages:
            expected = (message.headers or {}).get(EXPECT)
            if expected is not None and self.last(message.subject) != int(expected):
                return None
        for message in messages:
            self.seq += 1
            self.subjects.setdefault(message.subject, []).append((self.seq, message))
        return self.seq

    def last(self, subject: str) -> int:
        return self.subjects[subject][-1][0] if subject in self.subjects else 0

    def log(self, stream_id: int) -> list[tuple[int, LogRecord, bytes]]:
        return [
            (seq, decode_record((message.headers or {})[RECORD].encode()), message.data)
            for seq, message in self.subjects.get(LAYOUT.log(stream_id), [])
        ]

    def state(self, path: str) -> StreamState | None:
        """Return what a cold start reads: the meta, and the last record."""
        if LAYOUT.meta(path) not in self.subjects:
            return None
        message = self.subjects[LAYOUT.meta(path)][-1][1]
        if OPERATION in (message.headers or {}):
            return None
        meta = decode_meta(message.data)
        _, record, data = self.log(meta.id)[-1]
        return with_tail(meta, record, len(data))


def decide(batch: CommitBatch, slot: JetSlot, command: Append) -> None:
    try:
        batch.append(slot, command, LoadedProducer(None, slot.forgets))
    except Rejection:
        return


payloads = st.binary(min_size=1, max_size=40)
stamps = st.tuples(st.sampled_from(["p", "q", "ü;\"'"]), st.integers(0, 1), st.integers(0, 3))
appends = st.builds(
    lambda payload, close, seq, stamp: Append(
        BYTES if payload else None,
        payload,
        close=close or not payload,
        seq=seq,
        producer=None if stamp is None else ProducerStamp(*stamp),
    ),
    st.one_of(payloads, st.just(b"")),
    st.sampled_from([False] * 9 + [True]),
    st.one_of(st.none(), st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), min_size=1)),
    st.one_of(st.none(), stamps),
)


@settings(max_examples=200, deadline=None)
@given(
    first=st.one_of(st.just(b""), payloads),
    batches=st.lists(st.lists(appends, min_size=1, max_size=5), max_size=8),
    room=st.integers(3, 64),
    ttl=st.one_of(st.none(), st.just(60)),
    delete=st.booleans(),
)
def test_who_follows_and_who_opens_cold_know_what_the_writer_knows(
    first: bytes, batches: list[list[Append]], room: int, ttl: int | None, delete: bool
) -> None:
    asyncio.run(follow_and_compare(first, batches, room, ttl, delete))


async def follow_and_compare(
    first: bytes, batches: list[list[Append]], room: int, ttl: int | None, delete: bool
) -> None:
    nats, writer, content = Nats(), JetSlot("s"), bytearray(first)

    def commit(batch: CommitBatch, number: int) -> None:
        planned = plan(batch, LAYOUT, f"n{number}", number, room)
        if not planned.messages:
            return
        last = nats.publish(planned.messages)
        assert last is not None, "what was decided on the present state was refused"
        assert nats.publish(planned.messages) is None, "the same messages were stored twice"
        for change in planned.changes:
            change.apply(last - len(planned.messages) + 1, number, 0.0)

    batch = CommitBatch(NOW, lambda: 77)
    batch.create(writer, None, Create("s", BYTES, first, ttl=ttl))
    commit(batch, 0)
    for number, commands in enumerate(batches, 1):
        batch = CommitBatch(NOW + number * 10, lambda: 78)
        for command in commands:
            decide(batch, writer, command)
        content += b"".join(payload for _, _, payload, _ in batch.records)
        commit(batch, number)
    assert writer.state is not None
    assert writer.state == nats.state("s")
    compare_follower(nats, writer)
    assert b"".join(data for _, _, data in nats.log(77)) == bytes(content)
    if delete:
        batch = CommitBatch(NOW, lambda: 79)
        batch.delete(writer, [])
        commit(batch, 1000)
        assert writer.state is None
        assert nats.state("s") is None
        assert nats.log(77)[-1][1].end


def compare_follower(nats: Nats, writer: JetSlot) -> None:
    """Follow the log from its first record on, as another gateway does."""
    assert writer.state is not None
    (opened, record, data), *rest = nats.log(writer.state.id)
    whole = [entry for entry in nats.log(writer.state.id) if not entry[1].more]
    if record.more:  # the first append is larger than a message: nobody sees a part of it
        opened, record, data = whole[0]
        rest = [entry for entry in rest if entry[0] > opened]
    follower = JetSlot("s")
    meta = decode_meta(nats.subjects[LAYOUT.meta("s")][-1][1].data)
    follower.become(with_tail(meta, record, len(data)), opened, record.n, 1, record.base)
    follower.learn_all_producers({})
    for seq, record, data in rest:
        before = follower.state
        assert follower.follow(seq, record, data)
        assert (follower.state == before) == (record.more or not changes_state(before, record, data))
    assert follower.state == writer.state
    assert (follower.seq, follower.n, follower.base) == (writer.seq, writer.n, writer.base)
    assert dict(follower.producers) == dict(writer.producers)
    base = writer.base
    assert (base is None) == (not writer.producers)
    if base is not None:
        table = {
            name: ProducerState(epoch, seq)
            for at, record, _ in nats.log(writer.state.id)
            if at > base.seq
            for name, epoch, seq in record.producers
        }
        assert table == dict(writer.producers), "a producer wrote before the fold of producers begins"


def changes_state(before: StreamState | None, record: LogRecord, data: bytes) -> bool:
    assert before is not None
    known = (before.closed, before.closed_by, before.last_seq)
    return (
        bool(data)
        or before.tail != record.start
        or known != (record.closed, record.closed_by, record.last_seq)
    )


def test_a_record_that_does_not_follow_is_not_taken() -> None:
    slot = JetSlot("s")
    slot.become(StreamState(id=1, path="s", content_type=BYTES, tail=5), 10, 2, 1, None)
    assert not slot.follow(12, LogRecord("n", 4, 5), b"a"), "one record is missing"
    assert not slot.follow(12, LogRecord("n", 3, 6), b"a"), "a byte is missing"
    assert not slot.follow(12, LogRecord("n", 3, 5, end=True), b""), "the log ends here"
    assert slot.follow(9, LogRecord("n", 1, 0), b"abcde"), "what is known already is no trouble"
    assert slot.state is not None
    assert (slot.seq, slot.state.tail) == (10, 5)


@given(
    st.integers(0, 20_000), st.sampled_from([48 << 10, 1 << 20]), st.sampled_from(["producer-", 'é"' * 400])
)
@settings(max_examples=10, deadline=None)
def test_snapshots_of_any_size_come_back_and_fit(count: int, room: int, name: str) -> None:
    producers = {f"{name}{number}": ProducerState(number % 3, number) for number in range(count)}
    base = Base(5, 3, 9)
    encoded = cut_snapshot(base, producers, room)
    assert all(len(part) <= room + 100 for part in encoded)
    parts = [decode_snapshot(part) for part in encoded]
    assert all((part.base, part.parts) == (base, len(parts)) for part in parts)
    assert {n: ProducerState(e, s) for part in parts for n, e, s in part.producers} == producers
