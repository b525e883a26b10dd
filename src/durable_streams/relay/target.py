"""The stream that a relay writes to.

Invariants: one request of a relay's producer is under way at a time, so that `claim` can settle for
certain the last one of a run that was killed; whatever is asked of a target that is away is asked again for as long
as an append is, and the cause is logged once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from durable_streams.client.patience import may_pass, patient
from durable_streams.client.sync import DurableStream, stream
from durable_streams.client.sync_producer import SyncIdempotentProducer
from durable_streams.client.sync_response import StreamResponse
from durable_streams.errors import (
    DurableStreamError,
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
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import HeadersLike, HeadResult, StreamEvent

__all__ = ["EncodedProducer", "Target", "split_messages"]

T = TypeVar("T")

_QUICK = RetryPolicy(max_retries=2)
_log = logging.getLogger("durable_streams.relay")
_PENDING = 8 * 1024 * 1024  # bytes read from the source and not acknowledged yet; then reading waits


class EncodedProducer(SyncIdempotentProducer):
    """A producer of records that are encoded already, so that their JSON is not checked once more.

    It logs why it retries, once for each outage. ``on_stored``: called after each request, with how many records are
    stored in all, oldest first, and the offset after them.
    """

    _said = False
    on_stored: Callable[[int, str], None]

    def append_record(self, record: bytes) -> None:
        """Queue a record as `Target.encode` gives it; see ``append``."""
        with self._lock:
            if self._machine.fits(record):
                return
        self._add(record, None)

    def flush(self) -> None:
        """Send everything that is queued, and wait until it is durable and noted; see `SyncIdempotentProducer`."""
        try:
            super().flush()
        finally:
            self.on_stored(*self._machine.stored)

    def _report(self) -> None:
        self.on_stored(*self._machine.stored)
        trouble = self._machine.trouble
        if trouble is not None and not self._said:
            _log.warning("%s; trying again", str(trouble).rstrip("."))
        self._said = trouble is not None
        super()._report()


class Target:
    """The stream that a relay writes to.

    Args:
        url: Its URL.
        headers: Headers of every request.
        content_type: What it must hold, or is made with; None to take what is there.
        retry_for: Seconds for which a target that is away or failing is retried.
        stopping: Set when the relay is to end: then nothing is retried.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: HeadersLike | None,
        content_type: str | None,
        retry_for: float,
        stopping: threading.Event,
    ) -> None:
        self.url = url
        self._stopping = stopping
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
            found, new = self._patiently(lambda: self._found(handle, content_type))
        self.content_type = found.content_type or h.DEFAULT_CONTENT_TYPE
        given = self._given_type
        if given is not None and h.media_type(given) != h.media_type(self.content_type):
            raise DurableStreamError(
                f"{self.url} holds {self.content_type}, not {given}.", code="BAD_CONTENT_TYPE", url=self.url
            )
        return found, new

    def _found(self, handle: DurableStream, content_type: str | None) -> tuple[HeadResult, bool]:
        try:
            return handle.head(), False
        except StreamNotFoundError:
            if content_type is None:
                raise
            handle.create_stream(content_type=self._given_type or content_type)
            return handle.head(), True

    def _patiently(self, call: Callable[[], T]) -> T:
        """Return what a request gives, repeated while the target is away, and the relay is not to end."""
        return patient(call, self._retry_for, _log.warning, self._stopping.wait)

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
        for event in self._events(offset):
            if self.is_json:
                yield split_messages(event.data, offset), event.next_offset
            else:
                yield [line + b"\n" for line in lines.feed(event.data)], event.next_offset
            offset = event.next_offset

    def _events(self, offset: str) -> Iterator[StreamEvent[bytes]]:
        """Iterate over what it holds, also across its outages."""
        since = time.monotonic()
        while True:
            try:
                with self._patiently(partial(self._read, offset)) as response:
                    for event in response.iter_events(mode="bytes"):
                        yield event
                        offset, since = event.next_offset, time.monotonic()
            except DurableStreamError as error:
                late = time.monotonic() - since > self._retry_for
                if late or self._stopping.is_set() or not may_pass(error):
                    raise
            else:
                return

    def _read(self, offset: str) -> StreamResponse[Any]:
        return stream(self.url, offset=offset, live=False, headers=self._headers, retry=_QUICK)

    def next_number(self, producer_id: str, epoch: int) -> tuple[int, int]:
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
                else:
                    raise

    def claim(self, producer_id: str, number: tuple[int, int], record: bytes) -> None:
        """Send a record in the place of the request that a killed run may have under way.

        ``number`` is what `next_number` gave before the target's tail was read. Both requests carry it, so that
        the server stores one of them and takes the other for its repetition: afterwards nothing of that run can
        arrive any more. Which of the two it was, the target's tail tells.
        """
        self._append(record, producer_id, *number)

    def _append(self, record: bytes, producer_id: str, epoch: int, seq: int) -> None:
        # However often it is sent, it is stored once, or never.
        stamp = {h.PRODUCER_ID: producer_id, h.PRODUCER_EPOCH: str(epoch), h.PRODUCER_SEQ: str(seq)}
        with self._handle(stamp) as handle:
            self._patiently(lambda: handle.append(record))

    def producer(
        self, producer_id: str, epoch: int, on_stored: Callable[[int, str], None]
    ) -> EncodedProducer:
        """Return the producer for this epoch, which must be new; ``on_stored`` as it says."""
        producer = EncodedProducer(
            self.url,
            producer_id,
            epoch=epoch,
            max_in_flight=1,  # see `claim`
            max_pending_bytes=_PENDING,
            content_type=self.content_type,
            headers=self._headers,
            retry_timeout=self._retry_for,
        )
        producer.on_stored = on_stored
        return producer

    def close_stream(self) -> str:
        """Close the stream; return its final offset."""
        with self._handle() as handle:
            return self._patiently(handle.close_stream).final_offset

    def _handle(self, more: dict[str, str] | None = None) -> DurableStream:
        return DurableStream(
            self.url,
            headers={**self._headers, **(more or {})},
            retry=_QUICK,
            batching=False,
            content_type=self.content_type if more else None,
        )


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
