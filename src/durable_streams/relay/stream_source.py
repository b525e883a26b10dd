"""A durable stream as a relay's source.

Invariants: a place is an offset that the source's server gave, and how many records further: each read cuts its own
batches, but the same records.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from durable_streams.client.base import OnGone
from durable_streams.client.sync import StreamResponse, stream
from durable_streams.errors import RetentionGoneError
from durable_streams.protocol import headers as h
from durable_streams.protocol.lines import LineDecoder
from durable_streams.protocol.request import check_callers_headers
from durable_streams.relay.source import Gap, Record, Source
from durable_streams.relay.target import split_messages
from durable_streams.types import HeadersLike

__all__ = ["StreamSource"]


class StreamSource(Source):
    """The messages of a JSON stream, or the lines of another (section 5).

    Args:
        url: The stream's URL.
        headers: Headers of every request.
        follow: Whether to read to the stream's end, instead of its present tail.
        content_type: What the stream holds, where its answers do not say.
        found: Whether the stream is known to be there.
        on_gone: What becomes of the read where the stream has given up the data at its place: as of `stream`. Where it
            goes on, the relay notes a gap.
    """

    resumable = True

    def __init__(
        self,
        url: str,
        *,
        headers: HeadersLike | None = None,
        follow: bool = True,
        content_type: str | None = None,
        found: bool = False,
        on_gone: OnGone = "raise",
    ) -> None:
        super().__init__()
        self.found = found
        self.name = url
        self.content_type = content_type
        self.ends = True
        self._headers = dict(headers or {})
        check_callers_headers(self._headers)
        self._follow = follow
        self._on_gone = on_gone
        self._begins: str | None = None  # where the stream goes on behind data that it has given up
        self._response: StreamResponse | None = None

    def records(self, saved: Any = None) -> Generator[Record | Gap, None, None]:
        """Iterate over the records; a place is ``[offset, records after it]``."""
        base, skip = saved or (h.OFFSET_START, 0)
        lines = LineDecoder()
        response = stream(
            self.name, offset=base, live=self._follow, headers=self._headers, on_gone=self._goes_on()
        )
        self._response = response
        self._answered()
        count = 0
        with response:
            if self.stopped:
                return
            for event in response.iter_events(mode="bytes"):
                if self._begins is not None:
                    yield Gap(0.0, base)
                    base, count, skip, lines = self._begins, 0, 0, LineDecoder()
                    self._begins = None
                content_type = response.content_type or self.content_type or h.JSON_CONTENT_TYPE
                records = (
                    split_messages(event.data, base) if h.is_json(content_type) else lines.feed(event.data)
                )
                # Several batches can share one place: only the last of them moves it.
                whole = not lines.pending and event.next_offset != base
                for number, record in enumerate(records, start=1):
                    count += 1
                    last = whole and number == len(records)
                    if count > skip and record.strip():
                        yield Record(record, [event.next_offset, 0] if last else [base, count])
                if whole:
                    base, count, skip = event.next_offset, 0, max(0, skip - count)
        self.ends = response.stream_closed
        if self.ends and lines.pending:
            yield Record(lines.flush(), [response.offset, 0])

    def _goes_on(self) -> OnGone:
        asked = self._on_gone
        if asked == "raise":
            return asked

        def go_on(error: RetentionGoneError) -> None:
            if callable(asked):
                asked(error)
            self._begins = error.earliest

        return go_on

    def stop(self) -> None:
        """End the read."""
        super().stop()
        if self._response is not None:
            self._response.close()
