"""Group commit on NATS: what waits is decided together, published together, and answered when it is stored.

Invariants:
* one attempt at a time decides for a slot, and commands of a slot are decided in the order in which they came;
* a command is answered after its message was stored, or, where it changes nothing, after its refusal was found true
  on a state that was read after it came;
* an attempt that meets a conflict stored nothing; one whose outcome was not heard is sent again unchanged until it is
  known: of equal messages with one expectation at most one can be stored;
* every command is answered within `PATIENCE` seconds, give or take one request.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from msgspec.structs import replace

from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import StoreError, StoreUnavailableError, StoreUncertainError, as_store_error
from durable_streams.stores.batch import Batch
from durable_streams.stores.jetstream.bus import Bus, ConflictError
from durable_streams.stores.jetstream.catchup import CatchUp
from durable_streams.stores.jetstream.commands import Attempt, Command
from durable_streams.stores.jetstream.layout import new_id
from durable_streams.stores.jetstream.publish import Change, Plan, plan
from durable_streams.stores.jetstream.records import decode_record
from durable_streams.stores.jetstream.slots import JetSlot

__all__ = ["PATIENCE", "Committer"]

PATIENCE = 3.0
"""Seconds that a command is tried."""

T = TypeVar("T")
_BATCH_SLOTS = 256  # each brings one to three messages; an atomic batch may have 1000
_BATCH_BYTES = 1 << 20
_SLOT_COMMANDS = 1024
_HEADER_BYTES = 12 << 10  # of lengths and producers in one record: the bus leaves 16 KiB for headers
_BIG = 256 << 10  # bytes: a larger append goes by itself, so that it holds nobody up
_ALONE_AT_ONCE = 64
_ALONE_FOR = 1.0  # seconds after a conflict
_PAUSE = 0.1  # seconds between tries while NATS is away


class Committer:
    """Decides and publishes; ``changed`` is called for every slot of which something was stored."""

    def __init__(
        self, bus: Bus, catchup: CatchUp, clock: Callable[[], float], changed: Callable[[JetSlot], None]
    ) -> None:
        self._bus = bus
        self._catchup = catchup
        self._clock = clock
        self._changed = changed
        self._gateway = os.urandom(4).hex()
        self._written = 0
        self._ready: dict[JetSlot, None] = {}
        self._probes: list[Command] = []
        self._sharing = False
        self._alone = 0
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._down_since: float | None = None

    def is_own(self, nonce: str) -> bool:
        """Whether a record was written here."""
        return nonce.startswith(self._gateway)

    def submit(
        self, decide: Callable[[Batch], T], slots: tuple[JetSlot, ...], **options: Any
    ) -> asyncio.Future[T]:
        """Let a command wait for its decision; ``options`` are those of `Command`."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        # While NATS is away, one try tells: nobody waits for what all the others waited for in vain.
        patience = PATIENCE if self._down_since is None else max(0.0, self._down_since + PATIENCE - now)
        future: asyncio.Future[T] = loop.create_future()
        command = Command(
            decide, slots, future=future, since=self._catchup.now, until=now + patience, **options
        )
        self._open += 1
        self._idle.clear()
        future.add_done_callback(self._answered)
        if slots:
            slot = slots[0]
            if slot.waiting is None:
                slot.waiting = deque()
            slot.waiting.append(command)
            self._ready[slot] = None
        else:
            self._probes.append(command)
        self._wake()
        return future

    async def drain(self) -> None:
        """Wait until everything that was submitted is answered."""
        await self._idle.wait()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _answered(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()
        self._open -= 1
        if not self._open:
            self._idle.set()

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            # Whatever else arrives in this turn of the loop shares the attempt.
            asyncio.get_running_loop().call_soon(self._tick)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- from what waits to attempts

    def _tick(self) -> None:
        self._scheduled = False
        now = asyncio.get_running_loop().time()
        shared, batch, size = Attempt(shared=True), self._batch(), 0
        for slot in list(self._ready):
            if slot.busy:
                continue
            command = _first(slot)
            if command is None:
                del self._ready[slot]
            elif self._prepare(slot, command):
                continue
            elif command.alone or command.size > _BIG or slot.alone_until > now:
                self._try_alone(slot, command)
            elif not self._sharing and len(shared.slots) < _BATCH_SLOTS and size < _BATCH_BYTES:
                size += self._take(slot, shared, batch)
        if not self._sharing and (shared.commands or self._probes):
            for command in self._probes:
                shared.take(command, batch)
            self._probes.clear()
            self._sharing = True
            self._begin(shared, batch)

    def _prepare(self, slot: JetSlot, command: Command) -> bool:
        """Have what a command needs loaded; False if all of it is there."""
        if not all(one.checked for one in command.slots):
            if not any(one.busy for one in command.slots):
                self._load(slot, command.slots, self._catchup.all_current(command.slots))
            return True
        if command.stamped and slot.state is not None and not slot.complete:
            self._load(slot, (slot,), self._catchup.producers(slot))
            return True
        return False

    def _batch(self) -> Batch:
        return Batch(self._clock(), partial(new_id, self._clock))

    def _take(self, slot: JetSlot, attempt: Attempt, batch: Batch) -> int:
        """Decide what waits for a slot, as much as one record may carry; return its bytes."""
        waiting, size, header, count = slot.waiting, 0, 0, 0
        while waiting and count < _SLOT_COMMANDS:
            command = waiting[0]
            if command.alone or (
                count and (size + command.size > _BIG or header + command.header > _HEADER_BYTES)
            ):
                break
            if command.stamped and slot.state is not None and not slot.complete:
                break
            waiting.popleft()
            if command.future.done():
                continue
            attempt.take(command, batch)
            size, header, count = size + command.size, header + command.header, count + 1
        return size

    def _try_alone(self, slot: JetSlot, command: Command) -> None:
        if self._alone >= _ALONE_AT_ONCE or any(other.busy for other in command.slots):
            return
        attempt, batch = Attempt(shared=False), self._batch()
        if command.alone or command.size > _BIG:
            assert slot.waiting is not None  # noqa: S101 - for the type checker: the command is its first
            slot.waiting.popleft()
            attempt.take(command, batch)
        else:
            self._take(slot, attempt, batch)
        if attempt.commands:
            self._alone += 1
            self._begin(attempt, batch)

    # -- one attempt

    def _begin(self, attempt: Attempt, batch: Batch) -> None:
        """Publish what was decided. The messages are made now: the next await may move the slots they stand on."""
        self._written += 1
        nonce = f"{self._gateway}{self._written:x}"
        attempt.plan = plan(batch, self._bus.layout, nonce, self._bus.max_message)
        self._spawn(self._try(attempt, attempt.plan))

    async def _try(self, attempt: Attempt, planned: Plan) -> None:
        error: Exception | None = None
        try:
            if planned.messages:
                self._stored(planned, await self._bus.publish(planned.messages))
        except Exception as failure:  # noqa: BLE001 - `_conclude` tells them apart
            error = failure
        # The next attempt goes on now: what is left to do for this one holds up its own slots only.
        if attempt.shared:
            self._sharing = False
        else:
            self._alone -= 1
        self._wake()
        try:
            await self._conclude(attempt, error)
        except Exception as failure:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._give_up(attempt, failure)

    async def _conclude(self, attempt: Attempt, error: Exception | None) -> None:
        if error is None:
            await self._finish(attempt)
        elif isinstance(error, ConflictError):
            await self._resolve(attempt)
        elif isinstance(error, StoreUncertainError) and attempt.plan is not None:
            self._in_trouble()
            await self._settle(attempt, attempt.plan)
        elif isinstance(error, StoreUnavailableError):
            self._in_trouble()
            await self._again(attempt, error)
        else:
            raise error

    def _in_trouble(self) -> None:
        if self._down_since is None:
            self._down_since = asyncio.get_running_loop().time()

    def _stored(self, planned: Plan, last: int) -> None:
        """Make what was stored what is known; ``last`` is the sequence of the last message."""
        self._down_since = None
        first = last - len(planned.messages) + 1
        for change in planned.changes:
            _apply(change, first)
            self._changed(change.slot)

    async def _finish(self, attempt: Attempt) -> None:
        """Answer those whose answer is certain; the others are decided again on a state that is."""
        unproven = attempt.unproven()
        asked = set(map(id, unproven))
        for command, (outcome, refusal) in zip(attempt.commands, attempt.outcomes, strict=True):
            if id(command) in asked or command.future.done():
                continue
            if refusal is not None:
                command.future.set_exception(refusal)
            else:
                command.future.set_result(outcome)
        if not unproven:
            self._release(attempt)
            return
        slots = dict.fromkeys(slot for command in unproven for slot in command.slots)
        self._release(attempt, but=slots)
        await self._decide_again(unproven, slots)

    async def _decide_again(self, commands: list[Command], slots: dict[JetSlot, None]) -> None:
        try:
            await self._catchup.all_current(slots)
        except StoreError as error:
            self._in_trouble()
            for command in commands:
                command.fail(error)
        else:
            self._down_since = None
            self._requeue(commands)
        self._free(slots)

    async def _resolve(self, attempt: Attempt) -> None:
        """Find out what the others did that was in conflict, then decide again."""
        loop = asyncio.get_running_loop()
        for slot in attempt.slots:
            contended = slot.alone_until > loop.time()
            slot.alone_until = loop.time() + _ALONE_FOR
            if contended or not attempt.shared:
                self._catchup.distrust(slot)
        if not attempt.shared:
            await asyncio.sleep(random.random() * 0.001)  # noqa: S311 - so that two gateways do not go on in step
        late = [command for command in attempt.commands if loop.time() > command.until]
        for command in late:
            command.fail(
                StoreUnavailableError(
                    "too many servers write to this stream at once; nothing of this request was stored, repeat it"
                )
            )
        await self._decide_again([one for one in attempt.commands if one not in late], attempt.slots)

    async def _again(self, attempt: Attempt, error: StoreError) -> None:
        """Nothing was stored: try again while there is time."""
        loop = asyncio.get_running_loop()
        left = []
        for command in attempt.commands:
            if loop.time() + _PAUSE > command.until:
                command.fail(error)
            else:
                left.append(command)
        if left:
            await asyncio.sleep(_PAUSE)
        self._requeue(left)
        self._release(attempt)

    async def _settle(self, attempt: Attempt, planned: Plan) -> None:
        """Find out what became of messages of which nothing was heard."""
        if planned.witness is None:
            await self._resolve(attempt)  # nothing but keys: deciding again does no harm
            return
        loop = asyncio.get_running_loop()
        until = max(command.until for command in attempt.commands)
        while True:
            try:
                last = await self._publish_again(planned, planned.witness)
            except ConflictError:
                await self._resolve(attempt)
                return
            except StoreError:
                if loop.time() + _PAUSE > until:
                    self._remain_in_doubt(attempt)
                    return
                await asyncio.sleep(_PAUSE)
            else:
                self._stored(planned, last)
                await self._finish(attempt)
                return

    async def _publish_again(self, planned: Plan, witness: tuple[str, int, int]) -> int:
        """Return the last sequence of messages that are stored, by now or from before."""
        subject, expected, index = witness
        stored = await self._bus.next(subject, expected + 1)
        if stored is None:
            try:
                return await self._bus.publish(planned.messages)
            except ConflictError:
                # The first sending arrived in between, or it is somebody else's record.
                stored = await self._bus.next(subject, expected + 1)
        if stored is None or decode_record(stored.record).nonce != planned.nonce:
            raise ConflictError
        return stored.seq + len(planned.messages) - 1 - index

    def _remain_in_doubt(self, attempt: Attempt) -> None:
        for slot in attempt.slots:
            self._catchup.distrust(slot)
        for command in attempt.commands:
            command.fail_in_doubt()
        self._release(attempt)

    def _give_up(self, attempt: Attempt, failure: Exception) -> None:
        for command in attempt.commands:
            command.fail(as_store_error(failure))
        for slot in attempt.slots:
            self._catchup.distrust(slot)
        self._release(attempt)

    def _load(self, slot: JetSlot, slots: tuple[JetSlot, ...], loading: Coroutine[Any, Any, None]) -> None:
        for one in slots:
            one.busy = True
        self._spawn(self._loaded(slot, dict.fromkeys(slots), loading))

    async def _loaded(
        self, slot: JetSlot, slots: dict[JetSlot, None], loading: Coroutine[Any, Any, None]
    ) -> None:
        """Wait for what the commands of a slot need; if that fails, so do they."""
        try:
            await loading
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._in_trouble()
            while slot.waiting:
                slot.waiting.popleft().fail(as_store_error(error))
        self._free(slots)

    # -- slots

    def _requeue(self, commands: list[Command]) -> None:
        """Put commands back to where they came from, before those that came later."""
        for command in reversed(commands):
            if not command.slots:
                self._probes.append(command)
                continue
            slot = command.slots[0]
            if slot.waiting is None:
                slot.waiting = deque()
            slot.waiting.appendleft(command)

    def _release(self, attempt: Attempt, but: dict[JetSlot, None] | None = None) -> None:
        self._free({slot: None for slot in attempt.slots if not but or slot not in but})

    def _free(self, slots: dict[JetSlot, None]) -> None:
        for slot in slots:
            slot.busy = False
            if slot.waiting:
                self._ready[slot] = None
            if slot.behind:
                slot.behind = False
                if slot.audience is not None:
                    self._spawn(self._look(slot))
        self._wake()

    async def _look(self, slot: JetSlot) -> None:
        try:
            await self._catchup.current(slot)
        except StoreError:
            slot.behind = True  # whoever frees it next looks again, and so does the feed


def _first(slot: JetSlot) -> Command | None:
    """Return the first command of a slot that somebody still waits for."""
    waiting = slot.waiting
    while waiting:
        if not waiting[0].future.done():
            return waiting[0]
        waiting.popleft()
    slot.waiting = None
    return None


def _apply(change: Change, first: int) -> None:
    """Make what was stored what is known; ``first`` is the sequence of the first message of its plan."""
    slot, state = change.slot, change.state
    if change.meta is not None:
        slot.revision = first + change.meta
    if state is None:
        slot.become(None, 0, 0, slot.revision, None)
        return
    if slot.seq != change.seq and slot.state is not None and slot.state.id == state.id:
        # Whoever read the log meanwhile brought our own records, and perhaps later ones.
        slot.publish(replace(slot.state, deadline=state.deadline, forks=state.forks, deleted=state.deleted))
    else:
        _advance(change, state, first)
    if slot.audience is not None:
        slot.audience.notify()


def _advance(change: Change, state: StreamState, first: int) -> None:
    slot, new = change.slot, change.slot.state is None
    slot.publish(state)
    if change.log is not None:
        slot.seq, slot.n = first + change.log, change.n
    slot.raise_base(change.base)
    if new:
        slot.learn_all_producers({})
        slot.verified = asyncio.get_running_loop().time()
    elif slot.complete:
        for name, epoch, seq in change.producers:
            slot.learn_producer(name, ProducerState(epoch, seq))
    if slot.audience is not None:
        for start, payload in change.appends:
            slot.audience.publish(start, payload)
