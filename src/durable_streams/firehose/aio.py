"""The async firehose: I/O around the loop in `firehose.machine`.

Invariants: a connection is open only while records are taken, and is released on every way out; `stop`, from any task
or thread, wakes whatever the loop waits for; a task that is cancelled from outside stays cancelled; every connect
that was told is followed by its disconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from durable_streams.client.cancellable_wait import Wait
from durable_streams.client.transports import AsyncExchange, AsyncTransport, async_transport_for
from durable_streams.errors import DurableStreamError
from durable_streams.firehose.base import (
    AsyncValues,
    HandleBase,
    Source,
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
    from typing_extensions import Self

__all__ = ["AsyncFirehoseStream", "astream_with_retry"]

T = TypeVar("T")


class _Driver:
    """Performs the effects of one feed's loop. It holds no reference to the generator that it gives."""

    def __init__(self, feed: Feed, source: Source, client: Any) -> None:
        self.feed = feed
        self.stopped = False
        self._source = source
        self._transport: AsyncTransport = async_transport_for(client)
        self._exchange: AsyncExchange | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wait = Wait()
        self._closing: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """End the loop, from any thread."""
        self.stopped = True
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it may be closed, and all of its connections with it
                loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._wait.busy:
            # The task that reads releases its connection itself: it alone knows when it is done with it.
            self._wait.wake()
        else:
            # Nobody may come for the next record, and the connection should not wait for them.
            self._closing = asyncio.ensure_future(self._release())

    async def records(self) -> AsyncGenerator[Any, None]:
        """Return the records as a generator, which leaves no connection behind on any way out."""
        self._loop = asyncio.get_running_loop()
        flow, state = self.feed.run(), self.feed.state
        cause: Exception | None = None
        try:
            effect: Effect | None = next(flow)
            while effect is not None:
                if not isinstance(effect, Records):
                    effect = await self._perform(flow, effect)
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
            self.stopped = True
            await self._release()
            goodbye = self.feed.disconnected(cause)
            if goodbye is not None:
                await self._tell(goodbye)

    async def _perform(self, flow: Flow, effect: Effect) -> Effect | None:
        """Do what the loop asks for; return its next effect, None once it was stopped."""
        if self._is_stopped():
            return None
        self._wait.begin()
        try:
            answer = await self._do(effect)
        except DurableStreamError as error:
            # Once it was stopped, the break is ours and no failure.
            return None if self._is_stopped() else flow.throw(error)
        except asyncio.CancelledError:
            if not self._wait.take_back():
                raise
            return None
        finally:
            self._wait.end()
            if self.stopped:
                await self._release()
        return None if self._is_stopped() else flow.send(answer)

    def _is_stopped(self) -> bool:
        return self.stopped  # set by others at any time

    async def _do(self, effect: Effect) -> Any:
        if effect is READ:
            return await self._exchange.read() if self._exchange is not None else b""
        if effect is RELEASE:
            return await self._release()
        if isinstance(effect, Tell):
            return await self._tell(effect)
        if isinstance(effect, Pause):
            log_wait(self.feed, effect.seconds)
            return await asyncio.sleep(effect.seconds)
        if isinstance(effect, Attempt):
            request = await self._request(effect)
            self._exchange = await self._transport.open(request, self.feed.config.silence)
        return self._exchange

    async def _request(self, attempt: Attempt) -> Request:
        source = self._source
        try:
            params = await _resolved(source.params, attempt)
            headers = await _resolved(source.headers, attempt)
        except Exception as error:
            raise callable_failed(error) from error
        return source.request(params, headers)

    async def _tell(self, told: Tell) -> None:
        callback = getattr(self.feed.config, told.callback)
        if callback is None:
            return
        try:
            result = callback(*told.arguments)
            if inspect.isawaitable(result):
                await result
        except Exception:  # noqa: BLE001 - the caller's own
            logger.exception("The callback %s of a feed raised.", told.callback)

    async def _release(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            await exchange.close()


async def _resolved(values: AsyncValues | None, attempt: Attempt) -> dict[str, Any]:
    given: Any = values(attempt) if callable(values) else values
    if inspect.isawaitable(given):
        given = await given
    resolved = {}
    for name, value in (given or {}).items():
        one = value() if callable(value) else value
        resolved[name] = await one if inspect.isawaitable(one) else one
    return resolved


class AsyncFirehoseStream(HandleBase):
    """The records of an endless feed, across all its connections: an async iterator and context manager.

    The arguments are those of `FirehoseStream`; callables and callbacks may be async. ``client``: an
    ``httpx.AsyncClient``, an ``aiohttp.ClientSession`` or None for one of ours.

    Iterating raises StreamError for what no attempt mends. `stop` ends it from any task or thread.
    """

    def __init__(
        self,
        url: str,
        *,
        method: str = "GET",
        config: StreamConfig | None = None,
        params: AsyncValues | None = None,
        headers: AsyncValues | None = None,
        json_data: Any = None,
        response_model: Any = None,
        client: Any = None,
    ) -> None:
        source = make_source(method, url, params, headers, json_data)
        self._feed = make_feed(source.url, config or self.default_config(), response_model)
        self._driver = _Driver(self._feed, source, client)
        self._records = self._driver.records()

    def __aiter__(self) -> AsyncIterator[Any]:
        """Return the iterator over the records: the same one each time."""
        return self._records

    async def __anext__(self) -> Any:
        return await anext(self._records)

    def stop(self) -> None:
        """End the feed: iteration stops, without an error. From another task or thread it wakes one that waits."""
        self._driver.stop()

    async def aclose(self) -> None:
        """End the feed and release its connection. For the task that iterates; others use `stop`."""
        self._driver.stopped = True
        await self._records.aclose()

    @property
    def closed(self) -> bool:
        """Whether the feed has ended, or was told to."""
        return self._driver.stopped

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


@overload
def astream_with_retry(
    client: Any,
    method: str,
    url: str,
    config: StreamConfig | None = None,
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
    config: StreamConfig | None = None,
    params: AsyncValues | None = None,
    headers: AsyncValues | None = None,
    json_data: Any = None,
    *,
    response_model: type[T],
) -> AsyncGenerator[T, None]: ...
def astream_with_retry(  # noqa: PLR0917 - the signature that users know
    client: Any,
    method: str,
    url: str,
    config: StreamConfig | None = None,
    params: AsyncValues | None = None,
    headers: AsyncValues | None = None,
    json_data: Any = None,
    response_model: Any = None,
) -> AsyncGenerator[Any, None]:
    """Return an async generator over the records of an endless feed, which reconnects by itself.

    ``client`` and the other arguments are those of `AsyncFirehoseStream`. Closing the generator releases the
    connection at once. Raises StreamError for what no attempt mends, ValueError for a URL that is none.
    """
    source = make_source(method, url, params, headers, json_data)
    return _Driver(make_feed(source.url, config or StreamConfig(), response_model), source, client).records()
