"""The async read: I/O around the loop in `protocol.following`.

Invariants: a connection is open only while a response is consumed, and is released on every way out; `aclose`
from another task wakes whatever a read waits for; a task that is cancelled from outside stays cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from durable_streams.client.aio_performer import open_exchange, run
from durable_streams.client.base import Call, ResponseBase, Saver, log_wait
from durable_streams.client.cancellable_wait import Wait
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
from durable_streams.client.transports import AsyncExchange
from durable_streams.errors import FetchError, StreamParseError
from durable_streams.protocol import operations
from durable_streams.protocol.effects import READ, RELEASE
from durable_streams.protocol.following import Effect, Failure, LongWait
from durable_streams.protocol.jsonrule import OnInvalid
from durable_streams.protocol.reader import Batch, Reader
from durable_streams.types import StreamEvent

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncStreamResponse", "Opening"]

T = TypeVar("T")


class AsyncStreamResponse(ResponseBase):
    """A read in progress (protocol section 5). Consume it once: by iterating, or with one of its methods.

    Iterating gives ``bytes``; for a JSON stream each piece is one array of messages, as the server sent it.
    Use it in an ``async with`` block, or call `aclose`. Made by `astream`.
    """

    _exchange: AsyncExchange | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(
        self, reader: Reader, call: Call, saver: Saver, on_error: Any = None, on_invalid: OnInvalid = "raise"
    ) -> None:
        super().__init__(reader, call, saver, on_error, on_invalid)
        self._closed = False
        self._wait = Wait()
        self._refusals: list[Awaitable[object]] = []

    async def start(self) -> Self:
        """Make the first request, whose failure is raised here; return the response itself."""
        self._loop = asyncio.get_running_loop()
        try:
            effect = self._next_effect()
            while effect is not None and not (effect is READ and self._reader.accepted):
                effect = await self._perform(effect)
            self._effect = effect
        except BaseException:
            await self.aclose()
            raise
        return self

    @property
    def closed(self) -> bool:
        """Whether the read was ended and its connection released."""
        return self._closed

    async def aclose(self) -> None:
        """End the read and release its connection. From another task it wakes a read that waits."""
        self._closed = True
        if self._wait.busy:
            # The task that reads releases its connection itself: it alone knows when it is done with it.
            self._wait.wake()
        else:
            await self._release()
        # Now, not when the loop finds the abandoned iterator: by then another read may be under way.
        await self._save()

    async def checkpoint(self, store: CheckpointStore) -> None:
        """Save `offset` to a store, now (see `FileCheckpoint`)."""
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
        # Neither consumed nor closed: its connection must not wait for the garbage collector's mercy.
        exchange, loop = self._exchange, self._loop
        if exchange is not None and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(lambda: loop.create_task(exchange.close()))

    # -- consumption

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the data as it arrives."""
        return self._consumed_as(Bytes(self._reader))

    def iter_text(self) -> AsyncIterator[str]:
        """Iterate over the data as text; raises StreamParseError where it is not UTF-8."""
        return self._consumed_as(Texts(self._reader))

    @overload
    def iter_json(self) -> AsyncIterator[Any]: ...
    @overload
    def iter_json(self, decode: type[T]) -> AsyncIterator[T]: ...
    @overload
    def iter_json(self, decode: Callable[[Any], T]) -> AsyncIterator[T]: ...
    def iter_json(self, decode: Any = None) -> AsyncIterator[Any]:
        """Iterate over the messages of a JSON stream.

        ``decode``: a callable that each goes through, or the type that each must have (a msgspec Struct,
        dataclass, TypedDict or Pydantic model). `offset` moves past a batch with its last message. Raises
        StreamParseError for a message that is malformed or not of that type, after the ones before it were handed over;
        or leaves it out, as ``on_invalid`` of `astream` says.
        """
        self._require_json()
        return self._consumed_as(Items(self._reader, decode, self._refused))

    @overload
    def iter_json_batches(self) -> AsyncIterator[list[Any]]: ...
    @overload
    def iter_json_batches(self, decode: type[T]) -> AsyncIterator[list[T]]: ...
    @overload
    def iter_json_batches(self, decode: Callable[[Any], T]) -> AsyncIterator[list[T]]: ...
    def iter_json_batches(self, decode: Any = None) -> AsyncIterator[list[Any]]:
        """Iterate over the messages of a JSON stream in the batches they came in; none is empty."""
        self._require_json()
        return self._consumed_as(ItemLists(self._reader, decode, self._refused))

    def iter_events(self, mode: EventMode = "auto") -> AsyncIterator[StreamEvent]:
        """Iterate over batches with their positions, and over news of the tail without data."""
        events = Events(self._reader, mode, self._refused)
        return self._consumed_as(events, learn=mode == "auto")

    async def read_bytes(self) -> bytes:
        """Return everything up to the present tail; for a JSON stream one array of all messages."""
        bodies = await self._whole(Bytes(self._reader), learn=True)
        return merge_bodies(bodies, self.content_type)

    async def read_text(self) -> str:
        """Return everything up to the present tail as text; raises StreamParseError where it is not UTF-8."""
        texts = await self._whole(Texts(self._reader), learn=True)
        return merge_texts(texts, self.content_type)

    @overload
    async def read_json(self) -> list[Any]: ...
    @overload
    async def read_json(self, decode: type[T]) -> list[T]: ...
    @overload
    async def read_json(self, decode: Callable[[Any], T]) -> list[T]: ...
    async def read_json(self, decode: Any = None) -> list[Any]:
        """Return all messages up to the present tail; ``decode`` and what is raised as for `iter_json`."""
        self._require_json()
        return await self._whole(Items(self._reader, decode, self._refused))

    @overload
    async def read_json_batches(self) -> list[list[Any]]: ...
    @overload
    async def read_json_batches(self, decode: type[T]) -> list[list[T]]: ...
    @overload
    async def read_json_batches(self, decode: Callable[[Any], T]) -> list[list[T]]: ...
    async def read_json_batches(self, decode: Any = None) -> list[list[Any]]:
        """Return all messages up to the present tail, in the batches they came in."""
        self._require_json()
        return await self._whole(ItemLists(self._reader, decode, self._refused))

    async def _whole(self, view: View[T], *, learn: bool = False) -> list[T]:
        """Return all pieces up to the present tail, or move nothing; the place is saved as `stream` says."""
        with self._all_or_nothing():
            pieces = [piece async for piece in self._consumed_as(view, to_tail=True)]
            if learn and len(pieces) > 1:
                await self._learn_content_type()
        await self._save()
        return pieces

    async def _save(self) -> None:
        if self._saver.pending:
            await asyncio.to_thread(self._saver.save)

    async def _learn_content_type(self) -> None:
        """Ask for the content type where only an event stream was opened, which does not tell."""
        if self._reader.content_type is None:
            self._reader.content_type = await run(operations.content_type_of(self.url), self._call)

    # -- the loop

    def _consumed_as(self, view: View[T], *, to_tail: bool = False, learn: bool = False) -> AsyncIterator[T]:
        self._consume()
        return self._pieces(view, to_tail, learn)

    async def _pieces(self, view: View[T], to_tail: bool, learn: bool) -> AsyncIterator[T]:
        """Hand over every batch once; leave no connection behind on any way out."""
        saver, reader = self._saver, self._reader
        effect = self._effect
        try:
            if learn:
                await self._learn_content_type()
            while effect is not None:
                if not isinstance(effect, Batch):
                    effect = await self._perform(effect)
                    continue
                for piece in view.take(effect):
                    if self._refusals:
                        await self._refusals_taken()
                    yield piece
                if self._refusals:
                    await self._refusals_taken()
                if not to_tail and saver.passed(reader.offset):
                    await asyncio.to_thread(saver.save)
                if to_tail and effect.up_to_date:
                    break
                effect = self._next_effect()
        finally:
            await self.aclose()

    def _refuse(self, raw: bytes, error: StreamParseError) -> object:
        result = super()._refuse(raw, error)
        if inspect.isawaitable(result):
            self._refusals.append(result)
        return result

    async def _refusals_taken(self) -> None:
        """Wait for what ``on_invalid`` does about the messages that were left out, before what follows them."""
        refusals, self._refusals = self._refusals, []
        for refusal in refusals:
            await refusal

    async def _perform(self, effect: Effect) -> Effect | None:
        """Do what the loop asks for; return its next effect, None at the end or once the read was closed."""
        try:
            if self._closed:
                return None
            self._wait.begin()
            answer = await self._do(effect)
        except FetchError as error:
            # Where the read was closed, the break is ours and no failure.
            return None if self._closed else self._failed_effect(error)
        except asyncio.CancelledError:
            if not self._wait.take_back():
                raise
            return None
        finally:
            self._wait.end()
            if self._closed:
                await self._release()
        return None if self._closed else self._next_effect(answer)

    async def _do(self, effect: Effect) -> Any:
        if effect is READ:
            return await self._exchange.read() if self._exchange is not None else b""
        if effect is RELEASE:
            return await self._release()
        if isinstance(effect, (Failure, LongWait)):
            await self._release()
            if isinstance(effect, LongWait):
                log_wait(effect)
            if self._on_error is None:
                return False
            answer = self._on_error(effect.error)
            return self._mended(await answer if inspect.isawaitable(answer) else answer)
        if isinstance(effect, Batch):
            return None
        if effect.delay:
            await asyncio.sleep(effect.delay)
        self._exchange = await open_exchange(effect, self._call)
        self._status_text = self._exchange.reason
        return self._exchange

    async def _release(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            await exchange.close()


class Opening:
    """A read that is about to begin: ``await`` it, or enter it with ``async with``, for its AsyncStreamResponse."""

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
