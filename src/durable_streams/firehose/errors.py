"""The error that ends an attempt on a feed: its kind, and whether a retry may succeed.

Invariants: every failure of an exchange becomes exactly one StreamError, which keeps status, headers, body and
cause; a server's refusal is judged by its status alone, except that a 429 about connections is no rate limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from enum import Enum
from typing import Any

import msgspec

from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol.request import Response, parse_retry_after, server_date
from durable_streams.protocol.retry import is_retryable_status

__all__ = ["LONGEST_WAIT", "StreamError", "StreamErrorType", "from_failure", "from_payload", "from_refusal"]


class StreamErrorType(Enum):
    """Kinds of errors, for decisions about them."""

    CONNECTION_ERROR = "connection_error"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    RATE_LIMITED = "rate_limited"
    STREAM_INTERRUPTED = "stream_interrupted"
    AUTHENTICATION_ERROR = "authentication_error"
    CLIENT_ERROR = "client_error"
    FATAL_ERROR = "fatal_error"


_RETRYABLE = frozenset(
    {
        StreamErrorType.CONNECTION_ERROR,
        StreamErrorType.TIMEOUT,
        StreamErrorType.SERVER_ERROR,
        StreamErrorType.RATE_LIMITED,
        StreamErrorType.STREAM_INTERRUPTED,
    }
)


def _type_of(given: StreamErrorType | str) -> StreamErrorType:
    """Return the type for a value or a name (``"timeout"``, ``"TIMEOUT"``); one that is unknown is fatal."""
    if isinstance(given, StreamErrorType):
        return given
    try:
        return StreamErrorType(str(given).lower())
    except ValueError:
        return StreamErrorType.FATAL_ERROR


class StreamError(DurableStreamError):
    """An error of a feed. Its type may be given by its value, such as ``"timeout"``.

    Attributes:
        error_type: The kind of the error.
        is_retryable: Whether a retry may succeed.
        original_exception: The exception behind it, None without one.
        status_code: The answer's HTTP status, None without an answer.
        headers: The answer's headers, names in lower case.
        response_body: The answer's body as text, None without one.
        retry_after: The seconds that the server asks to wait, None where it does not ask.
    """

    def __init__(  # noqa: PLR0917 - the order that users know
        self,
        message: str,
        error_type: StreamErrorType | str = StreamErrorType.FATAL_ERROR,
        original_exception: BaseException | None = None,
        status_code: int | None = None,
        response_body: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        retryable: bool | None = None,
        **context: Any,
    ) -> None:
        error_type = _type_of(error_type)
        context.setdefault("code", error_type.name)
        super().__init__(message, status=status_code, headers=headers, **context)
        self.error_type = error_type
        self.original_exception = original_exception
        self.response_body = response_body
        self._retryable = retryable

    @property
    def status_code(self) -> int | None:
        """The answer's HTTP status, None without an answer."""
        return self.status

    @property
    def is_retryable(self) -> bool:
        """Whether another attempt may succeed."""
        return self.error_type in _RETRYABLE if self._retryable is None else self._retryable

    def as_final(self, message: str) -> StreamError:
        """Return the fatal error that ends the feed because of this one: all it knows, with another message."""
        return StreamError(
            message,
            StreamErrorType.FATAL_ERROR,
            self.original_exception or self,
            self.status_code,
            self.response_body,
            self.headers,
            code=self.code,
            details=self.details,
            url=self.url,
            retry_after=self.retry_after,
        )


def from_failure(error: DurableStreamError, *, connected: bool) -> StreamError:
    """Return what a failed exchange means. ``connected``: its answer had begun."""
    original = error.original if isinstance(error, FetchError) else None
    context: dict[str, Any] = {
        "original_exception": original or error,
        "status_code": error.status,
        "headers": error.headers,
        "url": error.url,
    }
    return StreamError(error.message, _kind_of_failure(error, original, connected=connected), **context)


def _kind_of_failure(
    error: DurableStreamError, original: BaseException | None, *, connected: bool
) -> StreamErrorType:
    if not isinstance(error, FetchError) or error.code == "TLS" or _is_about_a_proxy(original):
        return StreamErrorType.FATAL_ERROR
    if error.code == "TIMEOUT":
        return StreamErrorType.TIMEOUT
    if connected:
        return StreamErrorType.STREAM_INTERRUPTED
    if error.code == "NETWORK" and not error.may_have_been_sent:
        return StreamErrorType.FATAL_ERROR  # a request that no library could send
    return StreamErrorType.CONNECTION_ERROR


def _is_about_a_proxy(error: BaseException | None) -> bool:
    # By name: every library has an exception of its own for a proxy that refuses, and none is imported here.
    while error is not None:
        if any("Proxy" in kind.__name__ for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


def from_refusal(response: Response, url: str, now: float, original: Exception | None = None) -> StreamError:
    """Return what an answer other than 2xx means.

    ``now``: seconds since the epoch. ``original``: the error that the caller's HTTP library has for the answer.
    """
    status, headers = response.status, response.headers
    problem = _problem(response.body)
    kind = _kind_of_status(status, problem)
    retryable = kind in _RETRYABLE and (
        is_retryable_status(status) or kind is not StreamErrorType.SERVER_ERROR
    )
    said = _sentence(problem) or _MEANINGS.get(status) or _MEANINGS.get(status // 100, "that is not a stream")
    if 300 <= status < 400 and "location" in headers:
        said = f"the feed is at {headers['location']}; use that URL"
    return StreamError(
        f"The feed answered {status}: {said.rstrip('.')}.",
        kind,
        original,
        status,
        response.body.decode("utf-8", "replace"),
        dict(headers),
        retryable=retryable,
        details=problem,
        url=url,
        retry_after=_asked_wait(kind, headers, now),
    )


_MEANINGS = {
    204: "it has nothing more to send, and asks not to be reconnected to",
    401: "it wants credentials; check the Authorization header",
    403: "it refused these credentials",
    404: "there is nothing at this URL",
    408: "it did not receive the request in time",
    429: "it asks for fewer requests",
    3: "it redirects; use the URL that it names",
    4: "it refused the request",
    5: "the server failed",
}


def _kind_of_status(status: int, problem: Any) -> StreamErrorType:
    if status in {401, 403}:
        return StreamErrorType.AUTHENTICATION_ERROR
    if status == 408:
        return StreamErrorType.TIMEOUT
    if status == 429:
        # Waiting for the end of a rate window would not free a connection.
        taken = _is_connection_limit(problem)
        return StreamErrorType.CONNECTION_ERROR if taken else StreamErrorType.RATE_LIMITED
    if status >= 500 or status == 425:
        return StreamErrorType.SERVER_ERROR
    return StreamErrorType.CLIENT_ERROR


def _is_connection_limit(problem: Any) -> bool:
    if not isinstance(problem, dict):
        return False
    return "connection_issue" in problem or problem.get("title") == "ConnectionException"


LONGEST_WAIT = 3600.0
"""Seconds: a server cannot park a client for longer than an hour."""


def _asked_wait(kind: StreamErrorType, headers: Mapping[str, str], now: float) -> float | None:
    # By the server's own clock where it says its time: ours may be wrong.
    served = server_date(headers) or datetime.fromtimestamp(now, timezone.utc)
    waits = [parse_retry_after(headers, served)]
    reset = headers.get("x-rate-limit-reset", "").strip()
    if kind in {StreamErrorType.RATE_LIMITED, StreamErrorType.SERVER_ERROR} and reset.isdecimal():
        waits.append(float(reset[:20]) - served.timestamp())
    asked = [min(wait, LONGEST_WAIT) for wait in waits if wait is not None and wait > 0]
    return max(asked, default=None)


def from_payload(payload: dict[str, Any], line: bytes, url: str) -> StreamError:
    """Return the error that a feed reports inside its stream; the connection is given up."""
    errors = payload.get("errors")
    problem = errors[0] if isinstance(errors, list) and errors else payload
    said = _sentence(problem) or "without a reason"
    return StreamError(
        f"The feed reported an error: {said.rstrip('.')}.",
        StreamErrorType.STREAM_INTERRUPTED,
        None,
        None,
        line.decode("utf-8", "replace"),
        details=payload,
        url=url,
    )


def _problem(body: bytes) -> Any:
    try:
        value = msgspec.json.decode(body) if body else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value


def _sentence(problem: Any) -> str | None:
    """Return the server's explanation in one line, from a problem document (RFC 9457) or one like it."""
    if not isinstance(problem, dict):
        return None
    errors = problem.get("errors")
    nested = errors[0] if isinstance(errors, list) and errors else None
    for source in (problem, nested if isinstance(nested, dict) else {}):
        words = [source.get(name) for name in ("title", "detail", "message")]
        text = ": ".join(dict.fromkeys(word for word in words if isinstance(word, str) and word))
        if text:
            return " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())[:300]
    return None
