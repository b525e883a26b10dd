"""The reader: one stream followed over as many requests as it takes, as a machine (protocol section 5).

`Reader.run` is the machine (see `effects`). It gives a `Portion` at a time: the driver hands its data over and calls
``commit(portion)`` together with the last piece of it. It calls ``on_error(error)`` for an error that no retry can
fix and ``on_long_wait(error, seconds)`` for a refusal that asks for a long pause; either returns whether the caller
has removed the cause. It calls ``on_gone(error)`` where the stream begins behind the position now: the call returns
whether to go on from there.

Invariants:
* `offset`, `cursor`, `up_to_date` and `stream_closed` move in `commit` only: a checkpoint never skips data;
* data becomes a portion only when it is certain: a body when it is complete, an event with its control event.
  The rest of a body that is cut is dropped and asked for again from the last certain position, so nothing is
  delivered twice;
* a body too large to be held is given out in pieces. All but the last leave the position where the body began, for no
  offset inside it is known; if the body is cut, the pieces that were given out are skipped in the next answer;
* under ``live=True`` SSE is used only where it is lossless; text and unknown types follow by long-polling;
* a first answer is never waited for longer than it takes to make it: a read that polls begins with a catch-up;
* once the stream is closed there is no further request;
* positions never go back, and are never empty;
* data is passed over only where ``on_gone`` says so, and once until there is data again;
* the back-off grows with every failure and every empty round, and only progress (or a long, healthy life)
  resets it. Progress is data: a position that moves without data is no progress.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from durable_streams.errors import (
    DurableStreamError,
    FetchError,
    RetentionGoneError,
    SSEEncodingError,
    SSENotSupportedError,
    StreamParseError,
)
from durable_streams.protocol import headers as h
from durable_streams.protocol.bodies import Body
from durable_streams.protocol.effects import READ, RELEASE, Call, Give, Head, Machine, Pause, Send
from durable_streams.protocol.eventstream import ControlEvent, EventStream
from durable_streams.protocol.exchange import read_short_body
from durable_streams.protocol.lines import DEFAULT_LIMIT
from durable_streams.protocol.request import (
    ERROR_BODY_LIMIT,
    SLOWEST,
    TRICKLE_TIMEOUT,
    Request,
    Response,
    check_header,
    content_length,
    error_from,
    parse_retry_after,
    with_query,
)
from durable_streams.protocol.retry import (
    DEFAULT_POLICY,
    ENDLESS,
    LONG_WAIT,
    RetryPolicy,
    is_retryable_status,
)
from durable_streams.types import LiveMode

__all__ = ["Mode", "Portion", "Reader"]

Mode = Literal["catch-up", "long-poll", "sse"]

_LIVE_POLICY = replace(DEFAULT_POLICY, max_retries=ENDLESS, max_delay=2.0)
_ANSWER_SIZE = 1 << 20  # bytes that a server is asked to answer a catch-up with: each answer is one batch
_BODY_SLACK = 2 * 1024 * 1024  # a body may hold one append of the limit's size, and its JSON brackets
_LONGEST_EMPTY_PAUSE = 1.0  # seconds between requests that end well and bring nothing
_SHORT_LIFE = 5.0  # seconds: an event stream that ends sooner, with nothing new, was probably cut by a proxy
_FRUITLESS_LIMIT = 3  # such event streams in a row before live=True turns to long-polling
_SSE_REFUSALS = frozenset({400, 405, 406, 415, 501})
_RESERVED = frozenset({h.OFFSET_START, h.OFFSET_NOW})
_EMPTY_ARRAY = re.compile(rb"[ \t\r\n]*\[[ \t\r\n]*\][ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Portion:
    """A piece of the stream that is certain, and the position right after it."""

    data: bytes
    next_offset: str
    cursor: str | None
    up_to_date: bool
    closed: bool


class Reader:
    """Follows one stream: `run` is its machine, the attributes say where the read is.

    Args:
        url: The stream's URL.
        random: Gives numbers in [0, 1) for jitter.
        clock: Gives seconds of any steady clock.
        offset: Where the read begins: an offset of the stream, ``"-1"`` for its start, ``"now"`` for its tail.
        live: Whether, and how, the read goes on at the tail.
        cursor: The cursor of an earlier live read.
        etag: The tag of an earlier read from the same offset, whose first answer is not transferred again if it
            would be the same.
        policy: How failures are retried; None for the default, and forever once a live read has begun.
        limit: The most bytes that one event or message may have.
        trickle: Seconds that an answer other than an event stream may take beyond its size at the slowest pace.

    Raises:
        ValueError: An argument is out of its range.

    """

    _received: int
    _first: bytes

    def __init__(
        self,
        url: str,
        *,
        random: Callable[[], float],
        clock: Callable[[], float],
        offset: str = h.OFFSET_START,
        live: LiveMode = True,
        cursor: str | None = None,
        etag: str | None = None,
        policy: RetryPolicy | None = None,
        limit: int = DEFAULT_LIMIT,
        trickle: float = TRICKLE_TIMEOUT,
    ) -> None:
        if live not in (False, True, "auto", "long-poll", "sse"):
            raise ValueError(f"live must be False, True, 'auto', 'long-poll' or 'sse', not {live!r}.")
        if live == "auto":
            live = True
        if not isinstance(offset, str) or not offset:
            raise ValueError(f"An offset is text that the server gave, '-1' or 'now', not {offset!r}.")
        self.url = url
        self.live: LiveMode = live
        self.mode: Mode = "catch-up" if isinstance(live, bool) else live
        self.offset = self.start_offset = offset
        self.cursor = cursor
        self.up_to_date = False
        self.stream_closed = False
        self.delay = 0.0
        self.content_type: str | None = None
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.accepted = False
        self.etag = etag
        self._whole = limit + _BODY_SLACK
        self._known_etag = None if etag is None else check_header("if-none-match", etag)
        self.trickle = trickle
        self._random, self._clock = random, clock
        self._policy = policy
        self._limit = limit
        self._position, self._position_cursor = offset, cursor
        self._at_tail = self._ended = self._failed = self._began = self._live_began = False
        self._went_on = False  # from the earliest position, and there was no data since
        self._failures = self._empty_rounds = self._fruitless = 0
        self.long_wait: DurableStreamError | None = None
        """The refusal that asks for a pause longer than LONG_WAIT, until the next request."""
        self._body: Body | None = None
        self._next = offset  # where the present body ends
        self._skip = 0  # how many units past the position were given out already: see Body
        self._request = Request("GET", url)
        self._started_at: float | None = None
        self._sent_at = math.inf  # about when the request went out: when the one before it ended
        self._begin()

    # -- the machine

    @property
    def finished(self) -> bool:
        """Whether no further request is needed: the stream is closed, a catch-up reached the tail, or it failed."""
        return self._failed or self._ended or (self.live is False and self._at_tail)

    def run(self) -> Machine[None]:
        """Return the machine that reads until the reader is `finished`; it raises the error that no retry can fix."""
        while not self.finished:
            try:
                yield from self._round()
            except DurableStreamError as error:
                yield RELEASE
                if self._can_go_on(error) and (yield Call("on_gone", (error,))):
                    self._go_on_from(error)
                    continue
                if not (yield Call("on_error", (error,))):
                    raise
                self.resume()
            if self.long_wait is not None and (yield Call("on_long_wait", (self.long_wait, self.delay))):
                self._hurry()

    def _can_go_on(self, error: DurableStreamError) -> bool:
        """Whether an error says that the stream begins behind the position; not twice in a row without data between."""
        return (
            isinstance(error, RetentionGoneError)
            and error.earliest is not None
            and not self._went_on
            and (self._position in _RESERVED or error.earliest > self._position)
        )

    def _go_on_from(self, error: DurableStreamError) -> None:
        """Move to where the stream begins; what was read in part before it is not asked for again."""
        assert isinstance(error, RetentionGoneError)  # noqa: S101 - for the type checker
        self._position = self._next = error.earliest or self._position
        self._position_cursor = None
        self._went_on, self._failed, self._skip, self.delay = True, False, 0, 0.0

    def _round(self) -> Machine[None]:
        """Make one request and take its answer, or note the failure: ``delay`` is the pause before the next one."""
        if self.delay:
            yield Pause(self.delay)
        request = self._next_request()
        try:
            head: Head = yield Send(request)
        except FetchError as error:
            yield from self._attempt_ended(error)
            return
        self._answer_begins(head)
        failure: FetchError | None = None
        if self.accepted:
            failure = yield from self._read_body()
        elif head.status >= 300:  # of data in a form that is not taken there may be no end
            self._refusal = yield from read_short_body(self._clock, self.trickle)
        yield RELEASE
        yield from self._attempt_ended(failure)

    def _next_request(self) -> Request:
        params = {h.QUERY_OFFSET: self._position}
        headers = {}
        # Where the read begins, a poll could wait for all of its time before the position is known.
        mode = "catch-up" if self.mode == "long-poll" and not self._began else self.mode
        if mode == "catch-up":
            headers[h.STREAM_MAX_BYTES] = str(_ANSWER_SIZE)
            if self._known_etag is not None and not self._began and not self._skip:
                headers["if-none-match"] = self._known_etag
        else:
            params[h.QUERY_LIVE] = mode
            if self._position_cursor is not None:
                params[h.QUERY_CURSOR] = self._position_cursor
        if self.mode == "sse":
            headers["accept"] = h.SSE_CONTENT_TYPE
        self._request = Request(
            "GET",
            with_query(self.url, params),
            headers,
            streaming=mode != "catch-up",
            trickle=self.trickle,
        )
        self._begin()
        return self._request

    def _answer_begins(self, head: Head) -> None:
        """Take the answer's head; then ``accepted`` says whether its body is data of the stream."""
        self._started_at = self._clock()
        self.delay = 0.0
        status, headers = self.status, self.headers = head.status, head.headers
        unchanged = status == 304 and "if-none-match" in self._request.headers
        if status not in {200, 204} and not unchanged:
            return
        self.accepted = True
        if self.mode == "sse":
            self._start_events(headers)
            return
        self.content_type = headers.get("content-type", self.content_type)
        if not self._began:
            self.etag = headers.get("etag")
        self._next = self._position_from(headers)
        self._body = Body(
            is_json=self._is_json(),
            expected=None if unchanged else content_length(headers),
            whole=self._whole,
            limit=self._limit,
            skip=self._skip,
        )

    def _read_body(self) -> Machine[FetchError | None]:
        """Give the portions of the open answer; return its failure, None where it ended well."""
        waited = 0.0
        while not self.finished:
            asked = self._clock()  # the time that the consumer takes for the data is not the server's
            try:
                chunk: bytes = yield READ
            except FetchError as error:
                return self._of_answer(error)
            if not chunk:
                return None
            waited += self._clock() - asked
            if not self._received:
                self._first = chunk[:ERROR_BODY_LIMIT]
            self._received += len(chunk)
            if self._event_stream is not None:
                yield from self._events(self._event_stream, chunk)
            elif self._body is not None:  # pragma: no branch - what was accepted is one or the other
                yield from self._pieces(self._body, chunk)
                if waited > self.trickle + self._received / SLOWEST:
                    return self._too_slow(waited)
        return None

    def _too_slow(self, waited: float) -> FetchError:
        return self._of_answer(
            FetchError(
                f"The answer from {self.url} trickles: {self._received} bytes in {waited:.0f} seconds.",
                code="TOO_SLOW",
                url=self.url,
            )
        )

    def _of_answer(self, error: FetchError) -> FetchError:
        """Return a failure within an answer, with what came of that."""
        error.status, error.headers = self.status, dict(self.headers)
        error.body = self._first
        return error

    def _attempt_ended(self, error: FetchError | None) -> Machine[None]:
        """Take the end of the answer, or of the attempt to get one; raises the error that no retry can fix."""
        if self.finished:
            return
        now = self._clock()
        began = self._started_at if self._started_at is not None else self._sent_at
        lived, self._sent_at = max(0.0, now - began), now
        if error is None and self._body is not None and self._body.is_short:
            error = self._cut(f"after {self._received} of {content_length(self.headers)} bytes")
        if error is not None and self._body is not None:
            self._skip = max(self._skip, self._body.units)
        if self.mode == "sse" and self.accepted:
            self._events_ended(error, lived)
        elif error is not None and self.mode == "long-poll" and self._live_began and _is_silence(error):
            self._empty(lived)  # nothing came within the caller's own time limit: no failure
        elif error is not None:
            self._retry(error)
        elif not self.accepted:
            self._refused()
        elif self._body is not None:  # pragma: no branch - an accepted answer that has no events has a body
            yield from self._body_ended(self._body, lived)

    # -- what the driver calls

    def give_early(self, size: int) -> None:
        """Give out bodies of more than ``size`` bytes in pieces: a view moves its place with the last item anyway."""
        self._whole = min(size, self._whole)
        if self._body is not None:
            self._body.whole = self._whole

    @property
    def place(self) -> Portion:
        """The public position, as what to `commit` in order to come back to it."""
        return Portion(b"", self.offset, self.cursor, self.up_to_date, self.stream_closed)

    def commit(self, portion: Portion) -> None:
        """Move the public position past a portion, together with handing over its last piece."""
        self.offset, self.cursor = portion.next_offset, portion.cursor
        self.up_to_date, self.stream_closed = portion.up_to_date, portion.closed

    def break_off(self) -> None:
        """Note that the driver ended the answer in progress, for no fault of the server's: `run` asks for it again."""
        if self._body is not None:
            self._skip = max(self._skip, self._body.units)
        self._sent_at = self._clock()
        self.delay = 0.0
        self._begin()

    def resume(self) -> None:
        """Go on after a fatal error, with a pause: the caller has removed its cause (``on_error``)."""
        self._failed = False
        self.delay = self._active_policy().delay(self._failures, self._random)
        self._failures += 1

    def _hurry(self) -> None:
        """Shorten a long pause: the caller has removed its cause (``on_error``)."""
        self.long_wait = None
        self.delay = self._active_policy().delay(max(0, self._failures - 1), self._random)

    # -- bodies

    def _begin(self) -> None:
        self.long_wait = None
        self._started_at = None
        self.accepted = False
        self._body = None
        self._refusal = self._first = b""
        self._received: int = 0
        self._event_stream: EventStream | None = None
        self._progress = self._moved = self._heard = False

    def _pieces(self, body: Body, chunk: bytes) -> Machine[None]:
        try:
            pieces = body.receive(chunk)
        except StreamParseError as error:
            raise self._broken_body(error) from None
        if pieces and self._next != self._position:
            self._progress = True
            self._went_on = False
            self._failures = 0
        # No offset inside the body is known: until it is complete the position stays where it begins.
        for piece in pieces:
            yield Give(Portion(piece, self._position, self._position_cursor, False, False))

    def _body_ended(self, body: Body, lived: float) -> Machine[None]:
        headers = self.headers
        up_to_date = self.status == 204 or h.is_true(headers.get(h.STREAM_UP_TO_DATE))
        closed = h.is_true(headers.get(h.STREAM_CLOSED))
        try:
            data = body.finish()
        except StreamParseError as error:
            raise self._broken_body(error) from None
        if data is None:
            self._skip = max(self._skip, body.units)
            self._retry(self._cut("before the end of its array"))
            return
        if self._skip and self._next != self._position:
            self._skipped(body.units, at_tail=up_to_date or closed)
        first = not self._began
        portion = self._advance(data, self._next, headers.get(h.STREAM_CURSOR), up_to_date, closed)
        self._heard = True
        if not self._progress and (up_to_date or closed):
            self._empty(lived)
        elif not self._progress and not self._moved:
            self._retry(self._no_progress())
        elif not self._progress:
            self._empty(lived)
        if first and self.mode == "long-poll":
            self.delay = 0.0
        if self.mode == "catch-up" and self.live is True and up_to_date:
            self.mode = (
                "sse" if self._fruitless < _FRUITLESS_LIMIT and self._sse_is_lossless() else "long-poll"
            )
            self.delay = 0.0  # the first live request is no repetition
        yield Give(portion)

    def _skipped(self, units: int, *, at_tail: bool) -> None:
        """Note how many of the units given out before are in the body that has ended."""
        self._progress = True
        self._skip = max(0, self._skip - units)
        if self._skip and at_tail:
            raise self._fatal(
                StreamParseError,
                "The stream ends before data that was read already: another stream has replaced it; start over.",
            )

    def _broken_body(self, error: StreamParseError) -> DurableStreamError:
        return self._fatal(StreamParseError, error.message, code=error.code)

    def _cut(self, where: str) -> FetchError:
        return self._of_answer(FetchError(f"The answer from {self.url} was cut {where}.", url=self.url))

    def _position_from(self, headers: Mapping[str, str]) -> str:
        position = headers.get(h.STREAM_NEXT_OFFSET)
        if position is None and self.status == 204:
            return self._position
        if position is None:
            raise self._fatal(
                StreamParseError,
                "The answer has no Stream-Next-Offset header; check that the URL is a durable stream.",
            )
        return self._checked(position)

    def _checked(self, position: str) -> str:
        """Return an offset that the server gave; raises StreamParseError where reading from it would repeat or skip."""
        if not h.is_position(position):
            flaw = f"gave {position!r}, which is not an offset"
        elif self._position not in _RESERVED and position < self._position:
            flaw = f"went back to {position}"
        else:
            return position
        raise self._fatal(
            StreamParseError, f"After offset {self._position} the server {flaw}.", code="BAD_OFFSET"
        )

    def _is_json(self) -> bool:
        return self.content_type is not None and h.is_json(self.content_type)

    def _sse_is_lossless(self) -> bool:
        return self.content_type is not None and h.sse_is_lossless(self.content_type)

    def _no_progress(self) -> DurableStreamError:
        return DurableStreamError(
            f"The server at {self.url} gave no data after offset {self._position}, but it is not the tail either.",
            code="NO_PROGRESS",
            status=self.status,
            url=self.url,
        )

    def _advance(
        self, data: bytes, position: str, cursor: str | None, up_to_date: bool, closed: bool
    ) -> Portion:
        self._moved = self._moved or position != self._position
        holds_data = bool(data) and not (self._is_json() and _EMPTY_ARRAY.fullmatch(data))
        # The first answer to -1 or now gives a real offset: a result, once.
        learned = self._position in _RESERVED and position not in _RESERVED
        self._progress = self._progress or (position != self._position and (holds_data or learned))
        self._began, self._live_began = True, self.live is not False
        self._position = position
        self._position_cursor = cursor if cursor is not None else self._position_cursor
        self._at_tail, self._ended = up_to_date or closed, closed
        if self._progress:
            self._failures = self._empty_rounds = self._fruitless = 0
            self._went_on = False
        return Portion(data, position, self._position_cursor, self._at_tail, closed)

    # -- event streams

    def _start_events(self, headers: Mapping[str, str]) -> None:
        media = h.media_type(headers.get("content-type", ""))
        if self.status != 200 or media != h.SSE_CONTENT_TYPE or self._would_alter(headers):
            self.accepted = False  # `_refused` turns to long-polling, or says that SSE is not supported
            return
        try:
            self._event_stream = EventStream(headers, self._limit + _BODY_SLACK)
        except SSEEncodingError as error:
            raise self._fatal(SSEEncodingError, error.message) from None

    def _would_alter(self, headers: Mapping[str, str]) -> bool:
        """Whether bytes arrive as text, although ``live=True`` promises them unchanged."""
        return self.live is True and not self._is_json() and not headers.get(h.SSE_DATA_ENCODING, "").strip()

    def _events(self, event_stream: EventStream, chunk: bytes) -> Machine[None]:
        try:
            for control in event_stream.feed(chunk):
                if self._ended:
                    break
                for portion in self._control(control):
                    yield Give(portion)
        except (StreamParseError, SSEEncodingError) as error:
            raise self._fatal(type(error), error.message, code=error.code) from None

    def _control(self, control: ControlEvent) -> list[Portion]:
        self._heard = True
        position = self._checked(control.next_offset)
        *first, last = control.payloads or [b""]
        # Only the last of several payloads moves the position: the ones before it are not certain by
        # themselves.
        portions = [Portion(data, self._position, self._position_cursor, False, False) for data in first]
        portions.append(self._advance(last, position, control.cursor, control.up_to_date, control.closed))
        return portions

    def _events_ended(self, error: FetchError | None, lived: float) -> None:
        if not self._progress and (not self._heard or lived < _SHORT_LIFE):
            # Silence from the first byte on: something on the way buffers, and a retry cannot succeed.
            silent = error is not None and _is_silence(error) and not self._received
            self._fruitless += _FRUITLESS_LIMIT if silent else 1
        if self.live is True and self._fruitless >= _FRUITLESS_LIMIT:
            self.mode = "long-poll"
        if error is None and not self._heard:
            error = self._of_answer(
                FetchError(f"The event stream of {self.url} ended before its first event.", url=self.url)
            )
        if error is not None and not (self._heard and _is_silence(error)):
            self._retry(error, lived)
        elif not self._progress:
            self._empty(lived)

    # -- failures and pauses

    def _refused(self) -> None:
        """Decide what an answer without data of the stream means."""
        response = Response(self.status or 0, self.headers, self._refusal)
        if self.mode == "sse" and (response.status in _SSE_REFUSALS or response.status in {200, 204}):
            if self.live is True:
                self.mode = "long-poll"
                return
            if response.status != 400:
                raise self._fatal(
                    SSENotSupportedError,
                    f"The server at {self.url} does not answer live=sse with an event stream; use live=True.",
                )
        error = error_from(response, self._request)
        if not is_retryable_status(response.status):
            self._failed = True
            raise error
        self._retry(error, retry_after=parse_retry_after(self.headers))

    def _retry(
        self, error: DurableStreamError, lived: float = 0.0, *, retry_after: float | None = None
    ) -> None:
        policy = self._active_policy()
        if self._heard and lived > policy.max_delay:
            self._failures = 0  # it worked for longer than any pause: this is a new failure
        if not policy.allows(self._failures):
            self._failed = True
            raise error
        self.delay = policy.delay(self._failures, self._random, retry_after)
        self._failures += 1
        if retry_after is not None and self.delay > LONG_WAIT:
            self.long_wait = error

    def _empty(self, lived: float) -> None:
        """Set the pause after a round that ended well and brought nothing; the round's own length counts towards it."""
        policy = self._active_policy()
        if lived > policy.max_delay:
            self._failures = self._empty_rounds = 0
        pause = min(policy.delay(self._empty_rounds, self._random), _LONGEST_EMPTY_PAUSE)
        self._empty_rounds += 1
        self.delay = max(0.0, pause - lived)

    def _active_policy(self) -> RetryPolicy:
        if self._policy is not None:
            return self._policy
        return _LIVE_POLICY if self._live_began else DEFAULT_POLICY

    def _fatal(
        self, kind: type[DurableStreamError], message: str, code: str | None = None
    ) -> DurableStreamError:
        self._failed = True
        context: dict[str, Any] = {"url": self.url, "status": self.status, "headers": dict(self.headers)}
        if issubclass(kind, StreamParseError):
            context["offset"] = self._position
        return kind(message, code=code, **context)


def _is_silence(error: FetchError) -> bool:
    return error.code == "TIMEOUT" and error.may_have_been_sent
