"""The stream that a relay writes to.

Invariants: one request of a relay's producer is under way at a time, so that `claim` can settle for
certain the last one of a run that was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from durable_streams.client.sync import DurableStream, stream
from durable_streams.client.sync_producer import SyncIdempotentProducer
from durable_streams.errors import (
    DurableStreamError,
    FetchError,
    SequenceGapError,
    StreamNotFoundError,
    StreamParseError,
)
from durable_streams.protocol import headers as h
from durable_streams.protocol.jsonarrays import split
from durable_streams.protocol.jsonrule import WHITESPACE, InvalidJSONError
from durable_streams.protocol.lines import LineDecoder
from durable_streams.protocol.operations import encode_json_message
from durable_streams.protocol.request import check_callers_headers
from durable_streams.protocol.retry import RetryPolicy, is_retryable_status
from durable_streams.types import HeadersLike, HeadResult, IdempotentAppendResult

__all__ = ["EncodedProducer", "Target", "split_messages"]

_PATIENCE = RetryPolicy(max_retries=9, max_delay=5.0)
"""About 20 seconds: enough for a server that restarts; a wrong address is an error after that."""
_AGAIN = 0.2  # seconds until a claim whose outcome is unknown is retried
_PENDING = 8 * 1024 * 1024  # bytes read from the source and not acknowledged yet; then reading waits


class EncodedProducer(SyncIdempotentProducer):
    """A producer of records that are encoded already, so that their JSON is not checked once more."""

    def submit_record(self, record: bytes) -> Future[IdempotentAppendResult]:
        """Queue a record as `Target.encode` gives it; see ``submit``."""
        future = self._receipt()
        self._add(record, future)
        return future


class Target:
    """The stream that a relay writes to.

    Args:
        url: Its URL.
        headers: Headers of every request.
        content_type: What it must hold, or is made with; None to take what is there.
        retry_for: Seconds for which a failing append is retried.
    """

    def __init__(
        self, url: str, *, headers: HeadersLike | None, content_type: str | None, retry_for: float
    ) -> None:
        self.url = url
        self._headers = dict(headers or {})
        check_callers_headers(self._headers)
        self._retry_for = retry_for
        self.content_type = content_type or h.JSON_CONTENT_TYPE
        self._given_type = content_type

    @property
    def is_json(self) -> bool:
        """Whether it holds JSON messages; else it holds lines."""
        return h.is_json(self.content_type)

    def open(self, content_type: str | None) -> tuple[HeadResult, bool]:
        """Find the stream, or make it.

        Args:
            content_type: The content type to make it with, None to make none.

        Returns:
            Its metadata, and whether it was made just now.

        Raises:
            StreamNotFoundError: There is none, and none is to be made.
            DurableStreamError: It holds another content type than was asked for (code ``BAD_CONTENT_TYPE``).
        """
        with self._handle() as handle:
            try:
                found, new = handle.head(), False
            except StreamNotFoundError:
                if content_type is None:
                    raise
                found, new = handle.create_stream(content_type=self._given_type or content_type), True
                found = handle.head()
        self.content_type = found.content_type or h.DEFAULT_CONTENT_TYPE
        given = self._given_type
        if given is not None and h.media_type(given) != h.media_type(self.content_type):
            raise DurableStreamError(
                f"{self.url} holds {self.content_type}, not {given}.", code="BAD_CONTENT_TYPE", url=self.url
            )
        return found, new

    def encode(self, data: Any, *, beyond_double: bool = False, checked: bool = False) -> bytes:
        """Return a record as the target holds it: a JSON message, or a line with its end.

        Args:
            data: Bytes or text that is JSON, or a JSON value; for a target that is not JSON, one line.
            beyond_double: Whether an infinity becomes a number that no double holds.
            checked: Whether the data is bytes that are known to be JSON.

        Raises:
            ValueError: The target cannot hold it.
        """
        if self.is_json:
            if checked:
                stripped: bytes = data.strip(WHITESPACE)
                return stripped
            return encode_json_message(data, beyond_double=beyond_double)
        line = data.encode() if isinstance(data, str) else data
        if not isinstance(line, bytes) or b"\n" in line:
            raise ValueError("a stream that is not JSON takes records of one line of text or bytes")
        return line + b"\n"

    def batches(self, offset: str) -> Iterator[tuple[list[bytes], str]]:
        """Iterate over what it holds from an offset to its tail: records, and the offset after them."""
        lines = LineDecoder()
        response = stream(self.url, offset=offset, live=False, headers=self._headers, retry=_PATIENCE)
        with response:
            for event in response.iter_events(mode="bytes"):
                if self.is_json:
                    yield split_messages(event.data, response.offset), event.next_offset
                else:
                    yield [line + b"\n" for line in lines.feed(event.data)], event.next_offset

    def next_number(self, producer_id: str, epoch: int, stopped: Callable[[], bool]) -> tuple[int, int]:
        """Return the producer's epoch at the server and the number that its next request must have.

        The request that asks for them has a number that is too great, so that it stores nothing. The epoch is the
        given one, unless the server knows a newer one.
        """
        while True:
            try:
                self._append(b"0" if self.is_json else b"\n", producer_id, epoch, h.MAX_SAFE_INTEGER)
            except SequenceGapError as error:
                if error.expected_seq is None:
                    raise
                return epoch, error.expected_seq
            except DurableStreamError as error:
                newer = error.headers.get(h.PRODUCER_EPOCH, "")
                if error.status == 403 and newer.isdigit() and int(newer) > epoch:
                    epoch = int(newer)  # the state file is older than the target
                elif error.status == 400:
                    return epoch, 0  # the epoch is new to the server
                elif stopped() or not _worth_another(error):
                    raise
                else:
                    time.sleep(_AGAIN)

    def claim(
        self, producer_id: str, number: tuple[int, int], record: bytes, stopped: Callable[[], bool]
    ) -> None:
        """Send a record in the place of the request that a killed run may have under way.

        ``number`` is what `next_number` gave before the target's tail was read. Both requests carry it, so that
        the server stores one of them and takes the other for its repetition: afterwards nothing of that run can
        arrive any more. Which of the two it was, the target's tail tells.
        """
        while True:
            try:
                return self._append(record, producer_id, *number)
            except DurableStreamError as error:
                if stopped() or not _worth_another(error):
                    raise
                time.sleep(_AGAIN)

    def _append(self, record: bytes, producer_id: str, epoch: int, seq: int) -> None:
        stamp = {h.PRODUCER_ID: producer_id, h.PRODUCER_EPOCH: str(epoch), h.PRODUCER_SEQ: str(seq)}
        with self._handle(stamp) as handle:
            handle.append(record)

    def producer(self, producer_id: str, epoch: int) -> EncodedProducer:
        """Return the producer for this epoch, which must be new."""
        return EncodedProducer(
            self.url,
            producer_id,
            epoch=epoch,
            max_in_flight=1,  # see `claim`
            max_pending_bytes=_PENDING,
            content_type=self.content_type,
            headers=self._headers,
            retry_timeout=self._retry_for,
        )

    def close_stream(self) -> str:
        """Close the stream; return its final offset."""
        with self._handle() as handle:
            return handle.close_stream().final_offset

    def _handle(self, more: dict[str, str] | None = None) -> DurableStream:
        return DurableStream(
            self.url,
            headers={**self._headers, **(more or {})},
            retry=_PATIENCE,
            batching=False,
            content_type=self.content_type if more else None,
        )


def _worth_another(error: DurableStreamError) -> bool:
    if isinstance(error, FetchError):
        return error.may_have_been_sent
    return error.status is not None and is_retryable_status(error.status)


def split_messages(body: bytes, offset: str) -> list[bytes]:
    """Return the messages of a JSON stream's body as they are stored; each of them may be invalid.

    ``offset`` is the last safe one before it. Raises StreamParseError if the body is not an array.
    """
    try:
        return split(body) if body else []
    except InvalidJSONError as error:
        raise StreamParseError(
            f"The data after offset {offset} is not valid JSON: {error}.", offset=offset
        ) from None
