"""The bodies of reads: ranges of a stream, read piece by piece as their clients take them.

Invariants: a body is held whole only if it is small; what is read ahead of a client counts in the budget of all
clients; nothing is read for a client that left; a body that cannot be completed is cut, which its Content-Length shows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import StreamState
from durable_streams.server.budget import MemoryBudget
from durable_streams.server.http import Disconnection, Headers, ServerRequest, ServerResponse
from durable_streams.server.outlets import ClientGoneError
from durable_streams.server.positions import Place, content
from durable_streams.stores.base import Chunk, Store, StoreUnavailableError

__all__ = ["SMALL", "Range", "RangeBody", "RangePieces", "Ranges", "whole"]

SMALL = 64 << 10
"""Bytes that are read and sent without asking the budget."""

_LARGEST_PIECE = 8 << 20


class RangePieces:
    """Reads a stream, as it is stored, from ``position`` to ``end``; ``release`` after the last piece."""

    __slots__ = ("_charged", "_gone", "_ranges", "_size", "_state", "end", "position")

    def __init__(
        self,
        ranges: Ranges,
        state: StreamState,
        position: int,
        end: int,
        gone: Disconnection,
    ) -> None:
        self.position = position
        self.end = end
        self._ranges = ranges
        self._state = state
        self._gone = gone
        self._size = ranges.chunk_size
        self._charged = 0

    def count(self, charged: int) -> None:
        """Take over what was charged for the piece before the first."""
        self._charged = charged

    async def next(self) -> bytes:
        """Return the next piece, ``b""`` at the end. The one before it counts no more."""
        self.release()
        left = self.end - self.position
        if left <= 0:
            return b""
        wanted = min(left, self._size, self._ranges.fair_piece())
        # A piece costs at least the append that it is part of: a large one is not read in many small pieces.
        self._size = min(self._size * 2, _LARGEST_PIECE)
        await self._ranges.budget.room(wanted)
        self._charged = wanted
        if self._gone.done():
            raise ClientGoneError
        chunk = await self._ranges.store.read_piece(self._state, self.position, wanted)
        if not chunk.payload:
            raise _unreadable(self._state, self.position)
        self.position = chunk.end
        return chunk.payload

    def release(self) -> None:
        """Count the last piece no more."""
        charged, self._charged = self._charged, 0
        if charged:
            self._ranges.budget.release(charged)


class RangeBody:
    """The body of a range that is not small: an asynchronous iterator over its bytes."""

    __slots__ = ("_first", "_gone", "_is_json", "_pieces")

    def __init__(self, first: bytes, pieces: RangePieces, gone: Disconnection, *, is_json: bool) -> None:
        self._gone = gone
        self._first: bytes | None = first
        self._pieces = pieces
        self._is_json = is_json

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, None
        piece = await self._pieces.next() if first is None else first
        if not piece:
            raise StopAsyncIteration
        if not self._is_json:
            return piece
        # Every stored message ends with a comma; between the brackets, the last one goes (protocol.jsonmode).
        is_last = self._pieces.position >= self._pieces.end
        parts = (
            b"" if first is None else b"[",
            memoryview(piece)[:-1] if is_last else piece,
            b"]" if is_last else b"",
        )
        return b"".join(parts)

    async def aclose(self) -> None:
        """Read no more."""
        self._gone.cancel()
        self._pieces.release()


class Range:
    """Part of a stream, from the start of an append to the end of one; ``size``: of its body, in bytes."""

    __slots__ = ("body", "end", "size", "start")

    def __init__(self, start: int, end: int, size: int, body: bytes | RangeBody) -> None:
        self.start = start
        self.end = end
        self.size = size
        self.body = body

    def response(self, headers: Headers) -> ServerResponse:
        """Return the 200 of the range; its Content-Length shows a client whether it is complete."""
        if not isinstance(self.body, bytes):
            headers.append(("content-length", str(self.size)))
        return ServerResponse(200, headers, self.body)

    async def close(self) -> None:
        """Release a range that is not sent."""
        if not isinstance(self.body, bytes):
            await self.body.aclose()


class Ranges:
    """Opens ranges of a store's streams."""

    def __init__(self, store: Store, budget: MemoryBudget, chunk_size: int) -> None:
        self.store = store
        self.budget = budget
        self.chunk_size = chunk_size

    def fair_piece(self) -> int:
        """Return how much may be read at once for one client, in bytes: the less, the more is held already."""
        return max(SMALL, self.budget.free // 8)

    async def read(self, state: StreamState, start: int, end: int) -> bytes:
        """Return exactly the stored bytes from ``start`` to ``end``."""
        chunk = await self.store.read_piece(state, start, end - start)
        if chunk.end == end:
            return chunk.payload
        parts = [chunk.payload]
        while chunk.payload and chunk.end < end:
            chunk = await self.store.read_piece(state, chunk.end, end - chunk.end)
            parts.append(chunk.payload)
        if chunk.end < end:
            raise _unreadable(state, chunk.end)
        return b"".join(parts)

    async def open(
        self, request: ServerRequest, state: StreamState, place: Place, limit: int | None = None
    ) -> Range:
        """Return what follows a place: to the tail, or the appends that begin within ``limit`` bytes of it.

        Raises what ``Store.read_piece`` does.
        """
        position, aligned = place.position, not place.is_exact
        if position >= state.tail:
            return whole(state, Chunk(position, position, b""))
        wanted = min(state.tail - position, self.chunk_size, limit or state.tail, self.fair_piece())
        charged = wanted if wanted > SMALL and self.budget.try_charge(wanted) else 0
        try:
            first = await self.store.read_piece(
                state, position, min(wanted, charged or SMALL), aligned=aligned
            )
            end = state.tail
            if limit is not None and first.start + limit < end:
                end = await self.store.boundary(state, first.start + limit)
        except BaseException:
            self.budget.release(charged)
            raise
        if first.end > end:
            first = Chunk(first.start, end, first.payload[: end - first.start])
        if first.end == end and len(first.payload) <= SMALL:
            self.budget.release(charged)
            return whole(state, first)
        gone = request.disconnected()
        pieces = RangePieces(self, state, first.end, end, gone)
        pieces.count(charged)
        size = end - first.start + state.is_json  # two brackets for the last comma
        return Range(first.start, end, size, RangeBody(first.payload, pieces, gone, is_json=state.is_json))


def _unreadable(state: StreamState, position: int) -> StoreUnavailableError:
    return StoreUnavailableError(f"{state.path} cannot be read from {format_offset(position)} on now; retry")


def whole(state: StreamState, chunk: Chunk) -> Range:
    """Return a range whose stored bytes are in memory."""
    body = content(state, chunk.payload)
    return Range(chunk.start, chunk.end, len(body), body)
