"""The sync facade: `stream` and `DurableStream`. I/O and nothing else; what is done is in `protocol`."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.base import OnError, make_call, make_reader
from durable_streams.client.sync_call import run
from durable_streams.client.sync_response import StreamResponse
from durable_streams.protocol import headers as h
from durable_streams.protocol import operations
from durable_streams.protocol.request import check_url
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import (
    AppendResult,
    CloseResult,
    HeadersLike,
    HeadResult,
    LiveMode,
    Offset,
    ParamsLike,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DurableStream", "StreamResponse", "stream"]


def stream(
    url: str,
    *,
    offset: Offset | None = h.OFFSET_START,
    live: LiveMode = True,
    cursor: str | None = None,
    headers: HeadersLike | None = None,
    params: ParamsLike | None = None,
    on_error: OnError | None = None,
    client: Any = None,
    timeout: float | None = None,
    retry: RetryPolicy | None = None,
) -> StreamResponse:
    """Start to read a stream and return the response to consume (protocol section 5).

    The first request is made here, so that StreamNotFoundError and its like are raised here. ``live=False``
    reads to the tail and stops; ``True`` catches up and then follows it. ``timeout``: seconds of silence
    before a read counts as stalled (default: 30, for live reads 90). ``retry``: by default five retries until
    the first answer, endless ones for a live read afterwards. Values of ``headers`` and ``params`` may be
    callables, called for every attempt.
    """
    call = make_call(client, headers, params, timeout, retry)
    return StreamResponse(make_reader(url, offset, live, cursor, retry), call, on_error).start()


class DurableStream:
    """A handle for one stream. Making it does no I/O; it holds no connection of its own, and is thread-safe.

    ``timeout``: seconds of silence before a request is given up (default 30). ``retry``: for what may be
    repeated safely. ``content_type``: the stream's, asked for at the first append where not given.
    """

    def __init__(
        self,
        url: str,
        *,
        content_type: str | None = None,
        headers: HeadersLike | None = None,
        params: ParamsLike | None = None,
        client: Any = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._url = check_url(url)
        self._content_type = content_type
        self._call = make_call(client, headers, params, timeout, retry)

    @property
    def url(self) -> str:
        """The stream's URL."""
        return self._url

    @property
    def content_type(self) -> str | None:
        """The stream's content type, None until it is known."""
        return self._content_type

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the handle's own resources. The stream stays as it is; `close_stream` closes it for good."""

    @classmethod
    def create(
        cls,
        url: str,
        *,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: str | None = None,
        body: Any = None,
        closed: bool = False,
        headers: HeadersLike | None = None,
        params: ParamsLike | None = None,
        client: Any = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> DurableStream:
        """Create a stream and return its handle; see `create_stream`."""
        handle = cls(url, headers=headers, params=params, client=client, timeout=timeout, retry=retry)
        handle.create_stream(
            content_type=content_type,
            ttl_seconds=ttl_seconds,
            expires_at=expires_at,
            body=body,
            closed=closed,
        )
        return handle

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        headers: HeadersLike | None = None,
        params: ParamsLike | None = None,
        client: Any = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> DurableStream:
        """Return a handle of a stream that exists; raises StreamNotFoundError where it does not."""
        handle = cls(url, headers=headers, params=params, client=client, timeout=timeout, retry=retry)
        handle.head()
        return handle

    @classmethod
    def head_static(cls, url: str, **options: Any) -> HeadResult:
        """Return a stream's metadata without keeping a handle; options as for the constructor."""
        return cls(url, **options).head()

    @classmethod
    def delete_static(cls, url: str, **options: Any) -> None:
        """Delete a stream without keeping a handle; options as for the constructor."""
        cls(url, **options).delete()

    def create_stream(
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
        first data, and with ``closed`` its whole content. Raises StreamExistsError where it exists with
        another configuration.
        """
        content_type = content_type or self._content_type
        result = run(
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
        return result

    def append(self, data: Any, *, seq: str | None = None, content_type: str | None = None) -> AppendResult:
        """Append data and return the position after it, once it is durable (protocol section 4).

        Takes bytes or text; for a JSON stream any JSON value as one message, text and bytes being JSON
        already. ``seq`` must be greater than the last one, else SeqConflictError. Raises StreamClosedError on
        a closed stream; a FetchError says in ``may_have_been_sent`` whether the data may have been written.
        """
        op = operations.append(self._url, data, content_type=content_type or self._content_type, seq=seq)
        result, self._content_type = run(op, self._call)
        return result

    def close_stream(self, data: Any = None, *, content_type: str | None = None) -> CloseResult:
        """Close the stream for good, optionally with its last data; return where it ends (protocol section 4)."""
        return run(
            operations.close_stream(self._url, data, content_type=content_type or self._content_type),
            self._call,
        )

    def head(self) -> HeadResult:
        """Return the stream's metadata; raises StreamNotFoundError where there is no stream."""
        result = run(operations.head(self._url), self._call)
        self._content_type = result.content_type or self._content_type
        return result

    def delete(self) -> None:
        """Delete the stream; raises StreamNotFoundError where there is none."""
        run(operations.delete(self._url), self._call)

    def fork(
        self,
        new_url: str,
        *,
        offset: Offset | None = None,
        sub_offset: int | None = None,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: str | None = None,
    ) -> DurableStream:
        """Create a stream that begins as this one up to ``offset`` (default: the tail); return its handle (section 6).

        ``sub_offset``: how much further past ``offset``, in messages for JSON and in bytes otherwise.
        """
        call = self._call
        fork = type(self)(
            new_url,
            content_type=content_type or self._content_type,
            headers=call.headers,
            params=call.params,
            client=call.client,
            timeout=call.timeout,
            retry=call.retry,
        )
        op = operations.create(
            fork.url,
            content_type=content_type,
            ttl_seconds=ttl_seconds,
            expires_at=expires_at,
            source=self._url,
            fork_offset=offset,
            fork_sub_offset=sub_offset,
        )
        run(op, call)
        return fork

    def stream(
        self,
        *,
        offset: Offset | None = h.OFFSET_START,
        live: LiveMode = True,
        cursor: str | None = None,
        headers: HeadersLike | None = None,
        params: ParamsLike | None = None,
        on_error: OnError | None = None,
    ) -> StreamResponse:
        """Start to read the stream; see the function `stream`. Headers and parameters join the handle's own."""
        call = self._call.changed(headers, params)
        return StreamResponse(
            make_reader(self._url, offset, live, cursor, call.retry), call, on_error
        ).start()
