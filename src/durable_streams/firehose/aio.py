"""The async firehose: a performer around the machine of a feed (`firehose.machine`).

Invariants: a connection is open only while records are taken, and is released on every way out; `stop`, from
any task or thread, ends the wait of the feed; a task that is cancelled from outside stays cancelled; each call
of ``on_connect`` is followed by one of ``on_disconnect``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from durable_streams.client.aio_performer import AsyncPerformer, settled
from durable_streams.client.forks import Origin, leave_alone
from durable_streams.client.sides import ASYNC
from durable_streams.client.transports import AsyncExchange, AsyncTransport, async_transport_for
from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.firehose.base import (
    AsyncValues,
    FeedHandle,
    FeedRequest,
    as_values,
    callable_failed,
    log_call,
    log_long_wait,
    make_feed,
    make_request,
)
from durable_streams.firehose.config import Attempt, StreamConfig
from durable_streams.firehose.errors import StreamError
from durable_streams.firehose.machine import Feed
from durable_streams.protocol.effects import Call, Effect, Give
from durable_streams.protocol.request import Request

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncFirehoseStream", "astream_with_retry"]

T = TypeVar("T")


class _Driver(AsyncPerformer):
    """Performs the machine of one feed. It holds no reference to what takes its records.

    ``outlives``: whether the feed goes on, with the next call of `batch`, after something from outside has broken off a
    wait; else that ends it.
    """

    _thrown = DurableStreamError

    def __init__(self, feed: Feed, request: FeedRequest, client: Any, *, outlives: bool = False) -> None:
        super().__init__()
        self.feed = feed
        self.stopped = self.running = False
        self._outlives = outlives
        self._machine = feed.run()
        self._effect: Effect | None = None
        self._lost: BaseException | None = None
        self._log = logging.getLogger(feed.config.logger_name)
        self._feed_request = request
        self._transport: AsyncTransport = async_transport_for(client)
        if ASYNC:
            self._closing: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """End the feed, from any thread."""
        self.stopped = True
        if ASYNC:
            self._interrupt.announce()
            loop = self._interrupt.loop
            if loop is not None:
                with contextlib.suppress(
                    RuntimeError
                ):  # it may be closed, and all of its connections with it
                    loop.call_soon_threadsafe(self._wake)
        else:
            self._close()

    if ASYNC:

        def _wake(self) -> None:
            if self._interrupt.busy:
                self._interrupt.set()
            else:
                # The next record may never be asked for, and the connection should not wait for that.
                self._closing = asyncio.ensure_future(self._release())

    async def records(self) -> AsyncGenerator[Any, None]:
        """Return the records as a generator, which leaves no connection behind on any way out."""
        state = self.feed.state
        try:
            while (values := await self.batch()) is not None:
                for value in values:
                    state.total_items_received += 1
                    yield value
                    if self.stopped:
                        return
        except Exception as error:
            await self.end(error)
            raise
        finally:
            await self.end()

    async def batch(self) -> list[Any] | None:
        """Return the next records as soon as there are some; None at the end of the feed, which is ended then.

        Raises:
            StreamError: A failure that no attempt can fix.
            RuntimeError: It was called from within itself, by the handler of a signal, say.
        """
        if self.running:
            raise RuntimeError(f"A record of {self.feed.url} is being waited for already.")
        self.running = True
        try:
            effect = await self._next_records()
        except BaseException as error:
            await self._broken_by(error)
            raise
        finally:
            self.running = False
        if effect is None:
            await self.end()
            return None
        values: list[Any] = effect.value
        return values

    async def _next_records(self) -> Give | None:
        lost, self._lost = self._lost, None
        if lost is not None:
            raise StreamError(
                f"The feed was ended by {lost!r}; open it again to go on.",
                original_exception=lost if isinstance(lost, Exception) else None,
                code="INTERRUPTED",
                url=self.feed.url,
            )
        if self.stopped:
            return None
        effect: Effect | None = self._effect if self._effect is not None else next(self._machine)
        while effect is not None and not isinstance(effect, Give):
            self._effect = effect
            effect = await self._perform(self._machine, effect)
        self._effect = None
        return effect

    async def _broken_by(self, error: BaseException) -> None:
        """Break off the wait where the feed outlives this error, else end the feed."""
        if self._outlives and self._waiting and not self._interrupt.is_set():
            await self._break_off()
            return
        if isinstance(error, StreamError):
            self._log.log(self.feed.config.final_level, "The feed failed for good: %s", error)
        elif self._outlives and self._lost is None:
            self._lost = error  # for the next call: an end without a word would look like that of the feed
        await self.end(error if isinstance(error, Exception) else None)

    async def _break_off(self) -> None:
        """Leave the feed so that the next call goes on from here: on its connection, if that can be read on."""
        if self._effect is None:
            return
        self._effect = await self._broken_off(self._effect)
        if self._effect is None:
            message = f"A wait for records of {self.feed.url} was interrupted."
            cut = FetchError(message, url=self.feed.url, code="INTERRUPTED", may_have_been_sent=True)
            self._effect = self._machine.throw(cut)

    async def end(self, cause: Exception | None = None) -> None:
        """End the feed and release its connection."""
        self.stopped = True
        await self._release()
        goodbye = self.feed.disconnected(cause)
        if goodbye is not None:
            await self._called(goodbye)

    def __del__(self) -> None:
        # Dropped with an open connection, which must not wait for the garbage collector.
        if self._exchange is not None:
            if ASYNC:
                self._interrupt.later(self.end)
            else:
                self.end()

    async def _open(self, request: Request) -> AsyncExchange:
        if ASYNC:
            return await self._transport.open(request, self.feed.config.silence)
        else:
            return self._transport.open(request, self._interrupt, self.feed.config.silence)

    async def _called(self, call: Call) -> Any:
        if call.name == "request":
            return await self._request(*call.arguments)
        if call.name == "on_long_wait":
            return log_long_wait(self._log, *call.arguments)
        log_call(self._log, call)
        callback = getattr(self.feed.config, call.name)
        if callback is None:
            return None
        try:
            if ASYNC:
                await settled(callback(*call.arguments))
            else:
                callback(*call.arguments)
        except Exception:  # noqa: BLE001 - the caller's own
            self._log.log(
                self.feed.config.callback_level, "The callback %s of a feed raised.", call.name, exc_info=True
            )

    async def _request(self, attempt: Attempt) -> Request:
        request = self._feed_request
        try:
            params = await _given(request.params, attempt)
            headers = await _given(request.headers, attempt)
        except Exception as error:
            raise callable_failed(self._log, error) from error
        try:
            params = await _resolved(as_values(params))
            headers = await _resolved(as_values(headers, text=False))
        except _ValueError as failed:
            raise callable_failed(self._log, failed.error) from failed.error
        return request.with_values(params, headers)


class _ValueError(Exception):
    """A callable for one value raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


async def _given(values: AsyncValues | None, attempt: Attempt) -> Any:
    given: Any = values(attempt) if callable(values) else values
    if ASYNC:
        given = await settled(given)
    return given


async def _resolved(given: Any) -> Any:
    """Return a mapping with the values that its callables give; text as it is."""
    if isinstance(given, str):
        return given
    found = dict(given)
    for name, value in given.items():
        if callable(value):
            try:
                found[name] = value()
                if ASYNC:
                    found[name] = await settled(found[name])
            except Exception as error:
                raise _ValueError(error) from error
    return found


class AsyncFirehoseStream(FeedHandle):
    """The records of an endless feed, across all its connections: an async iterator and context manager.

    Iterating raises StreamError for a failure that no attempt can fix. `stop` ends it from any task or thread.

    Args:
        url: The feed's URL, without the query of ``params``.
        method: The method of its requests.
        config: How the feed is followed; None for the defaults.
        params: Query parameters, sent with each attempt: a mapping, in which values may be callables (async
            ones too) that give one; pairs; a query as text; or a callable that is given the Attempt and returns all
            of them in one of these forms.
        headers: Headers, in the same forms but text. One that is None is not sent, even if the client has it.
        json_data: The body of each request, as a JSON value; None for no body.
        response_model: The type of the records (see `decoder_for`); None for JSON values.
        client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.

    Raises:
        ValueError: The URL is not absolute and the client has no base for it, or a header is not for the caller to
            set.
        TypeError: Parameters or headers are in none of these forms.
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
        request = make_request(method, url, params, headers, json_data, client=client)
        self._config = config or self.default_config()
        self._request = request
        self._response_model = response_model
        self._client = client
        self._origin = Origin()
        self._turn = self._new_turn()
        self._begin()

    if ASYNC:

        @staticmethod
        def _new_turn() -> asyncio.Lock:
            return asyncio.Lock()
    else:

        @staticmethod
        def _new_turn() -> Any:
            return threading.RLock()  # a handler of a signal that asks for a record fails, instead of waiting

    def _begin(self) -> None:
        feed = make_feed(self._request.url, self._config, self._response_model)
        self._driver = _Driver(feed, self._request, self._client, outlives=True)
        self._feed = self._driver.feed
        self._state = feed.state
        self._ready: Iterator[Any] = iter(())

    def _begin_again(self) -> None:
        """In the child of a fork, replace a driver that a thread of the parent is in."""
        self._turn = self._new_turn()
        if self._driver.running:
            leave_alone(self._driver)
            self._begin()

    def __aiter__(self) -> AsyncIterator[Any]:
        """Return the handle: several tasks may iterate, and share the records."""
        return self

    async def __anext__(self) -> Any:
        # No lock for a record that is here already: threads may share an iterator of a list.
        if not self._driver.stopped:
            for value in self._ready:
                self._state.total_items_received += 1
                return value
        return await self._awaited()

    async def _awaited(self) -> Any:
        self._origin.notice(self._begin_again)
        async with self._turn:
            while True:
                if not self._driver.stopped:
                    for value in self._ready:  # another one has waited for them
                        self._state.total_items_received += 1
                        return value
                values = await self._driver.batch()
                if values is None:
                    raise StopAsyncIteration
                self._ready = iter(values)

    def stop(self) -> None:
        """End the feed without an error. From another task or thread it ends the wait for a record.

        A signal handler may call it, whatever it interrupts.
        """
        self._driver.stop()

    async def aclose(self) -> None:
        """End the feed and release its connection. While another task iterates it does what `stop` does."""
        self._origin.notice(self._begin_again)
        if ASYNC:
            if self._driver.running:
                self._driver.stop()  # the task that iterates releases the connection
            else:
                await self._driver.end()
        else:
            self._driver.stop()
            if self._turn.acquire(blocking=False):  # else the thread that iterates releases the connection
                try:
                    if not self._driver.running:
                        self._driver.end()
                finally:
                    self._turn.release()

    @property
    def closed(self) -> bool:
        """Whether the feed has ended, or `stop` was called."""
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

    Closing the generator releases the connection at once. It raises StreamError for a failure that no attempt
    can fix.

    Args:
        client: A client, as for `AsyncFirehoseStream`.
        method: The method of the requests.
        url: The feed's URL, without the query of ``params``.
        config: How the feed is followed; None for the defaults.
        params: Query parameters, as for `AsyncFirehoseStream`.
        headers: Headers, as for `AsyncFirehoseStream`.
        json_data: The body of each request, as a JSON value; None for no body.
        response_model: The type of the records (see `decoder_for`); None for JSON values.

    Raises:
        ValueError: The URL is not absolute and the client has no base for it, or a header is not for the caller to
            set.
        TypeError: Parameters or headers are in none of these forms.
    """
    request = make_request(method, url, params, headers, json_data, client=client)
    feed = make_feed(request.url, config or StreamConfig(), response_model)
    return _Driver(feed, request, client).records()
