"""The settings and the state of a feed, and its series of waits.

Invariants: a wait is never above its series' maximum except where the server asks for more; nothing overflows,
however long an outage lasts; a series has no clock, its place in it is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from durable_streams.firehose.errors import StreamError, StreamErrorType
from durable_streams.protocol.jsonrule import OnInvalid, check_on_invalid
from durable_streams.protocol.lines import DEFAULT_LIMIT
from durable_streams.protocol.retry import RetryPolicy

__all__ = [
    "X_SCHEDULE",
    "Attempt",
    "FeedState",
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
    """How a feed is followed. All times are in seconds.

    The callbacks are called in order, and each ``on_connect`` is followed by an ``on_disconnect``. A callback that
    raises is logged.

    Args:
        max_retries: Attempts in a row that bring no data before the feed fails; -1 for no limit.
        initial_backoff: The first wait.
        max_backoff: The longest wait, unless the server asks for more.
        backoff_multiplier: By how much each wait is longer than the one before.
        jitter: Whether a wait is shortened at random, by up to half.
        timeout: The longest silence of a connection, None for no limit. Heartbeats end a silence.
        chunk_size: Accepted and checked, without an effect: data is handed over as it comes.
        on_connect: Called when an attempt has succeeded.
        on_disconnect: Called with the error, None for a clean end or a stop.
        on_reconnect: Called with the number of the attempt and the wait, before the wait.
        on_error: Called with each StreamError.
        stall_timeout: The same as ``timeout``; the shorter one counts.
        schedule: Other waits than ``initial_backoff`` and the rest give, such as `X_SCHEDULE`.
        on_gap: Called after a reconnect with the last record and the seconds without data.
        on_invalid: For a record that does not parse or validate: ``"skip"``, ``"raise"``, or a callable that gets the
            raw record and the error.
        dedupe_key: A path (``"data.id"``) or a callable that gives a record's key; a record is dropped if its key is
            among the last ones.
        dedupe_window: How many keys are remembered.
        error_records: Whether records such as ``{"errors": [...]}`` without ``data`` are errors of the feed.
        max_record_bytes: The most bytes that one record may have.
        record_format: How records are framed; ``"auto"`` goes by the content type.
        empty_records: Whether ``{}`` is a record; else it is a heartbeat.

    Raises:
        ValueError: A setting makes no sense.
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
    empty_records: bool = True

    logger_name: ClassVar[str] = "durable_streams"
    """The logger of what a feed with these settings reports."""

    callback_level: ClassVar[int] = 40  # logging.ERROR: this module does no I/O
    """The level at which it is logged that a callback raised."""

    final_level: ClassVar[int] = 20  # logging.INFO
    """The level at which the error that ends the feed is logged: it is raised anyway."""

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
class FeedState:
    """The state of a feed. Read it at any moment, from any thread.

    Attributes:
        retry_count: Attempts in a row without data.
        current_backoff: The present or last wait in seconds.
        is_connected: Whether a connection is open.
        total_items_received: Records that were handed over.
        last_error: The last StreamError, None before the first.
        bytes_received: Bytes of all answers, after decompression.
        invalid: Records that did not parse or validate.
        duplicates: Records that were dropped for their key.
        partial: Last records that a cut left incomplete.
        connects: How many attempts have succeeded.
        last_activity: When the last bytes came, in seconds since the epoch, None before.
        last_event_id: The id of the last event whose record was handed over or left out; a reconnect asks for what
            follows it.
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


StreamState = FeedState
"""The name that the users of feeds know. Within the package a stream is one of the protocol, and this is a feed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that is about to be made, for a callable that chooses its parameters.

    Attributes:
        number: Counts attempts, from 1.
        down_for: Seconds since the last bytes came, 0 before the first connection.
        last_record: The record that was handed over last, None before.
    """

    number: int = 1
    down_for: float = 0.0
    last_record: Any = None
