"""From the name of a source to the source."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from durable_streams.client.base import OnGone
from durable_streams.client.sync import DurableStream
from durable_streams.errors import DurableStreamError
from durable_streams.protocol import headers as h
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.relay.source import FileSource, IterableSource, PipeSource, Source, source_error

__all__ = ["Form", "source_for"]

Form = Literal["auto", "ndjson", "sse", "stream"]
"""What a URL is: a feed of lines, a feed of server-sent events, or a durable stream; ``auto`` asks it."""

_ONE_LOOK = RetryPolicy(max_retries=2)
_LOOK_FOR = 10.0  # seconds


class _Following(NamedTuple):
    """How a URL is followed: whether past its present end, and where a durable stream has given up data."""

    follow: bool
    on_gone: OnGone


def source_for(
    source: Source | Iterable[Any] | str | os.PathLike[str],
    *,
    form: Form = "auto",
    headers: Mapping[str, Any] | None = None,
    follow: bool | None = None,
    on_gone: OnGone = "raise",
    **feed: Any,
) -> Source:
    """Return the source that a path, ``-``, a URL, a FirehoseStream or an iterable names.

    Args:
        source: What to read; a `Source` is returned as it is.
        form: What a URL is; ``auto`` asks it.
        headers: Headers of requests to a URL.
        follow: Whether to go on at the end; by default for URLs, not for files.
        on_gone: What becomes of the read of a durable stream that has given up the data at its place: as of `stream`.
        feed: More settings of a FeedSource.

    Raises:
        TypeError: The source is none of these.
        ValueError: A header must not be set, or an envelope is asked for where there is no feed.
        DurableStreamError: Standard input is closed.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)):
        if str(source).startswith(("http://", "https://")):
            return _remote(str(source), form, headers, _Following(follow is not False, on_gone), feed)
        _check_no_envelope(feed, source)
        return _local(source, bool(follow))
    if type(source).__name__ == "FirehoseStream":
        from durable_streams.relay.feed_source import FirehoseSource  # noqa: PLC0415 - only where there is one

        return FirehoseSource(source)  # type: ignore[arg-type]
    if isinstance(source, Iterable):
        return IterableSource(source)
    raise TypeError(f"A relay reads a path, a URL, a Source or an iterable, not {type(source).__name__}.")


def _local(source: str | os.PathLike[str], follow: bool) -> Source:
    if source != "-":
        return FileSource(source, follow=follow)
    if sys.stdin is None:
        raise source_error("Standard input is closed.")
    return PipeSource(sys.stdin.fileno())


def _remote(
    url: str, form: Form, headers: Mapping[str, Any] | None, following: _Following, feed: dict[str, Any]
) -> Source:
    follow, on_gone = following
    content_type, found = None, False
    if form == "auto":
        form, content_type, found = _look(url, headers)
    if form == "stream":
        _check_no_envelope(feed, url)
        from durable_streams.relay.stream_source import StreamSource  # noqa: PLC0415 - files need no client

        return StreamSource(
            url, headers=headers, follow=follow, content_type=content_type, found=found, on_gone=on_gone
        )
    from durable_streams.relay.feed_source import FeedSource  # noqa: PLC0415 - nor the firehose

    return FeedSource(url, resumable=form == "sse", headers=headers, follow=follow, found=found, **feed)


def _check_no_envelope(feed: Mapping[str, Any], name: object) -> None:
    if feed.get("envelope"):
        raise ValueError(
            f"An envelope is for records of a feed, which have an id and a type; {name} is none."
        )


def _look(url: str, headers: Mapping[str, Any] | None) -> tuple[Form, str | None, bool]:
    """Ask a URL what it is; return that, its content type, and whether it answered.

    A feed need not answer HEAD: then the content type of its answer decides.
    """
    try:
        found = DurableStream(url, headers=headers, retry=_ONE_LOOK, timeout=_LOOK_FOR).head()
    except DurableStreamError:
        return "ndjson", None, False
    if found.offset is not None:
        return "stream", found.content_type, True
    sse = h.media_type(found.content_type or "") == h.SSE_CONTENT_TYPE
    return ("sse" if sse else "ndjson"), None, True
