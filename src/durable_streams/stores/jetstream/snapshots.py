"""Snapshots of producers, which bound the tail of a log that a cold start folds.

Invariants: a snapshot never replaces a newer one; a record names it as its base only after it was stored.
"""

from __future__ import annotations

from durable_streams.stores.base import StoreError
from durable_streams.stores.jetstream.catchup import CatchUp
from durable_streams.stores.jetstream.layout import EXPECT, ROLLUP
from durable_streams.stores.jetstream.nats.bus import Bus, ConflictError
from durable_streams.stores.jetstream.nats.messages import Message
from durable_streams.stores.jetstream.records import Base, cut_snapshot, decode_snapshot
from durable_streams.stores.jetstream.slots import JetSlot

__all__ = ["Snapshots"]

_RECORDS = 256  # behind the last snapshot; more for more producers, since a snapshot holds all of them
_BYTES = 8 << 20


class Snapshots:
    """Writes due snapshots."""

    def __init__(self, bus: Bus, catchup: CatchUp) -> None:
        self._bus = bus
        self._catchup = catchup
        self._writing: set[int] = set()

    def is_due(self, slot: JetSlot) -> bool:
        """Whether the tail that a cold start folds is too long."""
        state, base = slot.state, slot.base
        if state is None or base is None or state.deleted or state.id in self._writing:
            return False
        return slot.n - base.n >= max(_RECORDS, len(slot.producers)) or state.tail - base.position >= _BYTES

    async def write(self, slot: JetSlot) -> None:
        """Write a snapshot; if that fails, the next record makes it due again."""
        state = slot.state
        if state is None or state.id in self._writing:
            return
        self._writing.add(state.id)
        try:
            await self._catchup.producers(slot)
            if slot.state is not None and slot.state.id == state.id and slot.complete:
                await self._put(slot, state.id, Base(slot.seq, slot.n, slot.state.tail))
        except (StoreError, ConflictError):
            return
        finally:
            self._writing.discard(state.id)

    async def _put(self, slot: JetSlot, stream_id: int, base: Base) -> None:
        # Before the next await: after it the producers may be newer than the base.
        parts = cut_snapshot(base, slot.producers, self._bus.max_message)
        layout = self._bus.layout
        subjects = [layout.snapshot(stream_id, number) for number in range(len(parts))]
        present = await self._bus.last(subjects[0])
        newest = None if present is None else decode_snapshot(present.data).base
        if newest is None or newest.seq < base.seq:
            expected = {EXPECT: str(0 if present is None else present.seq)}
            await self._bus.publish(
                [
                    Message(subject, part, {ROLLUP: "sub", **(expected if subject == subjects[0] else {})})
                    for subject, part in zip(subjects, parts, strict=True)
                ]
            )
            newest = base
        if slot.state is not None and slot.state.id == stream_id:
            slot.raise_base(newest)
