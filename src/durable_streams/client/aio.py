"""The async facade: `astream` and `AsyncDurableStream`. I/O and nothing else; what is done is in `protocol`."""

from __future__ import annotations

import asyncio
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.aio_performer import run
from durable_streams.client.aio_response import AsyncStreamResponse, Opening
from durable_streams.client.base import (
    AsyncOnError,
    CheckpointLike,
    HandleBase,
    Saver,
    make_call,
    make_reader,
)
from durable_streams.client.forks import Origin, leave_alone
from durable_streams.client.transports import async_transport_for
from durable_streams.protocol import headers as h
from durable_streams.protocol import operations
from durable_streams.protocol.append_queue import AppendQueue, Entry
from durable_streams.protocol.jsonrule import OnInvalid
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import (
    AppendResult,
    AsyncHeadersLike,
    AsyncParamsLike,
    CloseResult,
    HeadResult,
    LiveMode,
    Offset,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncDurableStream", "AsyncStreamResponse", "astream"]


def astream(
    url: str,
    *,
    offset: Offset | None = h.OFFSET_START,
    live: LiveMode = True,
    cursor: str | None = None,
    etag: str | None = None,
    checkpoint: CheckpointLike | None = None,
    headers: AsyncHeadersLike | None = None,
    params: AsyncParamsLike | None = None,
    on_error: AsyncOnError | None = None,
    on_invalid: OnInvalid = "raise",
    client: Any = None,
    timeout: float | None = None,
    trickle_timeout: float | None = None,
    retry: RetryPolicy | None = None,
) -> Opening:
    """Start to read a stream (protocol section 5).

    Use it as ``async with astream(url) as res``, or as ``res = await astream(url)``; the first request is made then,
    so that StreamNotFoundError and its like are raised there. ``live=False`` reads to the tail and stops; ``True``
    catches up and then follows it, over SSE where that returns every byte (JSON, and types that travel as base64), by
    long-polling where not (text). ``"sse"`` on a stream of text alters it: each CR and CRLF arrives as LF, and bytes
    that are not UTF-8 arrive as U+FFFD.

    ``checkpoint``: a store or a file's path. The read begins at the position saved there, if any, else at
    ``offset``; positions are saved as the consumer comes back for more, so that what it was busy with when it
    stopped comes again; that of a ``read_`` method when it returns, or when the ``with`` block around it ends
    without an error. ``etag``: that of an earlier read from the same offset, whose first answer is left out if
    it would be the same. ``timeout``: seconds of silence before a read counts as stalled (default: 30, for live
    reads 90); ``trickle_timeout``: seconds that an answer may trickle beyond that (default: 30), not counting event
    streams. ``retry``: by default five retries until the first answer, endless ones for a live read afterwards.
    Values of ``headers`` and ``params`` may be callables, async ones too, called for every attempt. ``on_error``
    (it may be async) is called with an error that would end the read: None lets it; a mapping, perhaps with fresh
    ``headers`` or ``params``, goes on from where it was. It is also called with a refusal that asks for a pause of
    more than a minute (``retry_after``): then None waits. ``client``: an httpx.AsyncClient or aiohttp.ClientSession;
    by default one is shared by all calls in the same event loop.

    ``on_invalid``: what becomes of a message that is not JSON, or not what ``decode`` asks for, where messages are
    decoded. "raise" hands over the ones before it, then raises StreamParseError; "skip" leaves it out and counts it
    (`invalid` of the response); so does a callable (it may be async), which is given its bytes and the error, and may
    raise it.
    """
    call = make_call(
        client and async_transport_for(client),
        headers,
        params,
        timeout,
        retry,
        trickle_timeout=trickle_timeout,
    )
    saver = Saver(checkpoint)
    reader = make_reader(url, saver, call, offset=offset, live=live, cursor=cursor, etag=etag)
    return Opening(AsyncStreamResponse(reader, call, saver, on_error, on_invalid))


_Entry = Entry[asyncio.Future[None]]
_Queue = AppendQueue[asyncio.Future[None]]


def _wake(entry: _Entry | None) -> None:
    if entry is not None and not entry.waiter.done():
        entry.waiter.set_result(None)


class AsyncDurableStream(HandleBase):
    """A handle for one stream. Making it does no I/O; it holds no connection of its own, and may be used by many tasks.

    ``timeout``: seconds of silence before a request is given up (default 30); ``trickle_timeout``: seconds that an
    answer may trickle beyond that (default 30). ``retry``: for what may be
    repeated safely. ``content_type``: the stream's, asked for at the first append where not given.
    ``batching``: appends of several tasks at once go out together, in one request.
    """

    def __init__(
        self,
        url: str,
        *,
        content_type: str | None = None,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        client: Any = None,
        timeout: float | None = None,
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
        batching: bool = True,
    ) -> None:
        call = make_call(
            client and async_transport_for(client),
            headers,
            params,
            timeout,
            retry,
            trickle_timeout=trickle_timeout,
        )
        super().__init__(url, content_type, call, batching)
        self._origin = Origin()
        self._leading: set[asyncio.Task[None]] = set()
        self._renew()

    def _renew(self) -> None:
        # After a fork too: what other tasks have queued is left to the parent.
        leave_alone(self._leading)
        self._queues: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = (
            weakref.WeakKeyDictionary()
        )
        self._leading = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Release the handle's own resources. The stream stays as it is; `close_stream` closes it for good."""

    @classmethod
    async def create(
        cls,
        url: str,
        *,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: str | None = None,
        body: Any = None,
        closed: bool = False,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        client: Any = None,
        timeout: float | None = None,
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
        batching: bool = True,
    ) -> AsyncDurableStream:
        """Create a stream and return its handle, whose `created` says whether it is new; see `create_stream`."""
        handle = cls(
            url,
            headers=headers,
            params=params,
            client=client,
            timeout=timeout,
            trickle_timeout=trickle_timeout,
            retry=retry,
            batching=batching,
        )
        await handle.create_stream(
            content_type=content_type,
            ttl_seconds=ttl_seconds,
            expires_at=expires_at,
            body=body,
            closed=closed,
        )
        return handle

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        client: Any = None,
        timeout: float | None = None,
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
        batching: bool = True,
    ) -> AsyncDurableStream:
        """Return a handle of a stream that exists; raises StreamNotFoundError where it does not."""
        handle = cls(
            url,
            headers=headers,
            params=params,
            client=client,
            timeout=timeout,
            trickle_timeout=trickle_timeout,
            retry=retry,
            batching=batching,
        )
        await handle.head()
        return handle

    @classmethod
    async def head_static(cls, url: str, **options: Any) -> HeadResult:
        """Return a stream's metadata without keeping a handle; options as for the constructor."""
        return await cls(url, **options).head()

    @classmethod
    async def delete_static(cls, url: str, **options: Any) -> None:
        """Delete a stream without keeping a handle; options as for the constructor."""
        await cls(url, **options).delete()

    async def create_stream(
        self,
        *,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: str | None = None,
        body: Any = None,
        closed: bool = False,
    ) -> HeadResult:
        """Create the stream, or find it there with the same configuration (protocol section 3).

        ``ttl_seconds``: lifetime after the last read or write; or ``expires_at``, RFC 3339. ``body``: its
        first data, and with ``closed`` its whole content. A stream that was there already does not take it: the
        result's ``created`` is False then. Raises StreamExistsError where it exists with another configuration.
        """
        content_type = content_type or self._content_type
        result = await run(
            operations.create(
                self._url,
                content_type=content_type,
                ttl_seconds=ttl_seconds,
                expires_at=expires_at,
                body=body,
                closed=closed,
            ),
            self._call,
        )
        self._content_type = result.content_type or content_type
        self._created = result.created
        return result

    async def append(
        self, data: Any, *, seq: str | None = None, content_type: str | None = None
    ) -> AppendResult:
        """Append data and return the position after it, once it is durable (protocol section 4).

        Takes bytes or text; for a JSON stream any JSON value as one message, text and bytes being JSON
        already. ``seq`` must be greater than the last one, else SeqConflictError. Raises StreamClosedError on
        a closed stream; a FetchError says in ``may_have_been_sent`` whether the data may have been written.
        With ``batching`` the position is that after the request's last record.
        """
        if not self._batching or seq is not None or content_type is not None:
            op = operations.append(self._url, data, content_type=content_type or self._content_type, seq=seq)
            result, self._content_type = await run(op, self._call)
            return result
        self._origin.notice(self._renew)
        loop = asyncio.get_running_loop()
        queue = self._queues.setdefault(loop, AppendQueue())
        entry: _Entry = Entry(data, loop.create_future())
        if not queue.add(entry):
            await self._wait_for(entry, queue)
        if entry.done:
            return entry.outcome()
        if len(queue) == 1 and self._content_type is not None:
            await self._lead(queue)  # a request that carries this append alone may be cancelled with it
        else:
            leading = loop.create_task(self._lead(queue))
            self._leading.add(leading)
            leading.add_done_callback(self._leading.discard)
            await asyncio.shield(leading)
        return entry.outcome()

    async def _wait_for(self, entry: _Entry, queue: _Queue) -> None:
        """Wait until the append is done, or has to lead."""
        try:
            await entry.waiter
        except asyncio.CancelledError:
            _wake(queue.take_back(entry))
            raise

    async def _lead(self, queue: _Queue) -> None:
        """Send one request for all appends that are waiting."""
        try:
            op = queue.send(self._url, self._content_type)
            self._content_type = await run(op, self._call) or self._content_type
        except BaseException as error:
            self._end_turn(queue, error)
            raise
        self._end_turn(queue)

    @staticmethod
    def _end_turn(queue: _Queue, cause: BaseException | None = None) -> None:
        for entry in queue.finish(cause):
            _wake(entry)
        _wake(queue.hand_over())

    async def close_stream(self, data: Any = None, *, content_type: str | None = None) -> CloseResult:
        """Close the stream for good, optionally with its last data; return where it ends (protocol section 4)."""
        return await run(
            operations.close_stream(self._url, data, content_type=content_type or self._content_type),
            self._call,
        )

    async def head(self) -> HeadResult:
        """Return the stream's metadata; raises StreamNotFoundError where there is no stream."""
        result = await run(operations.head(self._url), self._call)
        self._content_type = result.content_type or self._content_type
        return result

    async def delete(self) -> None:
        """Delete the stream; raises StreamNotFoundError where there is none."""
        await run(operations.delete(self._url), self._call)

    async def fork(
        self,
        new_url: str,
        *,
        offset: Offset | None = None,
        sub_offset: int | None = None,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: str | None = None,
    ) -> AsyncDurableStream:
        """Create a stream that begins as this one up to ``offset`` (default: the tail); return its handle (section 6).

        ``sub_offset``: how much further past ``offset``, in messages for JSON and in bytes otherwise.
        """
        fork = type(self)(new_url, content_type=content_type or self._content_type, **self._options())
        op = operations.create(
            fork.url,
            content_type=content_type,
            ttl_seconds=ttl_seconds,
            expires_at=expires_at,
            source=self._url,
            fork_offset=offset,
            fork_sub_offset=sub_offset,
        )
        fork._created = (await run(op, self._call)).created  # noqa: SLF001 - one of our own kind
        return fork

    def stream(
        self,
        *,
        offset: Offset | None = h.OFFSET_START,
        live: LiveMode = True,
        cursor: str | None = None,
        etag: str | None = None,
        checkpoint: CheckpointLike | None = None,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        on_error: AsyncOnError | None = None,
        on_invalid: OnInvalid = "raise",
    ) -> Opening:
        """Start to read the stream; see the function `astream`. Headers and parameters join the handle's own."""
        saver = Saver(checkpoint)
        reader = make_reader(self._url, saver, self._call, offset=offset, live=live, cursor=cursor, etag=etag)
        response = AsyncStreamResponse(
            reader, self._call.changed(headers, params), saver, on_error, on_invalid
        )
        return Opening(response)
