"""Durable streams over HTTP: a reader that never loses its place, and an exactly-once producer.

The names here are the whole public client. They are imported at first use, so that importing the package is
cheap.
"""

from __future__ import annotations

import atexit
import sys
from typing import TYPE_CHECKING

from durable_streams.lazy import lazy_names

if TYPE_CHECKING:
    from durable_streams.client.aio import AsyncDurableStream, AsyncStreamResponse, astream
    from durable_streams.client.aio_follow import AsyncFollowing, afollow
    from durable_streams.client.aio_listing import alist_streams
    from durable_streams.client.aio_producer import IdempotentProducer
    from durable_streams.client.checkpoints import CheckpointStore, FileCheckpoint
    from durable_streams.client.spans import trace_requests
    from durable_streams.client.sync import DurableStream, StreamResponse, stream
    from durable_streams.client.sync_follow import Following, follow
    from durable_streams.client.sync_listing import list_streams
    from durable_streams.client.sync_producer import SyncIdempotentProducer
    from durable_streams.errors import (
        DurableStreamError,
        FetchError,
        OffsetConflictError,
        RetentionGoneError,
        SeqConflictError,
        SequenceGapError,
        SSEBytesIterationError,
        SSEEncodingError,
        SSENotSupportedError,
        SSEReadAllError,
        StaleEpochError,
        StreamClosedError,
        StreamConsumedError,
        StreamExistsError,
        StreamNotFoundError,
        StreamParseError,
    )
    from durable_streams.protocol.retry import RetryPolicy
    from durable_streams.types import (
        AppendResult,
        AsyncHeadersLike,
        AsyncParamsLike,
        CloseResult,
        Followed,
        HeadersLike,
        HeadResult,
        IdempotentAppendResult,
        LiveMode,
        Offset,
        ParamsLike,
        RetentionResult,
        StreamEvent,
        StreamInfo,
    )

    __version__: str

__all__ = [
    "AppendResult",
    "AsyncDurableStream",
    "AsyncFollowing",
    "AsyncHeadersLike",
    "AsyncParamsLike",
    "AsyncStreamResponse",
    "CheckpointStore",
    "CloseResult",
    "DurableStream",
    "DurableStreamError",
    "FetchError",
    "FileCheckpoint",
    "Followed",
    "Following",
    "HeadResult",
    "HeadersLike",
    "IdempotentAppendResult",
    "IdempotentProducer",
    "LiveMode",
    "Offset",
    "OffsetConflictError",
    "ParamsLike",
    "RetentionGoneError",
    "RetentionResult",
    "RetryPolicy",
    "SSEBytesIterationError",
    "SSEEncodingError",
    "SSENotSupportedError",
    "SSEReadAllError",
    "SeqConflictError",
    "SequenceGapError",
    "StaleEpochError",
    "StreamClosedError",
    "StreamConsumedError",
    "StreamEvent",
    "StreamExistsError",
    "StreamInfo",
    "StreamNotFoundError",
    "StreamParseError",
    "StreamResponse",
    "SyncIdempotentProducer",
    "afollow",
    "alist_streams",
    "astream",
    "follow",
    "list_streams",
    "stream",
    "trace_requests",
]

_HOMES = {
    "__version__": "version",
    "AsyncDurableStream": "client.aio",
    "AsyncStreamResponse": "client.aio",
    "astream": "client.aio",
    "AsyncFollowing": "client.aio_follow",
    "afollow": "client.aio_follow",
    "alist_streams": "client.aio_listing",
    "IdempotentProducer": "client.aio_producer",
    "CheckpointStore": "client.checkpoints",
    "FileCheckpoint": "client.checkpoints",
    "trace_requests": "client.spans",
    "DurableStream": "client.sync",
    "StreamResponse": "client.sync",
    "stream": "client.sync",
    "Following": "client.sync_follow",
    "follow": "client.sync_follow",
    "list_streams": "client.sync_listing",
    "SyncIdempotentProducer": "client.sync_producer",
    "RetryPolicy": "protocol.retry",
    **dict.fromkeys(
        (
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
        ),
        "types",
    ),
}

__getattr__, __dir__ = lazy_names(__name__, {**dict.fromkeys(__all__, "errors"), **_HOMES})


def _end_producers() -> None:
    unclosed = sys.modules.get("durable_streams.client.unclosed")
    if unclosed is not None:
        unclosed.end_all()


# Exit functions run in the reverse order of their registration: those that are registered after this import may still
# use producers.
atexit.register(_end_producers)
