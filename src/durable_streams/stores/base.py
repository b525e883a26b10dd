"""The Store contract: what the server asks of whatever keeps its streams.

Invariants every store upholds, and ``durable_streams.testing.contract`` checks:

* a command is decided by ``protocol.rules`` and committed in one serialised, atomic step;
* what ``append`` or ``create`` returned is durable, as far as the store promises durability at all;
* readers see committed data only, and whole appends only;
* bytes at (stream id, position) never change.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import msgspec

from durable_streams.protocol.commands import Append, Appended, Create, Created
from durable_streams.protocol.state import StreamState

__all__ = [
    "Chunk",
    "Store",
    "StoreError",
    "StoreFullError",
    "StoreLostError",
    "StoreUnavailableError",
    "StoreUncertainError",
    "Watch",
    "as_store_error",
]


class StoreError(Exception):
    """The store could not do what the protocol allows; nothing of the command was kept, StoreUncertainError apart."""


class StoreFullError(StoreError):
    """There is no room to commit (HTTP 507)."""


class StoreUnavailableError(StoreError):
    """The store cannot commit or read now; nothing of the command was kept (HTTP 503, to be repeated)."""


class StoreLostError(StoreUnavailableError):
    """What the store keeps is no longer where it was opened: it neither stores nor reads until a restart (HTTP 503).

    ``written``: the command was stored before that was seen, where it may be lost.
    """

    written = False


class StoreUncertainError(StoreUnavailableError):
    """The outcome was not heard: the command may have been stored, or may not (HTTP 503 without a Retry-After)."""


def as_store_error(error: Exception) -> StoreError:
    """Return what a store raises for trouble that it did not foresee."""
    if isinstance(error, StoreError):
        return error
    return StoreUnavailableError(f"the store failed: {error}; nothing of this request was stored")


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Stored bytes from ``start`` up to ``end``, positions in bytes; whole appends."""

    start: int
    end: int
    payload: bytes


class Watch(Protocol):
    """A live reader's view of one stream. A context manager: leaving it lets go of the stream."""

    @property
    def state(self) -> StreamState | None:
        """The committed state, None once the stream is gone."""

    def recent(self, position: int) -> Chunk | None:
        """Return what was committed from ``position`` to the tail while somebody watched, if still in memory."""

    async def changed(self, timeout: float) -> bool:
        """Wait for a commit since the last call, or for ``wake``; False after ``timeout`` seconds."""

    def wake(self) -> None:
        """End the present wait (a reader that went away, a server that stops)."""

    def __enter__(self) -> Watch: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(Protocol):
    """Keeps streams. Used from one event loop; ``open`` and ``close`` frame its life.

    Methods raise ``protocol.commands.Rejection`` for what the rules refuse, and StoreError for its own trouble.
    """

    @property
    def largest_append(self) -> int:
        """How many bytes an open store takes as one append, in stored form."""

    @property
    def identity(self) -> str:
        """Which history an open store holds: letters and digits that a copy or a restored backup does not share.

        Two stores of one identity hold the same bytes at the same (stream id, position).
        """

    async def open(self) -> None:
        """Get ready to serve; raises StoreError with one sentence if that is not possible."""

    async def close(self) -> None:
        """Finish what was accepted and let go of everything."""

    async def get(self, path: str) -> StreamState | None:
        """Return the committed state at a path; None if there is none or it expired. Soft-deleted ones are given.

        It is current: nothing that any server acknowledged before the call is missing.
        """

    async def glance(self, path: str) -> StreamState | None:
        """Return what ``get`` does, cheaply: it may lag behind what other servers did, and works when ``get`` cannot.

        A refusal that was derived from it must be checked against ``get`` before it is answered.
        """

    async def create(self, command: Create) -> Created:
        """Create a stream, or find the equal one."""

    async def append(self, path: str, command: Append) -> Appended:
        """Append to a stream, close it, or both."""

    async def delete(self, path: str) -> None:
        """Delete a stream; one with forks becomes soft-deleted."""

    def touch(self, path: str) -> None:
        """Restart a stream's sliding window for a read that was received."""

    async def read(self, state: StreamState, start: int, limit: int) -> Chunk:
        """Return whole appends from the one that holds ``start``, at least one and about ``limit`` bytes.

        Where ``start`` is inside an append, the chunk begins before it; at the tail it is empty.
        """

    async def read_piece(self, state: StreamState, start: int, limit: int, *, aligned: bool = False) -> Chunk:
        """Return at least one byte from ``start`` and at most ``limit``, wherever appends end; empty at the tail.

        ``aligned``: from the start of the append that holds ``start``, and at most ``limit`` bytes from there. A
        piece of a large append may cost as much as the whole of it, but never takes more memory to keep.
        """

    async def boundary(self, state: StreamState, position: int) -> int:
        """Return where the first append at or after ``position`` begins, or the tail: a place where a read may end."""

    async def watch(self, path: str) -> Watch:
        """Return a live view of the stream at a path."""

    async def check(self) -> None:
        """Commit something; raises StoreError if the store cannot."""
