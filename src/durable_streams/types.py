"""Results and type aliases of the public surface. No behaviour lives here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "AppendResult",
    "AsyncHeadersLike",
    "AsyncParamsLike",
    "CloseResult",
    "HeadResult",
    "HeadersLike",
    "IdempotentAppendResult",
    "LiveMode",
    "Offset",
    "ParamsLike",
    "StreamEvent",
]

Offset = str
"""A position in a stream: opaque, sortable, minted by the server. ``"-1"`` is the start, ``"now"`` the tail."""

LiveMode = Literal[False, True, "long-poll", "sse"]
"""``False``: catch up and stop. ``True``: catch up, then follow, choosing by content type: over SSE where that is
lossless (JSON, and what travels as base64), else by long-polling (``text/*``, and types that are not known). Else the
named mode, from the start; ``"sse"`` alters text: each CR and CRLF arrives as LF, and bytes that are not UTF-8 arrive
as U+FFFD."""

HeadersLike = Mapping[str, str | Callable[[], str]]
"""Header values, or callables that give one for each attempt (a token that expires, a request id)."""

ParamsLike = Mapping[str, str | Callable[[], str]]
"""Query parameters, or callables that give one for each attempt."""

AsyncHeadersLike = Mapping[str, str | Callable[[], str | Awaitable[str]]]
"""As HeadersLike, for async calls: the callables may be async."""

AsyncParamsLike = Mapping[str, str | Callable[[], str | Awaitable[str]]]
"""As ParamsLike, for async calls: the callables may be async."""


@dataclass(frozen=True, slots=True)
class AppendResult:
    """A durable append. ``next_offset`` is the position right after it (protocol section 4)."""

    next_offset: Offset


@dataclass(frozen=True, slots=True)
class CloseResult:
    """A closed stream. ``final_offset`` is where it ends for ever (protocol section 4)."""

    final_offset: Offset


@dataclass(frozen=True, slots=True)
class IdempotentAppendResult:
    """An append by an idempotent producer; ``duplicate`` when the server already had it."""

    offset: Offset
    duplicate: bool


@dataclass(frozen=True, slots=True)
class HeadResult:
    """A stream's metadata (protocol section 1). ``ttl_seconds`` in seconds, ``expires_at`` as RFC 3339 text.

    ``created``, of a creation: True where it made the stream, False where the stream was there already, so that a
    ``body`` was not stored; None of a `head`, and where the answer of an earlier attempt was lost.
    """

    exists: bool
    content_type: str | None
    offset: Offset | None
    etag: str | None
    cache_control: str | None
    stream_closed: bool
    ttl_seconds: int | None
    expires_at: str | None
    created: bool | None = None


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """A batch as the server delivered it, with the position right after it (protocol section 5)."""

    data: Any
    next_offset: Offset
    up_to_date: bool
    cursor: str | None
