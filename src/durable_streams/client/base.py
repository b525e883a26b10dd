"""What the sync and the async facades share: how calls are made, and the state of handles and responses. No I/O here.

Invariants: everything public about a position comes from the reader's committed state; a position is saved to a
checkpoint store only after the consumer has come back for the data behind it.
"""

from __future__ import annotations

import logging
import math
import random as _random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from os import PathLike
from typing import TYPE_CHECKING, Any, Generic, Literal

from durable_streams.client.checkpoints import CheckpointStore, as_store
from durable_streams.client.decoding import Refused
from durable_streams.client.transports.limits import TimeoutLike, as_timeout
from durable_streams.errors import (
    DurableStreamError,
    FetchError,
    RetentionGoneError,
    StreamConsumedError,
    StreamParseError,
)
from durable_streams.protocol import headers as h
from durable_streams.protocol.effects import Call, Effect, Machine
from durable_streams.protocol.follower import Follower
from durable_streams.protocol.jsonrule import OnInvalid, check_on_invalid
from durable_streams.protocol.reader import Reader
from durable_streams.protocol.request import (
    TRICKLE_TIMEOUT,
    Request,
    Response,
    check_callers_headers,
    check_url,
    parse_retry_after,
    shown_url,
    without_query,
)
from durable_streams.protocol.retry import DEFAULT_POLICY, LONG_WAIT, RetryPolicy
from durable_streams.types import LiveMode, Offset

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    ItemT = TypeVar("ItemT", default=Any)
else:
    from typing import TypeVar

    ItemT = TypeVar("ItemT")

__all__ = [
    "AsyncOnError",
    "CallOptions",
    "CheckpointLike",
    "FollowingBase",
    "HandleBase",
    "ItemT",
    "OnError",
    "OnGone",
    "ResponseBase",
    "Saver",
    "check_seconds",
    "log_gone",
    "log_long_wait",
    "log_refusal",
    "make_options",
    "make_reader",
    "random",
]

CheckpointLike = CheckpointStore | str | PathLike[str]
"""Where a read's position is kept: a store, or the path of a file (see `FileCheckpoint`)."""

OnError = Callable[[DurableStreamError], Mapping[str, Any] | None]
"""Called with an error that would end a read. None lets it end; a mapping, perhaps with fresh ``headers`` or
``params``, goes on from the same position. Also called with a refusal whose ``retry_after`` asks for more than a
minute: None waits as asked, a mapping goes on now, and an exception ends the read."""

OnGone = Literal["raise", "earliest"] | Callable[[RetentionGoneError], object]
"""What becomes of a read whose position is before what the stream retains. "raise" ends it; "earliest" logs a warning
and goes on from where the stream begins now; so does a callable, which is given the error, and may raise it."""

AsyncOnError = Callable[[DurableStreamError], Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None]
"""As OnError, for async calls: it may be async."""

random = _random.random
_log = logging.getLogger("durable_streams")

_SAVE_EVERY = 1.0  # seconds: each save waits for the disk


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How requests are made: everything that the caller, and not the protocol, decides.

    Args:
        transport: None for the one that the process shares.
        headers: Headers by name; values may be callables.
        params: Query parameters by name; values may be callables.
        timeout: Seconds of silence before a read is given up; None for the defaults.
        retry: How failures are retried; None for the defaults.
        trickle: Seconds that an answer may trickle.

    Raises:
        ValueError: A header is not for the caller to set, even if a callable gives its value later.
    """

    transport: Any = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    retry: RetryPolicy | None = None
    trickle: float = TRICKLE_TIMEOUT

    def __post_init__(self) -> None:
        check_callers_headers(self.headers)

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy of one-shot operations."""
        return self.retry if self.retry is not None else DEFAULT_POLICY

    def changed(self, headers: Mapping[str, Any] | None, params: Mapping[str, Any] | None) -> CallOptions:
        """Return the same call with more headers and parameters."""
        if not headers and not params:
            return self
        return replace(
            self, headers={**self.headers, **(headers or {})}, params={**self.params, **(params or {})}
        )


def check_seconds(name: str, value: float | None) -> None:
    """Raise ValueError for a time that is not a positive number of seconds; None is the default."""
    if value is not None and not value > 0:
        raise ValueError(
            f"{name} must be a positive number of seconds, or None for the default, not {value!r}."
        )


def make_options(
    transport: Any,
    headers: Mapping[str, Any] | None,
    params: Mapping[str, Any] | None,
    timeout: TimeoutLike | None,
    retry: RetryPolicy | None,
    *,
    trickle_timeout: float | None = None,
) -> CallOptions:
    """Return the call for these arguments; raises ValueError for one that makes no sense."""
    silence = as_timeout(timeout)
    check_seconds("trickle_timeout", trickle_timeout)
    trickle = TRICKLE_TIMEOUT if trickle_timeout is None else trickle_timeout
    return CallOptions(transport, dict(headers or {}), dict(params or {}), silence, retry, trickle)


def make_reader(
    url: str,
    saver: Saver,
    options: CallOptions,
    *,
    offset: Offset | None,
    live: LiveMode,
    cursor: str | None,
    etag: str | None,
) -> Reader:
    """Return the machine behind a response; a saved position goes before ``offset``."""
    return Reader(
        check_url(url),
        random=random,
        clock=time.monotonic,
        offset=saver.load() or (h.OFFSET_START if offset is None else offset),
        live=live,
        cursor=cursor,
        etag=etag,
        policy=options.retry,
        trickle=options.trickle,
    )


def log_long_wait(error: DurableStreamError, seconds: float) -> None:
    """Log that a read pauses for this many seconds because the server asks for it."""
    _log.warning("%s The next request is in %.0f seconds, as the server asks.", error.message, seconds)


def log_gone(error: RetentionGoneError) -> None:
    """Log that a read passes over data that the stream has given up."""
    _log.warning(
        "%s The read goes on from %s; what was before it is lost to it.", error.message, error.earliest
    )


def log_refusal(request: Request, response: Response) -> None:
    """Log an answer that asks for a long pause."""
    seconds = parse_retry_after(response.headers) if response.status >= 400 else None
    if seconds is not None and seconds > LONG_WAIT:
        _log.warning(
            "%s %s: the server answers %d and asks for a pause of %.0f seconds.",
            request.method,
            without_query(request.url),
            response.status,
            seconds,
        )


class Saver:
    """Saves the position that the consumer has passed to a store, if any: at least once, at most every second."""

    def __init__(self, checkpoint: CheckpointLike | None) -> None:
        self._store = None if checkpoint is None else as_store(checkpoint)
        self._passed: Offset | None = None
        self._next_save = 0.0

    def load(self) -> Offset | None:
        """Return the saved position; None where there is none."""
        return None if self._store is None else self._store.load()

    def passed(self, offset: Offset) -> bool:
        """Note that the consumer is done with everything before ``offset``; whether it is time to `save` it."""
        if self._store is None:
            return False
        self._passed = offset
        return time.monotonic() >= self._next_save

    @property
    def pending(self) -> bool:
        """Whether a position was noted that is not saved."""
        return self._passed is not None

    def save(self) -> None:
        """Save the position that was noted last."""
        offset, self._passed = self._passed, None
        if offset is not None and self._store is not None:
            self._store.save(offset)
            self._next_save = time.monotonic() + _SAVE_EVERY


class HandleBase:
    """The state of a handle of one stream."""

    def __init__(
        self,
        url: str,
        content_type: str | None,
        options: CallOptions,
        batching: bool,
        *,
        retry_appends: bool,
        on_error: Any,
    ) -> None:
        self._url = check_url(url)
        self._content_type = content_type
        self._options = options
        self._batching = batching
        self._retry_appends = retry_appends
        self._on_error = on_error
        self._created: bool | None = None

    @property
    def url(self) -> str:
        """The stream's URL, shown without credentials; `stream` and the handles open it with them all the same."""
        return shown_url(self._url)

    @property
    def content_type(self) -> str | None:
        """The stream's content type, None until it is known."""
        return self._content_type

    @property
    def created(self) -> bool | None:
        """Whether this handle's ``create``, or the `fork` that gave it, made the stream.

        False: the stream was there already with the same configuration, and a ``body`` was not stored. None: this
        handle created nothing, or the answer of an earlier attempt was lost, which may have made the stream.
        """
        return self._created

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments for another handle with the same options."""
        options = self._options
        return {
            "headers": options.headers,
            "params": options.params,
            "client": options.transport,
            "timeout": options.timeout,
            "trickle_timeout": options.trickle,
            "retry": options.retry,
            "batching": self._batching,
            "retry_appends": self._retry_appends,
            "on_error": self._on_error,
        }


class _AsksTheCaller:
    """What asks the caller about an error, and goes on with other options."""

    _options: CallOptions

    def _goes_on(self, answer: Mapping[str, Any] | None) -> bool:
        """Take what ``on_error`` returned; return whether to go on."""
        if answer is None:
            return False
        self._options = self._options.changed(answer.get("headers"), answer.get("params"))
        return True


class FollowingBase(_AsksTheCaller):
    """The state of what follows many streams."""

    def __init__(self, follower: Follower, options: CallOptions, on_error: Any) -> None:
        self._follower = follower
        self._options = options
        self._on_error = on_error
        self._machine = follower.run()

    @property
    def offsets(self) -> dict[str, Offset]:
        """Where each stream is, by its path: behind what was handed over. To be kept, and passed to a later call."""
        return dict(self._follower.offsets)


class ResponseBase(_AsksTheCaller, Generic[ItemT]):
    """The state of a read: its position, and its last answer.

    The type argument is for annotations that users write; nothing here depends on it.
    """

    _consumed_by: str | None = None
    _waiting: bool  # of the performer

    def __init__(
        self,
        reader: Reader,
        options: CallOptions,
        saver: Saver,
        *,
        on_error: Any = None,
        on_invalid: OnInvalid = "raise",
        on_gone: Any = "raise",
        idle_timeout: float | None = None,
    ) -> None:
        check_on_invalid(on_invalid)
        if on_gone not in ("raise", "earliest") and not callable(on_gone):
            raise ValueError(f"on_gone must be 'raise', 'earliest' or a callable, not {on_gone!r}.")
        self._on_gone = on_gone
        check_seconds("idle_timeout", idle_timeout)
        self._idle_timeout = idle_timeout
        self._timed_out = False
        self._silent_at = math.inf
        self._reader = reader
        self._on_invalid = on_invalid
        self._invalid = 0
        self._options = options
        self._saver = saver
        self._on_error = on_error
        self._machine: Machine[None] = reader.run()
        self._effect: Effect | None = None
        self._entered = self._collected = False
        self._status_text = ""
        self._interrupted = False
        self._lost: BaseException | None = None

    @property
    def url(self) -> str:
        """The stream's URL, as a handle shows it."""
        return shown_url(self._reader.url)

    @property
    def content_type(self) -> str | None:
        """The stream's content type, None while only event streams were read (they do not name it)."""
        return self._reader.content_type

    @property
    def live(self) -> LiveMode:
        """The mode that was asked for."""
        return self._reader.live

    @property
    def offset(self) -> Offset:
        """The position right after the data that was handed over: safe to store, and to start from again."""
        return self._reader.offset

    @property
    def start_offset(self) -> Offset:
        """The offset that the read began with."""
        return self._reader.start_offset

    @property
    def cursor(self) -> str | None:
        """The cursor to pass, together with `offset`, to a later live read (protocol section 5)."""
        return self._reader.cursor

    @property
    def etag(self) -> str | None:
        """The tag of the first answer: pass it as ``etag`` to a later read from the same offset."""
        return self._reader.etag

    @property
    def up_to_date(self) -> bool:
        """Whether the data that was handed over reaches the tail, as the server saw it."""
        return self._reader.up_to_date

    @property
    def stream_closed(self) -> bool:
        """Whether the stream is closed for good and all of it was handed over."""
        return self._reader.stream_closed

    @property
    def status(self) -> int | None:
        """The HTTP status of the last answer."""
        return self._reader.status

    @property
    def status_text(self) -> str:
        """The reason phrase of the last answer."""
        if self._status_text or self.status is None:
            return self._status_text
        return HTTPStatus(self.status).phrase if self.status in HTTPStatus._value2member_map_ else ""

    @property
    def ok(self) -> bool:
        """Whether the last answer was a success; 304, nothing new, counts as one."""
        return self.status is not None and (200 <= self.status < 300 or self.status == 304)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the last answer, with lower-case names."""
        return self._reader.headers

    @property
    def timed_out(self) -> bool:
        """Whether ``idle_timeout`` ended the read: the stream is not closed, and more may come."""
        return self._timed_out

    def _note_data(self) -> None:
        """Begin to count the seconds without data."""
        if self._idle_timeout is not None:
            self._silent_at = time.monotonic() + self._idle_timeout

    def _check_complete(self) -> None:
        """Raise FetchError where ``idle_timeout`` ended a read whose whole result was asked for."""
        if self._timed_out:
            raise FetchError(
                f"No data came from {self.url} for {self._idle_timeout:g} seconds, before the tail was reached.",
                url=self.url,
                code="TIMEOUT",
            )

    # -- interruptions: see `pieces`

    @property
    def closed(self) -> bool:
        """Whether the read was ended and its connection released."""
        raise NotImplementedError

    @property
    def interrupted(self) -> bool:
        """Whether a cancellation, or a signal handler that raised, broke off the last wait; the next one goes on.

        Raises:
            DurableStreamError: Code ``INTERRUPTED``: it cannot go on, since it did not wait.
        """
        if self._lost is not None:
            lost, self._lost = self._lost, None
            raise DurableStreamError(
                f"This read was ended by {lost!r}; call stream() again, with offset=response.offset, to go on.",
                code="INTERRUPTED",
                url=self.url,
            )
        return self._interrupted

    def _outlives(self, error: BaseException) -> bool:
        """Whether the read can go on although this broke off a wait: its machine is where it was."""
        effect = self._effect
        own = isinstance(error, DurableStreamError) or (
            isinstance(effect, Call) and isinstance(error, Exception)
        )
        if own or self.closed:
            return False
        if not self._waiting:
            self._lost = error
            return False
        self._silent_at -= (
            time.monotonic()
        )  # until the next wait begins: what is between the two is no silence
        return True

    def _go_on(self) -> None:
        self._interrupted = False
        self._silent_at += time.monotonic()

    @property
    def invalid(self) -> int:
        """How many messages were left out: not JSON, or not what ``decode`` asked for (``on_invalid``)."""
        return self._invalid

    @property
    def _refused(self) -> Refused | None:
        """The function for messages that are left out; None where the first one ends the read."""
        return None if self._on_invalid == "raise" else self._refuse

    def _refuse(self, raw: bytes, error: StreamParseError) -> object:
        self._invalid += 1
        return self._on_invalid(raw, error) if callable(self._on_invalid) else None

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Collect a whole result inside: if that fails, nothing was handed over, and the position stays."""
        place = self._reader.place
        try:
            yield
        except BaseException:
            self._reader.commit(place)
            raise
        self._collected = True
        if not self._entered:
            self._leave(None)  # no block was entered whose end would count

    def _leave(self, error: BaseException | None) -> None:
        """Note the end of the caller's block: if it ended well, the collected data was used, too."""
        if error is None and self._collected:
            self._saver.passed(self.offset)

    def _consume(self, method: str) -> None:
        if self._consumed_by is not None:
            raise StreamConsumedError(
                f"This response was consumed already, by {self._consumed_by}(); call stream() again, with "
                "offset=response.offset to go on.",
                method,
                self._consumed_by,
                url=self.url,
            )
        self._consumed_by = method

    def _is_document(self) -> bool:
        """Whether all data is one JSON text; False for a stream of messages, or where the type is not known."""
        known = self.content_type
        if (
            known is not None
            and not h.is_json(known)
            and (h.is_text(known) or h.media_type(known).endswith("+json"))
        ):
            return True
        self._require_json()
        return False

    def _require_json(self) -> None:
        known = self.content_type
        if known is not None and not h.is_json(known):
            raise DurableStreamError(
                f"The stream at {self.url} holds {known}, not JSON; read it as bytes or text.",
                code="BAD_CONTENT_TYPE",
                url=self.url,
            )
