"""Reading a stream across those it was forked from: inherited bytes come from the stream that owns them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from durable_streams.protocol import rules
from durable_streams.protocol.state import StreamState
from durable_streams.stores.base import Chunk

__all__ = [
    "OwnBoundary",
    "OwnPiece",
    "OwnRead",
    "boundary_in_lineage",
    "read_lineage",
    "read_piece_of_lineage",
]

OwnRead = Callable[[int, int, int, int], Awaitable["Chunk | None"]]
"""``(stream id, start, stop, limit)``: whole appends of one stream from the append that holds ``start`` (the chunk may
begin before), nothing past ``stop``, about ``limit`` bytes and at least one append; None if the bytes are gone."""


OwnPiece = Callable[[int, int, int, int, bool], Awaitable["Chunk | None"]]
"""``(stream id, start, stop, limit, aligned)``: a piece, as of ``Store.read_piece``, of one stream up to ``stop``."""

OwnBoundary = Callable[[int, int, int], Awaitable["int | None"]]
"""``(stream id, position, stop)``: where the first append at or after ``position`` begins; None, or a position past
``stop``, if no append begins before ``stop``."""


async def read_piece_of_lineage(
    read: OwnPiece, state: StreamState, start: int, limit: int, *, aligned: bool
) -> Chunk:
    """Return the chunk of ``Store.read_piece``; raises Rejection (404) if the bytes are gone."""
    if start >= state.tail:
        return Chunk(start, start, b"")
    stream_id, stop = _owner(state, start)
    chunk = await read(stream_id, start, stop, limit, aligned)
    if chunk is None:
        raise rules.not_found()
    return chunk


async def boundary_in_lineage(own: OwnBoundary, state: StreamState, position: int) -> int:
    """Return the position of ``Store.boundary``; the point of a fork is a boundary, too."""
    if position >= state.tail:
        return state.tail
    stream_id, stop = _owner(state, position)
    found = await own(stream_id, position, stop)
    return stop if found is None else min(found, stop)


async def read_lineage(read: OwnRead, state: StreamState, start: int, limit: int) -> Chunk:
    """Return the chunk of ``Store.read``, each part read from the stream that owns it.

    Raises Rejection (404) if bytes are gone.
    """
    begin = position = start
    parts: list[bytes] = []
    while position < state.tail and position - start < limit:
        stream_id, stop = _owner(state, position)
        chunk = await read(stream_id, position, stop, limit - (position - start))
        if chunk is None:
            raise rules.not_found()
        if not parts:  # a later part begins where the part before it ends: at a boundary
            begin = chunk.start
        parts.append(chunk.payload)
        if chunk.end < stop:
            break
        position = chunk.end
    payload = parts[0] if len(parts) == 1 else b"".join(parts)
    return Chunk(begin, begin + len(payload), payload)


def _owner(state: StreamState, position: int) -> tuple[int, int]:
    """Return the id of the stream whose record holds a position, and where its part ends."""
    for segment in state.lineage:
        if position < segment.end:
            return segment.id, segment.end
    return state.id, state.tail
