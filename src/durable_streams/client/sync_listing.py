# Made from client/aio_listing.py by tools/make_sync.py: change that file, then run `make generate`.

"""The sync list of streams: `list_streams`. I/O only; the requests are in `protocol.resources`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from durable_streams.client.base import make_options
from durable_streams.client.sync_performer import run
from durable_streams.client.transports import transport_for
from durable_streams.client.transports.limits import TimeoutLike
from durable_streams.protocol import resources
from durable_streams.protocol.request import check_url
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import HeadersLike, ParamsLike, StreamInfo

__all__ = ["list_streams"]


def list_streams(
    root: str,
    *,
    prefix: str = "",
    after: str = "",
    headers: HeadersLike | None = None,
    params: ParamsLike | None = None,
    client: Any = None,
    timeout: TimeoutLike | None = None,
    retry: RetryPolicy | None = None,
) -> Iterator[StreamInfo]:
    """Iterate over the streams of a server, in the order of their paths (an extension: ``__ds/streams``).

    The list is read page by page, as the consumer asks for more. Each page is current: a stream that is there
    all the while is in it once, whatever else is created or deleted meanwhile.

    Args:
        root: The URL of the server's streams, such as ``http://127.0.0.1:4437/v1/stream``; with a path behind
            it, only streams below that path are listed.
        prefix: The text that the streams' paths begin with, behind the path of ``root``.
        after: The path to go on after, in the order of the list.
        headers: Headers of each request; values may be callables, called for every attempt.
        params: Query parameters of each request, in the same form.
        client: A client of httpx, httpx2, requests or urllib3; None for one that the process shares.
        timeout: Seconds of silence before a request is given up; None for 30. Or a pair of seconds, for
            connecting and reading, or an ``httpx.Timeout``.
        retry: How requests are retried; None for the default, five retries.

    Yields:
        What the list says of each stream.

    Raises:
        ValueError: The URL is not absolute, or a header is not for the caller to set.
        StreamNotFoundError: The server has no list of its streams.
        DurableStreamError: Another refusal, or a failure that no retry can fix.
    """
    options = make_options(client and transport_for(client), headers, params, timeout, retry)
    check_url(root)
    at: str | None = after
    while at is not None:
        page = run(resources.list_page(root, prefix, at), options)
        yield from page.streams
        at = page.next
