"""Endless feeds over HTTP, such as line-delimited JSON or event streams: their records, across every reconnect.

The names here are the whole public engine. They are imported at first use, so that importing the package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_streams.lazy import lazy_names

if TYPE_CHECKING:
    from durable_streams.firehose.aio import AsyncFirehoseStream, astream_with_retry
    from durable_streams.firehose.config import (
        X_SCHEDULE,
        Attempt,
        Linear,
        Schedule,
        StreamConfig,
        StreamState,
    )
    from durable_streams.firehose.errors import StreamError, StreamErrorType
    from durable_streams.firehose.params import backfill
    from durable_streams.firehose.records import FeedEvent
    from durable_streams.firehose.sync import FirehoseStream, stream_with_retry

__all__ = [
    "X_SCHEDULE",
    "AsyncFirehoseStream",
    "Attempt",
    "FeedEvent",
    "FirehoseStream",
    "Linear",
    "Schedule",
    "StreamConfig",
    "StreamError",
    "StreamErrorType",
    "StreamState",
    "astream_with_retry",
    "backfill",
    "stream_with_retry",
]

_HOMES = {
    **dict.fromkeys(("AsyncFirehoseStream", "astream_with_retry"), "firehose.aio"),
    **dict.fromkeys(("FirehoseStream", "stream_with_retry"), "firehose.sync"),
    **dict.fromkeys(("StreamError", "StreamErrorType"), "firehose.errors"),
    "FeedEvent": "firehose.records",
    "backfill": "firehose.params",
}

__getattr__, __dir__ = lazy_names(__name__, {name: _HOMES.get(name, "firehose.config") for name in __all__})
