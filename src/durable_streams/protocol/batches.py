"""What the producer machine works with: its settings, its batches, what it gives to a driver and takes from one.

Invariant: a batch's body is the same for every attempt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from durable_streams.errors import DurableStreamError
from durable_streams.protocol.operations import join_records
from durable_streams.protocol.request import Request
from durable_streams.protocol.retry import ENDLESS, RetryPolicy
from durable_streams.types import IdempotentAppendResult

__all__ = ["PRODUCER_POLICY", "Barrier", "Batch", "BatchState", "Outcome", "Send", "Settings"]

PRODUCER_POLICY = RetryPolicy(max_retries=ENDLESS, initial_delay=0.05, max_delay=2.0)
"""A producer's default: endless within its ``retry_timeout``, and quick to notice that a server is back."""


class BatchState(Enum):
    """Where a batch is."""

    READY = "ready"
    IN_FLIGHT = "in flight"
    HELD = "held"  # refused because it overtook an earlier batch


@dataclass(slots=True)
class Batch:
    """Records that go out under one sequence number."""

    seq: int
    records: list[bytes]
    count: int
    size: int
    tickets: list[Any]
    content_type: str
    closing: bool = False
    state: BatchState = BatchState.READY
    attempts: int = 0
    done: bool = False
    oldest: int = 0
    """The oldest unacknowledged number when this was last sent: everything before it is on the server."""
    _body: bytes | None = None

    @property
    def body(self) -> bytes | None:
        """The request's body, the same for every attempt."""
        if self.records:
            self._body, self.records = join_records(self.records, self.content_type), []
        return self._body


Barrier = tuple[Batch, ...]
"""The batches that a `flush` waits for."""


@dataclass(frozen=True, slots=True)
class Send:
    """A request to send, and the token to report its end under."""

    token: int
    _url: str
    _headers: dict[str, str]
    _batch: Batch

    @property
    def request(self) -> Request:
        """The request. Its body is put together here, where a driver holds no lock."""
        return Request("POST", self._url, self._headers, self._batch.body)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a ticket's record."""

    ticket: Any
    result: IdempotentAppendResult | None = None
    error: DurableStreamError | None = None


@dataclass(slots=True)
class Settings:
    """A producer's limits. Times in seconds, sizes in bytes."""

    max_batch_bytes: int = 1024 * 1024
    linger: float = 0.005
    max_in_flight: int = 5
    max_pending_bytes: int = 64 * 1024 * 1024
    retry_timeout: float = 120.0
    policy: RetryPolicy = field(default_factory=lambda: PRODUCER_POLICY)

    def __post_init__(self) -> None:
        for name in ("max_batch_bytes", "max_in_flight", "max_pending_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, not {value!r}.")
        for name in ("linger", "retry_timeout"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, but is {value!r}.")
