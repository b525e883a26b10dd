"""Streams on NATS JetStream, as the source or the target of a transfer.

Invariant: no other program writes to the bucket during a transfer, or ``check_alone`` raises at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import StoreError
from durable_streams.stores.jetstream.catchup import CatchUp
from durable_streams.stores.jetstream.config import JetStreamConfig
from durable_streams.stores.jetstream.layout import EXPECT, ROLLUP
from durable_streams.stores.jetstream.nats.bus import Bus, Message, Stored, patiently
from durable_streams.stores.jetstream.records import Base, LogRecord, decode_meta, decode_record
from durable_streams.stores.jetstream.slots import JetSlot
from durable_streams.stores.jetstream.subscriptions import JetStreamSubscriptions
from durable_streams.stores.subscriptions import SubscriptionStore
from durable_streams.stores.transfer.copy import Held, begins_at, damaged
from durable_streams.stores.transfer.jetstream_log import PATIENCE, PAUSE, LogWriter, TargetLog

__all__ = ["JetStreamPlace"]

T = TypeVar("T")

_STREAMS = 256  # in a page
_METAS = 1000  # in a page of metas alone
_PAGE_BYTES = 4 << 20
_AT_ONCE = 64  # questions
_MINUTE = 60


class JetStreamPlace:
    """A bucket on NATS.

    Args:
        config: Names the bucket.
        source: Whether streams are read from it; it must exist then.
    """

    def __init__(self, config: JetStreamConfig, *, source: bool) -> None:
        self._source = source
        self._bus = Bus(config)
        self.subscriptions: SubscriptionStore = JetStreamSubscriptions(self._bus)
        self._layout = self._bus.layout
        self._catchup = CatchUp(self._bus, time.time)
        self._writer = LogWriter(self._bus, 0)
        self._was_empty = False
        self._slots: dict[int, JetSlot] = {}  # of the last page
        self._logs: dict[int, TargetLog] = {}
        self._owners: dict[int, str] | None = None  # paths by stream id; loaded when first needed
        self._finding = asyncio.Lock()

    async def open(self) -> None:
        """Connect; raise StoreError if NATS cannot be used."""
        await self._bus.open(make=not self._source)
        info = await self._patiently(self._bus.info)
        self._writer = LogWriter(self._bus, info.last_seq)
        self._was_empty = not info.messages
        if not self._source and self._was_empty:
            # Servers sweep from this minute on, so that streams that expire before the first server starts are found.
            mark = str(int(time.time() // _MINUTE) - 1).encode()
            message = Message(self._layout.swept, mark, {EXPECT: "0", ROLLUP: "sub"})
            self._writer.last_seq = await self._bus.publish([message])

    async def identity(self) -> str:
        """Return the identity of the bucket."""
        return await self._patiently(self._bus.identity)

    async def adopt(self, identity: str) -> None:
        """Take the identity of the source."""
        if await self.identity() != identity:
            noted = await self._patiently(lambda: self._bus.last(self._layout.identity))
            expected = {EXPECT: str(0 if noted is None else noted.seq), ROLLUP: "sub"}
            message = Message(self._layout.identity, identity.encode(), expected)
            self._writer.last_seq = await self._bus.publish([message])

    async def close(self) -> None:
        """Disconnect; messages that were not flushed are dropped."""
        await self._bus.close()

    async def check_alone(self) -> None:
        """Raise StoreError if another program wrote to the bucket since ``open``."""
        info = await self._patiently(self._bus.info)
        if self._writer.disturbed or info.last_seq != self._writer.last_seq:
            raise self._writer.disturbance

    # reading

    async def streams(self) -> AsyncIterator[list[StreamState]]:
        """Yield all streams in pages, in the order in which they were changed last."""
        async for states in self._metas(_STREAMS):
            slots = await self._at_once(self._current, [state.path for state in states])
            self._slots = {slot.state.id: slot for slot in slots if slot.state is not None}
            yield [slot.state for slot in self._slots.values() if slot.state is not None]

    async def _metas(self, messages: int) -> AsyncIterator[list[StreamState]]:
        """Yield the metas of all streams, in pages of ``messages``."""
        seq = 1
        while found := await self._scan(self._layout.every_meta, seq, messages):
            seq = found[-1].seq + 1
            yield [decode_meta(one.data) for one in found if not one.removed]

    async def appends(self, state: StreamState) -> AsyncIterator[list[bytes]]:
        """Yield the appends of a stream in pages."""
        log, seq = _Unpacked(state), 1
        while log.position < state.tail:
            found = await self._scan(self._layout.log(state.id), seq)
            if not found:
                raise damaged(state, log.position)
            seq = found[-1].seq + 1
            page = [append for one in found if log.position < state.tail for append in log.take(one)]
            if page:
                yield page
        log.check_end()

    async def producers(self, state: StreamState) -> Mapping[str, ProducerState]:
        """Return all producers of a stream."""
        slot = self._slots[state.id]
        if slot.base is not None:
            await self._patiently(lambda: self._catchup.producers(slot))
        return slot.producers

    async def _current(self, path: str) -> JetSlot:
        slot = JetSlot(path)
        await self._patiently(lambda: self._catchup.current(slot))
        return slot

    async def _scan(self, subject: str, seq: int, messages: int = 1000) -> list[Stored]:
        """Return messages of a subject from ``seq`` on; an empty list means that there are none."""
        found = await self._patiently(lambda: self._bus.scan(subject, seq, _PAGE_BYTES, messages))
        if found:
            return found
        one = await self._patiently(lambda: self._bus.next(subject, seq))
        return [] if one is None else [one]

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        return await patiently(ask, PATIENCE, PAUSE)

    async def _at_once(self, ask: Callable[[T], Awaitable[JetSlot]], questions: Sequence[T]) -> list[JetSlot]:
        answers: list[JetSlot] = []
        for at in range(0, len(questions), _AT_ONCE):
            answers += await asyncio.gather(*map(ask, questions[at : at + _AT_ONCE]))
        return answers

    # writing

    async def held(self, states: Sequence[StreamState]) -> list[Held]:
        """Return what the bucket holds of each stream."""
        # A bucket that was empty holds only what this transfer wrote: streams of the last page.
        before = self._logs
        unwritten = self._was_empty and not any(state.id in before for state in states)
        self._slots, self._logs = {}, {}
        if unwritten:
            slots = [self._take(state, JetSlot(state.path), _nothing(state)) for state in states]
        else:
            slots = await self._at_once(self._hold, states)
        return [
            Held(slot.state, self._logs[state.id].position) for slot, state in zip(slots, states, strict=True)
        ]

    async def _hold(self, state: StreamState) -> JetSlot:
        slot = await self._current(state.path)
        there, name = slot.state, self._layout.name
        if there is not None and there.id != state.id:
            raise StoreError(
                f"the bucket {name} holds another stream at {state.path}: delete it, or choose another bucket"
            )
        begun = await self._begun(state) if there is None else Base(slot.seq, slot.n, there.tail)
        return self._take(state, slot, begun)

    def _take(self, state: StreamState, slot: JetSlot, stored: Base) -> JetSlot:
        self._slots[state.id] = slot
        last_seq = None if slot.state is None else slot.state.last_seq
        self._logs[state.id] = TargetLog(
            state, stored, slot.revision, stored.n, stored.position, base=slot.base, last_seq=last_seq
        )
        return slot

    async def _begun(self, state: StreamState) -> Base:
        """Return the end of a log without a complete stream."""
        last = await self._patiently(lambda: self._bus.last(self._layout.log(state.id)))
        if last is None:
            return _nothing(state)
        record = decode_record(last.record)
        if record.end:
            if (await self._current(state.path)).state is not None:
                raise self._writer.disturbance  # it was not there at the first question
            raise StoreError(
                f"the stream {state.path} was deleted in the bucket {self._layout.name} since it was copied: "
                "choose another bucket"
            )
        async with self._finding:
            if self._owners is None:
                self._owners = await self._find_owners()
        owner = self._owners.get(state.id, state.path)
        if owner != state.path:
            raise StoreError(
                f"the bucket {self._layout.name} holds the stream {owner} under the id of {state.path}: "
                "choose another bucket"
            )
        return Base(last.seq, record.n, record.start + len(last.data))

    async def _find_owners(self) -> dict[int, str]:
        """Return the paths of all streams, by their ids."""
        return {state.id: state.path async for page in self._metas(_METAS) for state in page}

    async def write(self, state: StreamState, appends: Sequence[bytes]) -> None:
        """Write appends behind the present bytes."""
        await self._writer.write(self._logs[state.id], appends)

    async def finish(self, state: StreamState, producers: Mapping[str, ProducerState]) -> None:
        """Write the state and the producers of a stream."""
        await self._writer.finish(self._logs[state.id], producers, time.time())

    async def flush(self) -> None:
        """Return once everything is stored."""
        await self._writer.flush()


def _nothing(state: StreamState) -> Base:
    """Return the end of a log without records."""
    return Base(0, 0, begins_at(state))


class _Unpacked:
    """The appends in the records of a log, taken in order."""

    def __init__(self, state: StreamState) -> None:
        self.position = self._begin = begins_at(state)
        self._state = state
        self._records: int | None = None
        self._at = 0  # where the next append begins
        self._pieces: list[bytes] = []

    def take(self, stored: Stored) -> list[bytes]:
        """Return the appends that end in the next record; raise StoreError if the record does not follow."""
        record, data = decode_record(stored.record), stored.data
        if self._records is None and record.start <= self._begin:
            # Of a trimmed stream the log may begin with what was given up.
            self._records, self.position, self._at = record.n - 1, record.start, record.start
        if self._records is None or record.n != self._records + 1 or record.start != self.position:
            raise damaged(self._state, self.position)
        self._records += 1
        return [append for append in self._whole(record, data) if self._is_kept(len(append))]

    def _is_kept(self, size: int) -> bool:
        """Whether the next append, of ``size`` bytes, is still the stream's."""
        at, self._at = self._at, self._at + size
        return at >= self._begin

    def _whole(self, record: LogRecord, data: bytes) -> list[bytes]:
        """Return the appends that end in a record."""
        self.position += len(data)
        if record.lengths:
            ends = list(accumulate(record.lengths, initial=0))
            return [data[start:end] for start, end in pairwise(ends)]
        if not record.more and not self._pieces:
            return [data] if data else []
        self._pieces.append(data)
        if record.more:
            return []
        pieces, self._pieces = self._pieces, []
        return [b"".join(pieces)]

    def check_end(self) -> None:
        """Raise StoreError unless an append ends at the tail of the stream."""
        if self._pieces or self.position != self._state.tail:
            raise damaged(self._state, self._state.tail)
