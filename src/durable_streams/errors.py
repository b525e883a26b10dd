"""Every error a user of the client can meet. One root, so that one ``except`` is enough.

    DurableStreamError            message, status, code, details, url, headers, retry_after
     ├─ StreamNotFoundError       404
     ├─ StreamExistsError         409 on create
     ├─ StreamClosedError         409 with Stream-Closed; .final_offset
     ├─ SeqConflictError          409, Stream-Seq not greater than the last; .expected
     ├─ RetentionGoneError        410
     ├─ StaleEpochError           403 for a producer; .current_epoch
     ├─ SequenceGapError          409 for a producer; .expected_seq, .received_seq
     ├─ SSENotSupportedError      the server answers SSE with something else
     ├─ SSEEncodingError          an SSE payload that is not what its headers promise
     ├─ StreamConsumedError       a second consumption of a one-shot response
     ├─ StreamParseError          malformed JSON or control data; .offset
     └─ FetchError                network: connect, timeout, stall, reset, TLS; .original

``code`` is a stable upper-case string; messages derive from the attributes and may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "DurableStreamError",
    "FetchError",
    "RetentionGoneError",
    "SSEEncodingError",
    "SSENotSupportedError",
    "SeqConflictError",
    "SequenceGapError",
    "StaleEpochError",
    "StreamClosedError",
    "StreamConsumedError",
    "StreamExistsError",
    "StreamNotFoundError",
    "StreamParseError",
]


class DurableStreamError(Exception):
    """The root of all errors of this package.

    ``status`` is the HTTP status if there was an answer; ``code`` a stable upper-case string; ``details`` the
    decoded error body if it had one; ``headers`` the answer's headers with lower-case names; ``retry_after``
    the seconds the server asked to wait.
    """

    default_code = "ERROR"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        details: Any = None,
        url: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code or self.default_code
        self.details = details
        self.url = url
        self.headers: Mapping[str, str] = headers if headers is not None else {}
        self.retry_after = retry_after


class StreamNotFoundError(DurableStreamError):
    """404: no stream at this URL (or it expired)."""

    default_code = "NOT_FOUND"


class StreamExistsError(DurableStreamError):
    """409 on create: the stream exists with another configuration (protocol section 3)."""

    default_code = "CONFLICT_EXISTS"


class StreamClosedError(DurableStreamError):
    """409: the stream is closed for good. ``final_offset`` is where it ends (protocol section 4)."""

    default_code = "STREAM_CLOSED"

    def __init__(self, message: str, *, final_offset: str | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.final_offset = final_offset


class SeqConflictError(DurableStreamError):
    """409: ``Stream-Seq`` is not greater than the last one. ``expected`` is the server's hint, if it gave one."""

    default_code = "CONFLICT_SEQ"

    def __init__(self, message: str, *, expected: str | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.expected = expected


class RetentionGoneError(DurableStreamError):
    """410: the stream was deleted, or the offset is before what is retained."""

    default_code = "RETENTION_GONE"


class StaleEpochError(DurableStreamError):
    """403: another producer claimed a newer epoch. ``current_epoch`` is the server's (protocol section 4)."""

    default_code = "STALE_EPOCH"

    def __init__(self, message: str, *, current_epoch: int | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.current_epoch = current_epoch


class SequenceGapError(DurableStreamError):
    """409: a producer's sequence number skipped ahead (protocol section 4)."""

    default_code = "SEQUENCE_GAP"

    def __init__(
        self,
        message: str,
        *,
        expected_seq: int | None = None,
        received_seq: int | None = None,
        **context: Any,
    ) -> None:
        super().__init__(message, **context)
        self.expected_seq = expected_seq
        self.received_seq = received_seq


class SSENotSupportedError(DurableStreamError):
    """The server does not answer with an event stream."""

    default_code = "SSE_NOT_SUPPORTED"


class SSEEncodingError(DurableStreamError):
    """An event's payload does not decode as the response's headers promise."""

    default_code = "SSE_ENCODING"


class StreamConsumedError(DurableStreamError):
    """A response can be consumed once, and it was."""

    default_code = "CONSUMED"


class StreamParseError(DurableStreamError):
    """Malformed JSON or control data. ``offset`` is the last safe position before it."""

    default_code = "PARSE_ERROR"

    def __init__(self, message: str, *, offset: str | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.offset = offset


class FetchError(DurableStreamError):
    """The network failed: connect, timeout, stall, reset or TLS. ``original`` is the cause.

    ``may_have_been_sent`` is true when the server may have acted on the request before the failure, so that a
    plain append must not be repeated blindly.
    """

    default_code = "NETWORK"

    def __init__(
        self,
        message: str,
        *,
        original: BaseException | None = None,
        may_have_been_sent: bool = True,
        **context: Any,
    ) -> None:
        super().__init__(message, **context)
        self.original = original
        self.may_have_been_sent = may_have_been_sent
