"""Results and type aliases of the public surface. No behaviour lives here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal

__all__ = [
    "AppendResult",
    "AsyncHeadersLike",
    "AsyncParamsLike",
    "CloseResult",
    "Followed",
    "HeadResult",
    "HeadersLike",
    "IdempotentAppendResult",
    "LiveMode",
    "Offset",
    "ParamsLike",
    "RetentionResult",
    "StreamEvent",
    "StreamInfo",
]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from durable_streams.errors import DurableStreamError

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")

Offset = str
"""A position in a stream: opaque, sortable, minted by the server. ``"-1"`` is the start, ``"now"`` the tail."""

LiveMode = Literal[False, True, "auto", "long-poll", "sse"]
"""``False``: catch up and stop. ``True``, or ``"auto"``: catch up, then follow, choosing by content type: over SSE
where that is lossless (JSON, and what travels as base64), else by long-polling (``text/*``, and types that are not
known). ``"long-poll"`` and ``"sse"``: that mode, from the start; ``"sse"`` alters text: each CR and CRLF arrives as LF,
and bytes that are not UTF-8 arrive as U+FFFD."""

_Value = str | float | None

HeadersLike = Mapping[str, _Value | Callable[[], _Value]]
"""Header values, or callables that give one for each attempt (a token that expires, a request id). Numbers are written
as text; what is None is not sent."""

ParamsLike = Mapping[str, _Value | Callable[[], _Value]]
"""Query parameters, in the same form."""

AsyncHeadersLike = Mapping[str, _Value | Callable[[], _Value | Awaitable[_Value]]]
"""As HeadersLike, for async calls: the callables may be async."""

AsyncParamsLike = Mapping[str, _Value | Callable[[], _Value | Awaitable[_Value]]]
"""As ParamsLike, for async calls: the callables may be async."""


@dataclass(frozen=True, slots=True)
class AppendResult:
    """A durable append (protocol section 4).

    Attributes:
        next_offset: The position right after it.
    """

    next_offset: Offset


@dataclass(frozen=True, slots=True)
class CloseResult:
    """A closed stream (protocol section 4).

    Attributes:
        final_offset: The position at which the stream ends forever.
    """

    final_offset: Offset


@dataclass(frozen=True, slots=True)
class IdempotentAppendResult:
    """An append by an idempotent producer (protocol section 4).

    Attributes:
        offset: The position right after it.
        duplicate: Whether the server had it already.
    """

    offset: Offset
    duplicate: bool


@dataclass(frozen=True, slots=True)
class HeadResult:
    """A stream's metadata (protocol section 1).

    Attributes:
        exists: Always True: for a stream that does not exist, StreamNotFoundError is raised.
        content_type: The content type.
        offset: The position of the tail.
        etag: The tag of the present content.
        cache_control: How the answer may be cached.
        stream_closed: Whether the stream is closed for good.
        ttl_seconds: Lifetime in seconds after the last read or write; None for no limit.
        expires_at: When the stream expires, as RFC 3339 text; None for never.
        created: Of a creation: True where it made the stream; False where the stream was there already, so that a
            ``body`` was not stored. None of a `head`, and where the answer of an earlier attempt was lost.
        earliest_offset: Of a `head`: where the stream begins now; None where the server does not say.
        retention_max_age: How long the stream keeps data, in seconds; None for no limit.
        retention_max_bytes: How many bytes the stream keeps; None for no limit.
    """

    exists: bool
    content_type: str | None = None
    offset: Offset | None = None
    etag: str | None = None
    cache_control: str | None = None
    stream_closed: bool = False
    ttl_seconds: int | None = None
    expires_at: str | None = None
    created: bool | None = None
    earliest_offset: Offset | None = None
    retention_max_age: int | None = None
    retention_max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RetentionResult:
    """What a stream keeps, after it was changed.

    Attributes:
        earliest_offset: Where the stream begins now.
        next_offset: The position of the tail.
        max_age: How long it keeps data, in seconds; None for no limit.
        max_bytes: How many bytes it keeps; None for no limit.
    """

    earliest_offset: Offset
    next_offset: Offset
    max_age: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StreamEvent(Generic[T]):
    """A batch as the server delivered it (protocol section 5).

    Attributes:
        data: The data, decoded as the mode of `iter_events` says.
        next_offset: The position right after it.
        up_to_date: Whether it reaches the tail as the server saw it.
        cursor: The cursor to pass with a later live read, if the server gave one.
    """

    data: T
    next_offset: Offset
    up_to_date: bool
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Followed:
    """News of one of the streams.

    Attributes:
        stream: The stream, as it was named.
        data: The data as bytes, of a JSON stream one array of messages; ``b""`` where the news is something else.
        next_offset: The position behind the data; None of a stream that was never found.
        closed: Whether the stream is closed for good, and all of it was handed over.
        error: Why nothing more comes of this stream: it is not there, was deleted, has given up the data at the
            position (RetentionGoneError, with its ``earliest``), or may not be read. None where it goes on, or is
            closed.
    """

    stream: str
    data: bytes
    next_offset: Offset | None
    closed: bool = False
    error: DurableStreamError | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of the stream."""
        return self.closed or self.error is not None


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a listing says of a stream: `list_streams`.

    Attributes:
        path: Its path below the stream root.
        content_type: The content type.
        tail: The offset of its end.
        earliest: The offset of the first byte that can be read.
        bytes: How many bytes can be read, those that a fork inherits included.
        closed: Whether the stream is closed for good.
        created: When it was created, as RFC 3339 text; None of a stream that is older than this record.
        ttl_seconds: Lifetime in seconds after the last read or write; None for no limit.
        expires_at: When the stream expires, as RFC 3339 text; None for never.
        forked_from: The path of the stream that it was forked from; None of one that is no fork.
        forks: How many streams were forked from it and still exist.
        records: How many appends with data were made to it since it was created. A batch of JSON messages is one, what
            a fork inherits is none, what was trimmed counts. None where the server does not know.
        last_append: When the last of them came, as RFC 3339 text; None before the first, or where the server does not
            know.
        retention_max_age: How long the stream keeps data, in seconds; None for no limit.
        retention_max_bytes: How many bytes the stream keeps; None for no limit.
        records_per_second: How many of these appends came a second during the last minute; None where the server does
            not say, as in a list of many.
    """

    path: str
    content_type: str
    tail: Offset
    earliest: Offset
    bytes: int
    closed: bool = False
    created: str | None = None
    ttl_seconds: int | None = None
    expires_at: str | None = None
    forked_from: str | None = None
    forks: int = 0
    records: int | None = None
    last_append: str | None = None
    retention_max_age: int | None = None
    retention_max_bytes: int | None = None
    records_per_second: float | None = None
