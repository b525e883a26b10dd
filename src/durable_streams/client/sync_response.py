"""The sync read: I/O around the reader.

Invariants: a connection is open only while a response is consumed, and is released on every way out; `close`
from another thread wakes whatever a read is blocked in; no batch is committed before it is handed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from durable_streams.client.base import (
    Call,
    EventMode,
    Events,
    OnError,
    ResponseBase,
    TextPieces,
    json_items,
    merge_bodies,
)
from durable_streams.client.sync_call import open_exchange, run
from durable_streams.client.transports import Exchange, Interrupt
from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol import headers as h
from durable_streams.protocol import operations
from durable_streams.protocol.reader import Batch, Reader
from durable_streams.protocol.request import ERROR_BODY_LIMIT
from durable_streams.types import StreamEvent

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["StreamResponse"]

T = TypeVar("T")


class StreamResponse(ResponseBase):
    """A read in progress (protocol section 5). Consume it once: by iterating, or with one of its methods.

    Iterating gives ``bytes``; for a JSON stream each piece is one array of messages, as the server sent it.
    Use it in a ``with`` block, or call `close`. Made by `stream`.
    """

    def __init__(self, reader: Reader, call: Call, on_error: OnError | None = None) -> None:
        self._reader = reader
        self._call = call
        self._on_error = on_error
        self._interrupt = Interrupt()
        self._exchange: Exchange | None = None
        self._consumed = False
        self._reading = False
        self._status_text = ""

    def start(self) -> Self:
        """Make the first request, whose failure is raised here; return the response itself."""
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    @property
    def closed(self) -> bool:
        """Whether the read was ended and its connection released."""
        return self._interrupt.is_set()

    def close(self) -> None:
        """End the read and release its connection. From another thread it wakes a read that is blocked."""
        self._interrupt.set()
        if (
            not self._reading
        ):  # else the thread that reads wakes and releases it: it alone knows when it is done
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A response that nobody consumed or closed: its connection must not wait for the garbage collector's mercy.
        self._release()

    # -- consumption

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the data as it arrives."""
        self._consume()
        return self._iter_bytes()

    def iter_text(self) -> Iterator[str]:
        """Iterate over the data as text; raises StreamParseError where it is not UTF-8."""
        self._consume()
        return self._iter_text()

    @overload
    def iter_json(self) -> Iterator[Any]: ...
    @overload
    def iter_json(self, decode: Callable[[Any], T]) -> Iterator[T]: ...
    def iter_json(self, decode: Callable[[Any], Any] | None = None) -> Iterator[Any]:
        """Iterate over the messages of a JSON stream, each through ``decode`` where given.

        `offset` moves past a batch with its last message. Raises StreamParseError for malformed JSON.
        """
        self._require_json()
        self._consume()
        return self._iter_json(decode)

    def iter_json_batches(self) -> Iterator[list[Any]]:
        """Iterate over the messages of a JSON stream in the batches they came in; none is empty."""
        self._require_json()
        self._consume()
        return self._iter_json_batches()

    def iter_events(self, mode: EventMode = "auto") -> Iterator[StreamEvent]:
        """Iterate over batches with their positions, and over news of the tail without data."""
        events = Events(self._reader, mode)
        self._consume()
        if mode == "auto" and self._reader.content_type is None:
            # Event streams do not tell what the stream holds.
            self._reader.content_type = run(operations.head(self.url), self._call).content_type
        return self._iter_events(events)

    def read_bytes(self) -> bytes:
        """Return everything up to the present tail; for a JSON stream one array of all messages."""
        self._consume()
        bodies = []
        for batch in self._batches(to_tail=True):
            bodies.append(batch.data)
            self._reader.commit(batch)
        return merge_bodies(bodies, self.content_type)

    def read_text(self) -> str:
        """Return everything up to the present tail as text; raises StreamParseError where it is not UTF-8."""
        if self.content_type is not None and h.is_json(self.content_type):
            return self.read_bytes().decode()
        self._consume()
        pieces = TextPieces(self._reader)
        return "".join([pieces.take(batch) for batch in self._batches(to_tail=True)])

    def read_json(self) -> list[Any]:
        """Return all messages up to the present tail; raises StreamParseError for malformed JSON."""
        return [item for batch in self.read_json_batches() for item in batch]

    def read_json_batches(self) -> list[list[Any]]:
        """Return all messages up to the present tail, in the batches they came in."""
        self._require_json()
        self._consume()
        return list(self._iter_json_batches(to_tail=True))

    def _iter_bytes(self) -> Iterator[bytes]:
        for batch in self._batches():
            self._reader.commit(batch)
            if batch.data:
                yield batch.data

    def _iter_text(self) -> Iterator[str]:
        pieces = TextPieces(self._reader)
        for batch in self._batches():
            if text := pieces.take(batch):
                yield text

    def _iter_json(self, decode: Callable[[Any], Any] | None) -> Iterator[Any]:
        reader = self._reader
        for batch in self._batches():
            items = json_items(reader, batch)
            if not items:
                reader.commit(batch)
                continue
            last = items.pop()
            if decode is None:
                yield from items
            else:
                for item in items:
                    yield decode(item)
                last = decode(last)
            reader.commit(batch)
            yield last

    def _iter_json_batches(self, *, to_tail: bool = False) -> Iterator[list[Any]]:
        for batch in self._batches(to_tail=to_tail):
            items = json_items(self._reader, batch)
            self._reader.commit(batch)
            if items:
                yield items

    def _iter_events(self, events: Events) -> Iterator[StreamEvent]:
        for batch in self._batches():
            event = events.take(batch)
            if event is not None:
                yield event

    # -- the loop around the reader

    def _batches(self, *, to_tail: bool = False) -> Iterator[Batch]:
        """Yield every batch once, uncommitted; leave no connection behind on any way out."""
        try:
            while self._connect():
                for batch in self._body():
                    yield batch
                    if to_tail and batch.up_to_date:
                        return
        finally:
            self.close()

    def _connect(self) -> bool:
        """Have an answer with stream data open; False when the read is over."""
        self._reading = True
        try:
            while self._exchange is None and not self.closed:
                request = self._reader.next_request()
                if request is None or self._interrupt.pause(request.delay):
                    return False
                try:
                    self._exchange = open_exchange(request, self._call, self._interrupt)
                except FetchError as error:
                    self._ended(error)
                else:
                    self._begin(self._exchange)
            return self._exchange is not None
        finally:
            self._reading = False

    def _begin(self, exchange: Exchange) -> None:
        reader = self._reader
        self._status_text = exchange.reason
        self._guarded(lambda answer: reader.response_started(answer.status, answer.headers, _now()), exchange)
        if self._exchange is None or reader.accepted:
            return
        size = 0
        with suppress(FetchError):  # the status has decided already
            while size < ERROR_BODY_LIMIT and (chunk := exchange.read()):
                size += len(chunk)
                reader.receive(chunk)
        self._release()
        self._ended(None)

    def _body(self) -> Iterator[Batch]:
        """Yield the batches of the open answer."""
        reader = self._reader
        error: FetchError | None = None
        while (exchange := self._exchange) is not None and not reader.finished:
            self._reading = True
            try:
                chunk = exchange.read()
            except FetchError as failure:
                error = failure
                break
            finally:
                self._reading = False
            if not chunk:
                break
            yield from self._guarded(reader.receive, chunk) or ()
        if self._exchange is None:
            return  # closed by the consumer, or ended by an error that on_error mended
        self._release()
        yield from self._ended(error)

    def _ended(self, error: FetchError | None) -> list[Batch]:
        if self.closed:
            return []  # the break was ours
        return self._guarded(lambda failure: self._reader.response_ended(failure, _now()), error) or []

    def _guarded(self, step: Callable[[Any], Any], argument: Any) -> Any:
        """Run a step of the reader; where it fails for good, let ``on_error`` decide."""
        try:
            return step(argument)
        except DurableStreamError as error:
            self._release()
            answer = self._on_error(error) if self._on_error is not None else None
            if answer is None:
                self.close()
                raise
            self._call = self._call.changed(answer.get("headers"), answer.get("params"))
            self._reader.resume()
            return None

    def _release(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()


def _now() -> float:
    return time.monotonic()
