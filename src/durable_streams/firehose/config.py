"""The settings and the state of a feed, and its series of waits.

Invariants: a wait is never above its series' maximum except where the server asks for more; nothing overflows,
however long an outage lasts; a series has no clock, its place in it is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from durable_streams.firehose.errors import StreamError, StreamErrorType
from durable_streams.protocol.jsonrule import OnInvalid, check_on_invalid
from durable_streams.protocol.lines import DEFAULT_LIMIT
from durable_streams.protocol.retry import RetryPolicy

__all__ = [
    "X_SCHEDULE",
    "Attempt",
    "Linear",
    "OnInvalid",
    "RecordFormat",
    "Schedule",
    "Series",
    "StreamConfig",
    "StreamState",
]

RecordFormat = Literal["auto", "ndjson", "sse"]
"""How records are framed: one JSON text a line, events, or as the answer's content type says."""


class Series(Protocol):
    """Waits in seconds, one after the other."""

    @property
    def initial_delay(self) -> float:
        """The first wait."""

    @property
    def max_delay(self) -> float:
        """The longest wait that the series has on its own."""

    @property
    def jitter(self) -> float:
        """By what fraction at most a wait is changed at random; 0 for waits that are always the same."""

    def delay(self, retry: int, random: Callable[[], float], retry_after: float | None = None) -> float:
        """Return the seconds to wait before retry number ``retry`` (from 0), at least ``retry_after``."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Waits that grow by the same step: ``initial_delay * (retry + 1)``, at most ``max_delay``, without jitter."""

    initial_delay: float
    max_delay: float
    jitter: float = field(default=0.0, init=False)

    def delay(self, retry: int, random: Callable[[], float], retry_after: float | None = None) -> float:
        """See Series."""
        del random
        steps = self.max_delay / self.initial_delay if self.initial_delay else 0.0
        delay = self.max_delay if retry >= steps else self.initial_delay * (retry + 1)
        return max(min(delay, self.max_delay), retry_after or 0.0)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which series of waits follows which failure: of the network (a clean end too), of the server, of a rate limit."""

    network: Series
    server: Series
    rate_limit: Series

    def series_for(self, failure: StreamError | None) -> Series:
        """Return the series for a failure, None for a clean end."""
        if failure is None or failure.status_code is None or failure.status_code < 300:
            return self.network
        return self.rate_limit if failure.error_type is StreamErrorType.RATE_LIMITED else self.server


X_SCHEDULE = Schedule(
    network=Linear(0.25, 16.0),
    server=RetryPolicy(initial_delay=5.0, max_delay=320.0, jitter=0.0),
    rate_limit=RetryPolicy(initial_delay=60.0, max_delay=960.0, jitter=0.0),
)
"""The waits that the documentation of the X API asks for.

After a failure of the network 250 ms more each time, up to 16 s; after an HTTP error 5 s, doubled up to 320 s; after a
rate limit 60 s, doubled, here up to 16 minutes, one more than X's windows have.
"""


@dataclass
class StreamConfig:
    """How a feed is followed. Times in seconds; raises ValueError for settings that make no sense.

    The waits: ``initial_backoff * backoff_multiplier ** n``, at most ``max_backoff``, with ``jitter`` shortened at
    random by up to half; or those of ``schedule`` (`X_SCHEDULE`). ``max_retries`` counts attempts in a row that
    brought no data; -1 is endless.

    ``timeout`` and ``stall_timeout`` both bound the silence of a connection, the shorter one counts; heartbeats end
    a silence; None for both waits forever. ``chunk_size`` is accepted and checked, but data is handed over as it
    comes.

    The callbacks are called in order, and a connect is followed by its disconnect: ``on_connect()``,
    ``on_gap(last_record, down_for)`` after a reconnect, ``on_disconnect(error)`` with None for a clean end or a stop,
    ``on_error(error)``, ``on_reconnect(attempt, delay)`` before the wait. One that raises is logged.

    ``on_invalid``: for records that do not parse or validate, "skip", "raise" or a callable that is given the raw
    record and the error. ``dedupe_key``: a path ("data.id") or a callable that gives a record's key; of records
    with a key that is among the last ``dedupe_window``, only the first is handed over. ``error_records``: whether
    records such as ``{"errors": [...]}`` without ``data`` are errors of the stream and no records.
    ``max_record_bytes``: a longer one is an error. ``record_format``: "auto" goes by the content type.
    """

    max_retries: int = 10
    initial_backoff: float = 1.0
    max_backoff: float = 64.0
    backoff_multiplier: float = 2.0
    jitter: bool = True
    timeout: float | None = None
    chunk_size: int = 1024
    on_connect: Callable[[], Any] | None = None
    on_disconnect: Callable[[Exception | None], Any] | None = None
    on_reconnect: Callable[[int, float], Any] | None = None
    on_error: Callable[[StreamError], Any] | None = None
    stall_timeout: float | None = None
    schedule: Schedule | None = None
    on_gap: Callable[[Any, float], Any] | None = None
    on_invalid: OnInvalid = "skip"
    dedupe_key: str | Callable[[Any], Hashable] | None = None
    dedupe_window: int = 10_000
    error_records: bool = True
    max_record_bytes: int = DEFAULT_LIMIT
    record_format: RecordFormat = "auto"

    def __post_init__(self) -> None:
        for name, least in (("initial_backoff", 0), ("max_backoff", 0), ("backoff_multiplier", 1)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} must be a finite number of at least {least}, not {value!r}.")
        self.waits()
        for name in ("timeout", "stall_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be a positive number of seconds or None, not {value!r}.")
        for name in ("chunk_size", "dedupe_window", "max_record_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be a positive number, not {getattr(self, name)!r}.")
        check_on_invalid(self.on_invalid)
        if self.record_format not in {"auto", "ndjson", "sse"}:
            raise ValueError(f"record_format must be 'auto', 'ndjson' or 'sse', not {self.record_format!r}.")

    @property
    def silence(self) -> float:
        """Seconds of silence after which a connection is given up; infinite for never."""
        return min(self.timeout or math.inf, self.stall_timeout or math.inf)

    def waits(self) -> Schedule:
        """Return the schedule in force."""
        policy = RetryPolicy(
            max_retries=self.max_retries,
            initial_delay=min(self.initial_backoff, self.max_backoff),
            max_delay=self.max_backoff,
            multiplier=self.backoff_multiplier,
            jitter=0.5 if self.jitter else 0.0,
        )
        return self.schedule or Schedule(policy, policy, policy)


@dataclass(slots=True)
class StreamState:
    """What is known of a feed. Read it at any moment, from any thread.

    ``retry_count``: attempts in a row without data; ``current_backoff``: the present or last wait in seconds;
    ``total_items_received``: records handed over; ``bytes_received`` after decompression; ``invalid``,
    ``duplicates``: records that were not handed over; ``partial``: last lines that a cut left incomplete;
    ``connects``: how often an attempt succeeded; ``last_activity``: when the last bytes came, in seconds since
    the epoch, None before; ``last_event_id``: the id of the last event whose record was handed over or left out, which
    a feed of events is asked to go on after.
    """

    retry_count: int = 0
    current_backoff: float = 1.0
    is_connected: bool = False
    total_items_received: int = 0
    last_error: StreamError | None = None
    bytes_received: int = 0
    invalid: int = 0
    duplicates: int = 0
    partial: int = 0
    connects: int = 0
    last_activity: float | None = None
    last_event_id: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that is about to be made, for a callable that chooses its parameters.

    ``number`` counts from 1; ``down_for``: seconds since the last bytes came, 0 before the first connection;
    ``last_record``: what was handed over last, None before.
    """

    number: int = 1
    down_for: float = 0.0
    last_record: Any = None
