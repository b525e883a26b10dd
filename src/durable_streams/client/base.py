"""What the sync and the async facades share: how a call is made, and what a response knows. No I/O here.

Invariants: everything public about a position comes from the reader's committed state; decoding happens
before a commit, so that an exception in a user's decoder never moves the checkpoint past undelivered data.
"""

from __future__ import annotations

import codecs
import random as _random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal

from durable_streams.errors import DurableStreamError, StreamConsumedError, StreamParseError
from durable_streams.protocol import headers as h
from durable_streams.protocol.operations import decode_json
from durable_streams.protocol.reader import Batch, Reader
from durable_streams.protocol.request import check_url
from durable_streams.protocol.retry import DEFAULT_POLICY, RetryPolicy
from durable_streams.types import HeadersLike, LiveMode, Offset, ParamsLike, StreamEvent

__all__ = [
    "Call",
    "EventMode",
    "Events",
    "OnError",
    "ResponseBase",
    "TextPieces",
    "json_items",
    "make_call",
    "make_reader",
    "merge_bodies",
]

EventMode = Literal["auto", "json", "text", "bytes"]
"""What ``StreamEvent.data`` is: a list of JSON values, text, or bytes; ``auto`` goes by the content type."""

OnError = Callable[[DurableStreamError], Mapping[str, Any] | None]
"""Called with an error that would end a read. None lets it; a mapping, perhaps with fresh ``headers`` or ``params``,
goes on reading from where it was."""

random = _random.random


@dataclass(frozen=True, slots=True)
class Call:
    """How requests are made: everything of the caller's that is not the protocol's.

    ``timeout``: seconds of silence before a read is given up; None for the defaults.
    """

    client: Any = None
    headers: HeadersLike = field(default_factory=dict)
    params: ParamsLike = field(default_factory=dict)
    timeout: float | None = None
    retry: RetryPolicy | None = None

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy of one-shot operations."""
        return self.retry if self.retry is not None else DEFAULT_POLICY

    def changed(self, headers: HeadersLike | None, params: ParamsLike | None) -> Call:
        """Return the same call with more headers and parameters."""
        if not headers and not params:
            return self
        return replace(
            self, headers={**self.headers, **(headers or {})}, params={**self.params, **(params or {})}
        )


def make_call(
    client: Any,
    headers: HeadersLike | None,
    params: ParamsLike | None,
    timeout: float | None,
    retry: RetryPolicy | None,
) -> Call:
    """Return the call for these arguments; raises ValueError for a timeout that is no positive number."""
    if timeout is not None and not timeout > 0:
        raise ValueError(
            f"timeout must be a positive number of seconds, or None for the default, not {timeout!r}."
        )
    return Call(client, dict(headers or {}), dict(params or {}), timeout, retry)


def make_reader(
    url: str,
    offset: Offset | None,
    live: LiveMode,
    cursor: str | None,
    retry: RetryPolicy | None,
) -> Reader:
    """Return the machine behind a StreamResponse."""
    return Reader(
        check_url(url),
        random=random,
        offset=h.OFFSET_START if offset is None else offset,
        live=live,
        cursor=cursor,
        policy=retry,
    )


class ResponseBase:
    """What is known of a read: where it is, and how the last answer went."""

    _reader: Reader
    _consumed: bool
    _status_text: str

    @property
    def url(self) -> str:
        """The stream's URL."""
        return self._reader.url

    @property
    def content_type(self) -> str | None:
        """The stream's content type, None while only event streams were read (they do not tell)."""
        return self._reader.content_type

    @property
    def live(self) -> LiveMode:
        """The mode that was asked for."""
        return self._reader.live

    @property
    def offset(self) -> Offset:
        """The position right after what was handed over: safe to store, and to start from again."""
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
    def up_to_date(self) -> bool:
        """Whether what was handed over reaches the stream's tail as the server saw it."""
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
        """Whether the last answer was a success."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the last answer, with lower-case names."""
        return self._reader.headers

    def _consume(self) -> None:
        if self._consumed:
            raise StreamConsumedError(
                "This response was consumed already; call stream() again, with offset=response.offset to go on.",
                url=self.url,
            )
        self._consumed = True

    def _require_json(self) -> None:
        known = self.content_type
        if known is not None and not h.is_json(known):
            raise DurableStreamError(
                f"The stream at {self.url} holds {known}, not JSON; read it as bytes or text.",
                code="BAD_CONTENT_TYPE",
                url=self.url,
            )


def json_items(reader: Reader, batch: Batch) -> list[Any]:
    """Return the messages of a JSON batch; raises StreamParseError with the last safe offset."""
    if not batch.data:
        return []
    items = decode_json(batch.data, reader.offset)
    if not isinstance(items, list):
        raise StreamParseError(
            f"The JSON after offset {reader.offset} is not an array of messages.",
            offset=reader.offset,
            url=reader.url,
        )
    return items


class TextPieces:
    """Text out of batches: a character torn between two batches keeps the first one uncommitted."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def take(self, batch: Batch) -> str:
        """Return the batch's text, committing it unless it ends inside a character; raises StreamParseError."""
        try:
            text = self._decoder.decode(batch.data, final=batch.closed)
        except UnicodeDecodeError as error:
            raise StreamParseError(
                f"The data after offset {self._reader.offset} is not UTF-8: {error.reason}.",
                offset=self._reader.offset,
                url=self._reader.url,
            ) from None
        if not self._decoder.getstate()[0]:
            self._reader.commit(batch)
        return text


class Events:
    """Batches as StreamEvents, in the form that ``mode`` asks for."""

    def __init__(self, reader: Reader, mode: EventMode) -> None:
        if mode not in {"auto", "json", "text", "bytes"}:
            raise ValueError(f"mode must be 'auto', 'json', 'text' or 'bytes', not {mode!r}.")
        self._reader = reader
        self._mode = mode
        self._text = TextPieces(reader)

    def take(self, batch: Batch) -> StreamEvent | None:
        """Return the event of a batch and commit it; None for one that brings neither data nor news."""
        reader, mode = self._reader, self._mode
        news = (batch.up_to_date, batch.closed) != (reader.up_to_date, reader.stream_closed)
        if mode == "auto":
            content_type = reader.content_type or h.DEFAULT_CONTENT_TYPE
            mode = "json" if h.is_json(content_type) else "text" if h.is_text(content_type) else "bytes"
        data: Any = batch.data
        if mode == "text":
            data = self._text.take(batch)
        else:
            data = json_items(reader, batch) if mode == "json" else data
            reader.commit(batch)
        return StreamEvent(data, reader.offset, batch.up_to_date, batch.cursor) if data or news else None


def merge_bodies(bodies: list[bytes], content_type: str | None) -> bytes:
    """Return the bodies as one: joined, or for a JSON stream as one array of all messages."""
    if content_type is None or not h.is_json(content_type):
        return b"".join(bodies)
    inner = (body.strip()[1:-1].strip() for body in bodies)
    return b"[" + b",".join(part for part in inner if part) + b"]"
