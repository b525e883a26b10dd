"""The one-shot operations: create, head, append, close, delete, fork (protocol sections 3, 4 and 6).

Invariants: each is a generator whose only effect is a request; it raises the error of `error_from` for an answer
that is not its success; only requests that may be executed twice without harm are marked idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from durable_streams.errors import RetentionGoneError, StreamNotFoundError, StreamParseError
from durable_streams.protocol import headers as h
from durable_streams.protocol.jsonparser import MALFORMED
from durable_streams.protocol.jsonrule import WHITESPACE, InvalidJSONError, check
from durable_streams.protocol.jsonvalues import decode, encode
from durable_streams.protocol.request import (
    Op,
    Request,
    Response,
    check_header,
    error_from,
    path_of,
    without_query,
)
from durable_streams.types import AppendResult, CloseResult, HeadResult, RetentionResult

__all__ = [
    "append",
    "append_records",
    "close_stream",
    "conditions_of",
    "content_type_of",
    "create",
    "decode_json",
    "delete",
    "encode_json_message",
    "encode_payload",
    "encode_record",
    "encoder_for",
    "head",
    "join_records",
    "position_of",
    "set_retention",
    "trim",
]


def create(
    url: str,
    *,
    content_type: str | None = None,
    ttl_seconds: int | None = None,
    expires_at: str | None = None,
    body: Any = None,
    closed: bool = False,
    retention_max_age: int | None = None,
    retention_max_bytes: int | None = None,
    source: str | None = None,
    fork_offset: str | None = None,
    fork_sub_offset: int | None = None,
) -> Op[HeadResult]:
    """Create a stream, or find it with the same configuration; with ``source`` (a URL) as a fork of that stream.

    Returns what the server says of the stream, and whether it was created just now: a stream that was there already
    does not take ``body``. Raises StreamExistsError where it exists with another configuration (protocol sections 3
    and 6).
    """
    headers = _expiry_headers(ttl_seconds, expires_at)
    for name, limit in (
        (h.STREAM_RETENTION_MAX_AGE, retention_max_age),
        (h.STREAM_RETENTION_MAX_BYTES, retention_max_bytes),
    ):
        if limit is not None:
            headers[name] = str(_checked_limit(name.removeprefix("stream-").replace("-", "_"), limit))
    if content_type is not None:
        headers["content-type"] = check_header("content-type", content_type)
    if closed:
        headers[h.STREAM_CLOSED] = "true"
    if source is not None:
        headers.update(_fork_headers(source, fork_offset, fork_sub_offset))
    payload = None
    if body is not None and not (isinstance(body, (bytes, str)) and not body):
        payload = encode_payload(body, content_type or h.DEFAULT_CONTENT_TYPE)
    request = Request("PUT", url, headers, payload)
    response = yield request
    if response.status not in {200, 201}:
        raise error_from(response, request)
    return replace(_metadata(response, request, content_type), created=_was_created(response))


def _checked_limit(name: str, limit: int, least: int = 1) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < least:
        raise ValueError(f"{name} must be a whole number from {least}, not {limit!r}.")
    return limit


def _was_created(response: Response) -> bool | None:
    if response.status == 201:
        return True
    # After an attempt whose answer was lost, that attempt may have created what this one finds.
    return None if response.after_doubt else False


def _expiry_headers(ttl_seconds: int | None, expires_at: str | None) -> dict[str, str]:
    if ttl_seconds is not None and expires_at is not None:
        raise ValueError("A stream takes ttl_seconds or expires_at, not both.")
    if ttl_seconds is not None:
        if isinstance(ttl_seconds, bool) or not isinstance(ttl_seconds, int) or ttl_seconds < 0:
            raise ValueError(f"ttl_seconds must be a whole number of seconds from 0, not {ttl_seconds!r}.")
        return {h.STREAM_TTL: str(ttl_seconds)}
    if expires_at is not None:
        return {h.STREAM_EXPIRES_AT: check_header(h.STREAM_EXPIRES_AT, expires_at)}
    return {}


def _fork_headers(source: str, offset: str | None, sub_offset: int | None) -> dict[str, str]:
    headers = {h.STREAM_FORKED_FROM: path_of(source)}
    if offset is not None:
        headers[h.STREAM_FORK_OFFSET] = check_header(h.STREAM_FORK_OFFSET, offset)
    if sub_offset is not None:
        if isinstance(sub_offset, bool) or not isinstance(sub_offset, int) or sub_offset < 0:
            raise ValueError(f"sub_offset must be a whole number from 0, not {sub_offset!r}.")
        headers[h.STREAM_FORK_SUB_OFFSET] = str(sub_offset)
    return headers


def head(url: str) -> Op[HeadResult]:
    """Return the stream's metadata; raises StreamNotFoundError where there is none (protocol section 1)."""
    request = Request("HEAD", url)
    response = yield request
    if response.status != 200:
        raise error_from(response, request)
    return _metadata(response, request)


def append(
    url: str,
    data: Any,
    *,
    content_type: str | None = None,
    seq: str | None = None,
    expected_offset: str | None = None,
    repeatable: bool = False,
) -> Op[tuple[AppendResult, str]]:
    """Append once; returns the result and the stream's content type, asked for with HEAD where not given.

    Where it may have been written it is repeated only if that is asked for (``repeatable``), or cannot store it
    twice (``seq``, ``expected_offset``); else the FetchError says so (protocol section 4).
    """
    conditions = conditions_of(seq, expected_offset)
    known = content_type or (yield from content_type_of(url))
    records = [encode_record(data, known)]
    result = yield from append_records(url, records, known, conditions=conditions, repeatable=repeatable)
    return result, known


def append_records(
    url: str,
    records: list[bytes],
    content_type: str,
    *,
    conditions: Mapping[str, str] | None = None,
    repeatable: bool = False,
) -> Op[AppendResult]:
    """Append encoded records in one request, all or none; repeated as `append` is."""
    headers = {"content-type": check_header("content-type", content_type), **(conditions or {})}
    body = join_records(records, content_type)
    # A condition makes the server refuse a repetition of what it has.
    request = Request("POST", url, headers, body, idempotent=repeatable or bool(conditions))
    response = yield request
    if response.status not in {200, 204}:
        raise error_from(response, request)
    return AppendResult(_next_offset(response, request))


def conditions_of(seq: str | None, expected_offset: str | None) -> dict[str, str]:
    """Return the headers of an append that is stored under a condition."""
    conditions = {}
    if seq is not None:
        conditions[h.STREAM_SEQ] = check_header(h.STREAM_SEQ, seq)
    if expected_offset is not None:
        if not isinstance(expected_offset, str):
            raise TypeError(f"expected_offset must be text, not {type(expected_offset).__name__}.")
        if not h.is_position(expected_offset) or expected_offset == h.OFFSET_START or '"' in expected_offset:
            raise ValueError(f"expected_offset must be an offset from an answer, not {expected_offset!r}.")
        conditions[h.IF_MATCH] = check_header(h.IF_MATCH, f'"{expected_offset}"')
    return conditions


def close_stream(
    url: str,
    data: Any = None,
    *,
    content_type: str | None = None,
    seq: str | None = None,
    expected_offset: str | None = None,
) -> Op[CloseResult]:
    """Close the stream for good, with its last data where given; idempotent without data (protocol section 4)."""
    headers, body = {h.STREAM_CLOSED: "true", **conditions_of(seq, expected_offset)}, None
    if data is not None:
        known = content_type or (yield from content_type_of(url))
        headers["content-type"] = check_header("content-type", known)
        body = encode_payload(data, known)
    request = Request("POST", url, headers, body, idempotent=body is None)
    response = yield request
    if response.status not in {200, 204}:
        raise error_from(response, request)
    return CloseResult(_next_offset(response, request))


def delete(url: str) -> Op[None]:
    """Delete the stream; raises StreamNotFoundError where there is none (protocol section 1)."""
    request = Request("DELETE", url)
    response = yield request
    if response.status in {200, 202, 204}:
        return
    error = error_from(response, request)
    if response.after_doubt and isinstance(error, (StreamNotFoundError, RetentionGoneError)):
        return  # an earlier attempt, whose answer was lost, did it
    raise error


def trim(
    url: str, *, before: str | None = None, max_bytes: int | None = None, max_age: int | None = None
) -> Op[RetentionResult]:
    """Let the stream give up its first appends; repeating it changes nothing more."""
    asked: dict[str, Any] = {"before": before, "max_bytes": max_bytes, "max_age": max_age}
    asked = {name: value for name, value in asked.items() if value is not None}
    if len(asked) != 1:
        raise ValueError("A trim takes one of before, max_bytes and max_age.")
    if max_bytes is not None:
        _checked_limit("max_bytes", max_bytes, 0)
    if max_age is not None:
        _checked_limit("max_age", max_age)
    return (yield from _retain(url, "trim", asked))


def set_retention(
    url: str, *, max_age: int | None = None, max_bytes: int | None = None
) -> Op[RetentionResult]:
    """Change how much the stream keeps; without limits it keeps everything."""
    limits = {"max_age": max_age, "max_bytes": max_bytes}
    asked = {name: _checked_limit(name, limit) for name, limit in limits.items() if limit is not None}
    return (yield from _retain(url, "retention", asked))


def _retain(url: str, action: str, asked: Mapping[str, Any]) -> Op[RetentionResult]:
    body = msgspec.json.encode(asked)
    request = Request("POST", _beside(url, action), {"content-type": h.JSON_CONTENT_TYPE}, body)
    response = yield request
    if response.status != 200:
        raise error_from(response, request)
    try:
        return msgspec.json.decode(response.body, type=RetentionResult)
    except MALFORMED:
        raise _malformed(response, request, "without saying what the stream keeps") from None


def _beside(url: str, action: str) -> str:
    """Return the URL of an action on a stream, which is under ``__ds`` beside the streams."""
    parts = urlsplit(url)
    root, found, path = parts.path.partition(h.STREAM_ROOT)
    if not found:
        raise ValueError(
            f"The URL {without_query(url)} is not below {h.STREAM_ROOT}, where a stream can be trimmed."
        )
    return urlunsplit(parts._replace(path=f"{root}{found}{h.RESERVED}/streams/{path}/{action}"))


def content_type_of(url: str) -> Op[str]:
    """Return the stream's content type; raises StreamNotFoundError where there is no stream."""
    metadata = yield from head(url)
    return metadata.content_type or h.DEFAULT_CONTENT_TYPE


def _metadata(response: Response, request: Request, content_type: str | None = None) -> HeadResult:
    headers = response.headers
    earliest = headers.get(h.STREAM_EARLIEST_OFFSET)
    return HeadResult(
        exists=True,
        content_type=headers.get("content-type", content_type),
        offset=position_of(response, request),
        etag=headers.get("etag"),
        cache_control=headers.get("cache-control"),
        stream_closed=h.is_true(headers.get(h.STREAM_CLOSED)),
        ttl_seconds=_number(headers.get(h.STREAM_TTL)),
        expires_at=headers.get(h.STREAM_EXPIRES_AT),
        earliest_offset=earliest if earliest is not None and h.is_position(earliest) else None,
        retention_max_age=_number(headers.get(h.STREAM_RETENTION_MAX_AGE)),
        retention_max_bytes=_number(headers.get(h.STREAM_RETENTION_MAX_BYTES)),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _next_offset(response: Response, request: Request) -> str:
    offset = position_of(response, request)
    if offset is None:
        raise _malformed(response, request, "without Stream-Next-Offset")
    return offset


def position_of(response: Response, request: Request) -> str | None:
    """Return the offset of an answer, None if it has none; raises StreamParseError for one that is not an offset."""
    offset = response.headers.get(h.STREAM_NEXT_OFFSET)
    if offset is not None and not h.is_position(offset):
        raise _malformed(response, request, f"with the Stream-Next-Offset {offset!r}", code="BAD_OFFSET")
    return offset


def _malformed(
    response: Response, request: Request, how: str, *, code: str | None = None
) -> StreamParseError:
    return StreamParseError(
        f"{request.method} {request.url} succeeded {how}; check that it is a stream.",
        status=response.status,
        url=request.url,
        headers=dict(response.headers),
        code=code,
    )


def encode_payload(data: Any, content_type: str) -> bytes:
    """Return the body that carries ``data`` as one append: for JSON streams as one message, else as bytes."""
    return join_records([encode_record(data, content_type)], content_type)


def encode_record(data: Any, content_type: str) -> bytes:
    """Return the bytes of one message of a JSON stream, or of one piece of another.

    Raises ValueError for empty data or text that is not valid JSON, TypeError for data that the stream
    cannot hold.
    """
    return encoder_for(content_type)(data)


def encoder_for(content_type: str) -> Callable[[Any], bytes]:
    """Return `encode_record` for one content type."""
    return (
        encode_json_message if h.is_json(content_type) else partial(_encode_bytes, content_type=content_type)
    )


def join_records(records: list[bytes], content_type: str) -> bytes:
    """Return the body that carries these records, in order."""
    # An array even around one message, because the server flattens one level: a list stays one message.
    return b"[" + b",".join(records) + b"]" if h.is_json(content_type) else b"".join(records)


def _encode_bytes(data: Any, content_type: str) -> bytes:
    if isinstance(data, str):
        payload = data.encode()
    elif isinstance(data, (bytes, bytearray, memoryview)):
        payload = bytes(data)
    else:
        raise TypeError(
            f"A stream of type {content_type!r} takes bytes or text, not {type(data).__name__}; "
            "for JSON values create it with content_type='application/json'."
        )
    if not payload:
        raise ValueError("An append needs at least one byte.")
    return payload


def encode_json_message(data: Any, *, beyond_double: bool = False) -> bytes:
    """Return one JSON message: text and bytes are JSON already (and checked to be), other values are serialised.

    ``beyond_double``: an infinity becomes a number that is read as infinity. Raises InvalidJSONError, a ValueError, for
    text that is not JSON by the rule (`jsonrule`).
    """
    kind = type(data)
    if kind is bytes:
        text: bytes = data
    elif kind is dict:  # checked first, because most appends are one of these two
        return encode(data, beyond_double=beyond_double)
    elif isinstance(data, str):
        text = _utf8(data)
    elif isinstance(data, (bytes, bytearray, memoryview, msgspec.Raw)):
        text = bytes(data)
    else:
        return encode(data, beyond_double=beyond_double)
    try:
        check(text)
    except InvalidJSONError as error:
        raise InvalidJSONError(
            f"The text is not valid JSON ({error}); JSON streams take text as JSON that is already serialised, "
            "so pass json.dumps(text) to append it as a string."
        ) from error
    return text.strip(WHITESPACE)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidJSONError(
            f"The text is not valid JSON (it has no UTF-8 from character {error.start} on: write a lone surrogate "
            "as an escape)."
        ) from None


def decode_json(body: bytes, offset: str | None = None) -> Any:
    """Return the value of a JSON text; raises StreamParseError, with the safe position ``offset``, if malformed."""
    try:
        return decode(body)
    except InvalidJSONError as error:
        raise StreamParseError(
            f"The data after offset {offset} is not valid JSON: {error}.", offset=offset
        ) from None
