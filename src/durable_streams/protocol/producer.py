"""The idempotent producer: records in, batches out, each written exactly once and in order (protocol section 4).

The driver's loop, for as many requests at once as `next_request` gives:

    add(record); send what next_request(now) returns, or sleep until wake_at(now);
    then answered(...) or failed(...), and resolve the outcomes these return.

Invariants:
* a batch keeps its epoch, sequence number and body from its first attempt to its last; only a new epoch
  renumbers, when nothing is in flight any more, and then everything not acknowledged is sent again, in order,
  from 0;
* the first batch of an epoch goes alone: until the server knows the epoch it refuses any other number;
* after a failure only the oldest batch is tried, until one is acknowledged;
* a batch that overtook an earlier one (409) is held until all earlier ones are acknowledged: never lost;
* an error that no retry can fix is sticky: every unacknowledged record fails with it, and every later call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from durable_streams.errors import (
    DurableStreamError,
    FetchError,
    SequenceGapError,
    StaleEpochError,
    StreamParseError,
)
from durable_streams.protocol import headers as h
from durable_streams.protocol.operations import encoder_for, join_records, position_of
from durable_streams.protocol.request import Request, Response, check_header, error_from, parse_retry_after
from durable_streams.protocol.retry import ENDLESS, RetryPolicy, is_retryable_status
from durable_streams.types import IdempotentAppendResult

__all__ = [
    "PRODUCER_POLICY",
    "Barrier",
    "BatchState",
    "Outcome",
    "Producer",
    "ProducerBatch",
    "ProducerJob",
    "ProducerSettings",
]

# Bytes that `fits` takes before the driver calls `add` again, where it may look after its senders.
_STRIDE = 32 * 1024
_GATHERING = 0.002  # seconds that a batch gathers beside requests in flight: it would hold a few records else
_MOST_CLAIMS = 10  # in a row without one acknowledgement: then another producer is alive and claims too

PRODUCER_POLICY = RetryPolicy(max_retries=ENDLESS, initial_delay=0.05, max_delay=2.0)
"""The default of a producer: endless within its ``retry_timeout``, with short delays."""


class BatchState(Enum):
    """Where a batch is."""

    READY = "ready"
    IN_FLIGHT = "in flight"
    HELD = "held"  # refused because it overtook an earlier batch


@dataclass(slots=True)
class ProducerBatch:
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


Barrier = tuple[ProducerBatch, ...]
"""The batches that a `flush` waits for."""


@dataclass(frozen=True, slots=True)
class ProducerJob:
    """A request to send, and the token to report its end under."""

    token: int
    _url: str
    _headers: dict[str, str]
    _batch: ProducerBatch

    @property
    def request(self) -> Request:
        """The request. Its body is put together here, where a driver holds no lock."""
        return Request("POST", self._url, self._headers, self._batch.body)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a ticket's record."""

    ticket: Any
    result: IdempotentAppendResult | None = None
    error: DurableStreamError | None = None


@dataclass(slots=True)
class ProducerSettings:
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


class Producer:
    """One producer's state. Not thread-safe: the driver serialises its calls.

    ``content_type`` may be set later, but before `encode`. ``random`` gives numbers in [0, 1) for jitter.
    """

    _size: int
    _fits_to: int

    def __init__(
        self,
        url: str,
        producer_id: str,
        *,
        random: Callable[[], float],
        content_type: str | None = None,
        epoch: int = 0,
        auto_claim: bool = False,
        settings: ProducerSettings | None = None,
    ) -> None:
        if not producer_id:
            raise ValueError("A producer needs an id that is not empty.")
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch <= h.MAX_SAFE_INTEGER:
            raise ValueError(f"epoch must be a whole number from 0 to 2**53 - 1, not {epoch!r}.")
        self.url = url
        self.producer_id = check_header(h.PRODUCER_ID, producer_id)
        self.encode: Callable[[Any], bytes] = encoder_for(h.DEFAULT_CONTENT_TYPE)
        """Returns a record's bytes, checked; raises ValueError or TypeError. Changes nothing: needs no lock."""
        self.content_type = content_type
        self.epoch = epoch
        self.auto_claim = auto_claim
        self.next_seq = 0
        self.error: DurableStreamError | None = None
        self.trouble: DurableStreamError | None = None
        """The failure of the last request, while it is retried."""
        self.lost_count = 0
        """How many records failed for good."""
        self.stored: tuple[int, str] = (0, "")
        """How many records are acknowledged, oldest first, and the offset after them; with several requests in flight
        they need not be the oldest."""
        self.closing = False
        self._sealed_count = self._sealed_bytes = 0
        self._settings = settings or ProducerSettings()
        self._random = random
        # Unacknowledged, by number, oldest first. Ordered, because a dict scans past all removed entries at its front.
        self._batches: OrderedDict[int, ProducerBatch] = OrderedDict()
        self._in_flight: dict[int, ProducerBatch] = {}  # by token
        self._last_token = 0
        self._highest_sent = -1
        self._new_open_batch()
        self._established = False
        self._troubled = False
        self._failures = self._claims = 0
        self._failing_since: float | None = None
        self._not_before = 0.0
        self._claim: int | None = None

    # -- records in

    @property
    def content_type(self) -> str | None:
        """The stream's content type, None while it is not known."""
        return self._content_type

    @content_type.setter
    def content_type(self, content_type: str | None) -> None:
        self._content_type = content_type
        if content_type is not None:
            self.encode = encoder_for(content_type)

    @property
    def pending_count(self) -> int:
        """How many records are not acknowledged."""
        return self._sealed_count + len(self._records)

    @property
    def pending_bytes(self) -> int:
        """How many bytes of records are not acknowledged."""
        return self._sealed_bytes + self._size - 1 - len(self._records)

    def has_room(self, size: int) -> bool:
        """Whether a record of this many bytes may be added now; one always may when nothing is pending."""
        pending = self.pending_bytes
        return not pending or pending + size <= self._settings.max_pending_bytes

    def fits(self, record: bytes) -> bool:
        """Queue an encoded record if that is all there is to do: it joins the open batch. Else call `add`."""
        size = self._size + len(record) + 1
        if size > self._fits_to:
            return False
        self._size = size
        self._records.append(record)
        return True

    def add(self, record: bytes, now: float, ticket: Any = None) -> bool:
        """Queue an encoded record; return whether a sender must be woken. Raises the sticky error, if any."""
        self._require_open()
        settings = self._settings
        woken = False
        if self._records and self._size + len(record) + 1 > settings.max_batch_bytes:
            self._seal()
            woken = True
        if not self._records:
            self._begun = now
            woken = True
        self._records.append(record)
        self._size += len(record) + 1
        if ticket is not None:
            self._tickets.append(ticket)
        room = settings.max_pending_bytes - self.pending_bytes
        self._fits_to = min(settings.max_batch_bytes - 1, self._size + min(room, _STRIDE))
        return woken or self._is_full()

    def flush(self) -> Barrier:
        """Let the queued records go out without lingering; return the barrier for `passed`."""
        self._seal()
        return tuple(self._batches.values())

    @staticmethod
    def passed(barrier: Barrier) -> bool:
        """Whether everything that was queued when `flush` gave this is acknowledged, or has failed."""
        return all(batch.done for batch in barrier)

    def close_stream(self, record: bytes | None, ticket: Any) -> None:
        """Queue the close of the stream, with its last data where given, behind everything else."""
        self._require_open()
        self._seal()
        self.closing = True
        records = [] if record is None else [record]
        self._enqueue(records, len(record or b""), [ticket], closing=True)

    def _require_open(self) -> None:
        if self.error is not None:
            raise self.error
        if self.closing:
            raise self._closed_error()

    @property
    def in_flight_count(self) -> int:
        """How many requests are in flight."""
        return len(self._in_flight)

    @property
    def idle(self) -> bool:
        """Whether every record is acknowledged."""
        return not self._records and not self._batches

    # -- requests out

    def next_request(self, now: float) -> ProducerJob | None:
        """Return a request to send now, in flight until `answered` or `failed` is called with its number."""
        if self.error is not None or now < self._not_before:
            return None
        if self._claim is not None and not self._renumber():
            return None
        batch = self._sendable(now)
        if batch is None:
            return None
        batch.state = BatchState.IN_FLIGHT
        batch.attempts += 1
        batch.oldest = next(iter(self._batches))
        self._highest_sent = max(self._highest_sent, batch.seq)
        self._last_token += 1
        self._in_flight[self._last_token] = batch
        return ProducerJob(self._last_token, self.url, self._headers(batch), batch)

    def wake_at(self, now: float) -> float | None:
        """Return when to call `next_request` again if nothing else happens; None for never."""
        if self.error is not None or (self._claim is not None and self.in_flight_count):
            return None
        if self.in_flight_count >= self._most_in_flight():
            return None
        if any(self._may_go(batch) for batch in self._batches.values()):
            return max(now, self._not_before)
        if self._records and not self._troubled:
            return max(self._not_before, now if self._is_full() else self._due())
        return None

    def _sendable(self, now: float) -> ProducerBatch | None:
        if self.in_flight_count >= self._most_in_flight():
            return None
        for batch in self._batches.values():
            if self._may_go(batch):
                return batch
        if self._records and (self._is_full() or now >= self._due()) and not self._troubled:
            return self._seal()
        return None

    def _may_go(self, batch: ProducerBatch) -> bool:
        if batch.state is BatchState.READY and not batch.closing and not self._troubled:
            return True
        # A held batch, one that closes the stream, and any batch while requests fail: only as the oldest of all.
        return batch.state is not BatchState.IN_FLIGHT and batch.seq == next(iter(self._batches))

    def _most_in_flight(self) -> int:
        return self._settings.max_in_flight if self._established and not self._troubled else 1

    def _due(self) -> float:
        """Return when the open batch goes out, full or not: beside requests in flight, records gather in any case."""
        linger = self._settings.linger
        return self._begun + (max(linger, _GATHERING) if self._in_flight else linger)

    def _is_full(self) -> bool:
        return self._size >= self._settings.max_batch_bytes

    def _headers(self, batch: ProducerBatch) -> dict[str, str]:
        headers = {
            h.PRODUCER_ID: self.producer_id,
            h.PRODUCER_EPOCH: str(self.epoch),
            h.PRODUCER_SEQ: str(batch.seq),
        }
        if batch.count:
            headers["content-type"] = batch.content_type
        if batch.closing:
            headers[h.STREAM_CLOSED] = "true"
        return headers

    # -- batches

    def _new_open_batch(self) -> None:
        self._records: list[bytes] = []
        self._tickets: list[Any] = []
        self._size = 1  # the brackets of a JSON body, less the comma that the last record has not
        self._fits_to = 0  # the size up to which `fits` takes records for the open batch
        self._begun = 0.0  # when its first record came

    def _seal(self) -> ProducerBatch | None:
        if not self._records:
            return None
        size = self._size - 1 - len(self._records)
        batch = self._enqueue(self._records, size, self._tickets)
        self._new_open_batch()
        return batch

    def _enqueue(
        self, records: list[bytes], size: int, tickets: list[Any], *, closing: bool = False
    ) -> ProducerBatch:
        content_type = self.content_type or h.DEFAULT_CONTENT_TYPE
        batch = ProducerBatch(self.next_seq, records, len(records), size, tickets, content_type, closing)
        self._sealed_count += batch.count
        self._sealed_bytes += batch.size
        self._batches[batch.seq] = batch
        self.next_seq += 1
        return batch

    def _renumber(self) -> bool:
        """Begin the claimed epoch, unless requests of the old one are in flight; return whether it began."""
        if self.in_flight_count:
            return False
        waiting = list(self._batches.values())
        self._batches = OrderedDict()
        self.epoch, self._claim = self._claim or 0, None
        self.next_seq, self._highest_sent, self._established = 0, -1, False
        for batch in waiting:
            batch.seq, batch.state, batch.attempts = self.next_seq, BatchState.READY, 0
            self._batches[batch.seq] = batch
            self.next_seq += 1
        return True

    def restart(self) -> None:
        """Begin the next epoch and forget a sticky error; unacknowledged records are sent again under it."""
        if self.in_flight_count:
            raise DurableStreamError(
                "A producer with requests in flight cannot restart; flush it first.",
                code="BUSY",
                url=self.url,
            )
        self.error, self.trouble, self.lost_count = None, None, 0
        self.closing = any(batch.closing for batch in self._batches.values())
        self._troubled, self._failures, self._claims, self._failing_since = False, 0, 0, None
        self._not_before = 0.0
        self._claim = self.epoch + 1
        self._renumber()

    # -- outcomes of requests

    def answered(self, token: int, response: Response, now: float) -> list[Outcome]:
        """Take the answer to a request; return the outcomes that it decides."""
        batch = self._landed(token)
        if batch is None:
            return []
        if response.status in {200, 204}:
            return self._accepted(batch, response)
        request = Request("POST", self.url, self._headers(batch))
        error = error_from(response, request)
        if isinstance(error, StaleEpochError):
            known = error.current_epoch if error.current_epoch is not None else self.epoch
            return self._overtaken(error, max(known, self.epoch), now)
        if isinstance(error, SequenceGapError):
            if error.expected_seq is not None and batch.oldest <= error.expected_seq < batch.seq:
                batch.state = BatchState.HELD
                return []
            return self.fail(
                error
            )  # the server lost records that it had acknowledged: another stream, perhaps
        if is_retryable_status(response.status):
            return self._try_again(error, now, parse_retry_after(response.headers))
        return self.fail(error)

    def failed(self, token: int, error: FetchError, now: float) -> list[Outcome]:
        """Take the failure of a request, which may have been executed or not; return the outcomes that it decides."""
        return [] if self._landed(token) is None else self._try_again(error, now, None)

    def broken_off(self, token: int) -> None:
        """Note that the driver itself ended a request, which may have been executed: it goes out again."""
        if token in self._in_flight:
            self._landed(token)

    def disown(self, error: DurableStreamError) -> None:
        """Drop everything, which belongs to another process, and refuse every call with this error."""
        self.error = error
        self.fail(error)
        self.lost_count = 0
        self._in_flight.clear()

    def fail(self, error: DurableStreamError) -> list[Outcome]:
        """Give up for good: every unacknowledged record fails with this error."""
        if self.error is None:
            self.error = error
        self.lost_count += self.pending_count
        tickets = [ticket for batch in self._batches.values() for ticket in batch.tickets] + self._tickets
        for batch in self._batches.values():
            batch.done = True
        self._batches = OrderedDict()
        self._new_open_batch()
        self._sealed_count = self._sealed_bytes = 0
        self._claim = None
        return [Outcome(ticket, error=self.error) for ticket in tickets]

    def _landed(self, token: int) -> ProducerBatch | None:
        batch = self._in_flight.pop(token)
        if self.error is not None:
            return None  # it failed for good while this request was in flight
        batch.state = BatchState.READY
        return batch

    def _accepted(self, batch: ProducerBatch, response: Response) -> list[Outcome]:
        duplicate = response.status == 204 and batch.count > 0
        highest = response.headers.get(h.PRODUCER_SEQ, "")
        beyond = duplicate and highest.isascii() and highest.isdigit() and int(highest) > self._highest_sent
        # Data that was never sent before cannot be there already: another producer has this epoch.
        if beyond or (duplicate and not self._established and batch.attempts == 1):
            error = StaleEpochError(
                message=f"Producer {self.producer_id!r} was used before with epoch {self.epoch} at {self.url}; "
                "start with a greater epoch, or with auto_claim=True.",
                current_epoch=self.epoch,
                url=self.url,
                status=response.status,
            )
            return self._overtaken(error, self.epoch, None)
        try:
            offset = position_of(response, Request("POST", self.url)) or ""
        except StreamParseError as malformed:
            return self.fail(malformed)
        del self._batches[batch.seq]
        batch.done = True
        self._established, self._troubled = True, False
        self.trouble = None
        self._failures = self._claims = 0
        self._failing_since = None
        self._sealed_count -= batch.count
        self._sealed_bytes -= batch.size
        self.stored = self.stored[0] + batch.count, offset
        result = IdempotentAppendResult(offset, duplicate)
        return [Outcome(ticket, result) for ticket in batch.tickets]

    def _overtaken(self, error: StaleEpochError, known: int, now: float | None) -> list[Outcome]:
        """Note that another producer has this epoch or a newer one."""
        if not self.auto_claim or self._claims >= _MOST_CLAIMS or known >= h.MAX_SAFE_INTEGER:
            return self.fail(error)
        if self._claim is None:
            self._claims += 1
            if now is not None and self._claims > 1:
                self._not_before = now + self._settings.policy.delay(self._claims - 2, self._random)
        self._claim = max(self._claim or 0, known + 1)
        return []

    def _try_again(self, error: DurableStreamError, now: float, retry_after: float | None) -> list[Outcome]:
        if self._failing_since is None:
            self._failing_since = now
        self.trouble = error
        policy = self._settings.policy
        out_of_time = now - self._failing_since >= self._settings.retry_timeout
        if out_of_time or not policy.allows(self._failures):
            return self.fail(error)
        # Several requests fail at once when a server goes away: one failure, one pause.
        if not self._troubled or now >= self._not_before:
            self._not_before = now + policy.delay(self._failures, self._random, retry_after)
            self._failures += 1
            self._troubled = True
        return []

    def _closed_error(self) -> DurableStreamError:
        return DurableStreamError(
            "This producer is closed; make another one to append.", code="PRODUCER_CLOSED", url=self.url
        )
