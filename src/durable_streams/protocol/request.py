"""Requests and responses as plain values, and the one place where an answer becomes an error.

Invariants: a Request carries the protocol's headers and none of the caller's (credentials join it per
attempt, in `with_caller`); the URL's own query keys are kept, repeated ones too; query parameters go out in
alphabetical order (protocol section 5); header names are lower case; every error names the method and the
URL, without its query, where tokens may be.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus, unquote_to_bytes, urlsplit, urlunsplit

import msgspec

from durable_streams.errors import (
    DurableStreamError,
    OffsetConflictError,
    RetentionGoneError,
    SeqConflictError,
    SequenceGapError,
    StaleEpochError,
    StreamClosedError,
    StreamExistsError,
    StreamNotFoundError,
    hides_a_secret,
    redacted,
)
from durable_streams.protocol import headers as h
from durable_streams.protocol.jsonparser import MALFORMED

__all__ = [
    "OUTCOME_UNKNOWN",
    "SLOWEST",
    "TRICKLE_TIMEOUT",
    "Op",
    "Request",
    "Response",
    "ShownURL",
    "check_callers_headers",
    "check_header",
    "check_url",
    "content_length",
    "error_from",
    "not_executed",
    "parse_retry_after",
    "path_of",
    "server_date",
    "shown_url",
    "text_of",
    "with_caller",
    "with_credentials",
    "with_query",
    "without_query",
]

T = TypeVar("T")

OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
"""The code of a 503 whose server does not know itself whether the request was executed; without a Retry-After."""

ERROR_BODY_LIMIT = 64 * 1024
"""How many bytes of an error's body are read."""

TRICKLE_TIMEOUT = 30.0
"""Seconds that an answer may trickle: its head beyond the silence that is allowed, its body beyond its slowest pace."""

SLOWEST = 1024
"""Bytes a second: a request or an answer that is not live and goes on for longer than at this pace trickles."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_IN_HEADER = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_FRAMING = frozenset(
    {"content-length", "expect", "http2-settings", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that say where a message ends, or that the connection changes its protocol."""

_CONNECTION = frozenset({"connection", "host", "keep-alive", "proxy-connection"})
"""Headers that control the connection."""

_CREDENTIALS = re.compile(r"//[^/]*@")  # of a URL that may be malformed
_BAD_IN_URL = re.compile(r"[\x00-\x20\x7f]")
# HTTP libraries resolve these on their own: another URL than the one that errors and checkpoints name.
_DOT_SEGMENT = re.compile(r"/(?:\.|%2[Ee]){1,2}(?:/|\Z)")
_SERVER_CODE = re.compile(r"[A-Z][A-Z0-9_]{1,63}")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``idempotent``: sending it twice does no harm."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    idempotent: bool = True
    streaming: bool = False
    """The answer may be silent for long (a live read), so that the longer read timeout applies."""
    trickle: float = TRICKLE_TIMEOUT
    """Seconds by which the answer's head may be later than silence alone would make it."""
    dropped: frozenset[str] = frozenset()
    """Headers, in lower case, that are not sent, even if the client has them."""
    parts: tuple[str, Any] | None = None
    """The URL without the caller's parameters, and those: for a client whose own methods take both."""


@dataclass(frozen=True, slots=True)
class Response:
    """One whole answer; header names in lower case.

    ``after_doubt``: an earlier attempt, whose answer was lost, may have been executed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    after_doubt: bool = False


Op = Generator[Request, Response, T]
"""A one-shot operation: yields requests, is sent whole answers (or thrown a FetchError), returns its result.

`with_retry` makes a machine of it.
"""


class ShownURL(str):
    """A URL without its credentials, as text; given to this package, it opens what the whole URL does.

    So a program may log the ``url`` of a handle, and open the stream again with it. A copy in a pickle, a file or
    another text is without credentials.
    """

    __slots__ = ("whole",)

    whole: str

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)

    def __str__(self) -> str:
        return self[:]


def shown_url(url: str) -> str:
    """Return a URL as it may be shown: the same, if there are no credentials in it, else a `ShownURL`."""
    text = redacted(url)
    if text == url:
        return url
    shown = ShownURL(text)
    shown.whole = url
    return shown


def check_url(url: str) -> str:
    """Return the URL without its fragment; raises ValueError unless it is an absolute http or https URL."""
    if not isinstance(url, str):
        raise TypeError(f"A stream's URL must be text, not {type(url).__name__}.")
    if isinstance(url, ShownURL):
        url = url.whole
    elif "***" in url and hides_a_secret(url):
        raise ValueError(
            f"The URL {url!r} was made to be shown: *** stands for a secret. Open the stream with the whole URL."
        )
    shown = redacted(_CREDENTIALS.sub("//", url, count=1))
    if _BAD_IN_URL.search(url):
        raise ValueError(f"The URL {shown!r} contains a space or control character; percent-encode it.")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"The URL {shown!r} is not valid: {_invalid(error)}.") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError(
            f"The URL {shown!r} is not an absolute http:// or https:// URL; give the whole address."
        )
    if _DOT_SEGMENT.search(parts.path):
        raise ValueError(
            f"The URL {shown!r} has a segment . or .., which would lead to another stream; leave it out."
        )
    if not _is_host(host):
        raise ValueError(f"The URL {shown!r} has a host that is no valid name: {host!r}.")
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    return urlunsplit(
        (parts.scheme, parts.netloc, path, quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]"), "")
    )


def _invalid(error: ValueError) -> str:
    """Return why a URL is invalid, without the part of it that the standard library quotes."""
    text = str(error)
    return "its port is not a number from 0 to 65535" if text.startswith("Port") else text.partition(":")[0]


def _is_host(host: str) -> bool:
    """Whether a name can be looked up, or is an address: each label has 1 to 63 characters (RFC 1035)."""
    if host.isascii():
        return all(0 < len(label) <= 63 for label in host.removesuffix(".").split(".")) and len(host) <= 254
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def path_of(url: str) -> str:
    """Return the path of a stream's URL as it stands there: what ``Stream-Forked-From`` takes (section 6)."""
    return urlsplit(url).path or "/"


def with_query(url: str, params: Mapping[str, str]) -> str:
    """Return the URL with these parameters set, everything else in its query kept, in alphabetical order."""
    parts = urlsplit(url)
    pairs = [pair for pair in parts.query.split("&") if pair and pair.partition("=")[0] not in params]
    pairs += [f"{quote_plus(key)}={quote(value, safe='')}" for key, value in params.items()]
    # A stable sort by key: repeated keys stay in the order the caller gave them.
    pairs.sort(key=lambda pair: pair.partition("=")[0])
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "&".join(pairs), ""))


def text_of(value: Any) -> Any:
    """Return the value of a header or parameter as text where it is a number or a truth value; else as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else value


def check_header(name: str, value: str) -> str:
    """Return a header value that is safe to send; raises ValueError where it could inject another header."""
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"The header name {name!r} is not a valid HTTP token.")
    if not isinstance(value, str):
        raise TypeError(f"The header {name!r} must be text or a callable that returns text.")
    if _BAD_IN_HEADER.search(value):
        raise ValueError(f"The value of header {name!r} contains a character that headers cannot carry.")
    return value


def check_callers_headers(names: Iterable[str], *, of_client: bool = False) -> None:
    """Raise ValueError for a header that is the transport's to send: it says where a message ends, or whose it is.

    ``of_client``: the names are those of an HTTP client, which may set the headers of its connections itself.
    """
    for name in names:
        if _is_transports(name, of_client):
            raise ValueError(
                f"The header {name!r} cannot be set{' on a client' if of_client else ''}: it belongs to the "
                "connection, where it says what ends a request; leave it out."
            )


@lru_cache(maxsize=1024)
def _is_transports(name: Any, of_client: bool) -> bool:
    if not isinstance(name, str):
        raise TypeError(f"The name of a header must be text, not {type(name).__name__}.")
    # Spaces and "_" are what some servers and proxies read over, so that their spellings are the same header.
    plain = name.strip().lower().replace("_", "-")
    return plain in _FRAMING or (plain in _CONNECTION and not of_client)


def with_caller(request: Request, headers: Mapping[str, str], params: Mapping[str, str]) -> Request:
    """Return the request as it goes out: the caller's resolved headers and parameters join the protocol's.

    Where both name the same header or parameter, the protocol's wins. Raises ValueError for a header that is not
    the caller's to set, or that cannot be sent.
    """
    check_callers_headers(headers)
    merged = {name.lower(): check_header(name, value) for name, value in headers.items()}
    merged.update(request.headers)
    url = request.url
    if params:
        taken = {pair.partition("=")[0] for pair in urlsplit(url).query.split("&")} & _PROTOCOL_KEYS
        url = with_query(url, {key: value for key, value in params.items() if key not in taken})
    return replace(request, headers=merged, url=url)


def with_credentials(request: Request) -> Request:
    """Return the request with the user and password of its URL as its ``Authorization``, as HTTP sends them (RFC 7617).

    An ``Authorization`` header of the caller's wins.
    """
    parts = urlsplit(request.url)
    user, _, host = parts.netloc.rpartition("@")
    if host == parts.netloc:
        return request
    headers = dict(request.headers)
    if user:
        pair = unquote_to_bytes(user if ":" in user else f"{user}:")
        headers.setdefault("authorization", f"Basic {b64encode(pair).decode()}")
    return replace(request, headers=headers, url=urlunsplit((parts.scheme, host, *parts[2:])))


_PROTOCOL_KEYS = frozenset({h.QUERY_OFFSET, h.QUERY_LIVE, h.QUERY_CURSOR})


def parse_retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that ``Retry-After`` asks for (a number of seconds or an HTTP date), else None."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.replace(".", "", 1).isdigit():
        return min(float(value), 1e9)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    # Relative to the server's own date, if it sends one: the difference needs no local clock.
    reference = now or server_date(headers)
    return max(0.0, (moment - reference).total_seconds()) if reference else 1.0


def server_date(headers: Mapping[str, str]) -> datetime | None:
    """Return the time at which the server answered, by its own clock (``Date``); None where it does not say."""
    try:
        moment = parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError, IndexError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def content_length(headers: Mapping[str, str]) -> int | None:
    """Return the body's length in bytes where the headers state it; None for a body in any coding."""
    if "content-encoding" in headers or "transfer-encoding" in headers:
        return None
    return _integer(headers.get("content-length"))


_NAMED = frozenset({OUTCOME_UNKNOWN, "QUOTA_EXCEEDED"})
"""Codes of the server that say more than their status."""
_STATUS_CODES: dict[int, tuple[str, str]] = {
    400: ("BAD_REQUEST", "the server refused the request as malformed"),
    401: ("UNAUTHORIZED", "the server wants credentials; pass an Authorization header"),
    403: ("FORBIDDEN", "the server refused these credentials"),
    404: ("NOT_FOUND", "there is no stream at this URL, or it expired; create it first"),
    405: ("METHOD_NOT_ALLOWED", "this URL does not take the method; check that it is a stream"),
    408: ("REQUEST_TIMEOUT", "the server did not receive the whole request in time"),
    409: ("CONFLICT", "the request conflicts with the stream's state"),
    410: ("RETENTION_GONE", "the stream was deleted, or the offset is before what is retained"),
    412: ("PRECONDITION_FAILED", "the stream is not in the state that the request expects"),
    413: ("TOO_LARGE", "the body is over the server's limit; send smaller pieces"),
    415: ("BAD_CONTENT_TYPE", "the server does not take this content type"),
    425: ("TOO_EARLY", "the server is not ready for the request yet"),
    429: ("RATE_LIMITED", "the server asks for fewer requests"),
    503: ("BUSY", "the server cannot take the request now"),
    507: ("STORAGE_FULL", "the server has no storage left"),
}


def not_executed(response: Response) -> bool:
    """Whether an answer says that nothing was done: 425, 429, and a 503 that names a time to come back."""
    return response.status in {425, 429} or (response.status == 503 and "retry-after" in response.headers)


def error_from(response: Response, request: Request) -> DurableStreamError:
    """Return the error that an unsuccessful answer stands for (protocol section 7).

    The server's own sentence is the message where it sent one, prefixed by the request.
    """
    details = _details(response.body)
    server_code, sentence = _server_sentence(details)
    known_code, meaning = _STATUS_CODES.get(
        response.status,
        ("SERVER_ERROR", "the server failed")
        if response.status >= 500
        else ("UNEXPECTED_STATUS", "the answer is not one of the protocol"),
    )
    url = without_query(request.url)
    message = f"{request.method} {url} answered {response.status}: {sentence or meaning}"
    in_doubt = response.after_doubt or (response.status >= 500 and not not_executed(response))
    may_be_an_append = not request.idempotent or not h.CONDITIONS.isdisjoint(request.headers)
    if in_doubt and request.method == "POST" and may_be_an_append:
        message = f"{message.rstrip('.')} (the append may have been written; read the stream before a retry)"
    context: dict[str, Any] = {
        "status": response.status,
        "code": known_code,
        "details": details,
        "url": url,
        "headers": dict(response.headers),
        "retry_after": parse_retry_after(response.headers),
        "may_have_been_sent": None if request.method in {"GET", "HEAD"} else in_doubt,
    }
    if not message.endswith((".", ")")):
        message += "."
    return _classify(response, request, message, context, server_code)


def _classify(
    response: Response, request: Request, message: str, context: dict[str, Any], server_code: str | None
) -> DurableStreamError:
    status, headers = response.status, response.headers
    if status == 404:
        return StreamNotFoundError(message, **context)
    if status == 410:
        earliest = headers.get(h.STREAM_EARLIEST_OFFSET)
        usable = earliest is not None and h.is_position(earliest)
        return RetentionGoneError(message, earliest=earliest if usable else None, **context)
    if status == 403 and h.PRODUCER_EPOCH in headers and h.PRODUCER_ID in request.headers:
        context["code"] = StaleEpochError.default_code
        return StaleEpochError(_integer(headers.get(h.PRODUCER_EPOCH)), message=message, **context)
    if status == 412 and h.IF_MATCH in request.headers:
        context["code"] = OffsetConflictError.default_code
        expected = request.headers[h.IF_MATCH].strip('"')
        return OffsetConflictError(expected, headers.get(h.STREAM_NEXT_OFFSET), message=message, **context)
    if status == 409:
        return _conflict(response, request, message, context, server_code)
    if server_code is not None and (status in {400, 405, 415} or server_code in _NAMED):
        context["code"] = server_code
    return DurableStreamError(message, **context)


def _conflict(
    response: Response, request: Request, message: str, context: dict[str, Any], server_code: str | None
) -> DurableStreamError:
    headers = response.headers
    context.pop("code")
    if request.method == "PUT":
        return StreamExistsError(message, code=server_code, **context)
    if h.is_true(headers.get(h.STREAM_CLOSED)):
        return StreamClosedError(message, final_offset=headers.get(h.STREAM_NEXT_OFFSET), **context)
    if h.PRODUCER_EXPECTED_SEQ in headers:
        return SequenceGapError(
            message=message,
            expected_seq=_integer(headers.get(h.PRODUCER_EXPECTED_SEQ)),
            received_seq=_integer(headers.get(h.PRODUCER_RECEIVED_SEQ)),
            **context,
        )
    # A sequence or a content type can be in conflict: the code decides, else the request's own header.
    about_type = (server_code is not None and "TYPE" in server_code) or "content type" in message.lower()
    if h.STREAM_SEQ in request.headers and not about_type:
        return SeqConflictError(message, expected=headers.get(h.STREAM_SEQ), **context)
    return DurableStreamError(message, code=server_code or "CONFLICT", **context)


def _details(body: bytes) -> Any:
    if not body:
        return None
    try:
        return msgspec.json.decode(body)
    except MALFORMED:
        return body.decode("utf-8", "replace")


def _server_sentence(details: Any) -> tuple[str | None, str | None]:
    """Return the code and the message of an error body, each None where it has none that is worth showing."""
    if isinstance(details, dict):
        inner = details.get("error")
        source = inner if isinstance(inner, dict) else details
        code, message = source.get("code"), source.get("message")
        if message is None and isinstance(inner, str):
            message = inner
        return (
            code if isinstance(code, str) and _SERVER_CODE.fullmatch(code) else None,
            _one_line(message) if isinstance(message, str) else None,
        )
    if isinstance(details, str) and not details.lstrip().startswith("<"):
        return None, _one_line(details)
    return None, None


def _one_line(text: str) -> str | None:
    printable = "".join(character if character.isprintable() else " " for character in text[:2000])
    return " ".join(printable.split())[:300] or None


def _integer(value: str | None) -> int | None:
    return (
        int(value) if value is not None and value.isascii() and value.isdigit() and len(value) < 20 else None
    )


def without_query(url: str) -> str:
    """Return a URL as messages may show it: without its query and its credentials."""
    # Query strings carry tokens; errors end up in logs.
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
