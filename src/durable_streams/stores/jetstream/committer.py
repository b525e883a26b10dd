"""Group commit on NATS: commands are decided together, published together, and answered when they are stored.

Invariants:
* one attempt at a time decides for a slot, and commands of a slot are decided in order of arrival;
* decisions become messages before the next await, so that the messages expect the state that was decided on;
* every command is answered within `PATIENCE` seconds, give or take one request; waiting commands are bounded.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

import msgspec

from durable_streams.stores.backlog import Backlog
from durable_streams.stores.base import StoreError, StoreUnavailableError, as_store_error
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.figures import CommitFigures
from durable_streams.stores.jetstream.attempts import Attempts, CommitAttempt
from durable_streams.stores.jetstream.catchup import CatchUp
from durable_streams.stores.jetstream.layout import new_id
from durable_streams.stores.jetstream.nats.bus import Bus, ConflictError
from durable_streams.stores.jetstream.publish import plan
from durable_streams.stores.jetstream.slots import JetSlot, WaitingCommand

__all__ = ["PATIENCE", "Committer"]

PATIENCE = 2.5
"""Seconds during which a command is retried."""

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[str, str, float]).decode
_BATCH_SLOTS = 240  # each brings one to four messages; an atomic batch may have 1000
_BATCH_BYTES = 1 << 20
_SLOT_COMMANDS = 1024
_HEADER_BYTES = 12 << 10  # of lengths and producers in one record; the bus reserves 16 KiB for headers
_BIG = 256 << 10  # bytes: a larger append is published alone, so that it delays no others
_SOME_SLOTS = 16  # a deletion that removes more ancestors is published alone, too
_SHORTEST_REST, _LONGEST_REST = 0.005, 0.25  # seconds
_ALONE_AT_ONCE = 16  # of the 50 atomic batches that NATS allows on one stream, for all gateways


class Committer:
    """The queue of commands.

    Attributes:
        backlog: The bound on waiting commands.

    Args:
        bus: The bucket.
        catchup: Brings slots up to date.
        clock: Returns the seconds since 1970.
        changed: Called for every slot whose stream changed in NATS.
        backlog: The bound on waiting commands.
    """

    def __init__(
        self,
        bus: Bus,
        catchup: CatchUp,
        clock: Callable[[], float],
        changed: Callable[[JetSlot], None],
        backlog: Backlog,
    ) -> None:
        self._bus = bus
        self.backlog = backlog
        self._catchup = catchup
        self._clock = clock
        self._gateway = os.urandom(4).hex()
        self._attempts = Attempts(bus, catchup, changed, self._back, self._ask_turn)
        self._written = 0
        self._ready: dict[JetSlot, None] = {}
        self._probes: list[WaitingCommand] = []
        self._sharing = False
        self._alone = 0
        self._round_trip = 0.0  # seconds that the last publish took
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def figures(self) -> CommitFigures:
        """What was stored."""
        return self._attempts.figures

    def is_own(self, nonce: str) -> bool:
        """Whether this gateway wrote the record with this nonce."""
        return nonce.startswith(self._gateway)

    def _ask_turn(self, slot: JetSlot) -> None:
        self._bus.ask_turn(_encode((self._gateway, slot.path, self._round_trip)))

    def take_turn(self, question: bytes, find: Callable[[str], JetSlot | None]) -> None:
        """Pause a stream for another gateway that asked for it: from far away, it may lose every race."""
        gateway, path, round_trip = _decode(question)
        slot, loop = find(path), asyncio.get_running_loop()
        # A gateway that keeps losing does not yield to others.
        if gateway == self._gateway or slot is None or slot.conflicts > 1:
            return
        rest = min(_LONGEST_REST, max(_SHORTEST_REST, 4 * round_trip))
        slot.rests_until = max(slot.rests_until, loop.time() + rest)
        loop.call_later(rest + 0.001, self._wake)

    def submit(
        self, decide: Callable[[CommitBatch], T], slots: tuple[JetSlot, ...], *, size: int = 0, **options: Any
    ) -> asyncio.Future[T]:
        """Queue a command.

        Args:
            decide: Decides the command on a batch.
            slots: The slot of the command, then the other slots that it needs.
            size: The command's bytes.
            options: See `WaitingCommand`.

        Returns:
            The future of the result.

        Raises:
            StoreUnavailableError: Too much is waiting.
        """
        self.backlog.add(size)
        loop = asyncio.get_running_loop()
        now = loop.time()
        # While NATS is away, one attempt is enough: later commands do not wait as long as the first ones did.
        down = self._attempts.down_since
        patience = PATIENCE if down is None else max(0.0, down + PATIENCE - now)
        future: asyncio.Future[T] = loop.create_future()
        command = WaitingCommand(
            decide,
            slots,
            future=future,
            since=self._catchup.now,
            until=now + patience,
            deadline=now + PATIENCE,
            size=size,
            **options,
        )
        self._open += 1
        self._idle.clear()
        future.add_done_callback(partial(self._answered, size))
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
        """Wait until all commands are answered."""
        await self._idle.wait()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _answered(self, size: int, future: asyncio.Future[Any]) -> None:
        self.backlog.remove(size)
        if not future.cancelled():
            future.exception()
        self._open -= 1
        if not self._open:
            self._idle.set()

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            # Commands that arrive in the same iteration of the event loop share the attempt.
            asyncio.get_running_loop().call_soon(self._tick)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- from waiting commands to attempts

    def _tick(self) -> None:
        self._scheduled = False
        now = asyncio.get_running_loop().time()
        shared, batch, size = CommitAttempt(shared=True), self._batch(), 0
        for slot in list(self._ready):
            if slot.busy or slot.rests_until > now:
                continue
            command = self._first(slot, now)
            if command is None:
                del self._ready[slot]
            elif self._prepare(slot, command) or any(one.busy for one in command.slots):
                continue
            elif command.size > _BIG or len(command.slots) > _SOME_SLOTS or slot.alone_until > now:
                self._try_alone(slot)
            elif not self._sharing and len(shared.slots) < _BATCH_SLOTS and size < _BATCH_BYTES:
                size += self._take(slot, shared, batch)
        if not self._sharing and (shared.commands or self._probes):
            for command in self._probes:
                shared.take(command, batch)
            self._probes.clear()
            self._sharing = True
            self._begin(shared, batch)

    def _first(self, slot: JetSlot, now: float) -> WaitingCommand | None:
        """Return the first command of a slot that still has a waiter and is not past its deadline."""
        waiting = slot.waiting
        while waiting:
            command = waiting[0]
            if not command.future.done():
                if now < command.deadline or self._attempts.down_since is None:
                    return command
                message = "NATS does not answer; none of this request was stored, retry"
                command.fail(StoreUnavailableError(message))
            waiting.popleft()
        slot.waiting = None
        return None

    def _prepare(self, slot: JetSlot, command: WaitingCommand) -> bool:
        """Load the state that a command needs; False if all of it is loaded."""
        if not all(one.checked for one in command.slots):
            if not any(one.busy for one in command.slots):
                self._load(slot, command.slots, self._catchup.all_current(command.slots))
            return True
        if command.stamped and slot.state is not None and not slot.complete:
            self._load(slot, (slot,), self._catchup.producers(slot))
            return True
        return False

    def _batch(self) -> CommitBatch:
        return CommitBatch(self._clock(), partial(new_id, self._clock))

    def _take(self, slot: JetSlot, attempt: CommitAttempt, batch: CommitBatch) -> int:
        """Decide the waiting commands of a slot, up to the size of one record; return their bytes."""
        waiting, size, header, count = slot.waiting, 0, 0, 0
        del self._ready[slot]
        self._ready[slot] = None  # behind all others, or a slot that is always busy would always go first
        while waiting and count < _SLOT_COMMANDS:
            command = waiting[0]
            full = size + command.size > _BIG or header + command.header > _HEADER_BYTES
            if count and (command.single or full):
                break
            if command.stamped and slot.state is not None and not slot.complete:
                break
            waiting.popleft()
            if command.future.done():
                continue
            attempt.take(command, batch)
            size, header, count = size + command.size, header + command.header, count + 1
            if command.single:
                break
        return size

    def _try_alone(self, slot: JetSlot) -> None:
        if self._alone < _ALONE_AT_ONCE:
            attempt, batch = CommitAttempt(shared=False), self._batch()
            self._take(slot, attempt, batch)
            if attempt.commands:
                self._alone += 1
                self._begin(attempt, batch)

    def _begin(self, attempt: CommitAttempt, batch: CommitBatch) -> None:
        """Publish the decisions. The messages are built now: the slots may change at the next await."""
        self._written += 1
        nonce = f"{self._gateway}{self._written:x}"
        attempt.plan = plan(batch, self._bus.layout, nonce, self._catchup.tick(), self._bus.max_message)
        self._spawn(self._try(attempt))

    async def _try(self, attempt: CommitAttempt) -> None:
        clock = asyncio.get_running_loop().time
        began, measured_from = clock(), time.perf_counter()
        error = await self._attempts.publish(attempt)
        if attempt.plan.messages and (error is None or isinstance(error, ConflictError)):
            self._round_trip = clock() - began
            if error is None:
                self.figures.stored(len(attempt.commands), time.perf_counter() - measured_from)
        elif error is not None:
            self.figures.failed += 1
        # The next attempt starts now: the rest of this one blocks its own slots only.
        if attempt.shared:
            self._sharing = False
        else:
            self._alone -= 1
        self._wake()
        await self._attempts.conclude(attempt, error)

    def _load(self, slot: JetSlot, slots: tuple[JetSlot, ...], loading: Coroutine[Any, Any, None]) -> None:
        for one in slots:
            one.busy = True
        self._spawn(self._loaded(slot, slots, loading))

    async def _loaded(
        self, slot: JetSlot, slots: tuple[JetSlot, ...], loading: Coroutine[Any, Any, None]
    ) -> None:
        """Wait for a load; if it fails, fail the commands of the slot."""
        try:
            await loading
        except Exception as error:  # noqa: BLE001 - any failure must reach the waiters
            self._attempts.in_trouble()
            while slot.waiting:
                slot.waiting.popleft().fail(as_store_error(error))
        self._back([], slots)

    # -- slots

    def _back(self, commands: list[WaitingCommand], slots: Iterable[JetSlot]) -> None:
        """Release slots; ``commands`` are queued again, before later ones."""
        for command in reversed(commands):
            if not command.slots:
                self._probes.append(command)
                continue
            slot = command.slots[0]
            if slot.waiting is None:
                slot.waiting = deque()
            slot.waiting.appendleft(command)
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
            slot.behind = True  # the next release looks again, and so do live reads
