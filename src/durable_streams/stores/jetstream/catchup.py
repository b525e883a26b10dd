"""Brings slots up to date with the leader of the bucket.

Invariants: the answer of the leader serves callers from before the question, never later ones; a slot that changed
during a read is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from durable_streams.protocol.state import ProducerState
from durable_streams.stores.base import StoreUnavailableError
from durable_streams.stores.jetstream.nats.bus import Bus
from durable_streams.stores.jetstream.nats.messages import Stored
from durable_streams.stores.jetstream.publish import MARKER_SECONDS
from durable_streams.stores.jetstream.records import (
    Base,
    Snapshot,
    decode_meta,
    decode_record,
    decode_snapshot,
    with_tail,
)
from durable_streams.stores.jetstream.slots import JetSlot

__all__ = ["CatchUp"]

_TRIES = 20
_STEPS = 16  # records that are read one by one; beyond that, reading the last one is cheaper
# Seconds without a full reading: well within the time that a deletion is visible.
_TRUST = MARKER_SECONDS / 4
_SCAN_BYTES = 1 << 20


class CatchUp:
    """Asks the leader.

    Args:
        bus: The bucket.
        clock: Returns the seconds since 1970.
    """

    def __init__(self, bus: Bus, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._layout = bus.layout
        self._clock = clock
        self._moment = 0

    @property
    def now(self) -> int:
        """The present moment: later questions and publishes have this one or a later one."""
        return self._moment + 1

    def tick(self) -> int:
        """Return the moment of a question, or of a publish, which proves as much once it is stored."""
        self._moment += 1
        return self._moment

    async def current(self, slot: JetSlot) -> None:
        """Bring a slot up to everything that was committed before this call; raises StoreUnavailableError."""
        if slot.check is not None:
            since = self.now
            await asyncio.wait([slot.check])  # it was asked before this call
            if slot.checked >= since:
                return
        if slot.check is None:
            slot.check = asyncio.create_task(self._check(slot, self.tick()))
            slot.check.add_done_callback(lambda task: _checked(slot, task))
        await asyncio.shield(slot.check)

    async def glance(self, slot: JetSlot) -> None:
        """Bring a slot up to date, or, if the leader does not answer, to the state of some replica."""
        try:
            await self.current(slot)
        except StoreUnavailableError:
            await self._load(slot, self._bus.peek_last, yields=True)

    async def all_current(self, slots: Iterable[JetSlot]) -> None:
        """Bring several up to date; raises the first failure."""
        for outcome in await asyncio.gather(*map(self.current, slots), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def distrust(self, slot: JetSlot) -> None:
        """Make the next question read everything again: the slot may be wrong."""
        slot.verified = float("-inf")

    async def _check(self, slot: JetSlot, moment: int) -> None:
        state, loop = slot.state, asyncio.get_running_loop()
        known = (
            state is not None
            and not state.deleted
            and loop.time() - slot.verified < _TRUST
            and not slot.expired(state, self._clock())
        )
        if not (known and await self._follow(slot, moment)):
            began = loop.time()
            await self._load(slot, self._bus.last)
            slot.verified = began
        slot.checked = max(slot.checked, moment)

    async def _follow(self, slot: JetSlot, moment: int) -> bool:
        """Read the log to its end, or until a publish proves the end; False if the records do not lead there."""
        state = slot.state
        if state is None:
            return False
        subject, at = self._layout.log(state.id), slot.seq + 1
        for _ in range(_STEPS):
            stored = await self._bus.next(subject, at)
            if slot.state is None or slot.state.id != state.id:
                return False
            if stored is None or slot.checked >= moment:
                return True
            if not slot.follow(stored.seq, decode_record(stored.record), stored.data):
                return False
            at = max(stored.seq, slot.seq) + 1
        return False

    async def _load(
        self, slot: JetSlot, last_of: Callable[[str], Awaitable[Stored | None]], *, yields: bool = False
    ) -> None:
        """Read everything; with ``yields`` the result is dropped as soon as the leader answered another question."""
        checked = slot.checked
        for _ in range(_TRIES):
            version = slot.version
            meta = await last_of(self._layout.meta(slot.path))
            if yields and slot.checked != checked:
                return
            revision = 0 if meta is None else meta.seq
            if meta is None or meta.removed:
                if version == slot.version:
                    slot.become(None, 0, 0, revision, None)
                    return
                continue
            state = decode_meta(meta.data)
            last = await last_of(self._layout.log(state.id))
            if yields and slot.checked != checked:
                return
            if last is None:
                continue  # it was deleted during the read
            record = decode_record(last.record)
            if (record.end and not state.deleted) or record.trims > state.trims:
                continue  # the meta is older than the record
            if slot.state is not None and slot.state.id == state.id and slot.seq >= last.seq:
                slot.learn_meta(state, revision)  # the log is known up to here, or further
            elif version == slot.version:
                slot.become(
                    with_tail(state, record, len(last.data)), last.seq, record.n, revision, record.base
                )
            else:
                continue
            return
        raise StoreUnavailableError(
            f"the stream {slot.path} keeps changing while it is read; none of this request was stored"
        )

    async def producers(self, slot: JetSlot) -> None:
        """Load all producers of a slot's stream; raises StoreUnavailableError."""
        while not slot.complete and slot.state is not None:
            state, base = slot.state, slot.base
            table: dict[str, ProducerState] = {}
            at = slot.seq
            if base is not None:
                at = base.seq
                for part in await self._snapshot(state.id, base):
                    at = part.base.seq
                    table.update(_states(part.producers))
            subject = self._layout.log(state.id)
            while slot.state is not None and slot.state.id == state.id:
                if at >= slot.seq:
                    slot.learn_all_producers(table)
                    return
                at = await self._fold(subject, at + 1, table)

    async def _fold(self, subject: str, seq: int, table: dict[str, ProducerState]) -> int:
        """Add the producers of records from ``seq`` on; return the sequence of the last record read."""
        stored = await self._bus.scan(subject, seq, _SCAN_BYTES)
        if not stored:  # a replica that lags
            one = await self._bus.next(subject, seq)
            if one is None:
                raise StoreUnavailableError("a stream's log was cut short; none of this request was stored")
            stored = [one]
        for one in stored:
            table.update(_states(decode_record(one.record).producers))
        return stored[-1].seq

    async def _snapshot(self, stream_id: int, base: Base) -> list[Snapshot]:
        """Return all parts of the last snapshot of producers; none if no producer wrote before ``base``."""
        for _ in range(_TRIES):
            parts: list[Snapshot] = []
            wanted = 1
            while len(parts) < wanted:
                part = await self._bus.last(self._layout.snapshot(stream_id, len(parts)))
                if part is None:
                    break
                parts.append(decode_snapshot(part.data))
                wanted = parts[0].parts
            if not parts:
                return []
            whole = len(parts) == wanted and all(part.base == parts[0].base for part in parts)
            if whole and parts[0].base.seq >= base.seq:
                return parts
        raise StoreUnavailableError("a snapshot keeps changing while it is read; try again")


def _states(producers: Iterable[tuple[str, int, int]]) -> dict[str, ProducerState]:
    return {name: ProducerState(epoch, seq) for name, epoch, seq in producers}


def _checked(slot: JetSlot, task: asyncio.Task[None]) -> None:
    slot.check = None
    if not task.cancelled():
        task.exception()  # the waiters get it
