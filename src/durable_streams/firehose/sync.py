"""The sync firehose: I/O around the loop in `firehose.machine`.

Invariants: a connection is open only while records are taken, and is released on every way out; `stop` from another
thread wakes whatever the loop is blocked in; every connect that was told is followed by its disconnect.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from durable_streams.client.transports import Exchange, Interrupt, Transport, transport_for
from durable_streams.errors import DurableStreamError
from durable_streams.firehose.base import (
    HandleBase,
    Source,
    Values,
    callable_failed,
    log_wait,
    logger,
    make_feed,
    make_source,
)
from durable_streams.firehose.config import Attempt, StreamConfig
from durable_streams.firehose.machine import READ, RELEASE, Effect, Feed, Flow, Pause, Records, Tell
from durable_streams.protocol.request import Request

if TYPE_CHECKING:
    from requests import Session
    from typing_extensions import Self

__all__ = ["FirehoseStream", "stream_with_retry"]

T = TypeVar("T")


class _Driver:
    """Performs the effects of one feed's loop. It holds no reference to the generator that it gives."""

    def __init__(self, feed: Feed, source: Source, client: Any) -> None:
        self.feed = feed
        self.stopped = False
        self._source = source
        self._transport: Transport = transport_for(client)
        self._interrupt = Interrupt()
        self._exchange: Exchange | None = None
        self._busy = False

    def stop(self) -> None:
        """End the loop, from any thread."""
        self.stopped = True
        self._interrupt.set()
        # A thread that reads releases its connection itself: it alone knows when it is done with it.
        if not self._busy:
            self._release()

    def records(self) -> Generator[Any, None, None]:
        """Return the records as a generator, which leaves no connection behind on any way out."""
        flow, state = self.feed.run(), self.feed.state
        cause: Exception | None = None
        try:
            effect: Effect | None = next(flow)
            while effect is not None:
                if not isinstance(effect, Records):
                    effect = self._perform(flow, effect)
                    continue
                for value in effect.values:
                    state.total_items_received += 1
                    yield value
                    if self.stopped:
                        return
                effect = next(flow)
        except Exception as error:
            cause = error
            raise
        finally:
            self._release()
            goodbye = self.feed.disconnected(cause)
            if goodbye is not None:
                self._tell(goodbye)
            self.stop()

    def _perform(self, flow: Flow, effect: Effect) -> Effect | None:
        """Do what the loop asks for; return its next effect, None once it was stopped."""
        if self._is_stopped():
            return None
        self._busy = True
        try:
            answer = self._do(effect)
        except DurableStreamError as error:
            # Once it was stopped, the break is ours and no failure.
            return None if self._is_stopped() else flow.throw(error)
        finally:
            self._busy = False
            if self.stopped:
                self._release()
        return None if self._is_stopped() else flow.send(answer)

    def _is_stopped(self) -> bool:
        return self.stopped  # set by others at any time

    def _do(self, effect: Effect) -> Any:
        if effect is READ:
            return self._exchange.read() if self._exchange is not None else b""
        if effect is RELEASE:
            return self._release()
        if isinstance(effect, Tell):
            return self._tell(effect)
        if isinstance(effect, Pause):
            log_wait(self.feed, effect.seconds)
            return self._interrupt.pause(effect.seconds)
        if isinstance(effect, Attempt):
            request = self._request(effect)
            self._exchange = self._transport.open(request, self._interrupt, self.feed.config.silence)
        return self._exchange

    def _request(self, attempt: Attempt) -> Request:
        source = self._source
        try:
            params, headers = _resolved(source.params, attempt), _resolved(source.headers, attempt)
        except Exception as error:
            raise callable_failed(error) from error
        return source.request(params, headers)

    def _tell(self, told: Tell) -> None:
        callback = getattr(self.feed.config, told.callback)
        if callback is None:
            return
        try:
            callback(*told.arguments)
        except Exception:  # noqa: BLE001 - the caller's own
            logger.exception("The callback %s of a feed raised.", told.callback)

    def _release(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()


def _resolved(values: Values | None, attempt: Attempt) -> dict[str, Any]:
    given = values(attempt) if callable(values) else values
    return {name: value() if callable(value) else value for name, value in (given or {}).items()}


class FirehoseStream(HandleBase):
    """The records of an endless feed, across all its connections: an iterator and a context manager.

    ``config``: a StreamConfig. ``params`` and ``headers``: mappings, in which values may be callables that give one
    for each attempt; or a callable that is given the Attempt and returns all of them. ``response_model``: what
    records become (see `decoder_for`), None for JSON values. ``client``: a ``requests.Session``, an
    ``httpx.Client`` or None for one of ours.

    Iterating raises StreamError for what no attempt mends. `stop` ends it from any thread.
    """

    def __init__(
        self,
        url: str,
        *,
        method: str = "GET",
        config: StreamConfig | None = None,
        params: Values | None = None,
        headers: Values | None = None,
        json_data: Any = None,
        response_model: Any = None,
        client: Any = None,
    ) -> None:
        source = make_source(method, url, params, headers, json_data)
        self._feed = make_feed(source.url, config or self.default_config(), response_model)
        self._driver = _Driver(self._feed, source, client)
        self._records = self._driver.records()

    def __iter__(self) -> Iterator[Any]:
        """Return the iterator over the records: the same one each time."""
        return self._records

    def __next__(self) -> Any:
        return next(self._records)

    def stop(self) -> None:
        """End the feed: iteration stops, without an error. From another thread it wakes a read that is blocked."""
        self._driver.stop()

    def close(self) -> None:
        """End the feed and release its connection. For the thread that iterates; others use `stop`."""
        self._driver.stop()
        self._records.close()

    @property
    def closed(self) -> bool:
        """Whether the feed has ended, or was told to."""
        return self._driver.stopped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@overload
def stream_with_retry(
    session: Session | Any,
    method: str,
    url: str,
    config: StreamConfig | None = None,
    params: Values | None = None,
    headers: Values | None = None,
    json_data: Any = None,
    response_model: None = None,
) -> Generator[Any, None, None]: ...
@overload
def stream_with_retry(
    session: Session | Any,
    method: str,
    url: str,
    config: StreamConfig | None = None,
    params: Values | None = None,
    headers: Values | None = None,
    json_data: Any = None,
    *,
    response_model: type[T],
) -> Generator[T, None, None]: ...
def stream_with_retry(  # noqa: PLR0917 - the signature that users know
    session: Any,
    method: str,
    url: str,
    config: StreamConfig | None = None,
    params: Values | None = None,
    headers: Values | None = None,
    json_data: Any = None,
    response_model: Any = None,
) -> Generator[Any, None, None]:
    """Return a generator over the records of an endless feed, which reconnects by itself.

    ``session``: as ``client`` of `FirehoseStream`, where the other arguments are described too. Closing the
    generator releases the connection at once. Raises StreamError for what no attempt mends, ValueError for a
    URL that is none.
    """
    source = make_source(method, url, params, headers, json_data)
    return _Driver(make_feed(source.url, config or StreamConfig(), response_model), source, session).records()
