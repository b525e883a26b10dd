"""A feed followed forever, as a machine: attempts, connections, records, pauses.

`Feed.run` is the machine (see `protocol.effects`). It gives lists of records, which the driver hands over one by one
and counts. It calls ``request(attempt)`` for the request of an attempt, where a StreamError may be thrown;
``on_long_wait(error, seconds)`` before a pause that is long because the server asks for it; and the callbacks of the
settings by their names.

A feed of server-sent events is followed as HTML section 9.2 says: an attempt carries the id of the last event whose
record was handed over, ``retry`` is the least wait, and 204 asks not to reconnect.

Invariants: an attempt follows a pause, but for the first; ``on_connect`` is called before anything else of a connection
and ``on_disconnect`` after everything else; the series of waits starts over with data and never with a connect; the
machine ends only by raising the StreamError that no attempt can fix.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

from durable_streams.errors import DurableStreamError
from durable_streams.firehose.config import Attempt, FeedState, Schedule, Series, StreamConfig
from durable_streams.firehose.errors import (
    LONGEST_WAIT,
    StreamError,
    from_failure,
    from_payload,
    from_refusal,
)
from durable_streams.firehose.records import (
    Decode,
    Decoding,
    EventData,
    Invalid,
    Item,
    Problem,
    RecordDecoder,
    RecordSplitter,
    key_at,
)
from durable_streams.protocol import headers as h
from durable_streams.protocol.effects import READ, RELEASE, Call, Give, Head, Machine, Pause, Send
from durable_streams.protocol.exchange import read_short_body
from durable_streams.protocol.request import TRICKLE_TIMEOUT, Request, Response
from durable_streams.protocol.retry import ENDLESS, LONG_WAIT

__all__ = ["Clock", "Feed"]

_SHORT = 64  # bytes: a longer record is not looked at for being ``{}``
Clock = Callable[[], float]


class Feed:
    """One feed. `run` gives its machine; ``state`` is true at any moment.

    Args:
        url: The feed's URL, for messages.
        config: How it is followed.
        decode: From a record's bytes to the value that is handed over, None for plain JSON values.
        clock: Seconds of a steady clock.
        now: Seconds since the epoch.
        random: Numbers in [0, 1).
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
        self.state = FeedState(current_backoff=config.initial_backoff)
        self._clock, self._now, self._random = clock, now, random
        self._decoder = RecordDecoder(decode, problems=config.error_records)
        self._waits = _Waits(config.waits(), random)
        self._known = _Window(config)
        self._attempts = 0
        self._heard: float | None = None
        self._connected_at = 0.0
        self._last_record: Any = None
        self._may_refresh = False
        self._has_events = config.record_format == "sse"
        self._asked_wait: float | None = None

    def run(self) -> Machine[StreamError | None]:
        """Return the machine, which never ends well; see the module's docstring."""
        while True:
            failure = yield from self._attempt()
            yield from self._ended(failure)
            seconds = yield from self._wait(failure)
            asked = failure.retry_after if failure is not None else None
            if asked is not None and min(asked, seconds) > LONG_WAIT:
                yield Call("on_long_wait", (failure, seconds))
            yield Pause(seconds)

    def disconnected(self, error: Exception | None) -> Call | None:
        """Note that the connection is gone; return the call that reports it, None if there was none."""
        if not self.state.is_connected:
            return None
        self.state.is_connected = False
        return Call("on_disconnect", (error,))

    # -- an attempt

    def _attempt(self) -> Machine[StreamError | None]:
        self._attempts += 1
        try:
            attempt = Attempt(self._attempts, self._down_for(), self._last_record)
            request: Request = yield Call("request", (attempt,))
            request = self._resumed(request)
            head: Head = yield Send(request)
        except StreamError as error:
            return error
        except DurableStreamError as error:
            return from_failure(error, connected=False)
        if not 200 <= head.status < 300 or (head.status == 204 and self._has_events):
            body = yield from read_short_body(self._clock, TRICKLE_TIMEOUT)
            yield RELEASE
            refusal = getattr(head, "refusal", None)
            original = refusal(body) if refusal is not None else None
            return from_refusal(Response(head.status, head.headers, body), self.url, self._now(), original)
        yield from self._connected()
        failure = yield from self._body(self._splitter(request, head))
        yield RELEASE
        return failure

    def _down_for(self) -> float:
        return 0.0 if self._heard is None else max(0.0, self._clock() - self._heard)

    def _resumed(self, request: Request) -> Request:
        """Return the request of an attempt, which asks an event feed to go on after the last event (HTML 9.2.4)."""
        given = {"accept": h.SSE_CONTENT_TYPE} if self.config.record_format == "sse" else {}
        last = self.state.last_event_id
        # Other characters are not sent as the same bytes by all HTTP libraries.
        resuming = {"last-event-id": last} if last.isascii() and last.isprintable() and last else {}
        if not (given or resuming):
            return request
        return replace(request, headers={**given, **request.headers, **resuming})

    def _splitter(self, request: Request, head: Head) -> RecordSplitter:
        form = self.config.record_format
        if form == "auto":
            form = (
                "sse"
                if h.media_type(head.headers.get("content-type", "")) == h.SSE_CONTENT_TYPE
                else "ndjson"
            )
        self._has_events = form == "sse"
        last_id = self.state.last_event_id or request.headers.get("last-event-id", "")
        return RecordSplitter(form, self.config.max_record_bytes, last_id=last_id)

    def _connected(self) -> Machine[None]:
        state, down_for = self.state, self._down_for()
        state.is_connected = True
        state.connects += 1
        self._may_refresh = True
        self._connected_at = self._clock()
        first = self._heard is None
        yield Call("on_connect")
        if not first:
            yield Call("on_gap", (self._last_record, down_for))
        self._heard = self._clock()

    # -- its body

    def _body(self, splitter: RecordSplitter) -> Machine[StreamError | None]:
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
        if splitter.retry is not None:
            self._asked_wait = splitter.retry
        return failure

    def _take(self, records: list[bytes]) -> Machine[StreamError | None]:
        if not self.config.empty_records:
            records = [record for record in records if len(record) > _SHORT or record.strip() != b"{}"]
        for item in self._decoder.items(records):
            failure = yield from self._hand_over(item)
            if failure is not None:
                return failure
            if self._has_events and isinstance(self._decoder.reached, EventData):
                self.state.last_event_id = self._decoder.reached.id
        # Heartbeats alone are progress once the connection has proved itself.
        if self.state.retry_count and self._clock() - self._connected_at >= self.config.max_backoff:
            self._progress()
        return None

    def _hand_over(self, item: Item) -> Machine[StreamError | None]:
        if isinstance(item, Invalid):
            return (yield from self._invalid(item))
        if isinstance(item, Problem):
            return from_payload(item.payload, item.raw, self.url)
        values = self._known.unknown(item)
        self.state.duplicates += len(item) - len(values)
        if values:
            self._progress()
            self._last_record = values[-1]
            yield Give(values)
        return None

    def _progress(self) -> None:
        self.state.retry_count = 0
        self.state.current_backoff = self.config.initial_backoff
        self._waits.start_over()

    def _invalid(self, item: Invalid) -> Machine[StreamError | None]:
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
            yield Call("on_invalid", (item.raw, error))
        return None

    # -- its end

    def _ended(self, failure: StreamError | None) -> Machine[None]:
        goodbye = self.disconnected(failure)
        if goodbye is not None:
            yield goodbye
        if failure is not None:
            self.state.last_error = failure
            yield Call("on_error", (failure,))

    def _wait(self, failure: StreamError | None) -> Machine[float]:
        """Announce the next attempt and return the seconds until it; raises the error that no attempt can fix."""
        state, config = self.state, self.config
        delay = 0.0
        if failure is not None and not failure.is_retryable:
            if not (failure.status_code == 401 and self._may_refresh):
                raise failure
            self._may_refresh = False  # credentials may have expired: one attempt, at once, with fresh ones
        else:
            if config.max_retries != ENDLESS and state.retry_count >= config.max_retries:
                raise self._exhausted(failure) from failure
            delay = self._waits.after(failure, self._asked_wait)
        state.retry_count += 1
        state.current_backoff = delay
        yield Call("on_reconnect", (state.retry_count, delay))
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

    def after(self, failure: StreamError | None, asked: float | None) -> float:
        """Return the seconds to wait, and go one place further.

        Args:
            failure: What ended the last attempt, None for a clean end.
            asked: The least seconds that the feed asks for between any two connections, None for none.
        """
        series = self._schedule.series_for(failure)
        place = self._places.get(series, 0)
        self._places[series] = place + 1
        delay = series.delay(place, self._random, failure.retry_after if failure else None)
        if failure is None:
            # A server that ends all its connections at once must not be met by all of them at once.
            least = series.initial_delay * (1 + (0.5 * self._random() if series.jitter else 0.0))
            delay = max(delay, min(least, series.max_delay))
        return max(delay, min(asked or 0.0, LONGEST_WAIT))


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
            return True  # a record without a key is never a duplicate
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
        except Exception:  # noqa: BLE001 - the caller's function, on a record that it does not expect
            return None
        return key


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
