"""The sync read: I/O around the loop in `protocol.following`.

Invariants: a connection is open only while a response is consumed, and is released on every way out; `close`
from another thread wakes whatever a read is blocked in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from durable_streams.client.base import Call, ResponseBase, Saver, log_wait
from durable_streams.client.checkpoints import CheckpointStore
from durable_streams.client.formats import (
    Bytes,
    EventMode,
    Events,
    ItemLists,
    Items,
    Texts,
    View,
    merge_bodies,
    merge_texts,
)
from durable_streams.client.sync_performer import open_exchange, run
from durable_streams.client.transports import Exchange, Interrupt
from durable_streams.errors import FetchError
from durable_streams.protocol import operations
from durable_streams.protocol.effects import READ, RELEASE
from durable_streams.protocol.following import Effect, Failure, LongWait
from durable_streams.protocol.jsonrule import OnInvalid
from durable_streams.protocol.reader import Batch, Reader
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

    _exchange: Exchange | None = None

    def __init__(
        self, reader: Reader, call: Call, saver: Saver, on_error: Any = None, on_invalid: OnInvalid = "raise"
    ) -> None:
        super().__init__(reader, call, saver, on_error, on_invalid)
        self._interrupt = Interrupt()
        self._busy = False

    def start(self) -> Self:
        """Make the first request, whose failure is raised here; return the response itself."""
        try:
            effect = self._next_effect()
            while effect is not None and not (effect is READ and self._reader.accepted):
                effect = self._perform(effect)
            self._effect = effect
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
        # A thread that reads releases its connection itself: it alone knows when it is done with it.
        if not self._busy:
            self._release()
        self._save()

    def checkpoint(self, store: CheckpointStore) -> None:
        """Save `offset` to a store, now (see `FileCheckpoint`)."""
        store.save(self.offset)

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)
        self.close()

    def __del__(self) -> None:
        # Neither consumed nor closed: its connection must not wait for the garbage collector's mercy.
        self._release()

    # -- consumption

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the data as it arrives."""
        return self._consumed_as(Bytes(self._reader))

    def iter_text(self) -> Iterator[str]:
        """Iterate over the data as text; raises StreamParseError where it is not UTF-8."""
        return self._consumed_as(Texts(self._reader))

    @overload
    def iter_json(self) -> Iterator[Any]: ...
    @overload
    def iter_json(self, decode: type[T]) -> Iterator[T]: ...
    @overload
    def iter_json(self, decode: Callable[[Any], T]) -> Iterator[T]: ...
    def iter_json(self, decode: Any = None) -> Iterator[Any]:
        """Iterate over the messages of a JSON stream.

        ``decode``: a callable that each goes through, or the type that each must have (a msgspec Struct,
        dataclass, TypedDict or Pydantic model). `offset` moves past a batch with its last message. Raises
        StreamParseError for a message that is malformed or not of that type, after the ones before it were handed over;
        or leaves it out, as ``on_invalid`` of `stream` says.
        """
        self._require_json()
        return self._consumed_as(Items(self._reader, decode, self._refused))

    @overload
    def iter_json_batches(self) -> Iterator[list[Any]]: ...
    @overload
    def iter_json_batches(self, decode: type[T]) -> Iterator[list[T]]: ...
    @overload
    def iter_json_batches(self, decode: Callable[[Any], T]) -> Iterator[list[T]]: ...
    def iter_json_batches(self, decode: Any = None) -> Iterator[list[Any]]:
        """Iterate over the messages of a JSON stream in the batches they came in; none is empty."""
        self._require_json()
        return self._consumed_as(ItemLists(self._reader, decode, self._refused))

    def iter_events(self, mode: EventMode = "auto") -> Iterator[StreamEvent]:
        """Iterate over batches with their positions, and over news of the tail without data."""
        events = Events(self._reader, mode, self._refused)
        if mode == "auto":
            self._learn_content_type()
        return self._consumed_as(events)

    def read_bytes(self) -> bytes:
        """Return everything up to the present tail; for a JSON stream one array of all messages."""
        bodies = self._whole(Bytes(self._reader), learn=True)
        return merge_bodies(bodies, self.content_type)

    def read_text(self) -> str:
        """Return everything up to the present tail as text; raises StreamParseError where it is not UTF-8."""
        texts = self._whole(Texts(self._reader), learn=True)
        return merge_texts(texts, self.content_type)

    @overload
    def read_json(self) -> list[Any]: ...
    @overload
    def read_json(self, decode: type[T]) -> list[T]: ...
    @overload
    def read_json(self, decode: Callable[[Any], T]) -> list[T]: ...
    def read_json(self, decode: Any = None) -> list[Any]:
        """Return all messages up to the present tail; ``decode`` and what is raised as for `iter_json`."""
        self._require_json()
        return self._whole(Items(self._reader, decode, self._refused))

    @overload
    def read_json_batches(self) -> list[list[Any]]: ...
    @overload
    def read_json_batches(self, decode: type[T]) -> list[list[T]]: ...
    @overload
    def read_json_batches(self, decode: Callable[[Any], T]) -> list[list[T]]: ...
    def read_json_batches(self, decode: Any = None) -> list[list[Any]]:
        """Return all messages up to the present tail, in the batches they came in."""
        self._require_json()
        return self._whole(ItemLists(self._reader, decode, self._refused))

    def _whole(self, view: View[T], *, learn: bool = False) -> list[T]:
        """Return all pieces up to the present tail, or move nothing; the place is saved as `stream` says."""
        with self._all_or_nothing():
            pieces = list(self._consumed_as(view, to_tail=True))
            if learn and len(pieces) > 1:
                self._learn_content_type()
        self._save()
        return pieces

    def _save(self) -> None:
        if self._saver.pending:
            self._saver.save()

    def _learn_content_type(self) -> None:
        """Ask for the content type where only an event stream was opened, which does not tell."""
        if self._reader.content_type is None:
            self._reader.content_type = run(operations.content_type_of(self.url), self._call)

    # -- the loop

    def _consumed_as(self, view: View[T], *, to_tail: bool = False) -> Iterator[T]:
        self._consume()
        return self._pieces(view, to_tail)

    def _pieces(self, view: View[T], to_tail: bool) -> Iterator[T]:
        """Hand over every batch once; leave no connection behind on any way out."""
        saver, reader = self._saver, self._reader
        effect = self._effect
        try:
            while effect is not None:
                if not isinstance(effect, Batch):
                    effect = self._perform(effect)
                    continue
                yield from view.take(effect)
                if not to_tail and saver.passed(reader.offset):
                    saver.save()
                if to_tail and effect.up_to_date:
                    break
                effect = self._next_effect()
        finally:
            self.close()

    def _perform(self, effect: Effect) -> Effect | None:
        """Do what the loop asks for; return its next effect, None at the end or once the read was closed."""
        answer: Any = None
        self._busy = True
        try:
            if effect is READ:
                answer = self._exchange.read() if self._exchange is not None else b""
            elif effect is RELEASE:
                self._release()
            elif isinstance(effect, (Failure, LongWait)):
                self._release()
                if isinstance(effect, LongWait):
                    log_wait(effect)
                answer = self._mended(self._on_error(effect.error)) if self._on_error is not None else False
            elif not isinstance(effect, Batch):
                if self._interrupt.pause(effect.delay):
                    return None
                answer = self._exchange = open_exchange(effect, self._call, self._interrupt)
                self._status_text = self._exchange.reason
        except FetchError as error:
            # Where the read was closed, the break is ours and no failure.
            return None if self.closed else self._failed_effect(error)
        finally:
            self._busy = False
            if self.closed:
                self._release()
        return None if self.closed else self._next_effect(answer)

    def _release(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
