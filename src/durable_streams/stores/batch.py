"""A group commit under construction: the decisions of many commands on one consistent view.

Invariants: a decision sees all earlier decisions of the batch; nothing outside the batch changes before the commit;
dropping the batch undoes all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from durable_streams.protocol import retention, rules
from durable_streams.protocol.commands import Append, Appended, Create, Created, SetRetention, Trim
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.slots import Slot

__all__ = ["CommitBatch", "LoadedProducer", "NotLoadedError"]


class NotLoadedError(Exception):
    """A decision needs something that is not in memory any more: load it and decide again."""


class LoadedProducer(NamedTuple):
    """The stored state of a producer, or None; valid while the slot's ``forgets`` is unchanged."""

    state: ProducerState | None
    forgets: int


class CommitBatch:
    """Decides commands, and collects what the commit writes.

    Attributes:
        now: The time of the decisions, in seconds since 1970.
        changed: Each slot that changes, with its new state; None where the stream is removed.
        dirty: The slots whose state must be written, not only their tail; an ordered set.
        records: Stream id, position, payload and slot of each append, in order.
        producers: The new state and the slot of each producer, by stream id and producer id.
        removed: Ids of streams whose bytes and producers can be deleted.
        trimmed: The position before which the bytes of a stream can be deleted, by stream id.
        probe: Whether a health check waits for the commit.

    Args:
        now: The time of the decisions, in seconds since 1970.
        new_id: Returns an id for a new stream.
    """

    __slots__ = ("_new_id", "changed", "dirty", "now", "probe", "producers", "records", "removed", "trimmed")

    def __init__(self, now: float, new_id: Callable[[], int]) -> None:
        self.now = now
        self._new_id = new_id
        self.changed: dict[Slot, StreamState | None] = {}
        self.dirty: dict[Slot, None] = {}
        self.records: list[tuple[int, int, bytes, Slot]] = []
        self.producers: dict[tuple[int, str], tuple[ProducerState, Slot]] = {}
        self.removed: list[int] = []
        self.trimmed: dict[int, int] = {}
        self.probe = False

    def __bool__(self) -> bool:
        return bool(self.changed or self.probe)

    def create(self, slot: Slot, source: Slot | None, command: Create) -> Created:
        """Decide a creation; ``source`` is the slot of the stream to fork from."""
        existing = self._live(slot)
        if existing is None and self._state(slot) is not None:
            raise NotLoadedError  # it expired: its chain of forks must be released first
        origin = None if source is None else self._live(source)
        created = rules.decide_create(existing, origin, command, self._new_id(), self.now)
        if not created.new:
            self._touch(slot, created.state)
            return created
        state = created.state
        self._set(slot, state, dirty=True)
        slot.touched = self.now
        if command.payload:
            self.records.append((state.id, state.tail - len(command.payload), command.payload, slot))
        if source is not None:
            parent = rules.require(self._live(source))
            self._set(source, replace(parent, forks=parent.forks + 1), dirty=True)
        return created

    def append(self, slot: Slot, command: Append, loaded: LoadedProducer | None = None) -> Appended:
        """Decide an append or a close; ``loaded`` is the producer if it was not in memory."""
        state = self.changed.get(slot, slot.state)
        # Most streams have no deadline, and need no further look.
        if state is None or state.deleted or state.deadline is not None:
            state = rules.require(self._live(slot))
        stamp = command.producer
        producer = None if stamp is None else self._producer(slot, state, stamp.id, loaded)
        appended = rules.decide_append(state, producer, command, self.now)
        if appended.duplicate:
            self._touch(slot, state)
            return appended
        after = appended.state
        dirty = after.closed or after.last_seq is not state.last_seq or rules.is_milestone(state, after)
        if after.retention is not None:
            after = retention.after_append(after, state.tail, self.now)
            dirty = dirty or after.trims != state.trims
            appended = Appended(after, appended.producer)
            self._free(state, after)
        self.changed[slot] = after
        if dirty:
            self.dirty[slot] = None
        if command.payload:
            self.records.append((state.id, state.tail, command.payload, slot))
        if stamp is not None and appended.producer is not None:
            self.producers[state.id, stamp.id] = (appended.producer, slot)
        if state.ttl is not None:
            self._touch(slot, after)
        return appended

    def retain(self, slot: Slot, command: Trim | SetRetention) -> StreamState:
        """Decide what a stream keeps."""
        state = rules.require(self._live(slot))
        if isinstance(command, Trim):
            after = retention.decide_trim(state, command, self.now)
        else:
            after = retention.decide_retention(state, command, self.now)
        self._kept(slot, state, after)
        return after

    def trim_due(self, slot: Slot) -> None:
        """Give up what is too old."""
        state = self._live(slot)
        if state is not None:
            self._kept(slot, state, retention.decide_due(state, self.now))

    def delete(self, slot: Slot, ancestors: list[Slot]) -> None:
        """Decide a deletion; ``ancestors`` are the slots up the chain of forks."""
        state = rules.require(self._live(slot))
        self._release(slot, state, ancestors)

    def expire(self, slot: Slot, ancestors: list[Slot]) -> None:
        """Delete the stream if it is past its end."""
        state = self._state(slot)
        if state is not None and self._live(slot) is None:
            self._release(slot, state, ancestors)

    def touch(self, slot: Slot) -> None:
        """Store the restarted sliding window if the stored one lags too far behind."""
        state = self._live(slot)
        if state is not None:
            self._touch(slot, state)

    def _state(self, slot: Slot) -> StreamState | None:
        return self.changed.get(slot, slot.state)

    def _live(self, slot: Slot) -> StreamState | None:
        state = self._state(slot)
        if state is None or (state.deadline is not None and slot.expired(state, self.now)):
            return None
        return state

    def _set(self, slot: Slot, state: StreamState | None, *, dirty: bool) -> None:
        self.changed[slot] = state
        if dirty:
            self.dirty[slot] = None

    def _kept(self, slot: Slot, before: StreamState, after: StreamState) -> None:
        if after is not before:
            self._set(slot, after, dirty=True)
            self._free(before, after)

    def _free(self, before: StreamState, after: StreamState) -> None:
        if after.floor > before.floor:
            self.trimmed[after.id] = after.floor

    def _touch(self, slot: Slot, state: StreamState) -> None:
        slot.touched = self.now
        touched = rules.decide_touch(state, self.now)
        if touched is not None:
            self._set(slot, touched, dirty=True)

    def _producer(
        self, slot: Slot, state: StreamState, producer_id: str, loaded: LoadedProducer | None
    ) -> ProducerState | None:
        decided = self.producers.get((state.id, producer_id))
        if decided is not None:
            return decided[0]
        if slot.state is None or slot.state.id != state.id:
            return None  # the stream was created in this batch
        known = slot.producers.get(producer_id)
        if known is not None:
            return known
        if loaded is None or loaded.forgets != slot.forgets:
            raise NotLoadedError
        return loaded.state

    def _release(self, slot: Slot, state: StreamState, ancestors: list[Slot]) -> None:
        chain = [(slot, state)]
        below, above = state, iter(ancestors)
        while not below.forks and below.forked_from is not None:
            ancestor = next(above, None)
            held = None if ancestor is None else self._state(ancestor)
            if ancestor is None or held is None or ancestor.path != below.forked_from:
                raise NotLoadedError  # the stream was created again since its ancestors were loaded
            chain.append((ancestor, held))
            if held.forks > 1 or not held.deleted:
                break
            below = replace(held, forks=0)
        after = rules.decide_release(state, [held for _, held in chain[1:]])
        for (touched, before), left in zip(chain, after, strict=False):
            self._set(touched, left, dirty=True)
            if left is None:
                self.removed.append(before.id)
            else:
                self._free(before, left)
