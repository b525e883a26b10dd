"""The Store contract: what the server needs of the part that keeps its streams.

Invariants that every store upholds and ``durable_streams.testing.contract`` checks:

* a command is decided by ``protocol.rules`` and committed in one serialised, atomic step;
* a result of ``append`` or ``create`` is durable, as far as the store promises durability at all;
* readers see committed data only, and whole appends only;
* bytes at (stream id, position) never change.

Sections are those of the Durable Streams protocol. Times are in seconds, sizes and positions in bytes.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import msgspec

from durable_streams.protocol.commands import Append, Appended, Create, Created, SetRetention, Trim
from durable_streams.protocol.state import ProducerState, StreamState

__all__ = [
    "Chunk",
    "Listed",
    "Store",
    "StoreDamagedError",
    "StoreError",
    "StoreFullError",
    "StoreLostError",
    "StoreUnavailableError",
    "StoreUncertainError",
    "Watch",
    "as_store_error",
]


class StoreError(Exception):
    """The store failed at something that the protocol allows. None of the command was stored.

    The one exception is StoreUncertainError, whose command may have been stored.
    """


class StoreFullError(StoreError):
    """There is no room to commit. The server answers 507."""


class StoreUnavailableError(StoreError):
    """The store cannot commit or read now, and none of the command was stored. The server answers 503."""


class StoreDamagedError(StoreUnavailableError):
    """What is stored of a stream is not what was stored. The server answers 503 until it is repaired.

    Attributes:
        stream: The id of the stream; None if it is not known.

    Args:
        message: One sentence that names the stream and the position.
        stream: The id of the stream, if it is known.
    """

    def __init__(self, message: str, stream: int | None = None) -> None:
        super().__init__(message, stream)
        self.stream = stream

    def __str__(self) -> str:
        """Return the sentence."""
        return str(self.args[0])


class StoreLostError(StoreUnavailableError):
    """The data are no longer where they were opened. The store serves nothing until a restart; the server answers 503.

    Attributes:
        written: Whether the command was stored before the loss was noticed; it may be lost with the data.
    """

    written = False


class StoreUncertainError(StoreUnavailableError):
    """The outcome is unknown: the command may have been stored. The server answers 503 without Retry-After."""


def as_store_error(error: Exception) -> StoreError:
    """Return the error that a store raises for an unexpected failure.

    Args:
        error: The failure.

    Returns:
        ``error`` itself if it is a StoreError, else a StoreUnavailableError with its text.
    """
    if isinstance(error, StoreError):
        return error
    return StoreUnavailableError(f"the store failed: {error}; none of this request was stored")


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Stored bytes.

    Attributes:
        start: The position of the first byte.
        end: The position after the last byte.
        payload: The bytes, in stored form.
    """

    start: int
    end: int
    payload: bytes


class Listed(msgspec.Struct, frozen=True, gc=False):
    """A part of the list of streams.

    Attributes:
        states: The streams, in the order of their paths.
        after: The path to go on after; None at the end of the list.
    """

    states: list[StreamState]
    after: str | None


class Watch(Protocol):
    """A live reader's view of one stream (section 5). A context manager: leaving it ends the view."""

    @property
    def state(self) -> StreamState | None:
        """The committed state, None once the stream is gone.

        Raises:
            StoreLostError: The data are no longer where they were opened.
        """

    def recent(self, position: int) -> Chunk | None:
        """Return the bytes that were committed from ``position`` to the tail during the watch.

        Args:
            position: Where the reader is.

        Returns:
            The bytes, or None if they are not in memory any more: `Store.read` has them.
        """

    async def changed(self, timeout: float) -> bool:
        """Wait for a commit since the last call, or for ``wake``.

        Args:
            timeout: Seconds to wait.

        Returns:
            False after ``timeout`` seconds without either.
        """

    def wake(self) -> None:
        """End the present wait: the reader left, or the server stops."""

    def __enter__(self) -> Watch: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(Protocol):
    """The part of a server that keeps streams. Used from one event loop, between ``open`` and ``close``.

    Every method raises ``protocol.commands.Rejection`` for a request that the rules refuse, and StoreError for a
    failure of the store itself.
    """

    @property
    def largest_append(self) -> int:
        """The largest append that an open store takes, in bytes of stored form."""

    @property
    def identity(self) -> str:
        """The name of the history that an open store holds, in letters and digits; part of every ETag (section 5).

        Two stores of one identity hold the same bytes at the same (stream id, position). A copy and a restored backup
        have another identity than their origin.
        """

    async def open(self) -> None:
        """Prepare to serve.

        Raises:
            StoreError: The store cannot be opened; one sentence says why.
        """

    async def close(self) -> None:
        """Finish the accepted commands, then release all resources.

        Raises:
            StoreError: Accepted commands could not be finished, or the data are lost.
        """

    async def get(self, path: str) -> StreamState | None:
        """Return the committed state at a path, current at the time of the call.

        Nothing that any server acknowledged before the call is missing.

        Args:
            path: The path of the stream.

        Returns:
            The state, a soft-deleted one too; None if there is no stream, or it expired.

        Raises:
            StoreUnavailableError: The current state cannot be read.
        """

    async def glance(self, path: str) -> StreamState | None:
        """Return a state like ``get``, cheaply; it may lag behind other servers, and works when ``get`` cannot.

        A refusal that is derived from it must be checked against ``get`` before it is answered.

        Args:
            path: The path of the stream.

        Returns:
            The state as far as it is known; None if there is no stream, or it expired.

        Raises:
            StoreUnavailableError: Nothing is known of the path, and nothing can be read.
        """

    async def create(self, command: Create) -> Created:
        """Create a stream, or find the equal one (sections 3 and 6).

        Args:
            command: The path, the configuration and the first data.

        Returns:
            The state, and whether the stream is new.

        Raises:
            Rejection: Another stream is at the path, or the fork point is not possible.
            StoreError: The stream was not created.
        """

    async def append(self, path: str, command: Append) -> Appended:
        """Append to a stream, close it, or both (section 4).

        Args:
            path: The path of the stream.
            command: The payload in stored form, and what the request says of it.

        Returns:
            The state after the append, and whether the append had been stored before.

        Raises:
            Rejection: The rules refuse the append.
            StoreError: The append was not stored, or, for StoreUncertainError, may have been stored.
        """

    async def delete(self, path: str) -> None:
        """Delete a stream; one with forks becomes soft-deleted (section 6).

        Args:
            path: The path of the stream.

        Raises:
            Rejection: There is no stream at the path.
            StoreError: The stream was not deleted.
        """

    async def retain(self, path: str, command: Trim | SetRetention) -> StreamState:
        """Change what a stream keeps: give up its first bytes, or take a policy.

        Args:
            path: The path of the stream.
            command: The position to begin at, or the policy.

        Returns:
            The state after the command.

        Raises:
            Rejection: There is no stream at the path.
            StoreError: Nothing was changed.
        """

    def touch(self, path: str) -> None:
        """Restart the sliding window of a stream's time to live, for a read.

        Args:
            path: The path of the stream.
        """

    async def read(self, state: StreamState, start: int, limit: int) -> Chunk:
        """Return whole appends from the one that holds ``start`` (section 5).

        Args:
            state: The stream, as ``get`` or ``glance`` returned it.
            start: The position to read from.
            limit: About how many bytes to return; at least one append is returned.

        Returns:
            The bytes. The chunk begins before ``start`` where that is inside an append; at the tail it is empty.

        Raises:
            Rejection: The bytes are gone: with the stream (404), or given up since ``state`` (410).
            StoreUnavailableError: The bytes cannot be read now.
        """

    async def read_piece(self, state: StreamState, start: int, limit: int, *, aligned: bool = False) -> Chunk:
        """Return some bytes, wherever appends end (section 5).

        A piece of a large append may cost as much time as all of it, but never takes more memory to keep.

        Args:
            state: The stream, as ``get`` or ``glance`` returned it.
            start: The position to read from.
            limit: The most bytes to return; at least one byte is returned.
            aligned: Whether to begin at the start of the append that holds ``start``.

        Returns:
            The bytes; at the tail the chunk is empty.

        Raises:
            Rejection: The bytes are gone: with the stream (404), or given up since ``state`` (410).
            StoreUnavailableError: The bytes cannot be read now.
        """

    async def boundary(self, state: StreamState, position: int) -> int:
        """Return where the first append at or after ``position`` begins, or the tail: a place where a read may end.

        Args:
            state: The stream, as ``get`` or ``glance`` returned it.
            position: The position to search from.

        Returns:
            The position.

        Raises:
            StoreUnavailableError: The position cannot be read now.
        """

    async def watch(self, path: str) -> Watch:
        """Return a live view of the stream at a path (section 5).

        Args:
            path: The path of the stream; there may be no stream yet.

        Returns:
            The view, to be entered as a context manager.

        Raises:
            StoreUnavailableError: The stream cannot be watched now.
        """

    async def list_streams(self, prefix: str, after: str, limit: int) -> Listed:
        """Return a part of the list of streams, in the order of their paths' UTF-8 bytes.

        Current: a stream that was created before the call is in it, with at least the tail that was acknowledged
        before the call; one that was deleted, or expired, is not. Costs what ``limit`` streams cost, however many
        there are.

        Args:
            prefix: The text that their paths begin with; "" for all.
            after: The path to go on after, "" for the beginning.
            limit: The most streams to return. Fewer may be returned before the end, even none.

        Returns:
            The streams, and where to go on.

        Raises:
            StoreUnavailableError: The list cannot be read now.
        """

    async def list_producers(
        self, state: StreamState, after: str, limit: int
    ) -> list[tuple[str, ProducerState]]:
        """Return producers of a stream in the order of their ids' UTF-8 bytes, each with its last accepted request.

        Current: what was acknowledged before the call is in it. A fork inherits none.

        Args:
            state: The stream, as ``get`` returned it.
            after: The id to go on after, "" for the beginning.
            limit: How many to return; fewer only at the end.

        Returns:
            The ids and the states; none of a stream that was deleted meanwhile.

        Raises:
            StoreUnavailableError: They cannot be read now.
        """

    async def check(self) -> None:
        """Commit a probe, for a health check.

        Raises:
            StoreError: The store cannot commit.
        """
