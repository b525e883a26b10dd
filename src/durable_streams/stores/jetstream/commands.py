"""Commands that wait for a decision, and attempts: the commands that one publish decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from durable_streams.protocol.commands import Appended, Created, Rejection
from durable_streams.stores.base import StoreError, StoreUnavailableError, StoreUncertainError
from durable_streams.stores.batch import Batch
from durable_streams.stores.jetstream.publish import Plan
from durable_streams.stores.jetstream.slots import JetSlot

__all__ = ["Attempt", "Command"]


class Command:
    """Something to decide, and who waits for it.

    ``slots``: the one that it is about, then those that it also needs. ``since``: what has been asked of the leader
    after this moment proves a refusal. ``until``: when it is given up, on the loop's clock. ``alone``: it shares no
    message with commands of other streams. ``repeatable``: its sender may repeat it though it was stored.
    """

    __slots__ = (
        "alone",
        "decide",
        "future",
        "header",
        "repeatable",
        "since",
        "size",
        "slots",
        "stamped",
        "until",
    )

    def __init__(
        self,
        decide: Callable[[Batch], Any],
        slots: tuple[JetSlot, ...],
        *,
        future: asyncio.Future[Any],
        since: int,
        until: float,
        size: int = 0,
        header: int = 0,
        stamped: bool = False,
        alone: bool = False,
        repeatable: bool = False,
    ) -> None:
        self.decide = decide
        self.slots = slots
        self.future = future
        self.since = since
        self.until = until
        self.size = size
        self.header = header
        self.stamped = stamped
        self.alone = alone
        self.repeatable = repeatable

    def fail(self, error: StoreError) -> None:
        """Tell who waits that the store failed."""
        if not self.future.done():
            self.future.set_exception(type(error)(*error.args))

    def fail_in_doubt(self) -> None:
        """Tell who waits that nobody knows."""
        if self.repeatable:
            self.fail(
                StoreUnavailableError(
                    "NATS does not answer; repeat the request, it is stored once in any case"
                )
            )
        else:
            self.fail(
                StoreUncertainError(
                    "NATS did not confirm the request: it may have been stored or not; read the stream to find out"
                )
            )


class Attempt:
    """Commands decided together, and what is published for them."""

    __slots__ = ("commands", "outcomes", "plan", "shared", "slots")

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.commands: list[Command] = []
        self.outcomes: list[tuple[Any, BaseException | None]] = []
        self.slots: dict[JetSlot, None] = {}
        self.plan: Plan | None = None

    def take(self, command: Command, batch: Batch) -> None:
        """Decide a command."""
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = command.decide(batch), None
        except Exception as refusal:  # noqa: BLE001 - whatever it is, it is this command's, not its neighbours'
            outcome = None, refusal
        self.commands.append(command)
        self.outcomes.append(outcome)
        for slot in command.slots:
            self.slots[slot] = None
            slot.busy = True

    def unproven(self) -> list[Command]:
        """Return the commands whose answer may come from a state that is not the present one."""
        proven = set[JetSlot]()
        if self.plan is not None:
            proven = {change.slot for change in self.plan.changes if change.log is not None}
        return [
            command
            for command, (outcome, refusal) in zip(self.commands, self.outcomes, strict=True)
            if _changed_nothing(outcome, refusal)
            and not all(slot in proven or slot.checked >= command.since for slot in command.slots)
        ]


def _changed_nothing(outcome: Any, refusal: BaseException | None) -> bool:
    if refusal is not None:
        return isinstance(refusal, Rejection)
    if isinstance(outcome, Appended):
        return outcome.duplicate
    return isinstance(outcome, Created) and not outcome.new
