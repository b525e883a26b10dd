"""HTTP feeds as a relay's source: NDJSON, or server-sent events, which can be resumed where they carry ids.

Invariants: a feed is reconnected forever unless its answer rules that out; a time in which records may have been missed
becomes a gap, once, before the next record.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from durable_streams.firehose import FeedEvent, FirehoseStream, StreamConfig, StreamError
from durable_streams.firehose.config import Attempt
from durable_streams.protocol.jsonrule import InvalidJSONError, check
from durable_streams.protocol.request import check_callers_headers
from durable_streams.protocol.retry import ENDLESS
from durable_streams.relay.source import Gap, Record, Source

__all__ = ["FeedSource", "FirehoseSource"]

_log = logging.getLogger("durable_streams.relay")


class _Feed(Source):
    """A source that is a FirehoseStream."""

    skips_invalid = True
    live = True
    _stream: FirehoseStream

    @property
    def promise(self) -> str:
        """See Source."""
        if self.resumable:
            return (
                f"exactly once, as long as {self.name} gives its events ids and resumes after the Last-Event-ID "
                "that it is sent."
            )
        return (
            f"gaps possible: {self.name} cannot be resumed, so that records it sends between two connections are lost, "
            "and records it sends twice are stored twice; an id field prevents the latter."
        )

    @property
    def reconnects(self) -> int:  # type: ignore[override]
        """How often it was connected again."""
        return max(0, self._stream.state.connects - 1)

    @property
    def invalid(self) -> int:  # type: ignore[override]
        """How many records were not JSON."""
        return self._stream.state.invalid

    def stop(self) -> None:
        """End the feed."""
        super().stop()
        self._stream.stop()


class FeedSource(_Feed):
    """An HTTP feed of NDJSON or, by its content type, of server-sent events.

    Its records are lines, or the data of events; the place of an event is its id.

    Args:
        url: The feed's URL.
        resumable: Whether the feed goes on after the Last-Event-ID that it is sent.
        headers: Headers of every attempt; values may be callables, called for each attempt.
        follow: Whether to reconnect after a clean end too; without it the end is the source's end.
        stall_timeout: Seconds of silence after which a connection is given up, None for no limit.
        backoff: Seconds before the first retry.
        client: As for FirehoseStream.
        envelope: Whether a record becomes ``{"event": ..., "id": ..., "data": ...}``, where ``data`` is the JSON that
            it is, or else its text; ``event`` and ``id`` are ``""`` for a line.
        found: Whether the feed is known to be there.

    Raises:
        ValueError: A header must not be set.
    """

    def __init__(
        self,
        url: str,
        *,
        resumable: bool = False,
        headers: Mapping[str, Any] | None = None,
        follow: bool = True,
        stall_timeout: float | None = None,
        backoff: float = 1.0,
        client: Any = None,
        envelope: bool = False,
        found: bool = False,
    ) -> None:
        super().__init__()
        self.found = found
        self._envelope = envelope
        self.name = url.partition("?")[0]  # a query may carry secrets
        self._url = url
        self.resumable = resumable
        self._follow = follow
        self._headers = dict(headers or {})
        check_callers_headers(self._headers)
        self._last_id = ""
        self._gaps: deque[Gap] = deque()
        self._logged = -1  # how often it had been connected when a failure was logged last
        self._config = StreamConfig(
            max_retries=ENDLESS,
            stall_timeout=stall_timeout,
            initial_backoff=backoff,
            on_connect=self._answered,
            on_gap=self._gap,
            on_disconnect=self._ended,
            on_error=self._failed,
        )
        self._stream = FirehoseStream(
            url,
            config=self._config,
            headers=self._attempt_headers,
            response_model=FeedEvent,
            client=client,
        )

    @property
    def key(self) -> str:
        """The whole URL."""
        return self._url

    def records(self, saved: Any = None) -> Generator[Record | Gap, None, None]:
        """Iterate over the records; the place of an event is its id."""
        self._last_id = saved or ""
        self._config.on_invalid = self.on_invalid or "skip"
        with self._stream, _ended_by_no_content():
            for event in self._stream:
                while self._gaps:
                    yield self._gaps.popleft()
                self._last_id = event.id
                self.checked = not event.event and not self._envelope  # a line: the feed has checked it
                yield Record(_in_envelope(event) if self._envelope else event.data, event.id or None)

    def _attempt_headers(self, _attempt: Attempt) -> dict[str, Any]:
        headers = {name: value() if callable(value) else value for name, value in self._headers.items()}
        return {**headers, "Last-Event-ID": self._last_id} if self._last_id else headers

    def _gap(self, _last: Any, down_for: float) -> None:
        if not (self.resumable and self._last_id):
            self._gaps.append(Gap(down_for))

    def _failed(self, error: Exception) -> None:
        """Log why it is retried, once for each connection: an outage may last for days."""
        if self._logged != self._stream.state.connects:
            self._logged = self._stream.state.connects
            _log.warning("%s failed, retrying: %s", self.name, error)

    def _ended(self, error: Exception | None) -> None:
        if error is None and not self._follow:
            self._stream.stop()


def _in_envelope(event: FeedEvent) -> bytes:
    """Return a record with its type and id as JSON; as it is where it is neither JSON nor text."""
    try:
        check(event.data)
        data = event.data
    except InvalidJSONError:
        try:
            data = msgspec.json.encode(event.data.decode())
        except UnicodeDecodeError:
            return event.data
    head = msgspec.json.encode({"event": event.event, "id": event.id})
    return b'%s,"data":%s}' % (head[:-1], data)


@contextlib.contextmanager
def _ended_by_no_content() -> Iterator[None]:
    """Take it as the source's end if a feed of events answers 204: it asks not to be reconnected to."""
    try:
        yield
    except StreamError as error:
        if error.status_code != HTTPStatus.NO_CONTENT:
            raise


class FirehoseSource(_Feed):
    """A FirehoseStream of the caller's own making: its settings, callbacks and models stay in force.

    With ``response_model=FeedEvent`` its records are stored with their types and ids, as by ``envelope``.
    """

    beyond_double = True

    def __init__(self, stream: FirehoseStream) -> None:
        super().__init__()
        self._stream = stream
        self.name = stream.url.partition("?")[0]

    def records(self, saved: Any = None) -> Generator[Record | Gap, None, None]:
        """Iterate over what the feed gives."""
        _ = saved
        with self._stream:
            for record in self._stream:
                yield Record(_in_envelope(record) if isinstance(record, FeedEvent) else record)
