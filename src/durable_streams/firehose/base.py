"""The shared parts of the sync and the async firehose: the request of each attempt, and the handle. No I/O here."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

from durable_streams.client.transports import completes_urls
from durable_streams.firehose.config import Attempt, FeedState, StreamConfig
from durable_streams.firehose.errors import StreamError, StreamErrorType
from durable_streams.firehose.machine import Feed
from durable_streams.firehose.models import decoder_for
from durable_streams.protocol.effects import Call
from durable_streams.protocol.request import (
    Request,
    check_callers_headers,
    check_url,
    shown_url,
    text_of,
    with_caller,
    with_credentials,
)

__all__ = [
    "AsyncValues",
    "FeedHandle",
    "FeedRequest",
    "Given",
    "Values",
    "as_values",
    "callable_failed",
    "log_call",
    "log_long_wait",
    "make_feed",
    "make_request",
]

Given = Mapping[str, Any] | Iterable[tuple[str, Any]] | str | bytes
"""Parameters or headers: a mapping or pairs, in which values may be callables that give one for each attempt; for
parameters, a query as text too."""

Values = Given | Callable[[Attempt], Given]
"""Given, or a callable that gives all of them for an attempt."""

AsyncValues = Given | Callable[[Attempt], Given | Awaitable[Given]]
"""As Values, for async feeds: the callables may be async."""


@dataclass(frozen=True, slots=True)
class FeedRequest:
    """The parts of a feed's request: those of every attempt, and those that are resolved for each one."""

    method: str
    url: str
    params: Any = None
    headers: Any = None
    body: bytes | None = None

    def with_values(self, params: Mapping[str, Any] | str, headers: Mapping[str, Any]) -> Request:
        """Return the request of an attempt, with these parameters and headers.

        A header that is None is not sent, even if the client has it. Raises ValueError for a bad header.
        """
        own = {} if self.body is None else {"content-type": "application/json"}
        query = _quoted(params) if isinstance(params, str) else urlencode(list(_pairs(params)))
        url = self.url + (("&" if "?" in self.url else "?") + query if query else "")
        dropped = frozenset(name.lower() for name, value in headers.items() if value is None)
        request = Request(
            self.method, url, {}, self.body, streaming=True, dropped=dropped, parts=(self.url, params)
        )
        return with_credentials(with_caller(request, {**own, **_named(headers)}, {}))


def make_request(
    method: str, url: str, params: Any, headers: Any, json_data: Any, *, client: Any = None
) -> FeedRequest:
    """Return the feed's request for these arguments, each as `AsyncFirehoseStream` takes it.

    Raises:
        ValueError: A bad URL or header.
        TypeError: Parameters or headers in another form than is allowed.
    """
    if params is not None and not callable(params):
        params = as_values(params)
    if headers is not None and not callable(headers):
        headers = as_values(headers, text=False)
        _named(headers)
    body = None if json_data is None else json.dumps(json_data, allow_nan=False).encode()
    if not completes_urls(client):
        url = check_url(url)
    return FeedRequest(method.upper(), url, params, headers, body)


def as_values(given: Any, *, text: bool = True) -> Mapping[str, Any] | str:
    """Return parameters or headers as a mapping, several values of one name as a list; a query stays text.

    ``text``: whether text is allowed. Raises TypeError for another form.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {_text(name): value for name, value in given.items()}
    if text and isinstance(given, (str, bytes)):
        return _text(given).removeprefix("?")
    found: dict[str, Any] = {}
    try:
        if isinstance(given, (str, bytes)):
            raise TypeError  # noqa: TRY301 - said below, as for all others
        for name, value in given:
            key = _text(name)
            found[key] = [*_listed(found[key]), *_listed(value)] if key in found else value
    except (TypeError, ValueError):
        allowed = "a mapping, pairs or a query as text" if text else "a mapping or pairs"
        raise TypeError(
            f"The {'parameters' if text else 'headers'} of a feed are {allowed}, not {given!r}."
        ) from None
    return found


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _quoted(query: str) -> str:
    return quote(query, safe="/?%:@!$&'()*+,;=~-._[]")


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
            named[name.lower()] = value.decode("latin-1") if isinstance(value, bytes) else text_of(value)
    return named


def _pairs(params: Mapping[str, Any]) -> Iterator[tuple[str, str | bytes]]:
    for name, value in params.items():
        for one in value if isinstance(value, (list, tuple, set, frozenset)) else (value,):
            if one is not None:
                yield name, one if isinstance(one, bytes) else str(text_of(one))


def log_long_wait(log: logging.Logger, error: StreamError, seconds: float) -> None:
    """Log a pause before the next attempt that is long because the server asks for it."""
    log.warning("%s The next attempt is in %.0f seconds, as the server asks.", error.message, seconds)


def log_call(log: logging.Logger, call: Call) -> None:
    """Log what a callback of the settings is called for, where that is worth it."""
    if call.name == "on_reconnect":
        log.info("Attempt %d follows in %.2f seconds.", *call.arguments)
    elif call.name == "on_disconnect" and call.arguments == (None,):
        log.info("The feed ended.")


def callable_failed(log: logging.Logger, error: Exception) -> StreamError:
    """Return the error of an attempt whose callable for headers or parameters raised.

    It may have asked the network for a token, which may succeed the next time.
    """
    log.warning("A callable for the headers or parameters of a feed raised.", exc_info=error)
    return StreamError(
        f"The callable for the headers or parameters of the feed raised {type(error).__name__}: {error}".rstrip(
            "."
        )
        + ".",
        StreamErrorType.CONNECTION_ERROR,
        error,
    )


class FeedHandle:
    """The properties of a handle of a feed."""

    default_config: ClassVar[type[StreamConfig]] = StreamConfig
    """The settings where no ``config`` is given."""

    _feed: Feed

    @property
    def url(self) -> str:
        """The feed's URL, without credentials."""
        return shown_url(self._feed.url)

    @property
    def state(self) -> FeedState:
        """The present state of the feed."""
        return self._feed.state

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"
