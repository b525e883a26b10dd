"""The errors of the client. One root, so that one ``except`` is enough.

    DurableStreamError            message, status, code, details, url, headers, retry_after, may_have_been_sent
     ├─ StreamNotFoundError       404
     ├─ StreamExistsError         409 on create
     ├─ StreamClosedError         409 with Stream-Closed; .final_offset
     ├─ SeqConflictError          409, Stream-Seq not greater than the last; .expected
     ├─ OffsetConflictError       412, the tail is not the expected one; .expected_offset, .current_offset
     ├─ RetentionGoneError        410; .earliest
     ├─ StaleEpochError           403 for a producer; .current_epoch
     ├─ SequenceGapError          409 for a producer; .expected_seq, .received_seq
     ├─ SSENotSupportedError      the server answers SSE with something else; .content_type
     ├─ SSEEncodingError          an SSE payload that is not what its headers promise
     ├─ SSEBytesIterationError    never raised here, see its docstring
     ├─ SSEReadAllError           never raised here, see its docstring; .method
     ├─ StreamConsumedError       a second consumption of a one-shot response; .attempted_method, .consumed_by
     ├─ StreamParseError          malformed JSON or control data; .offset
     └─ FetchError                network: connect, timeout, stall, reset, TLS; .original, .body

``code`` is a stable upper-case string; messages derive from the attributes and may change. Constructors take what
those of the official client take, in the same order, so that a test double that raises them goes on working.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "DurableStreamError",
    "FetchError",
    "OffsetConflictError",
    "RetentionGoneError",
    "SSEBytesIterationError",
    "SSEEncodingError",
    "SSENotSupportedError",
    "SSEReadAllError",
    "SeqConflictError",
    "SequenceGapError",
    "StaleEpochError",
    "StreamClosedError",
    "StreamConsumedError",
    "StreamExistsError",
    "StreamNotFoundError",
    "StreamParseError",
    "hides_a_secret",
    "redacted",
]

_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#\"']*@")
_PARAMETER = re.compile(r"(?<=[?&;])([^\s=&;#?\"']+)=([^\s&;#\"']+)")
_SECRET = re.compile(
    r"token|secret|passw|pwd|passphrase|auth|api[-_.]?key|access[-_.]?key|private[-_.]?key|credential|signature"
    r"|session|jwt|bearer|^(?:key|sig|pass|pw|code|ticket|otp|pin)$",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Return a URL, or a text in which URLs stand, without credentials: they end up in logs.

    Args:
        text: The URL or text.

    Returns:
        The text without ``user:password@``, and with ``***`` for the value of each query parameter whose name looks
        like that of a secret.
    """
    text = text[:]  # plain text, whatever kind of it was given
    if "@" in text:
        text = _CREDENTIALS.sub("", text)
    return _PARAMETER.sub(_hidden, text) if "=" in text else text


def hides_a_secret(url: str) -> bool:
    """Whether a URL has been made to be shown: ``***`` is the value of a parameter that `redacted` hides."""
    return any(value == "***" and _SECRET.search(name) for name, value in _PARAMETER.findall(url))


def _hidden(found: re.Match[str]) -> str:
    return f"{found[1]}=***" if _SECRET.search(found[1]) else found[0]


class DurableStreamError(Exception):
    """The root of all errors of this package.

    Args:
        message: What happened, and the remedy where there is one.
        status: The HTTP status of the answer; None for the one that goes with the class, or where there was no
            answer.
        code: A stable upper-case string; None for the one that goes with the class.
        details: The decoded body of the answer, if it had one.
        url: The stream's URL.
        headers: The answer's headers, with lower-case names.
        retry_after: The seconds that the server asks to wait.
        may_have_been_sent: Of a write: whether the server may have stored it although it failed. None: not a write,
            or not known.
    """

    default_code = "ERROR"
    default_status: int | None = None

    def __init__(
        self,
        message: str,
        status: int | None = None,
        code: str | None = None,
        details: Any = None,
        *,
        url: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        may_have_been_sent: bool | None = None,
    ) -> None:
        message = redacted(message) if isinstance(message, str) else message
        super().__init__(message)
        self.message = message
        self.status = self.default_status if status is None else status
        self.code = code or self.default_code
        self.details = details
        self.url = redacted(url) if isinstance(url, str) else url
        self.headers: Mapping[str, str] = headers if headers is not None else {}
        self.retry_after = retry_after
        self.may_have_been_sent = may_have_been_sent

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling: constructors of subclasses take other arguments than the message."""
        return _restored, (type(self), self.message, vars(self))


def _restored(kind: type[DurableStreamError], message: str, attributes: dict[str, Any]) -> DurableStreamError:
    error = kind.__new__(kind, message)
    vars(error).update(attributes)
    return error


_NOT_FOUND = "There is no stream at this URL."
_EXISTS = "The stream exists with another configuration."
_CLOSED = "The stream is closed for good."
_NO_SSE = "The server does not answer with an event stream."
_CONSUMED = "This response was consumed already."


def _at(message: str, default: str, url: str | None) -> str:
    """Return the message; the default one with the URL, if that is known."""
    return f"{default[:-1]}: {url}" if url and message == default else message


class StreamNotFoundError(DurableStreamError):
    """404: no stream at this URL, or it expired.

    Args:
        message: What happened.
        url: The stream's URL.
        **context: As for DurableStreamError.
    """

    default_code = "NOT_FOUND"
    default_status = 404

    def __init__(self, message: str = _NOT_FOUND, url: str | None = None, **context: Any) -> None:
        super().__init__(_at(message, _NOT_FOUND, url), url=url, **context)


class StreamExistsError(DurableStreamError):
    """409 on create: the stream exists with another configuration (protocol section 3).

    Args:
        message: What happened.
        url: The stream's URL.
        **context: As for DurableStreamError.
    """

    default_code = "CONFLICT_EXISTS"
    default_status = 409

    def __init__(self, message: str = _EXISTS, url: str | None = None, **context: Any) -> None:
        super().__init__(_at(message, _EXISTS, url), url=url, **context)


class StreamClosedError(DurableStreamError):
    """409: the stream is closed for good (protocol section 4).

    Args:
        message: What happened.
        url: The stream's URL.
        final_offset: The offset at which the stream ends.
        **context: As for DurableStreamError.
    """

    default_code = "STREAM_CLOSED"
    default_status = 409

    def __init__(
        self,
        message: str = _CLOSED,
        url: str | None = None,
        final_offset: str | None = None,
        **context: Any,
    ) -> None:
        super().__init__(_at(message, _CLOSED, url), url=url, **context)
        self.final_offset = final_offset


class SeqConflictError(DurableStreamError):
    """409: ``Stream-Seq`` is not greater than the last one (protocol section 4).

    Args:
        message: What happened.
        details: The decoded body of the answer.
        expected: The server's hint at what it expects, if it gave one.
        **context: As for DurableStreamError.
    """

    default_code = "CONFLICT_SEQ"
    default_status = 409

    def __init__(
        self,
        message: str = "The sequence is not greater than the last one.",
        details: Any = None,
        *,
        expected: str | None = None,
        **context: Any,
    ) -> None:
        super().__init__(message, details=details, **context)
        self.expected = expected


class OffsetConflictError(DurableStreamError):
    """412: the stream does not end at the offset that an append expects.

    Args:
        expected_offset: The offset that the append expects, if it is known.
        current_offset: The offset at which the stream ends, if it is known.
        message: What happened; None for a sentence made of the offsets.
        **context: As for DurableStreamError.
    """

    default_code = "CONFLICT_OFFSET"
    default_status = 412

    def __init__(
        self,
        expected_offset: str | None = None,
        current_offset: str | None = None,
        *,
        message: str | None = None,
        **context: Any,
    ) -> None:
        stated = f"the stream ends at {current_offset}, not at {expected_offset}"
        super().__init__(message or f"The append was refused: {stated}.", **context)
        self.expected_offset = expected_offset
        self.current_offset = current_offset


class RetentionGoneError(DurableStreamError):
    """410: the stream was deleted, or the offset is before what is retained.

    Args:
        message: What happened.
        details: The decoded body of the answer.
        earliest: The offset where the stream begins now; None where there is no stream any more, or the server does
            not say.
        **context: As for DurableStreamError.
    """

    default_code = "RETENTION_GONE"
    default_status = 410

    def __init__(
        self,
        message: str = "The stream was deleted, or the offset is before what is retained.",
        details: Any = None,
        *,
        earliest: str | None = None,
        **context: Any,
    ) -> None:
        super().__init__(message, details=details, **context)
        self.earliest = earliest


class StaleEpochError(DurableStreamError):
    """403: another producer claimed a newer epoch (protocol section 4).

    Args:
        current_epoch: The epoch that the server holds, if it is known.
        message: What happened; None for a sentence made of the epoch.
        **context: As for DurableStreamError.
    """

    default_code = "STALE_EPOCH"
    default_status = 403

    def __init__(
        self, current_epoch: int | None = None, *, message: str | None = None, **context: Any
    ) -> None:
        now = "" if current_epoch is None else f", which is now {current_epoch}"
        super().__init__(message or f"Another producer claimed a newer epoch{now}.", **context)
        self.current_epoch = current_epoch


class SequenceGapError(DurableStreamError):
    """409: a producer's sequence number skipped ahead (protocol section 4).

    Args:
        expected_seq: The sequence number that the server expects, if it is known.
        received_seq: The sequence number that it received, if it is known.
        message: What happened; None for a sentence made of the numbers.
        **context: As for DurableStreamError.
    """

    default_code = "SEQUENCE_GAP"
    default_status = 409

    def __init__(
        self,
        expected_seq: int | None = None,
        received_seq: int | None = None,
        *,
        message: str | None = None,
        **context: Any,
    ) -> None:
        stated = f"the server expects {expected_seq}, not {received_seq}"
        super().__init__(message or f"A producer's sequence has a gap: {stated}.", **context)
        self.expected_seq = expected_seq
        self.received_seq = received_seq


class SSENotSupportedError(DurableStreamError):
    """The server does not answer with an event stream.

    Args:
        message: What happened.
        content_type: What it answers with, if that is known.
        **context: As for DurableStreamError.
    """

    default_code = "SSE_NOT_SUPPORTED"

    def __init__(self, message: str = _NO_SSE, content_type: str | None = None, **context: Any) -> None:
        if content_type and message == _NO_SSE:
            message = f"{_NO_SSE[:-1]}, but with {content_type}."
        super().__init__(message, **context)
        self.content_type = content_type


class SSEEncodingError(DurableStreamError):
    """An event's payload does not decode as the response's headers promise."""

    default_code = "SSE_ENCODING_ERROR"


class SSEBytesIterationError(DurableStreamError):
    """Never raised: event streams can be read as bytes here. For ``except`` clauses written for the official client.

    Args:
        message: What happened.
        **context: As for DurableStreamError.
    """

    default_code = "SSE_BYTES_NOT_SUPPORTED"

    def __init__(self, message: str = "An event stream cannot be read as bytes.", **context: Any) -> None:
        super().__init__(message, **context)


class SSEReadAllError(DurableStreamError):
    """Never raised: ``read_`` methods stop at the tail here. For ``except`` clauses written for the official client.

    Args:
        method: The name of the method that reads everything.
        **context: As for DurableStreamError.
    """

    default_code = "SSE_READ_ALL_NOT_SUPPORTED"

    def __init__(self, method: str, **context: Any) -> None:
        super().__init__(f"{method}() cannot read all of an event stream, which has no end.", **context)
        self.method = method


class StreamConsumedError(DurableStreamError):
    """A response can be consumed once, and it was.

    Args:
        message: What happened.
        attempted_method: The method that was called, if it is known.
        consumed_by: The method that consumed the response before, if it is known.
        **context: As for DurableStreamError.
    """

    default_code = "ALREADY_CONSUMED"

    def __init__(
        self,
        message: str = _CONSUMED,
        attempted_method: str | None = None,
        consumed_by: str | None = None,
        **context: Any,
    ) -> None:
        if message == _CONSUMED and attempted_method and consumed_by:
            message = (
                f"{attempted_method}() cannot be called: {consumed_by}() consumed this response already."
            )
        super().__init__(message, **context)
        self.attempted_method = attempted_method
        self.consumed_by = consumed_by


class StreamParseError(DurableStreamError):
    """Malformed JSON or control data.

    Args:
        message: What happened.
        offset: The last safe position before it.
        **context: As for DurableStreamError.
    """

    default_code = "PARSE_ERROR"

    def __init__(self, message: str, *, offset: str | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.offset = offset


class FetchError(DurableStreamError):
    """The network failed: connect, timeout, stall, reset or TLS.

    Args:
        message: What happened.
        status: The HTTP status of the answer, if there was one.
        url: The stream's URL.
        headers: The answer's headers, with lower-case names.
        body: The beginning of the answer's body, at most 64 KiB; None where no answer came.
        original: The cause.
        may_have_been_sent: Whether the server may have acted on the request before the failure, so that a plain append
            must not be repeated blindly.
        **context: As for DurableStreamError.
    """

    default_code = "NETWORK"
    may_have_been_sent: bool

    def __init__(
        self,
        message: str,
        status: int | None = None,
        url: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: str | bytes | None = None,
        *,
        original: BaseException | None = None,
        may_have_been_sent: bool = True,
        **context: Any,
    ) -> None:
        super().__init__(
            message, status, url=url, headers=headers, may_have_been_sent=may_have_been_sent, **context
        )
        self.body = body
        self.original = original
