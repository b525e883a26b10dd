"""Following a feed for ever: attempts, connections, records, waits, with every input and output left to a driver.

The driver performs each effect and sends back what it gave, or throws the DurableStreamError that it met:

    Pause      sleep; nothing is sent back
    Attempt    send the request; give the answer's head (``status`` and ``headers``)
    READ       give the next bytes of the answer's body, b"" at its end
    RELEASE    close the answer; closing one that is closed already does nothing
    Tell       call a callback of the settings, if it is set
    Records    hand these over, one by one, and count them

Invariants: an attempt follows a pause, but for the first; a connect is told before anything of it and its disconnect
after everything; the series of waits starts over with data and never with a connect; the loop ends only by raising
the StreamError that no attempt mends.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from typing import Any, Literal

from durable_streams.errors import DurableStreamError
from durable_streams.firehose.config import Attempt, Schedule, Series, StreamConfig, StreamState
from durable_streams.firehose.errors import (
    StreamError,
    from_failure,
    from_payload,
    from_refusal,
)
from durable_streams.firehose.records import (
    Decode,
    Decoding,
    Invalid,
    Item,
    Problem,
    RecordDecoder,
    RecordSplitter,
    key_at,
)
from durable_streams.protocol import headers as h
from durable_streams.protocol.effects import READ, RELEASE, Head, Move
from durable_streams.protocol.request import ERROR_BODY_LIMIT, TRICKLE_TIMEOUT, Response
from durable_streams.protocol.retry import ENDLESS

__all__ = ["READ", "RELEASE", "Clock", "Effect", "Feed", "Flow", "Pause", "Records", "Tell"]

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Pause:
    """Sleep for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Tell:
    """Call the callback of this name."""

    callback: Literal["on_connect", "on_disconnect", "on_reconnect", "on_error", "on_gap", "on_invalid"]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Records:
    """What to hand over."""

    values: list[Any]


Effect = Pause | Attempt | Tell | Records | Move
Flow = Generator[Effect, Any, StreamError | None]
"""Yields effects, is sent what they gave; a part of it returns what ended it, None for a clean end."""


class Feed:
    """One feed. `run` gives its loop; ``state`` is true at any moment.

    ``decode``: from a record's bytes to what is handed over, None for plain JSON values. ``clock``: seconds of a
    steady clock; ``now``: seconds since the epoch; ``random``: numbers in [0, 1).
    """

    def __init__(
        self,
        url: str,
        config: StreamConfig,
        decode: Decoding | Decode | None = None,
        *,
        clock: Clock,
        now: Clock,
        random: Callable[[], float],
    ) -> None:
        self.url = url
        self.config = config
        self.state = StreamState(current_backoff=config.initial_backoff)
        self._clock, self._now, self._random = clock, now, random
        self._decoder = RecordDecoder(decode, problems=config.error_records)
        self._waits = _Waits(config.waits(), random)
        self._known = _Window(config)
        self._attempts = 0
        self._heard: float | None = None
        self._connected_at = 0.0
        self._last_record: Any = None
        self._may_refresh = False

    def run(self) -> Flow:
        """Return the loop."""
        while True:
            failure = yield from self._attempt()
            yield from self._ended(failure)
            yield Pause((yield from self._wait(failure)))

    def disconnected(self, error: Exception | None) -> Tell | None:
        """Note that the connection is gone; return what to tell of it, None if there was none."""
        if not self.state.is_connected:
            return None
        self.state.is_connected = False
        return Tell("on_disconnect", (error,))

    # -- an attempt

    def _attempt(self) -> Flow:
        self._attempts += 1
        try:
            head: Head = yield Attempt(self._attempts, self._down_for(), self._last_record)
        except StreamError as error:
            return error
        except DurableStreamError as error:
            return from_failure(error, connected=False)
        if not 200 <= head.status < 300:
            body = yield from self._refusal()
            yield RELEASE
            return from_refusal(Response(head.status, head.headers, body), self.url, self._now())
        yield from self._connected()
        failure = yield from self._body(self._splitter(head))
        yield RELEASE
        return failure

    def _down_for(self) -> float:
        return 0.0 if self._heard is None else max(0.0, self._clock() - self._heard)

    def _splitter(self, head: Head) -> RecordSplitter:
        form = self.config.record_format
        if form == "auto":
            form = (
                "sse"
                if h.media_type(head.headers.get("content-type", "")) == h.SSE_CONTENT_TYPE
                else "ndjson"
            )
        return RecordSplitter(form, self.config.max_record_bytes)

    def _refusal(self) -> Generator[Effect, Any, bytes]:
        body, began = bytearray(), self._clock()
        while len(body) < ERROR_BODY_LIMIT and self._clock() - began <= TRICKLE_TIMEOUT:
            try:
                chunk: bytes = yield READ
            except DurableStreamError:
                break  # the status has decided already
            if not chunk:
                break
            body += chunk
        return bytes(body)

    def _connected(self) -> Generator[Effect, Any, None]:
        state, down_for = self.state, self._down_for()
        state.is_connected = True
        state.connects += 1
        self._may_refresh = True
        self._connected_at = self._clock()
        first = self._heard is None
        yield Tell("on_connect")
        if not first:
            yield Tell("on_gap", (self._last_record, down_for))
        self._heard = self._clock()

    # -- its body

    def _body(self, splitter: RecordSplitter) -> Flow:
        state, failure = self.state, None
        while failure is None:
            try:
                chunk: bytes = yield READ
            except DurableStreamError as error:
                failure = from_failure(error, connected=True)
                break
            if not chunk:
                failure = yield from self._take(splitter.finish())
                break
            state.bytes_received += len(chunk)
            state.last_activity = self._now()
            self._heard = self._clock()
            failure = yield from self._take(splitter.feed(chunk))
            if failure is None and splitter.error is not None:
                message = splitter.error.message
                return StreamError(message, original_exception=splitter.error, code="TOO_LARGE", url=self.url)
        state.partial += splitter.pending
        return failure

    def _take(self, records: list[bytes]) -> Flow:
        for item in self._decoder.items(records):
            failure = yield from self._hand_over(item)
            if failure is not None:
                return failure
        # Heartbeats alone are progress once the connection has proved itself.
        if self.state.retry_count and self._clock() - self._connected_at >= self.config.max_backoff:
            self._progress()
        return None

    def _hand_over(self, item: Item) -> Flow:
        if isinstance(item, Invalid):
            return (yield from self._invalid(item))
        if isinstance(item, Problem):
            return from_payload(item.payload, item.raw, self.url)
        values = self._known.unknown(item)
        self.state.duplicates += len(item) - len(values)
        if values:
            self._progress()
            self._last_record = values[-1]
            yield Records(values)
        return None

    def _progress(self) -> None:
        self.state.retry_count = 0
        self.state.current_backoff = self.config.initial_backoff
        self._waits.start_over()

    def _invalid(self, item: Invalid) -> Flow:
        self.state.invalid += 1
        error = StreamError(
            f"A record is not what was asked for: {_one_line(item.cause)}.",
            original_exception=item.cause,
            response_body=item.raw.decode("utf-8", "replace"),
            code="INVALID_RECORD",
            url=self.url,
        )
        if self.config.on_invalid == "raise":
            return error
        if callable(self.config.on_invalid):
            yield Tell("on_invalid", (item.raw, error))
        return None

    # -- its end

    def _ended(self, failure: StreamError | None) -> Generator[Effect, Any, None]:
        goodbye = self.disconnected(failure)
        if goodbye is not None:
            yield goodbye
        if failure is not None:
            self.state.last_error = failure
            yield Tell("on_error", (failure,))

    def _wait(self, failure: StreamError | None) -> Generator[Effect, Any, float]:
        """Announce the next attempt and return the seconds until it; raises what no attempt mends."""
        state, config = self.state, self.config
        delay = 0.0
        if failure is not None and not failure.is_retryable:
            if not (failure.status_code == 401 and self._may_refresh):
                raise failure
            self._may_refresh = False  # credentials may have expired: one attempt, at once, with fresh ones
        else:
            if config.max_retries != ENDLESS and state.retry_count >= config.max_retries:
                raise self._exhausted(failure) from failure
            delay = self._waits.after(failure)
        state.retry_count += 1
        state.current_backoff = delay
        yield Tell("on_reconnect", (state.retry_count, delay))
        return delay

    def _exhausted(self, failure: StreamError | None) -> StreamError:
        retries = self.state.retry_count
        message = f"Gave up after {retries} {'retry' if retries == 1 else 'retries'} in a row without data"
        if failure is None:
            return StreamError(f"{message}: the feed ended each time.", url=self.url)
        return failure.as_final(f"{message}: {failure.message}")


class _Waits:
    """The places reached in each series of a schedule."""

    def __init__(self, schedule: Schedule, random: Callable[[], float]) -> None:
        self._schedule = schedule
        self._random = random
        self._places: dict[Series, int] = {}

    def start_over(self) -> None:
        if self._places:
            self._places = {}

    def after(self, failure: StreamError | None) -> float:
        """Return the seconds to wait, and go one place further."""
        series = self._schedule.series_for(failure)
        place = self._places.get(series, 0)
        self._places[series] = place + 1
        delay = series.delay(place, self._random, failure.retry_after if failure else None)
        if failure is None:
            # A server that ends all its connections at once must not be met by all of them at once.
            least = series.initial_delay * (1 + (0.5 * self._random() if series.jitter else 0.0))
            delay = max(delay, min(least, series.max_delay))
        return delay


class _Window:
    """The keys of the newest records."""

    def __init__(self, config: StreamConfig) -> None:
        key = config.dedupe_key
        self._key = key_at(key) if isinstance(key, str) else key
        self._size = config.dedupe_window
        self._keys: dict[Hashable, None] = {}

    def unknown(self, values: list[Any]) -> list[Any]:
        """Return the values whose keys are not in the window, and put them there."""
        return values if self._key is None else [value for value in values if self._is_new(value)]

    def _is_new(self, value: Any) -> bool:
        key = self._key_of(value)
        if key is None:
            return True  # what has no key cannot be told from another
        keys = self._keys
        new = key not in keys
        keys.pop(key, None)
        keys[key] = None
        if len(keys) > self._size:
            del keys[next(iter(keys))]
        return new

    def _key_of(self, value: Any) -> Hashable:
        try:
            key = self._key(value) if self._key is not None else None
            hash(key)
        except Exception:  # noqa: BLE001 - the caller's function, and a record that it was not made for
            return None
        return key


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
