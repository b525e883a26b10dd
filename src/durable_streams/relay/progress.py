"""How far a relay is: what is acknowledged, and the pairs of place and offset that its state may hold."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from durable_streams.types import IdempotentAppendResult

__all__ = ["Acknowledged", "RelayReport"]


@dataclass(frozen=True)
class RelayReport:
    """What a relay did so far.

    ``records``: stored by this run and acknowledged; ``skipped``: stored before, or twice in the source;
    ``invalid``: left out; ``gaps``: breaks in which the source may have sent what is lost; ``pending``: read and not
    acknowledged yet; ``place``: of the source, where it has places; ``offset``: the target's, after the last record.
    """

    records: int
    skipped: int
    invalid: int
    gaps: int
    reconnects: int
    pending: int
    seconds: float
    place: Any
    offset: str
    closed: bool
    guarantee: str


class Acknowledged:
    """What is stored, in order: the pairs of place and offset that a state may hold."""

    def __init__(self, place: Any, offset: str) -> None:
        self.records = 0
        self.latest = self.settled = (place, 0, offset)
        self._sent: deque[tuple[Any, int]] = deque()

    def sent(self, place: Any, ids: int, future: Future[IdempotentAppendResult]) -> None:
        """Take note of a record on its way; ``ids`` were added up to it."""
        self._sent.append((place, ids))
        future.add_done_callback(self._done)

    def _done(self, future: Future[IdempotentAppendResult]) -> None:
        if future.exception() is not None:
            return  # the producer raises it
        place, ids = self._sent.popleft()
        offset = future.result().offset
        # An offset is that after a whole batch: the pair is right once all of the batch is counted.
        if offset != self.latest[2]:
            self.settled = self.latest
        self.latest = (place, ids, offset)
        self.records += 1
