# Made from client/aio_response.py by tools/make_sync.py: change that file, then run `make generate`.

"""The sync read: a performer around the machine of the reader (`protocol.reader`).

Invariants: a connection is open only while a response is consumed, and is released on every way out; `close`
from another thread ends whatever a read is blocked in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from durable_streams.client.base import (
    CallOptions,
    ItemT,
    OnGone,
    ResponseBase,
    Saver,
    log_gone,
    log_long_wait,
)
from durable_streams.client.checkpoints import CheckpointStore
from durable_streams.client.formats import (
    Bytes,
    Document,
    EventMode,
    Events,
    ItemLists,
    Items,
    PortionFormat,
    Texts,
    merge_bodies,
    merge_texts,
)
from durable_streams.client.pieces import Pieces
from durable_streams.client.sync_performer import Performer, next_effect, open_exchange, run
from durable_streams.client.transports import Exchange
from durable_streams.errors import RetentionGoneError
from durable_streams.protocol import operations
from durable_streams.protocol.effects import READ, Call, Give
from durable_streams.protocol.jsonrule import OnInvalid
from durable_streams.protocol.reader import Portion, Reader
from durable_streams.protocol.request import Request
from durable_streams.types import StreamEvent

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["StreamResponse"]

T = TypeVar("T")

_NO_TIMER = nullcontext()


class StreamResponse(ResponseBase[ItemT], Performer):
    """A read in progress (protocol section 5). Consume it once: by iterating, or with one of its methods.

    Iterating gives ``bytes``; for a JSON stream each piece is one array of messages, as the server sent it. Use
    it in a ``with`` block, or call `close`. Made by `stream`.
    """

    def __init__(
        self,
        reader: Reader,
        options: CallOptions,
        saver: Saver,
        *,
        on_error: Any = None,
        on_invalid: OnInvalid = "raise",
        on_gone: OnGone = "raise",
        idle_timeout: float | None = None,
    ) -> None:
        ResponseBase.__init__(
            self,
            reader,
            options,
            saver,
            on_error=on_error,
            on_invalid=on_invalid,
            on_gone=on_gone,
            idle_timeout=idle_timeout,
        )
        Performer.__init__(self)

    def start(self) -> Self:
        """Make the first request; return the response itself.

        Raises:
            DurableStreamError: The first request fails.
        """
        self._note_data()
        try:
            with self._idle_timer() if self._idle_timeout else _NO_TIMER:
                effect = next_effect(self._machine)
                while effect is not None and not (effect is READ and self._reader.accepted):
                    effect = self._perform(self._machine, effect)
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
        """End the read and release its connection. From another thread it ends a read that is blocked, too."""
        self._close()
        # Now, not when an abandoned iterator is collected: by then another read may be in progress.
        self._save()

    def checkpoint(self, store: CheckpointStore) -> None:
        """Save `offset`, now.

        Args:
            store: Where to save it (see `FileCheckpoint`).
        """
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
        # Neither consumed nor closed: its connection must not wait for the garbage collector.
        self._release()

    # -- consumption

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the data as it arrives."""
        return self._consumed_as("__iter__", Bytes(self._reader))

    def iter_text(self, encoding: str = "utf-8") -> Iterator[str]:
        """Iterate over the data as text.

        Args:
            encoding: The encoding of the data, by its Python name.

        Raises:
            LookupError: There is no such encoding.
            StreamParseError: The data is not in this encoding.
        """
        return self._consumed_as("iter_text", Texts(self._reader, encoding))

    @overload
    def iter_json(self) -> Iterator[Any]: ...
    @overload
    def iter_json(self, decode: type[T]) -> Iterator[T]: ...
    @overload
    def iter_json(self, decode: Callable[[Any], T]) -> Iterator[T]: ...
    def iter_json(self, decode: Any = None) -> Iterator[Any]:
        """Iterate over the messages of a JSON stream. `offset` moves past a batch with its last message.

        Args:
            decode: A callable that each message goes through, or the type that each must have (a msgspec
                Struct, dataclass, TypedDict or Pydantic model); None for plain JSON values.

        Raises:
            DurableStreamError: The stream is not of JSON.
            StreamParseError: A message is malformed or not of that type; the ones before it were handed over.
                With another ``on_invalid`` of `stream` than "raise" it is left out instead.
        """
        self._require_json()
        return self._consumed_as("iter_json", Items(self._reader, decode, self._refused))

    @overload
    def iter_json_batches(self) -> Iterator[list[Any]]: ...
    @overload
    def iter_json_batches(self, decode: type[T]) -> Iterator[list[T]]: ...
    @overload
    def iter_json_batches(self, decode: Callable[[Any], T]) -> Iterator[list[T]]: ...
    def iter_json_batches(self, decode: Any = None) -> Iterator[list[Any]]:
        """Iterate over the messages of a JSON stream in the batches they came in; none is empty.

        Args:
            decode: As for `iter_json`.

        Raises:
            DurableStreamError: The stream is not of JSON.
            StreamParseError: A message is invalid, as for `iter_json`; the ones before it are a batch of their
                own.
        """
        self._require_json()
        return self._consumed_as("iter_json_batches", ItemLists(self._reader, decode, self._refused))

    def iter_events(
        self, mode: EventMode = "auto", *, encoding: str = "utf-8", decode: Any = None
    ) -> Iterator[StreamEvent]:
        """Iterate over batches with their positions; an event without data says that the tail was reached.

        Args:
            mode: What ``data`` is: ``"json"`` or ``"json_batches"`` (a list of values), ``"text"`` or
                ``"bytes"``; ``"auto"`` goes by the content type.
            encoding: The encoding of text, by its Python name.
            decode: For JSON, as for `iter_json`.

        Raises:
            ValueError: The mode is not one of these.
            LookupError: There is no such encoding.
            StreamParseError: The data does not have this form.
        """
        events = Events(self._reader, mode, self._refused, encoding=encoding, decode=decode)
        return self._consumed_as("iter_events", events, learn=mode == "auto")

    def read_bytes(self) -> bytes:
        """Return everything up to the present tail; for a JSON stream one array of all messages."""
        bodies = self._whole("read_bytes", Bytes(self._reader), learn=True)
        return merge_bodies(bodies, self.content_type)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return everything up to the present tail as text.

        Args:
            encoding: The encoding of the data, by its Python name.

        Raises:
            LookupError: There is no such encoding.
            StreamParseError: The data is not in this encoding.
        """
        texts = self._whole("read_text", Texts(self._reader, encoding), learn=True)
        return merge_texts(texts, self.content_type)

    @overload
    def read_json(self) -> list[Any]: ...
    @overload
    def read_json(self, decode: type[T]) -> list[T]: ...
    @overload
    def read_json(self, decode: Callable[[Any], T]) -> list[T]: ...
    def read_json(self, decode: Any = None) -> list[Any]:
        """Return all messages up to the present tail.

        The data of a stream of text, or of a type such as ``application/ld+json``, counts as one JSON text: its
        messages are the elements of the array that it is, or else the one value.

        Args:
            decode: As for `iter_json`.

        Raises:
            DurableStreamError: The stream is not of JSON.
            StreamParseError: A message is invalid, as for `iter_json`; `offset` stays where it was.
        """
        form: PortionFormat[Any]
        if self._is_document():
            form = Document(self._reader, decode, self._refused)
        else:
            form = Items(self._reader, decode, self._refused)
        return self._whole("read_json", form)

    @overload
    def read_json_batches(self) -> list[list[Any]]: ...
    @overload
    def read_json_batches(self, decode: type[T]) -> list[list[T]]: ...
    @overload
    def read_json_batches(self, decode: Callable[[Any], T]) -> list[list[T]]: ...
    def read_json_batches(self, decode: Any = None) -> list[list[Any]]:
        """Return all messages up to the present tail, in the batches they came in; see `read_json`.

        Args:
            decode: As for `iter_json`.

        Raises:
            DurableStreamError: The stream is not of JSON.
            StreamParseError: A message is invalid, as for `iter_json`; `offset` stays where it was.
        """
        form: PortionFormat[list[Any]]
        if self._is_document():
            form = Document(self._reader, decode, self._refused, whole=True)
        else:
            form = ItemLists(self._reader, decode, self._refused)
        return self._whole("read_json_batches", form)

    def _whole(self, method: str, form: PortionFormat[T], *, learn: bool = False) -> list[T]:
        """Return all pieces up to the present tail, or move nothing; the place is saved as `stream` says."""
        with self._all_or_nothing():
            pieces = list(self._consumed_as(method, form, to_tail=True))
            self._check_complete()
            if learn and len(pieces) > 1:
                self._learn_content_type()
        self._save()
        return pieces

    def _save(self) -> None:
        if self._saver.pending:
            self._saver.save()

    def _learn_content_type(self) -> None:
        """Ask for the content type where only an event stream was opened, which does not name it."""
        if self._reader.content_type is None:
            self._reader.content_type = run(operations.content_type_of(self._reader.url), self._options)

    # -- the loop

    def _consumed_as(
        self, method: str, form: PortionFormat[T], *, to_tail: bool = False, learn: bool = False
    ) -> Iterator[T]:
        self._consume(method)
        return Pieces(self, partial(self._pieces, form, to_tail, learn))

    def _pieces(self, form: PortionFormat[T], to_tail: bool, learn: bool) -> Generator[T, None, None]:
        """Hand over every portion once; leave no connection behind on any way out, but for an interruption."""
        try:
            self._begin_taking(learn)
            while (portion := self._portion()) is not None:
                yield from form.take(portion)
                if to_tail and portion.up_to_date:
                    return
                self._pass(portion, to_tail)
        except BaseException as error:
            self._note_end(error, to_tail)
            raise
        finally:
            (self._break_off() if self._interrupted else self.close())

    def _begin_taking(self, learn: bool) -> None:
        if self._interrupted:
            self._go_on()
        else:
            self._note_data()
        if learn:
            self._learn_content_type()

    def _pass(self, portion: Portion, to_tail: bool) -> None:
        """Note that the consumer is done with a portion."""
        due = not to_tail and self._saver.passed(self._reader.offset)
        if portion.data:
            self._note_data()
        self._effect = next_effect(self._machine)
        if due:
            self._waiting = True
            self._saver.save()
            self._waiting = False

    def _note_end(self, error: BaseException, to_tail: bool) -> None:
        if not to_tail and not isinstance(error, GeneratorExit):
            self._interrupted = self._outlives(error)

    def _break_off(self) -> None:
        """Leave the read so that the next wait goes on from here."""
        if self._effect is not None:
            self._effect = self._broken_off(self._effect)
            if self._effect is None:
                self._reader.break_off()
                self._machine = self._reader.run()
                self._effect = next_effect(self._machine)
        self._save()

    @contextmanager
    def _idle_timer(self) -> Iterator[None]:
        """Around a wait: ends the read once there was no data for ``idle_timeout``."""
        left = max(0.0, self._silent_at - time.monotonic())
        timer = threading.Timer(left, self._end_silence)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end_silence(self) -> None:
        """End the read, whatever it waits for: ``idle_timeout`` has passed."""
        self._timed_out = True
        self._interrupt.set()

    def _portion(self) -> Portion | None:
        """Perform effects, from the present one on, until there is a portion; None at the end of the read."""
        effect = self._effect
        with self._idle_timer() if self._idle_timeout else _NO_TIMER:
            while effect is not None and not isinstance(effect, Give):
                effect = self._effect = self._perform(self._machine, effect)
        portion: Portion | None = None if effect is None else effect.value
        return portion

    # -- performing

    def _open(self, request: Request) -> Exchange:
        exchange = open_exchange(request, self._options, self._interrupt)
        self._status_text = exchange.reason
        return exchange

    def _called(self, call: Call) -> bool:
        if call.name == "on_gone":
            return self._passed_over(call.arguments[0])
        if call.name == "on_long_wait":
            log_long_wait(*call.arguments)
        if self._on_error is None:
            return False
        answer = self._on_error(call.arguments[0])
        return self._goes_on(answer)

    def _passed_over(self, error: RetentionGoneError) -> bool:
        """Say that the stream has given up what would come next; return whether to go on behind that."""
        if self._on_gone == "raise":
            return False
        if callable(self._on_gone):
            self._on_gone(error)
        log_gone(error)
        return True
