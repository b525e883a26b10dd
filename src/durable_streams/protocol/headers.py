"""The names on the wire: headers, query parameters, the reserved offsets. Lower case, as HTTP libraries give them."""

from __future__ import annotations

from functools import lru_cache

STREAM_ROOT = "/v1/stream/"
"""Where a server of this project has its streams, below its own root."""
RESERVED = "__ds"
"""The first segment of paths that are no streams."""

STREAM_NEXT_OFFSET = "stream-next-offset"
STREAM_CURSOR = "stream-cursor"
STREAM_UP_TO_DATE = "stream-up-to-date"
STREAM_CLOSED = "stream-closed"
STREAM_MAX_BYTES = "stream-max-bytes"
STREAM_SEQ = "stream-seq"
STREAM_TTL = "stream-ttl"
STREAM_EXPIRES_AT = "stream-expires-at"
STREAM_EARLIEST_OFFSET = "stream-earliest-offset"
STREAM_RETENTION_MAX_AGE = "stream-retention-max-age"
STREAM_RETENTION_MAX_BYTES = "stream-retention-max-bytes"
STREAM_FORKED_FROM = "stream-forked-from"
STREAM_FORK_OFFSET = "stream-fork-offset"
STREAM_FORK_SUB_OFFSET = "stream-fork-sub-offset"
SSE_DATA_ENCODING = "stream-sse-data-encoding"
ETAG = "etag"
IF_MATCH = "if-match"
PRODUCER_ID = "producer-id"
PRODUCER_EPOCH = "producer-epoch"
PRODUCER_SEQ = "producer-seq"
PRODUCER_EXPECTED_SEQ = "producer-expected-seq"
PRODUCER_RECEIVED_SEQ = "producer-received-seq"

QUERY_OFFSET = "offset"
QUERY_LIVE = "live"
QUERY_CURSOR = "cursor"

OFFSET_START = "-1"
OFFSET_NOW = "now"

DEFAULT_CONTENT_TYPE = "application/octet-stream"
JSON_CONTENT_TYPE = "application/json"
SSE_CONTENT_TYPE = "text/event-stream"

CONDITIONS = frozenset({STREAM_SEQ, IF_MATCH})
"""Headers that make a server refuse the repetition of an append that it has stored."""

MAX_SAFE_INTEGER = 2**53 - 1
"""The largest epoch and producer sequence number: what every JSON reader holds exactly."""


def is_true(value: str | None) -> bool:
    """Whether a header means yes: exactly ``true`` in any case, nothing else (protocol section 1)."""
    return value is not None and value.lower() == "true"


def is_position(offset: str) -> bool:
    """Whether a server's offset names a position: it is not empty, and not ``now``, which none may mint (section 2)."""
    return bool(offset.strip()) and offset != OFFSET_NOW


@lru_cache(maxsize=256)
def media_type(content_type: str) -> str:
    """Return the content type without parameters, in lower case: what two content types are compared by."""
    return content_type.partition(";")[0].strip().lower()


def same_media_type(one: str, other: str) -> bool:
    """Whether two content types differ in parameters and letter case at most."""
    return media_type(one) == media_type(other)


@lru_cache(maxsize=256)
def is_json(content_type: str) -> bool:
    """Whether a stream of this content type holds JSON messages (protocol section 4, JSON mode)."""
    return media_type(content_type) == JSON_CONTENT_TYPE


@lru_cache(maxsize=256)
def is_text(content_type: str) -> bool:
    """Whether SSE carries this content type as UTF-8 text; everything else travels as base64 (section 5)."""
    media = media_type(content_type)
    return media.startswith("text/") or media == JSON_CONTENT_TYPE


@lru_cache(maxsize=256)
def sse_is_lossless(content_type: str) -> bool:
    """Whether SSE returns every byte of this content type: as base64, or as JSON, whose line breaks are white space.

    Text loses its CR characters on the way (each CR and CRLF becomes LF), and what is not UTF-8 (section 5).
    """
    return is_json(content_type) or not is_text(content_type)
