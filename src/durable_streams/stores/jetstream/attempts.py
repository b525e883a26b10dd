"""Attempts: commands that are decided together, their one publish, and its outcome.

Invariants:
* a command is answered after its message was stored, or, if it changes nothing, after the decision was confirmed on a
  state that was read after the command arrived;
* an attempt that meets a conflict stored nothing;
* an attempt with an unknown outcome is sent again unchanged until its outcome is known: of equal messages with one
  expectation at most one is stored.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any

from durable_streams.protocol.commands import Appended, Created, Rejection
from durable_streams.protocol.state import StreamState
from durable_streams.stores.base import StoreError, StoreUnavailableError, StoreUncertainError, as_store_error
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.figures import CommitFigures
from durable_streams.stores.jetstream.catchup import CatchUp
from durable_streams.stores.jetstream.layout import EXPECT
from durable_streams.stores.jetstream.nats.bus import Bus, ConflictError
from durable_streams.stores.jetstream.publish import PublishPlan
from durable_streams.stores.jetstream.records import decode_record
from durable_streams.stores.jetstream.slots import JetSlot, WaitingCommand

__all__ = ["Attempts", "CommitAttempt"]

_ALONE_FOR = 1.0  # seconds after a conflict
_PAUSE = 0.1  # seconds between tries while NATS is away

_Seen = tuple[tuple[int, int], int]


class CommitAttempt:
    """Commands that are decided together, and the messages published for them."""

    __slots__ = ("commands", "outcomes", "plan", "shared", "slots")

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.commands: list[WaitingCommand] = []
        self.outcomes: list[tuple[Any, BaseException | None]] = []
        self.slots: dict[JetSlot, _Seen] = {}
        self.plan: PublishPlan = PublishPlan("", 0, [], [])

    def take(self, command: WaitingCommand, batch: CommitBatch) -> None:
        """Decide a command."""
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = command.decide(batch), None
        except Exception as refusal:  # noqa: BLE001 - any failure is this command's, not its neighbours'
            outcome = None, refusal
        self.commands.append(command)
        self.outcomes.append(outcome)
        for slot in command.slots:
            self.slots.setdefault(slot, (slot.version, slot.checked))
            slot.busy = True

    def unproven(self) -> list[WaitingCommand]:
        """Return the commands whose answer may stem from an outdated state."""
        proven = {change.slot for change in self.plan.changes if change.log is not None}
        return [
            command
            for command, (outcome, refusal) in zip(self.commands, self.outcomes, strict=True)
            if _changed_nothing(outcome, refusal)
            and not all(slot in proven or self._was_present(slot, command.since) for slot in command.slots)
        ]

    def _was_present(self, slot: JetSlot, since: int) -> bool:
        """Whether the state of the decision was read after ``since``, or found unchanged by a later read."""
        version, checked = self.slots[slot]
        return checked >= since or (slot.checked >= since and slot.version == version)


def _changed_nothing(outcome: Any, refusal: BaseException | None) -> bool:
    if refusal is not None:
        return isinstance(refusal, Rejection)
    if isinstance(outcome, Appended):
        return outcome.duplicate
    if isinstance(outcome, StreamState):
        return True  # of a command on what a stream keeps: if it changed that, its record proves it
    return isinstance(outcome, Created) and not outcome.new


class Attempts:
    """Publishes attempts and completes each.

    Attributes:
        figures: What was stored.
        down_since: Since when NATS does not answer, on the loop's clock; None while it does.

    Args:
        bus: The bucket.
        catchup: Brings slots up to date.
        changed: Called for every slot whose stream changed in NATS.
        back: Takes the commands to decide again, and the slots that an attempt has finished with.
        ask_turn: Asks the other gateways to pause a stream.
    """

    def __init__(
        self,
        bus: Bus,
        catchup: CatchUp,
        changed: Callable[[JetSlot], None],
        back: Callable[[list[WaitingCommand], Iterable[JetSlot]], None],
        ask_turn: Callable[[JetSlot], None],
    ) -> None:
        self._bus = bus
        self._catchup = catchup
        self._changed = changed
        self._back = back
        self._ask_turn = ask_turn
        self.figures = CommitFigures()
        self.down_since: float | None = None

    async def publish(self, attempt: CommitAttempt) -> Exception | None:
        """Publish the messages of an attempt; return the error, if any, for `conclude`."""
        try:
            if attempt.plan.messages:
                self._stored(attempt.plan, await self._bus.publish(attempt.plan.messages))
        except Exception as error:  # noqa: BLE001 - `conclude` distinguishes them
            return error
        return None

    async def conclude(self, attempt: CommitAttempt, error: Exception | None) -> None:
        """Answer every command of an attempt, or queue it again."""
        try:
            if error is None:
                await self._answer(attempt)
            elif isinstance(error, ConflictError):
                await self._resolve(attempt)
            elif isinstance(error, StoreUncertainError):
                self.in_trouble()
                await self._settle(attempt)
            elif isinstance(error, StoreUnavailableError):
                self.in_trouble()
                await self._again(attempt, error)
            else:
                self._give_up(attempt, error)
        except Exception as failure:  # noqa: BLE001 - any failure must reach the waiters
            self._give_up(attempt, failure)

    def in_trouble(self) -> None:
        """Note that NATS did not answer."""
        if self.down_since is None:
            self.down_since = asyncio.get_running_loop().time()

    def _stored(self, planned: PublishPlan, last: int) -> None:
        """Apply stored messages to their slots; ``last`` is the sequence of the last message."""
        self.down_since = None
        first, now = last - len(planned.messages) + 1, asyncio.get_running_loop().time()
        for change in planned.changes:
            change.apply(first, planned.moment, now)
            change.slot.conflicts = 0
            self.figures.appends += len(change.appends)
            self.figures.bytes += sum([len(payload) for _, payload in change.appends])
            self._changed(change.slot)

    async def _answer(self, attempt: CommitAttempt) -> None:
        """Answer the commands whose answer is certain; decide the others again on the current state."""
        unproven = attempt.unproven()
        asked = set(map(id, unproven))
        for command, (outcome, refusal) in zip(attempt.commands, attempt.outcomes, strict=True):
            if id(command) in asked or command.future.done():
                continue
            if refusal is not None:
                command.future.set_exception(refusal)
            else:
                command.future.set_result(outcome)
        slots = dict.fromkeys(slot for command in unproven for slot in command.slots)
        self._back([], [slot for slot in attempt.slots if slot not in slots])
        if unproven:
            await self._decide_again(unproven, slots)

    async def _decide_again(self, commands: list[WaitingCommand], slots: Iterable[JetSlot]) -> None:
        try:
            await self._catchup.all_current(slots)
        except StoreError as error:
            self.in_trouble()
            for command in commands:
                command.fail(error)
            self._back([], slots)
        else:
            self.down_since = None
            self._back(commands, slots)

    async def _resolve(self, attempt: CommitAttempt) -> None:
        """Read the conflicting writes of other gateways, then decide again."""
        loop = asyncio.get_running_loop()
        for slot in attempt.slots:
            slot.alone_until = loop.time() + _ALONE_FOR
            # As a rule the conflicting records are in the log: reading everything again would lose the race again.
            if slot.conflict_at == slot.seq or any(command.single for command in attempt.commands):
                self._catchup.distrust(slot)
            slot.conflict_at = slot.seq
            slot.conflicts += 1
        if not attempt.shared:
            await asyncio.sleep(random.random() * 0.001)  # noqa: S311 - so that two gateways do not stay in step
        for slot in attempt.slots:
            if slot.conflicts > 1:
                self._catchup.distrust(slot)  # reading their records one by one takes longer than their pause
                self._ask_turn(slot)
        late = StoreUnavailableError(
            "too many servers write to this stream at once; none of this request was stored, retry"
        )
        await self._decide_again(_in_time(attempt.commands, late), attempt.slots)

    async def _again(self, attempt: CommitAttempt, error: StoreError) -> None:
        """Nothing was stored: retry while there is time."""
        left = _in_time(attempt.commands, error)
        if left:
            await asyncio.sleep(_PAUSE)
        self._back(left, attempt.slots)

    async def _settle(self, attempt: CommitAttempt) -> None:
        """Find the outcome of messages that were not acknowledged."""
        if not attempt.plan.witnesses:
            await self._resolve(attempt)  # keys only: deciding again is harmless
            return
        loop = asyncio.get_running_loop()
        until = max(command.until for command in attempt.commands)
        while True:
            try:
                last = await self._publish_again(attempt.plan)
            except ConflictError:
                await self._resolve(attempt)
                return
            except StoreError:
                if loop.time() + _PAUSE > until:
                    self._remain_in_doubt(attempt)
                    return
                await asyncio.sleep(_PAUSE)
            else:
                self._stored(attempt.plan, last)
                await self._answer(attempt)
                return

    async def _publish_again(self, planned: PublishPlan) -> int:
        """Return the last sequence of the messages, stored by now or before."""
        last = await self._find(planned)
        if last is None:
            try:
                return await self._bus.publish(planned.messages)
            except ConflictError:
                last = await self._find(planned)
        if last is None and await self._is_overtaken(planned):
            # If the first sending did that, all of its messages are there by now.
            last = await self._find(planned)
            if last is None:
                raise ConflictError
        if last is None:
            # A conflict, but no message in its place: the first sending may still be under way.
            raise StoreUncertainError("NATS did not confirm whether it stored the request")
        return last

    async def _find(self, planned: PublishPlan) -> int | None:
        """Return the last sequence of the messages if they are stored, None if nothing is in their place.

        Raises ConflictError if other messages are in their place, StoreUncertainError if every log was removed.
        """
        for subject, seq, n, at in planned.witnesses:
            stored = await self._bus.next(subject, seq + 1)
            if stored is None:
                return None
            record = decode_record(stored.record)
            if record.nonce == planned.nonce and record.n == n:
                return stored.seq + len(planned.messages) - 1 - at
            if record.n == n:
                raise ConflictError
        raise StoreUncertainError(
            "the streams were deleted before it was known whether the request was stored"
        )

    async def _is_overtaken(self, planned: PublishPlan) -> bool:
        """Whether a stored message prevents these from being stored later, unless it is one of them."""
        for message in planned.messages:
            expected = (message.headers or {}).get(EXPECT)
            if expected is not None:
                last = await self._bus.last(message.subject)
                if last is not None and last.seq > int(expected):
                    return True
        return False

    def _remain_in_doubt(self, attempt: CommitAttempt) -> None:
        for slot in attempt.slots:
            self._catchup.distrust(slot)
        for command in attempt.commands:
            command.fail_in_doubt()
        self._back([], attempt.slots)

    def _give_up(self, attempt: CommitAttempt, failure: Exception) -> None:
        for slot in attempt.slots:
            self._catchup.distrust(slot)
        for command in attempt.commands:
            command.fail(as_store_error(failure))
        self._back([], attempt.slots)


def _in_time(commands: list[WaitingCommand], error: StoreError) -> list[WaitingCommand]:
    """Return the commands for which there is time to try again; the others fail."""
    now, left = asyncio.get_running_loop().time(), []
    for command in commands:
        if now + _PAUSE > command.until:
            command.fail(error)
        else:
            left.append(command)
    return left
