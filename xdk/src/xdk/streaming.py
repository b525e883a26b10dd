# ruff: noqa: INP001 - a namespace package, so that nothing of an installed X API SDK but this module is replaced
"""Streaming connections of the X API that reconnect by themselves.

The names and signatures of the X API SDK's module of this name, over `durable_streams.firehose`, which has the logic.
What differs from the general engine are defaults: X sends a heartbeat every 20 seconds, so that 30 seconds of silence
mean a dead connection (``StreamConfig.stall_timeout``).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from durable_streams import firehose
from durable_streams.firehose import (
    X_SCHEDULE,
    Attempt,
    StreamError,
    StreamErrorType,
    StreamState,
    backfill,
)

if TYPE_CHECKING:
    from requests import Session

    from durable_streams.firehose.base import AsyncValues, Values

__all__ = [
    "X_SCHEDULE",
    "AsyncFirehoseStream",
    "Attempt",
    "FirehoseStream",
    "StreamConfig",
    "StreamError",
    "StreamErrorType",
    "StreamState",
    "astream_with_retry",
    "backfill",
    "stream_with_retry",
]

T = TypeVar("T")


@dataclass
class StreamConfig(firehose.StreamConfig):
    """How a stream is followed: `durable_streams.firehose.StreamConfig` with the defaults for X.

    30 seconds of silence end a connection, and a line ``{}`` is a heartbeat. What happens is logged as
    ``xdk.streaming``.
    """

    stall_timeout: float | None = 30.0
    empty_records: bool = False

    logger_name: ClassVar[str] = "xdk.streaming"
    callback_level: ClassVar[int] = logging.WARNING
    final_level: ClassVar[int] = logging.ERROR


class FirehoseStream(firehose.FirehoseStream):
    """A stream as a handle: iterator, context manager, ``stop()`` from any thread, ``state``."""

    default_config = StreamConfig


class AsyncFirehoseStream(firehose.AsyncFirehoseStream):
    """A stream as an async handle: async iterator and context manager, ``stop()`` from any thread, ``state``."""

    default_config = StreamConfig


@overload
def stream_with_retry(
    session: Session,
    method: str,
    url: str,
    config: firehose.StreamConfig | None = None,
    params: Values | None = None,
    headers: Values | None = None,
    json_data: Any = None,
    response_model: None = None,
) -> Generator[Any, None, None]: ...
@overload
def stream_with_retry(
    session: Session,
    method: str,
    url: str,
    config: firehose.StreamConfig | None = None,
    params: Values | None = None,
    headers: Values | None = None,
    json_data: Any = None,
    *,
    response_model: type[T],
) -> Generator[T, None, None]: ...
def stream_with_retry(  # noqa: PLR0917 - the signature that users know
    session: Session,
    method: str,
    url: str,
    config: firehose.StreamConfig | None = None,
    params: Values | None = None,
    headers: Values | None = None,
    json_data: Any = None,
    response_model: Any = None,
) -> Generator[Any, None, None]:
    """Return a generator over the records of an endless feed, which reconnects by itself.

    ``session``: a ``requests.Session`` (an ``httpx.Client`` and None, for a client of ours, work too). ``params`` and
    ``headers``: mappings, in which values may be callables that give one for each attempt; or a callable that is
    given the `Attempt` and returns all of them (see `backfill`). ``response_model``: a Pydantic model, None for
    dictionaries. Closing the generator releases the connection at once. Raises StreamError for a failure that no
    retry can fix.
    """
    return firehose.stream_with_retry(
        session, method, url, config or StreamConfig(), params, headers, json_data or None, response_model
    )


@overload
def astream_with_retry(
    client: Any,
    method: str,
    url: str,
    config: firehose.StreamConfig | None = None,
    params: AsyncValues | None = None,
    headers: AsyncValues | None = None,
    json_data: Any = None,
    response_model: None = None,
) -> AsyncGenerator[Any, None]: ...
@overload
def astream_with_retry(
    client: Any,
    method: str,
    url: str,
    config: firehose.StreamConfig | None = None,
    params: AsyncValues | None = None,
    headers: AsyncValues | None = None,
    json_data: Any = None,
    *,
    response_model: type[T],
) -> AsyncGenerator[T, None]: ...
def astream_with_retry(  # noqa: PLR0917 - as in the sync form
    client: Any,
    method: str,
    url: str,
    config: firehose.StreamConfig | None = None,
    params: AsyncValues | None = None,
    headers: AsyncValues | None = None,
    json_data: Any = None,
    response_model: Any = None,
) -> AsyncGenerator[Any, None]:
    """Return an async generator over the records of an endless feed, as `stream_with_retry` does.

    ``client``: an ``httpx.AsyncClient``, an ``aiohttp.ClientSession``, or None for one of ours. Callables and
    callbacks may be async.
    """
    return firehose.astream_with_retry(
        client, method, url, config or StreamConfig(), params, headers, json_data or None, response_model
    )
