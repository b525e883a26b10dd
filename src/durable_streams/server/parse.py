"""From headers and queries to values; a malformed one is a 400 with one sentence."""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

import msgspec

from durable_streams.protocol import headers as names
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.offsets import is_exact, parse_offset
from durable_streams.protocol.state import ProducerStamp

__all__ = [
    "bad_request",
    "check_not_encoded",
    "content_type",
    "decoded_path",
    "expected_tail",
    "expires_at",
    "max_bytes",
    "positive",
    "producer",
    "query",
    "resource_path",
    "sequence",
    "stream_path",
    "sub_offset",
    "ttl",
]

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's word, not a secret
_QUOTED = r'"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"'
# Each blank has one place where it can match: a value made of blanks and semicolons must not cost exponential time.
_CONTENT_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}[ \t]*(?:;[ \t]*(?:{_TOKEN}=(?:{_TOKEN}|{_QUOTED})[ \t]*)?)*")
_BELOW_MICROSECONDS = re.compile(r"(\.\d{6})\d+")
_LEAP_SECOND = re.compile(r"(?<=:\d\d:)60")
_DECIMAL = re.compile(r"0|[1-9][0-9]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffd]")
_MAX_PATH = 1024  # characters
_MAX_RESOURCE = 1024  # characters that a resource below `__ds` has before the path of a stream
_MAX_VALUE = 1024  # characters of a header that is kept with the stream
_MAX_TTL = 10**10  # seconds


def bad_request(message: str) -> Rejection:
    """Return a 400."""
    return Rejection(400, "BAD_REQUEST", message)


@lru_cache(maxsize=1024)
def stream_path(path: str) -> str:
    """Return a stream's path if it can be one."""
    return _path(path, _MAX_PATH)


def resource_path(path: str) -> str:
    """Return the path of a resource, which may end with that of a stream, if it can be one."""
    return _path(path, _MAX_PATH + _MAX_RESOURCE)


def _path(path: str, most: int) -> str:
    if not path or len(path) > most:
        raise bad_request(f"a stream's path has 1 to {_MAX_PATH} characters, this one has {len(path)}")
    if _CONTROL.search(path):
        raise bad_request("a stream's path is UTF-8 text without control characters")
    if "." in path and not {".", ".."}.isdisjoint(path.split("/")):
        raise bad_request("a stream's path has no segment that is . or ..")
    return path


@lru_cache(maxsize=256)
def content_type(value: str) -> str:
    """Return a content type that is well-formed."""
    if len(value) > _MAX_VALUE or not _CONTENT_TYPE.fullmatch(value):
        raise bad_request(f"Content-Type is not well-formed: {value[:80]!r}")
    return value.strip()


def check_not_encoded(content: str | None, transfer: str | None) -> None:
    """Refuse a body that came compressed: it would be stored compressed, and read without the header that says so.

    Args:
        content: Content-Encoding.
        transfer: Transfer-Encoding; HTTP servers decode its last coding, which frames the body, and no other one.
    """
    if content is not None and any(one.strip().lower() not in {"", "identity"} for one in content.split(",")):
        name, value = "Content-Encoding", content
    elif transfer is not None and transfer.strip().lower() != "chunked":
        name, value = "Transfer-Encoding", transfer
    else:
        return
    raise Rejection(
        415,
        "UNSUPPORTED_ENCODING",
        f"{name} {value[:80]!r} is not taken: send the body as it is",
        {"accept-encoding": "identity"},
    )


def ttl(value: str | None) -> int | None:
    """Return Stream-TTL in seconds."""
    if value is None:
        return None
    if not _DECIMAL.fullmatch(value) or len(value) > len(str(_MAX_TTL)) or int(value) > _MAX_TTL:
        raise bad_request(
            f"Stream-TTL is a whole number of seconds from 0 to {_MAX_TTL}, in plain digits, not {value[:80]!r}"
        )
    return int(value)


def expires_at(value: str | None) -> float | None:
    """Return Stream-Expires-At in seconds since 1970."""
    if value is None:
        return None
    # What a datetime has no room for: further digits of a second, and leap seconds.
    text = _LEAP_SECOND.sub("59", _BELOW_MICROSECONDS.sub(r"\1", value))
    try:
        moment = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise bad_request(
            f"Stream-Expires-At is a time like 2030-01-31T12:00:00Z (RFC 3339), not {value[:80]!r}"
        )
    return moment.timestamp()


def sequence(value: str | None) -> str | None:
    """Return Stream-Seq."""
    if value is not None and len(value) > _MAX_VALUE:
        raise bad_request(f"Stream-Seq has at most {_MAX_VALUE} characters, this one has {len(value)}")
    return value


def producer(producer_id: str | None, epoch: str | None, seq: str | None) -> ProducerStamp | None:
    """Return the stamp that the three producer headers give together (section 4)."""
    if producer_id is None and epoch is None and seq is None:
        return None
    if producer_id is None or epoch is None or seq is None:
        raise bad_request("Producer-Id, Producer-Epoch and Producer-Seq go together: send all three or none")
    if not producer_id or len(producer_id) > _MAX_VALUE:
        raise bad_request(f"Producer-Id has 1 to {_MAX_VALUE} characters, this one has {len(producer_id)}")
    return ProducerStamp(
        producer_id, _safe_integer(names.PRODUCER_EPOCH, epoch), _safe_integer(names.PRODUCER_SEQ, seq)
    )


def expected_tail(if_match: str | None, stamp: ProducerStamp | None) -> int | None:
    """Return the position that an append expects the tail to have.

    Args:
        if_match: The header If-Match.
        stamp: What the producer headers say: they order a producer's appends by themselves.
    """
    if if_match is None:
        return None
    if stamp is not None:
        raise bad_request("If-Match and the Producer headers exclude each other: send one of them")
    offset = if_match[1:-1] if len(if_match) > 1 and if_match[0] == if_match[-1] == '"' else ""
    position = None if is_exact(offset) else parse_offset(offset)
    if position is None:
        raise bad_request(
            f"If-Match of an append is one offset in quotes, such as the ETag of the last append, not {if_match[:80]!r}"
        )
    return position


def positive(name: str, value: str | None) -> int | None:
    """Return a header that is a whole number above 0."""
    if value is None:
        return None
    number = _safe_integer(name, value)
    if not number:
        raise bad_request(f"{name.title()} is a whole number above 0")
    return number


def sub_offset(value: str | None) -> int | None:
    """Return Stream-Fork-Sub-Offset, in messages or bytes."""
    return None if value is None else _safe_integer(names.STREAM_FORK_SUB_OFFSET, value)


def max_bytes(value: str | None) -> int | None:
    """Return Stream-Max-Bytes: about how many bytes of a stream a reader wants at once."""
    if value is None:
        return None
    return max(1, _safe_integer(names.STREAM_MAX_BYTES, value))


def _safe_integer(name: str, value: str) -> int:
    if not _DECIMAL.fullmatch(value) or len(value) > 16 or int(value) > names.MAX_SAFE_INTEGER:
        raise bad_request(
            f"{name.title()} is a whole number from 0 to {names.MAX_SAFE_INTEGER}, not {value[:80]!r}"
        )
    return int(value)


def query(text: str) -> dict[str, str]:
    """Return the query's parameters; a repeated one is refused where it would be ambiguous."""
    if not text:
        return {}
    parameters: dict[str, str] = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=100, errors="strict")
    except ValueError:
        raise bad_request("the query is not UTF-8 text of at most 100 parameters") from None
    for key, value in pairs:
        if key in (names.QUERY_OFFSET, names.QUERY_LIVE, names.QUERY_CURSOR) and key in parameters:
            raise bad_request(f"the query has {key} more than once")
        parameters[key] = value
    return parameters


def decoded_path(value: str) -> str:
    """Return a percent-decoded path from a header."""
    return unquote(value, errors="replace")
