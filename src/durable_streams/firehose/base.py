"""The shared parts of the sync and the async firehose: the request of each attempt, and the handle. No I/O here."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlencode

from durable_streams.firehose.config import Attempt, StreamConfig, StreamState
from durable_streams.firehose.errors import StreamError, StreamErrorType
from durable_streams.firehose.machine import Feed
from durable_streams.firehose.models import decoder_for
from durable_streams.protocol.request import Request, check_callers_headers, check_url, with_caller

__all__ = [
    "AsyncValues",
    "FeedHandle",
    "FeedRequest",
    "Values",
    "callable_failed",
    "is_running",
    "log_long_wait",
    "logger",
    "make_feed",
    "make_request",
]

logger = logging.getLogger("durable_streams")

Values = Mapping[str, Any] | Callable[[Attempt], Mapping[str, Any]]
"""Parameters or headers: a mapping, in which values may be callables that give one for each attempt, or a callable
that gives all of them for an attempt."""

AsyncValues = Mapping[str, Any] | Callable[[Attempt], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]
"""As Values, for async feeds: the callables may be async."""


@dataclass(frozen=True, slots=True)
class FeedRequest:
    """The parts of a feed's request: those of every attempt, and those that are resolved for each one."""

    method: str
    url: str
    params: Any = None
    headers: Any = None
    body: bytes | None = None

    def with_values(self, params: Mapping[str, Any], headers: Mapping[str, str]) -> Request:
        """Return the request of an attempt, with these parameters and headers; raises ValueError for a bad header."""
        own = {} if self.body is None else {"content-type": "application/json"}
        query = urlencode(list(_pairs(params)))
        url = self.url + (("&" if "?" in self.url else "?") + query if query else "")
        request = Request(self.method, url, {}, self.body, streaming=True)
        return with_caller(request, {**own, **_named(headers)}, {})


def make_request(method: str, url: str, params: Any, headers: Any, json_data: Any) -> FeedRequest:
    """Return the feed's request for these arguments; raises ValueError for a bad URL or header."""
    if isinstance(headers, Mapping):
        _named(headers)
    body = None if json_data is None else json.dumps(json_data, allow_nan=False).encode()
    return FeedRequest(method.upper(), check_url(url), params, headers, body)


def make_feed(url: str, config: StreamConfig, response_model: Any) -> Feed:
    """Return the machine behind a feed."""
    return Feed(
        url,
        config,
        decoder_for(response_model),
        clock=time.monotonic,
        now=time.time,
        random=random.random,
    )


def _named(headers: Mapping[str, Any]) -> dict[str, str]:
    named = {}
    for name, value in headers.items():
        if value is not None:
            check_callers_headers([name])
            named[name.lower()] = value.decode("latin-1") if isinstance(value, bytes) else value
    return named


def _pairs(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in params.items():
        for one in value if isinstance(value, (list, tuple, set, frozenset)) else (value,):
            if one is not None:
                yield name, str(one).lower() if isinstance(one, bool) else str(one)


def log_long_wait(error: StreamError, seconds: float) -> None:
    """Log a pause before the next attempt that is long because the server asks for it."""
    logger.warning("%s The next attempt is in %.0f seconds, as the server asks.", error.message, seconds)


def callable_failed(error: Exception) -> StreamError:
    """Return the error of an attempt whose callable for headers or parameters raised.

    It may have asked the network for a token, which may succeed the next time.
    """
    logger.warning("A callable for the headers or parameters of a feed raised.", exc_info=error)
    return StreamError(
        f"The callable for the headers or parameters of the feed raised {type(error).__name__}: {error}".rstrip(
            "."
        )
        + ".",
        StreamErrorType.CONNECTION_ERROR,
        error,
    )


def is_running(records: Any) -> bool:
    """Whether a generator, sync or async, is between two of its records."""
    return bool(getattr(records, "gi_running", False) or getattr(records, "ag_running", False))


class FeedHandle:
    """The properties of a handle of a feed."""

    default_config: ClassVar[type[StreamConfig]] = StreamConfig
    """The settings where no ``config`` is given."""

    _feed: Feed

    @property
    def url(self) -> str:
        """The feed's URL."""
        return self._feed.url

    @property
    def state(self) -> StreamState:
        """The present state of the feed."""
        return self._feed.state

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._feed.url!r})"
