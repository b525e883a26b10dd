"""Attempts: commands that are decided together, their one publish, and what follows from how that ends.

Invariants:
* a command is answered after its message was stored, or, where it changes nothing, after its refusal was found true on
  a state that was read after it came;
* of an attempt that meets a conflict nothing was stored;
* one whose outcome was not heard is sent again unchanged until it is known: of equal messages with one expectation at
  most one is stored.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any

from durable_streams.protocol.commands import Appended, Created, Rejection
from durable_streams.stores.base import StoreError, StoreUnavailableError, StoreUncertainError, as_store_error
from durable_streams.stores.batch import CommitBatch
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
    """Commands decided together, and what is published for them."""

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
        except Exception as refusal:  # noqa: BLE001 - whatever it is, it is this command's, not its neighbours'
            outcome = None, refusal
        self.commands.append(command)
        self.outcomes.append(outcome)
        for slot in command.slots:
            self.slots.setdefault(slot, (slot.version, slot.checked))
            slot.busy = True

    def unproven(self) -> list[WaitingCommand]:
        """Return the commands whose answer may come from a state that is not the present one."""
        proven = {change.slot for change in self.plan.changes if change.log is not None}
        return [
            command
            for command, (outcome, refusal) in zip(self.commands, self.outcomes, strict=True)
            if _changed_nothing(outcome, refusal)
            and not all(slot in proven or self._was_present(slot, command.since) for slot in command.slots)
        ]

    def _was_present(self, slot: JetSlot, since: int) -> bool:
        """Whether what was decided on had been read since then, or was found unchanged when it was read later."""
        version, checked = self.slots[slot]
        return checked >= since or (slot.checked >= since and slot.version == version)


def _changed_nothing(outcome: Any, refusal: BaseException | None) -> bool:
    if refusal is not None:
        return isinstance(refusal, Rejection)
    if isinstance(outcome, Appended):
        return outcome.duplicate
    return isinstance(outcome, Created) and not outcome.new


class Attempts:
    """Publishes attempts and brings each to its end.

    ``changed`` is called for every slot of which something was stored; ``back`` takes the slots that an attempt is done
    with, and the commands that have to be decided again; ``ask_turn`` asks the other gateways to leave a slot to us.
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
        self.down_since: float | None = None
        """Since when NATS does not answer, on the loop's clock; None while it does."""

    async def publish(self, attempt: CommitAttempt) -> Exception | None:
        """Publish what was decided; return what went wrong, for `conclude`."""
        try:
            if attempt.plan.messages:
                self._stored(attempt.plan, await self._bus.publish(attempt.plan.messages))
        except Exception as error:  # noqa: BLE001 - `conclude` tells them apart
            return error
        return None

    async def conclude(self, attempt: CommitAttempt, error: Exception | None) -> None:
        """Answer every command of an attempt, or give it back."""
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
        except Exception as failure:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._give_up(attempt, failure)

    def in_trouble(self) -> None:
        """Note that NATS did not answer."""
        if self.down_since is None:
            self.down_since = asyncio.get_running_loop().time()

    def _stored(self, planned: PublishPlan, last: int) -> None:
        """Make what was stored what is known; ``last`` is the sequence of the last message."""
        self.down_since = None
        first, now = last - len(planned.messages) + 1, asyncio.get_running_loop().time()
        for change in planned.changes:
            change.apply(first, planned.moment, now)
            change.slot.conflicts = 0
            self._changed(change.slot)

    async def _answer(self, attempt: CommitAttempt) -> None:
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
        """Find out what the others did that was in conflict, then decide again."""
        loop = asyncio.get_running_loop()
        for slot in attempt.slots:
            slot.alone_until = loop.time() + _ALONE_FOR
            # What the others wrote is in the log, as a rule: reading all anew would lose the race again.
            if slot.conflict_at == slot.seq or any(command.single for command in attempt.commands):
                self._catchup.distrust(slot)
            slot.conflict_at = slot.seq
            slot.conflicts += 1
        if not attempt.shared:
            await asyncio.sleep(random.random() * 0.001)  # noqa: S311 - so that two gateways do not go on in step
        for slot in attempt.slots:
            if slot.conflicts > 1:
                self._catchup.distrust(slot)  # to read what they wrote one by one takes longer than they rest
                self._ask_turn(slot)
        late = StoreUnavailableError(
            "too many servers write to this stream at once; nothing of this request was stored, repeat it"
        )
        await self._decide_again(_in_time(attempt.commands, late), attempt.slots)

    async def _again(self, attempt: CommitAttempt, error: StoreError) -> None:
        """Nothing was stored: try again while there is time."""
        left = _in_time(attempt.commands, error)
        if left:
            await asyncio.sleep(_PAUSE)
        self._back(left, attempt.slots)

    async def _settle(self, attempt: CommitAttempt) -> None:
        """Find out what became of messages of which nothing was heard."""
        if not attempt.plan.witnesses:
            await self._resolve(attempt)  # nothing but keys: deciding again does no harm
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
        """Return the last sequence of messages that are stored, by now or from before."""
        last = await self._find(planned)
        if last is None:
            try:
                return await self._bus.publish(planned.messages)
            except ConflictError:
                last = await self._find(planned)
        if last is None and await self._is_overtaken(planned):
            # Whoever that was: had it been our first sending, all of that would be there by now.
            last = await self._find(planned)
            if last is None:
                raise ConflictError
        if last is None:
            # Something is in conflict and nothing is there: our first sending may be on its way still.
            raise StoreUncertainError("NATS did not say whether it has stored the request")
        return last

    async def _find(self, planned: PublishPlan) -> int | None:
        """Return the last sequence of messages that are stored, None if nothing is in their place.

        Raises ConflictError if others are in it, StoreUncertainError if what was there is gone from every log.
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
        """Whether something is stored that keeps these messages from ever being stored, unless it is they."""
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
