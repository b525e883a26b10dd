"""The async read: a performer around the machine of the reader (`protocol.reader`).

Invariants: a connection is open only while a response is consumed, and is released on every way out; `aclose`
from another task ends the wait of a read; a task that is cancelled from outside stays cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from durable_streams.client.aio_performer import AsyncPerformer, next_effect, open_exchange, run, settled
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
from durable_streams.client.pieces import AsyncPieces
from durable_streams.client.sides import ASYNC
from durable_streams.client.transports import AsyncExchange
from durable_streams.errors import RetentionGoneError, StreamParseError
from durable_streams.protocol import operations
from durable_streams.protocol.effects import READ, Call, Give
from durable_streams.protocol.jsonrule import OnInvalid
from durable_streams.protocol.reader import Portion, Reader
from durable_streams.protocol.request import Request
from durable_streams.types import StreamEvent

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncStreamResponse"]

T = TypeVar("T")

_NO_TIMER = nullcontext()

if ASYNC:

    def _do_nothing() -> None:
        pass


class AsyncStreamResponse(ResponseBase[ItemT], AsyncPerformer):
    """A read in progress (protocol section 5). Consume it once: by iterating, or with one of its methods.

    Iterating gives ``bytes``; for a JSON stream each piece is one array of messages, as the server sent it. Use
    it in an ``async with`` block, or call `aclose`. Made by `astream`.
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
        AsyncPerformer.__init__(self)
        if ASYNC:
            self._refusals: list[Awaitable[object]] = []
            self.when_broken: Callable[[], None] = _do_nothing

    async def start(self) -> Self:
        """Make the first request; return the response itself.

        Raises:
            DurableStreamError: The first request fails.
        """
        self._note_data()
        try:
            with self._idle_timer() if self._idle_timeout else _NO_TIMER:
                effect = next_effect(self._machine)
                while effect is not None and not (effect is READ and self._reader.accepted):
                    effect = await self._perform(self._machine, effect)
            self._effect = effect
        except BaseException:
            await self.aclose()
            raise
        return self

    @property
    def closed(self) -> bool:
        """Whether the read was ended and its connection released."""
        return self._interrupt.is_set()

    async def aclose(self) -> None:
        """End the read and release its connection. From another task it ends the wait of the read, too."""
        await self._close()
        # Now, not when an abandoned iterator is collected: by then another read may be in progress.
        await self._save()

    async def checkpoint(self, store: CheckpointStore) -> None:
        """Save `offset`, now.

        Args:
            store: Where to save it (see `FileCheckpoint`).
        """
        await asyncio.to_thread(store.save, self.offset)

    async def __aenter__(self) -> Self:
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)
        await self.aclose()

    def __del__(self) -> None:
        # Neither consumed nor closed: its connection must not wait for the garbage collector.
        if ASYNC:
            if self._exchange is not None:
                self._interrupt.later(self._exchange.close)
        else:
            self._release()

    # -- consumption

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the data as it arrives."""
        return self._consumed_as("__aiter__", Bytes(self._reader))

    def iter_text(self, encoding: str = "utf-8") -> AsyncIterator[str]:
        """Iterate over the data as text.

        Args:
            encoding: The encoding of the data, by its Python name.

        Raises:
            LookupError: There is no such encoding.
            StreamParseError: The data is not in this encoding.
        """
        return self._consumed_as("iter_text", Texts(self._reader, encoding))

    @overload
    def iter_json(self) -> AsyncIterator[Any]: ...
    @overload
    def iter_json(self, decode: type[T]) -> AsyncIterator[T]: ...
    @overload
    def iter_json(self, decode: Callable[[Any], T]) -> AsyncIterator[T]: ...
    def iter_json(self, decode: Any = None) -> AsyncIterator[Any]:
        """Iterate over the messages of a JSON stream. `offset` moves past a batch with its last message.

        Args:
            decode: A callable that each message goes through, or the type that each must have (a msgspec
                Struct, dataclass, TypedDict or Pydantic model); None for plain JSON values.

        Raises:
            DurableStreamError: The stream is not of JSON.
            StreamParseError: A message is malformed or not of that type; the ones before it were handed over.
                With another ``on_invalid`` of `astream` than "raise" it is left out instead.
        """
        self._require_json()
        return self._consumed_as("iter_json", Items(self._reader, decode, self._refused))

    @overload
    def iter_json_batches(self) -> AsyncIterator[list[Any]]: ...
    @overload
    def iter_json_batches(self, decode: type[T]) -> AsyncIterator[list[T]]: ...
    @overload
    def iter_json_batches(self, decode: Callable[[Any], T]) -> AsyncIterator[list[T]]: ...
    def iter_json_batches(self, decode: Any = None) -> AsyncIterator[list[Any]]:
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
    ) -> AsyncIterator[StreamEvent]:
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

    async def read_bytes(self) -> bytes:
        """Return everything up to the present tail; for a JSON stream one array of all messages."""
        bodies = await self._whole("read_bytes", Bytes(self._reader), learn=True)
        return merge_bodies(bodies, self.content_type)

    async def read_text(self, encoding: str = "utf-8") -> str:
        """Return everything up to the present tail as text.

        Args:
            encoding: The encoding of the data, by its Python name.

        Raises:
            LookupError: There is no such encoding.
            StreamParseError: The data is not in this encoding.
        """
        texts = await self._whole("read_text", Texts(self._reader, encoding), learn=True)
        return merge_texts(texts, self.content_type)

    @overload
    async def read_json(self) -> list[Any]: ...
    @overload
    async def read_json(self, decode: type[T]) -> list[T]: ...
    @overload
    async def read_json(self, decode: Callable[[Any], T]) -> list[T]: ...
    async def read_json(self, decode: Any = None) -> list[Any]:
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
        return await self._whole("read_json", form)

    @overload
    async def read_json_batches(self) -> list[list[Any]]: ...
    @overload
    async def read_json_batches(self, decode: type[T]) -> list[list[T]]: ...
    @overload
    async def read_json_batches(self, decode: Callable[[Any], T]) -> list[list[T]]: ...
    async def read_json_batches(self, decode: Any = None) -> list[list[Any]]:
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
        return await self._whole("read_json_batches", form)

    async def _whole(self, method: str, form: PortionFormat[T], *, learn: bool = False) -> list[T]:
        """Return all pieces up to the present tail, or move nothing; the place is saved as `stream` says."""
        with self._all_or_nothing():
            pieces = [piece async for piece in self._consumed_as(method, form, to_tail=True)]
            self._check_complete()
            if learn and len(pieces) > 1:
                await self._learn_content_type()
        await self._save()
        return pieces

    async def _save(self) -> None:
        if self._saver.pending:
            await asyncio.to_thread(self._saver.save)

    async def _learn_content_type(self) -> None:
        """Ask for the content type where only an event stream was opened, which does not name it."""
        if self._reader.content_type is None:
            self._reader.content_type = await run(operations.content_type_of(self._reader.url), self._options)

    # -- the loop

    def _consumed_as(
        self, method: str, form: PortionFormat[T], *, to_tail: bool = False, learn: bool = False
    ) -> AsyncIterator[T]:
        self._consume(method)
        return AsyncPieces(self, partial(self._pieces, form, to_tail, learn))

    async def _pieces(self, form: PortionFormat[T], to_tail: bool, learn: bool) -> AsyncGenerator[T, None]:
        """Hand over every portion once; leave no connection behind on any way out, but for an interruption."""
        try:
            await self._begin_taking(learn)
            while (portion := await self._portion()) is not None:
                for piece in form.take(portion):
                    if ASYNC:
                        if self._refusals:
                            await self._refusals_taken()
                    yield piece
                if ASYNC:
                    await self._refusals_taken()
                if to_tail and portion.up_to_date:
                    return
                await self._pass(portion, to_tail)
        except BaseException as error:
            self._note_end(error, to_tail)
            raise
        finally:
            await (self._break_off() if self._interrupted else self.aclose())

    async def _begin_taking(self, learn: bool) -> None:
        if self._interrupted:
            self._go_on()
        else:
            self._note_data()
        if learn:
            await self._learn_content_type()

    async def _pass(self, portion: Portion, to_tail: bool) -> None:
        """Note that the consumer is done with a portion."""
        due = not to_tail and self._saver.passed(self._reader.offset)
        if portion.data:
            self._note_data()
        self._effect = next_effect(self._machine)
        if due:
            self._waiting = True
            await asyncio.to_thread(self._saver.save)
            self._waiting = False

    def _note_end(self, error: BaseException, to_tail: bool) -> None:
        if not to_tail and not isinstance(error, GeneratorExit):
            self._interrupted = self._outlives(error)
            if ASYNC:
                self.when_broken()

    async def _break_off(self) -> None:
        """Leave the read so that the next wait goes on from here."""
        if self._effect is not None:
            self._effect = await self._broken_off(self._effect)
            if self._effect is None:
                self._reader.break_off()
                self._machine = self._reader.run()
                self._effect = next_effect(self._machine)
        await self._save()

    @contextmanager
    def _idle_timer(self) -> Iterator[None]:
        """Around a wait: ends the read once there was no data for ``idle_timeout``."""
        left = max(0.0, self._silent_at - time.monotonic())
        if ASYNC:
            timer = asyncio.get_running_loop().call_later(left, self._end_silence)
        else:
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

    async def _portion(self) -> Portion | None:
        """Perform effects, from the present one on, until there is a portion; None at the end of the read."""
        effect = self._effect
        with self._idle_timer() if self._idle_timeout else _NO_TIMER:
            while effect is not None and not isinstance(effect, Give):
                effect = self._effect = await self._perform(self._machine, effect)
        portion: Portion | None = None if effect is None else effect.value
        return portion

    if ASYNC:

        def _refuse(self, raw: bytes, error: StreamParseError) -> object:
            result = super()._refuse(raw, error)
            if inspect.isawaitable(result):
                self._refusals.append(result)
            return result

        async def _refusals_taken(self) -> None:
            """Wait for ``on_invalid`` of the messages that were left out, before the messages behind them."""
            refusals, self._refusals = self._refusals, []
            for refusal in refusals:
                await refusal

    # -- performing

    async def _open(self, request: Request) -> AsyncExchange:
        exchange = await open_exchange(request, self._options, self._interrupt)
        self._status_text = exchange.reason
        return exchange

    async def _called(self, call: Call) -> bool:
        if call.name == "on_gone":
            return await self._passed_over(call.arguments[0])
        if call.name == "on_long_wait":
            log_long_wait(*call.arguments)
        if self._on_error is None:
            return False
        answer = self._on_error(call.arguments[0])
        if ASYNC:
            answer = await settled(answer)
        return self._goes_on(answer)

    async def _passed_over(self, error: RetentionGoneError) -> bool:
        """Say that the stream has given up what would come next; return whether to go on behind that."""
        if self._on_gone == "raise":
            return False
        if callable(self._on_gone):
            if ASYNC:
                await settled(self._on_gone(error))
            else:
                self._on_gone(error)
        log_gone(error)
        return True


if ASYNC:

    class Opening:
        """A read that is about to begin: await it, or enter it with ``async with``, for its response."""

        def __init__(self, response: AsyncStreamResponse) -> None:
            self._response = response

        def __await__(self) -> Generator[Any, None, AsyncStreamResponse]:
            return self._response.start().__await__()

        async def __aenter__(self) -> AsyncStreamResponse:
            return await (await self._response.start()).__aenter__()

        async def __aexit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            await self._response.__aexit__(kind, error, trace)
