"""Commands that wait for a decision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from durable_streams.stores.base import StoreError, StoreUnavailableError, StoreUncertainError
from durable_streams.stores.batch import Batch
from durable_streams.stores.jetstream.slots import JetSlot

__all__ = ["Command"]


class Command:
    """Something to decide, and who waits for it.

    ``slots``: the one that it is about, then those that it also needs. ``since``: what has been asked of the leader
    after this moment proves a refusal. ``until``: how long it is tried again, ``deadline``: how long it waits for a
    try while NATS is away, on the loop's clock. ``single``: it is decided without others of its stream, since it makes
    or ends it. ``repeatable``: its sender may repeat it though it was stored.
    """

    __slots__ = (
        "deadline",
        "decide",
        "future",
        "header",
        "repeatable",
        "since",
        "single",
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
        deadline: float,
        size: int = 0,
        header: int = 0,
        stamped: bool = False,
        single: bool = False,
        repeatable: bool = False,
    ) -> None:
        self.decide = decide
        self.slots = slots
        self.future = future
        self.since = since
        self.until = until
        self.deadline = deadline
        self.size = size
        self.header = header
        self.stamped = stamped
        self.single = single
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
