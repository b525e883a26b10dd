"""The async facade: `astream` and `AsyncDurableStream`. I/O only; the decisions are in `protocol`."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.aio_append_turns import AsyncAppendTurns
from durable_streams.client.aio_performer import run
from durable_streams.client.aio_response import AsyncStreamResponse, Opening
from durable_streams.client.base import (
    AsyncOnError,
    CheckpointLike,
    HandleBase,
    OnGone,
    Saver,
    make_options,
    make_reader,
)
from durable_streams.client.sides import ASYNC
from durable_streams.client.transports import async_transport_for
from durable_streams.client.transports.limits import TimeoutLike
from durable_streams.protocol import headers as h
from durable_streams.protocol import operations
from durable_streams.protocol.append_queue import AppendQueue
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
    RetentionResult,
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
    on_gone: OnGone = "raise",
    idle_timeout: float | None = None,
    client: Any = None,
    timeout: TimeoutLike | None = None,
    trickle_timeout: float | None = None,
    retry: RetryPolicy | None = None,
) -> Opening:
    """Start to read a stream (protocol section 5).

    Use it as ``async with astream(url) as res``, or as ``res = await astream(url)``: the first request is made
    then, and the errors of that request are raised there.

    Args:
        url: The stream's absolute URL.
        offset: Where to begin, unless ``checkpoint`` holds a position: an offset that the server gave, ``"-1"``
            (or None) for the start, ``"now"`` for the tail.
        live: ``False`` reads to the tail and stops. ``True`` catches up, then follows the tail: over SSE where
            that returns every byte (JSON, and types that travel as base64), by long-polling where not (text) or
            where SSE brings nothing; ``"auto"`` is another name for it. ``"long-poll"`` and ``"sse"`` choose
            one; ``"sse"`` on a stream of text alters it: each CR and CRLF arrives as LF, and bytes that are not
            UTF-8 arrive as U+FFFD.
        cursor: The `cursor` of an earlier live read, together with its ``offset``.
        etag: The `etag` of an earlier read from the same offset, whose first answer is left out if it would be
            the same.
        checkpoint: A store or a file's path. The read begins at the position saved there, if any. A position is
            saved when the consumer comes back for more, so that data it was busy with when it stopped comes
            again; that of a ``read_`` method is saved when it returns, or when the ``with`` block around it
            ends without an error.
        headers: Headers of each request; values may be callables, async ones too, called for every attempt.
        params: Query parameters of each request, in the same form.
        on_error: A callable (it may be async) that is given an error that would end the read. None lets it end;
            a mapping, perhaps with fresh ``headers`` or ``params``, goes on from the same position. It is also
            given a refusal that asks for a pause of more than a minute (``retry_after``): then None waits.
        on_invalid: How to treat a message that is not JSON, or not of the type that ``decode`` names. "raise"
            hands over the ones before it, then raises StreamParseError; "skip" leaves it out and counts it
            (`invalid` of the response); so does a callable (it may be async), which is given its bytes and the
            error, and may raise it.
        on_gone: What becomes of the read where the stream has given up the data at its position (retention).
            "raise" raises RetentionGoneError; "earliest" logs a warning and goes on from where the stream begins
            now; so does a callable (it may be async), which is given the error, and may raise it. Twice in a row,
            without data between, it is raised.
        client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.
        idle_timeout: Seconds without data after which the read ends: iterating stops, `timed_out` of the response
            is True; a ``read_`` method raises FetchError instead. None for never.
        timeout: Seconds of silence before a read counts as stalled; None for 30, for live reads 90. Or a pair of
            seconds, for connecting and reading, or an ``httpx.Timeout``.
        trickle_timeout: Seconds that an answer other than an event stream may trickle beyond that; None for 30.
        retry: How failures are retried; None for five retries until the first answer, and forever for a live
            read afterwards.

    Returns:
        What to await, or to enter with ``async with``, for the response to consume.

    Raises:
        ValueError: The URL is not absolute, or an argument is out of its range.
        StreamNotFoundError: There is no stream at the URL.
        RetentionGoneError: The offset is before the data that is retained, and ``on_gone`` is "raise".
        DurableStreamError: Another refusal, or a failure that no retry can fix.
    """
    options = make_options(
        client and async_transport_for(client),
        headers,
        params,
        timeout,
        retry,
        trickle_timeout=trickle_timeout,
    )
    saver = Saver(checkpoint)
    reader = make_reader(url, saver, options, offset=offset, live=live, cursor=cursor, etag=etag)
    response: AsyncStreamResponse[Any] = AsyncStreamResponse(
        reader,
        options,
        saver,
        on_error=on_error,
        on_invalid=on_invalid,
        on_gone=on_gone,
        idle_timeout=idle_timeout,
    )
    if ASYNC:
        return Opening(response)
    else:
        return response.start()


class AsyncDurableStream(HandleBase):
    """A handle for one stream. Making it does no I/O; it holds no connection and may be used by many tasks.

    Args:
        url: The stream's absolute URL.
        content_type: The stream's content type; None asks for it at the first append.
        headers: Headers of each request; values may be callables, async ones too, called for every attempt.
        params: Query parameters of each request, in the same form.
        client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.
        timeout: Seconds of silence before a request is given up; None for 30. Or a pair of seconds, for connecting
            and reading, or an ``httpx.Timeout``.
        trickle_timeout: Seconds that an answer may trickle beyond that; None for 30.
        retry: How requests that may be repeated safely are retried; None for the default, five retries.
        batching: Whether appends of several tasks at once go out together, in one request.
        retry_appends: Whether an append is repeated although its answer was lost, so that it may be stored twice.
            One with ``seq`` always is: the server refuses its repetition.
        on_error: What `stream` uses where it is given none.

    Raises:
        ValueError: The URL is not absolute, or a header is not for the caller to set.
    """

    def __init__(
        self,
        url: str,
        *,
        content_type: str | None = None,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        client: Any = None,
        timeout: TimeoutLike | None = None,
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
        batching: bool = True,
        retry_appends: bool = False,
        on_error: AsyncOnError | None = None,
    ) -> None:
        options = make_options(
            client and async_transport_for(client),
            headers,
            params,
            timeout,
            retry,
            trickle_timeout=trickle_timeout,
        )
        super().__init__(url, content_type, options, batching, retry_appends=retry_appends, on_error=on_error)
        self._turns = AsyncAppendTurns()

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
        retention_max_age: int | None = None,
        retention_max_bytes: int | None = None,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        client: Any = None,
        timeout: TimeoutLike | None = None,
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
        batching: bool = True,
        retry_appends: bool = False,
        on_error: AsyncOnError | None = None,
    ) -> AsyncDurableStream:
        """Create a stream, or find it with the same configuration, and return its handle (protocol section 3).

        Args:
            url: The stream's absolute URL.
            content_type: The stream's content type; None for ``application/octet-stream``.
            ttl_seconds: The stream's lifetime in seconds after its last read or write; None for no limit.
            expires_at: When the stream expires, as RFC 3339 text, instead of ``ttl_seconds``.
            body: The first data, and with ``closed`` all of it: bytes or text, for a JSON stream a value that
                is one message. A stream that exists already does not take it.
            retention_max_age: How long the stream keeps data, in seconds; None for no limit of its own.
            retention_max_bytes: How many bytes the stream keeps; None for no limit of its own.
            closed: Whether the stream is closed from the beginning.
            headers: Headers of each request; values may be callables, async ones too, called for every attempt.
            params: Query parameters of each request, in the same form.
            client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.
            timeout: Seconds of silence before a request is given up; None for 30. Or a pair of seconds, for connecting
                and reading, or an ``httpx.Timeout``.
            trickle_timeout: Seconds that an answer may trickle beyond that; None for 30.
            retry: How requests that may be repeated safely are retried; None for the default, five retries.
            batching: Whether appends of several tasks at once go out together, in one request.
            retry_appends: Whether an append is repeated although its answer was lost, so that it may be stored
                twice. One with ``seq`` always is: the server refuses its repetition.
            on_error: What `stream` uses where it is given none.

        Returns:
            The handle, whose `created` says whether the stream is new.

        Raises:
            StreamExistsError: The stream exists with another configuration.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        handle = cls(
            url,
            headers=headers,
            params=params,
            client=client,
            timeout=timeout,
            trickle_timeout=trickle_timeout,
            retry=retry,
            batching=batching,
            retry_appends=retry_appends,
            on_error=on_error,
        )
        await handle.create_stream(
            content_type=content_type,
            ttl_seconds=ttl_seconds,
            expires_at=expires_at,
            body=body,
            closed=closed,
            retention_max_age=retention_max_age,
            retention_max_bytes=retention_max_bytes,
        )
        return handle

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        content_type: str | None = None,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        client: Any = None,
        timeout: TimeoutLike | None = None,
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
        batching: bool = True,
        retry_appends: bool = False,
        on_error: AsyncOnError | None = None,
    ) -> AsyncDurableStream:
        """Return a handle of a stream that exists.

        Args:
            url: The stream's absolute URL.
            content_type: The content type that the handle has until the server has named the stream's own.
            headers: Headers of each request; values may be callables, async ones too, called for every attempt.
            params: Query parameters of each request, in the same form.
            client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.
            timeout: Seconds of silence before a request is given up; None for 30. Or a pair of seconds, for connecting
                and reading, or an ``httpx.Timeout``.
            trickle_timeout: Seconds that an answer may trickle beyond that; None for 30.
            retry: How requests that may be repeated safely are retried; None for the default, five retries.
            batching: Whether appends of several tasks at once go out together, in one request.
            retry_appends: Whether an append is repeated although its answer was lost, so that it may be stored
                twice. One with ``seq`` always is: the server refuses its repetition.
            on_error: What `stream` uses where it is given none.

        Raises:
            StreamNotFoundError: There is no stream at the URL.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        handle = cls(
            url,
            content_type=content_type,
            headers=headers,
            params=params,
            client=client,
            timeout=timeout,
            trickle_timeout=trickle_timeout,
            retry=retry,
            batching=batching,
            retry_appends=retry_appends,
            on_error=on_error,
        )
        await handle.head()
        return handle

    @classmethod
    async def head_static(
        cls,
        url: str,
        *,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        client: Any = None,
        timeout: TimeoutLike | None = None,
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> HeadResult:
        """Return a stream's metadata without keeping a handle (protocol section 1).

        Args:
            url: The stream's absolute URL.
            headers: Headers of each request; values may be callables, async ones too, called for every attempt.
            params: Query parameters of each request, in the same form.
            client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.
            timeout: Seconds of silence before a request is given up; None for 30. Or a pair of seconds, for connecting
                and reading, or an ``httpx.Timeout``.
            trickle_timeout: Seconds that an answer may trickle beyond that; None for 30.
            retry: How requests that may be repeated safely are retried; None for the default, five retries.

        Raises:
            StreamNotFoundError: There is no stream at the URL.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        handle = cls(
            url,
            headers=headers,
            params=params,
            client=client,
            timeout=timeout,
            trickle_timeout=trickle_timeout,
            retry=retry,
        )
        return await handle.head()

    @classmethod
    async def delete_static(
        cls,
        url: str,
        *,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        client: Any = None,
        timeout: TimeoutLike | None = None,
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Delete a stream without keeping a handle (protocol section 1).

        Args:
            url: The stream's absolute URL.
            headers: Headers of each request; values may be callables, async ones too, called for every attempt.
            params: Query parameters of each request, in the same form.
            client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.
            timeout: Seconds of silence before a request is given up; None for 30. Or a pair of seconds, for connecting
                and reading, or an ``httpx.Timeout``.
            trickle_timeout: Seconds that an answer may trickle beyond that; None for 30.
            retry: How requests that may be repeated safely are retried; None for the default, five retries.

        Raises:
            StreamNotFoundError: There is no stream at the URL.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        handle = cls(
            url,
            headers=headers,
            params=params,
            client=client,
            timeout=timeout,
            trickle_timeout=trickle_timeout,
            retry=retry,
        )
        await handle.delete()

    async def create_stream(
        self,
        *,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: str | None = None,
        body: Any = None,
        closed: bool = False,
        retention_max_age: int | None = None,
        retention_max_bytes: int | None = None,
    ) -> HeadResult:
        """Create the stream, or find it with the same configuration (protocol section 3).

        Args:
            content_type: The stream's content type; None for that of the handle, else
                ``application/octet-stream``.
            ttl_seconds: The stream's lifetime in seconds after its last read or write; None for no limit.
            expires_at: When the stream expires, as RFC 3339 text, instead of ``ttl_seconds``.
            body: The first data, and with ``closed`` all of it: bytes or text, for a JSON stream a value that
                is one message. A stream that exists already does not take it.
            closed: Whether the stream is closed from the beginning.
            retention_max_age: How long the stream keeps data, in seconds; None for no limit of its own.
            retention_max_bytes: How many bytes the stream keeps; None for no limit of its own.

        Returns:
            The stream's metadata; ``created`` is False where the stream existed already.

        Raises:
            StreamExistsError: The stream exists with another configuration.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        content_type = content_type or self._content_type
        op = operations.create(
            self._url,
            content_type=content_type,
            ttl_seconds=ttl_seconds,
            expires_at=expires_at,
            body=body,
            closed=closed,
            retention_max_age=retention_max_age,
            retention_max_bytes=retention_max_bytes,
        )
        result = await run(op, self._options)
        self._content_type = result.content_type or content_type
        self._created = result.created
        return result

    async def append(
        self,
        data: Any,
        *,
        seq: str | None = None,
        expected_offset: Offset | None = None,
        content_type: str | None = None,
    ) -> AppendResult:
        """Append data, and return once it is durable (protocol section 4).

        Args:
            data: Bytes or text; for a JSON stream any JSON value as one message, where text and bytes are JSON
                already.
            seq: The writer's sequence text, which must be greater than the last one.
            expected_offset: Where the stream has to end, as an answer stated it (`next_offset`, the `offset` of
                `head`): the append is refused if there is other data. None to append wherever it ends. Goes to the
                server as ``If-Match``, which servers without appends on condition may ignore.
            content_type: The stream's content type; None for that of the handle, which asks for it once.

        Returns:
            The position after the data; with ``batching`` that after the last record of the request.

        Raises:
            ValueError: The data is empty, or is not valid JSON.
            TypeError: The stream cannot hold this type of data.
            StreamClosedError: The stream is closed.
            SeqConflictError: ``seq`` is not greater than the last one; after an attempt whose answer was lost,
                ``may_have_been_sent`` is True, for that attempt may have stored the data.
            OffsetConflictError: The stream does not end at ``expected_offset``; ``may_have_been_sent`` as above.
            FetchError: The answer was lost; ``may_have_been_sent`` says whether the data may have been written.
        """
        # What waits for others must not depend on where they end.
        alone = not self._batching or seq is not None or expected_offset is not None
        if alone or content_type is not None:
            op = operations.append(
                self._url,
                data,
                content_type=content_type or self._content_type,
                seq=seq,
                expected_offset=expected_offset,
                repeatable=self._retry_appends,
            )
            result, self._content_type = await run(op, self._options)
            return result
        if ASYNC:
            # A request that carries this append alone, and asks for nothing that others need, ends with its task.
            return await self._turns.append(
                data, self._send_queued, may_cancel=self._content_type is not None
            )
        else:
            return self._turns.append(data, self._send_queued)

    async def _send_queued(self, queue: AppendQueue[Any]) -> None:
        """Send one request for all appends that are waiting."""
        op = queue.send(self._url, self._content_type, repeatable=self._retry_appends)
        self._content_type = await run(op, self._options) or self._content_type

    async def close_stream(
        self,
        data: Any = None,
        *,
        content_type: str | None = None,
        seq: str | None = None,
        expected_offset: Offset | None = None,
    ) -> CloseResult:
        """Close the stream for good (protocol section 4).

        Args:
            data: The last data, as for `append`; None for none, which makes the call safe to repeat.
            content_type: The stream's content type; None for that of the handle.
            seq: The writer's sequence text, which must be greater than the last one.
            expected_offset: Where the stream has to end before the call, as for `append`; None for anywhere.

        Returns:
            Where the stream ends.

        Raises:
            StreamClosedError: The stream is closed already, and ``data`` was given.
            SeqConflictError: ``seq`` is not greater than the last one.
            OffsetConflictError: The stream does not end at ``expected_offset``.
            StreamNotFoundError: There is no stream at the URL.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        op = operations.close_stream(
            self._url,
            data,
            content_type=content_type or self._content_type,
            seq=seq,
            expected_offset=expected_offset,
        )
        return await run(op, self._options)

    async def head(self) -> HeadResult:
        """Return the stream's metadata (protocol section 1).

        Raises:
            StreamNotFoundError: There is no stream at the URL.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        result = await run(operations.head(self._url), self._options)
        self._content_type = result.content_type or self._content_type
        return result

    async def delete(self) -> None:
        """Delete the stream (protocol section 1).

        Raises:
            StreamNotFoundError: There is no stream at the URL.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        await run(operations.delete(self._url), self._options)

    async def trim(
        self, *, before: Offset | None = None, max_bytes: int | None = None, max_age: int | None = None
    ) -> RetentionResult:
        """Let the stream give up its first appends, for good. Takes one of the three.

        It is no part of the protocol: the server must be one of this project.

        Args:
            before: Keep the append that holds this offset, and all behind it; ``"now"`` gives up everything.
            max_bytes: Keep as many of the last appends as fit into this many bytes.
            max_age: Keep what came within this many seconds; the stream must have a retention with an age.

        Returns:
            What the stream keeps now.

        Raises:
            ValueError: Not one of the three is given, or it makes no sense.
            StreamNotFoundError: There is no stream at the URL.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        op = operations.trim(self._url, before=before, max_bytes=max_bytes, max_age=max_age)
        return await run(op, self._options)

    async def set_retention(
        self, *, max_age: int | None = None, max_bytes: int | None = None
    ) -> RetentionResult:
        """Change how much the stream keeps from now on; without limits, it keeps everything.

        It is no part of the protocol: the server must be one of this project.

        Args:
            max_age: How long it keeps data, in seconds; None for no limit.
            max_bytes: How many bytes it keeps; None for no limit.

        Returns:
            What the stream keeps now.

        Raises:
            ValueError: A limit makes no sense.
            StreamNotFoundError: There is no stream at the URL.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        return await run(
            operations.set_retention(self._url, max_age=max_age, max_bytes=max_bytes), self._options
        )

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
        """Create a stream that begins with the data of this one (protocol section 6).

        Args:
            new_url: The absolute URL of the fork, on the same server.
            offset: Up to where the data is shared; None for the tail.
            sub_offset: How much further past ``offset``: messages of a JSON stream, bytes of another.
            content_type: The fork's content type, which must be that of this stream; None for the same.
            ttl_seconds: The fork's lifetime in seconds after its last read or write; None for that of this
                stream.
            expires_at: When the fork expires, as RFC 3339 text, instead of ``ttl_seconds``.

        Returns:
            The fork's handle, with the options of this one.

        Raises:
            StreamExistsError: A stream with another configuration exists at ``new_url``.
            StreamNotFoundError: This stream does not exist.
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        fork = type(self)(new_url, content_type=content_type or self._content_type, **self._arguments())
        op = operations.create(
            fork._url,  # noqa: SLF001 - of the same class
            content_type=content_type,
            ttl_seconds=ttl_seconds,
            expires_at=expires_at,
            source=self._url,
            fork_offset=offset,
            fork_sub_offset=sub_offset,
        )
        result = await run(op, self._options)
        fork._created = result.created  # noqa: SLF001 - of the same class
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
        on_gone: OnGone = "raise",
        idle_timeout: float | None = None,
    ) -> Opening:
        """Start to read the stream, with the options of the handle (protocol section 5).

        Use it as ``async with handle.stream() as res``, or as ``res = await handle.stream()``: the first
        request is made then, and its errors are raised there.

        Args:
            offset: Where to begin, unless ``checkpoint`` holds a position: an offset that the server gave,
                ``"-1"`` (or None) for the start, ``"now"`` for the tail.
            live: ``False`` reads to the tail and stops. ``True`` catches up, then follows the tail: over SSE
                where that returns every byte (JSON, and types that travel as base64), by long-polling where not
                (text) or where SSE brings nothing; ``"auto"`` is another name for it. ``"long-poll"`` and
                ``"sse"`` choose one; ``"sse"`` on a stream of text alters it: each CR and CRLF arrives as LF,
                and bytes that are not UTF-8 arrive as U+FFFD.
            cursor: The `cursor` of an earlier live read, together with its ``offset``.
            etag: The `etag` of an earlier read from the same offset, whose first answer is left out if it would
                be the same.
            checkpoint: A store or a file's path. The read begins at the position saved there, if any. A
                position is saved when the consumer comes back for more, so that data it was busy with when it
                stopped comes again; that of a ``read_`` method is saved when it returns, or when the ``with``
                block around it ends without an error.
            headers: Headers that join the handle's own; values may be callables, async ones too, called for
                every attempt.
            params: Query parameters that join the handle's own, in the same form.
            on_error: In place of the handle's: a callable (it may be async) that is given an error that would
                end the read. None lets it end; a mapping, perhaps with fresh ``headers`` or ``params``, goes on
                from the same position. It is also given a refusal that asks for a pause of more than a minute
                (``retry_after``): then None waits.
            on_invalid: How to treat a message that is not JSON, or not of the type that ``decode`` names.
                "raise" hands over the ones before it, then raises StreamParseError; "skip" leaves it out and
                counts it (`invalid` of the response); so does a callable (it may be async), which is given its
                bytes and the error, and may raise it.
            on_gone: What becomes of the read where the stream has given up the data at its position (retention).
                "raise" raises RetentionGoneError; "earliest" logs a warning and goes on from where the stream
                begins now; so does a callable (it may be async), which is given the error, and may raise it.
                Twice in a row, without data between, it is raised.
            idle_timeout: Seconds without data after which the read ends: iterating stops, `timed_out` of the
                response is True; a ``read_`` method raises FetchError instead. None for never.

        Returns:
            What to await, or to enter with ``async with``, for the response to consume.

        Raises:
            ValueError: An argument is out of its range.
            StreamNotFoundError: There is no stream at the URL.
            RetentionGoneError: The offset is before the data that is retained, and ``on_gone`` is "raise".
            DurableStreamError: Another refusal, or a failure that no retry can fix.
        """
        response = self._response(
            offset=offset,
            live=live,
            cursor=cursor,
            etag=etag,
            checkpoint=checkpoint,
            headers=headers,
            params=params,
            on_error=on_error,
            on_invalid=on_invalid,
            on_gone=on_gone,
            idle_timeout=idle_timeout,
        )
        if ASYNC:
            return Opening(response)
        else:
            return response.start()

    def _response(
        self,
        *,
        offset: Offset | None,
        live: LiveMode,
        cursor: str | None = None,
        etag: str | None = None,
        checkpoint: CheckpointLike | None = None,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        on_error: AsyncOnError | None = None,
        on_invalid: OnInvalid = "raise",
        on_gone: OnGone = "raise",
        idle_timeout: float | None = None,
    ) -> AsyncStreamResponse[Any]:
        """Return a read that was not started yet."""
        saver = Saver(checkpoint)
        options = self._options.changed(headers, params)
        reader = make_reader(self._url, saver, options, offset=offset, live=live, cursor=cursor, etag=etag)
        return AsyncStreamResponse(
            reader,
            options,
            saver,
            on_error=on_error or self._on_error,
            on_invalid=on_invalid,
            on_gone=on_gone,
            idle_timeout=idle_timeout,
        )
