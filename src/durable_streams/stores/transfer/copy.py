"""Copies all streams from one place to another, unchanged: ids, positions, appends, producers, forks, expiry.

So offsets, ETags and sequence numbers that clients saved stay valid. Invariants:
* the bytes of a stream are written first, and its state last: an interrupted copy is not a stream yet;
* bytes that the target holds are compared with those of the source before more are written behind them;
* complete and equal streams are left alone, so that the same command resumes an interrupted transfer.
"""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import StoreError
from durable_streams.stores.subscriptions import SubscriptionStore
from durable_streams.stores.transfer.subscriptions import copy_subscriptions

__all__ = ["Held", "Transfer", "TransferReport", "TransferSource", "TransferTarget", "begins_at", "damaged"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")

_NAMED = 3  # streams that a message names
_AT_ONCE = 8  # streams; each holds a page or two in memory


class Held(msgspec.Struct, frozen=True, gc=False):
    """What a place holds of a stream.

    Attributes:
        state: The state, None if the stream is not complete there.
        tail: The position where its bytes end.
    """

    state: StreamState | None
    tail: int


class TransferSource(Protocol):
    """Where streams are read, between ``open`` and ``close``. Every method raises StoreError with one sentence.

    Attributes:
        subscriptions: The subscriptions of the place, while it is open.
    """

    subscriptions: SubscriptionStore

    async def open(self) -> None:
        """Open the place; refuse one that is visibly in use."""

    async def close(self) -> None:
        """Release the place."""

    async def identity(self) -> str:
        """Return the identity of the place, as ``Store.identity`` does."""

    def streams(self) -> AsyncIterator[list[StreamState]]:
        """Yield all streams in pages, soft-deleted ones too."""

    def appends(self, state: StreamState) -> AsyncIterator[list[bytes]]:
        """Yield the appends of a stream's own bytes, up to its tail, in pages of a few megabytes."""

    async def producers(self, state: StreamState) -> Mapping[str, ProducerState]:
        """Return all producers of a stream of the last page of ``streams`` or ``held``."""

    async def check_alone(self) -> None:
        """Raise StoreError if another program wrote here since ``open``."""


class TransferTarget(TransferSource, Protocol):
    """Where streams are written. Writes may wait for ``flush``, in their order."""

    async def adopt(self, identity: str) -> None:
        """Take the identity of the source: everything was copied."""

    async def held(self, states: Sequence[StreamState]) -> list[Held]:
        """Return what the target holds of each stream; raise StoreError if another stream is in its place."""

    async def write(self, state: StreamState, appends: Sequence[bytes]) -> None:
        """Write appends of a stream behind its present bytes."""

    async def finish(self, state: StreamState, producers: Mapping[str, ProducerState]) -> None:
        """Complete a stream: write its state and its producers."""

    async def flush(self) -> None:
        """Return once everything is stored."""


class TransferReport(msgspec.Struct, gc=False):
    """The progress of a transfer.

    Attributes:
        streams: How many streams the source has.
        bytes: How many bytes the source has.
        appends: How many appends were copied or found.
        copied: How many streams were copied.
        known: How many streams the target had already.
        done: How many bytes were copied or found.
        verified: How many bytes were read back.
        subscriptions: How many subscriptions were copied or found.
    """

    streams: int = 0
    bytes: int = 0
    appends: int = 0
    copied: int = 0
    known: int = 0
    done: int = 0
    verified: int = 0
    subscriptions: int = 0


def begins_at(state: StreamState) -> int:
    """Return the position of a stream's own first byte.

    Earlier bytes belong to the streams it was forked from, or were given up.
    """
    return max(state.fork_position, state.floor)


def damaged(state: StreamState, position: int) -> StoreError:
    """Return the error for missing bytes."""
    return StoreError(f"the stream {state.path} has no whole append at position {position}: it is damaged")


class Transfer:
    """One copy of everything in a source to a target.

    Attributes:
        report: The progress; it may be read while the transfer runs.

    Args:
        source: Where streams are read.
        target: Where streams are written.
        verify: Whether to read back and compare.
    """

    def __init__(self, source: TransferSource, target: TransferTarget, *, verify: bool = True) -> None:
        self.report = TransferReport()
        self._source = source
        self._target = target
        self._verify = verify
        self._turn = asyncio.Lock()  # one operation of the target at a time

    async def run(self) -> TransferReport:
        """Copy missing streams and bytes, and read them back.

        Returns:
            The progress at the end.

        Raises:
            StoreError: Something prevents the copy; one sentence says what. Copied data are kept.
        """
        async for page in self._source.streams():
            self.report.streams += len(page)
            self.report.bytes += sum([state.tail - begins_at(state) for state in page])
        async for page in self._source.streams():
            held = await self._target.held(page)
            digests = await _some_at_once(self._copy, page, held)
            await self._target.flush()
            if self._verify:
                await self._check(
                    [(one, digest) for one, digest in zip(page, digests, strict=True) if digest]
                )
        await self._source.check_alone()
        await self._target.check_alone()
        self.report.subscriptions = await copy_subscriptions(
            self._source.subscriptions, self._target.subscriptions
        )
        # Both hold the same bytes at every position of every stream now, so that ETags of one are valid for the other.
        await self._target.adopt(await self._source.identity())
        return self.report

    async def _copy(self, state: StreamState, held: Held) -> _Digest | None:
        """Copy one stream; return the digest to compare with when it is read back, None if nothing was written."""
        size = state.tail - begins_at(state)
        whole = held.state == state
        if whole and not self._verify:
            self.report.known += 1
            self.report.done += size
            return None
        if held.tail > state.tail or (held.state is not None and _went_on(held.state, state)):
            raise StoreError(
                f"the stream {state.path} has gone on in the target since it was copied; "
                "delete it there, or choose another target"
            )
        producers = await self._source.producers(state)
        digest = await self._copy_bytes(state, held, producers)
        self.report.appends += digest.appends
        if whole:
            async with self._turn:
                found = _fingerprint(await self._target.producers(state))
            if found != digest.producers:
                raise StoreError(
                    f"the stream {state.path} has other producers in the target than in the source"
                )
            self.report.known += 1
            self.report.verified += size
            return None
        async with self._turn:
            await self._target.finish(state, producers)
        self.report.copied += 1
        return digest

    async def _copy_bytes(
        self, state: StreamState, held: Held, producers: Mapping[str, ProducerState]
    ) -> _Digest:
        """Write the missing bytes; return the digest of all bytes."""
        digest = _Digest(begins_at(state), producers)
        async for appends in self._source.appends(state):
            known = digest.add_up_to(appends, held.tail)
            if known and digest.position >= held.tail:
                async with self._turn:
                    await self._compare_bytes(state, held.tail, digest)
            if known < len(appends):
                new = appends[known:]
                digest.add(new)
                async with self._turn:
                    await self._target.write(state, new)
            self.report.done += sum(map(len, appends))
        return digest

    async def _compare_bytes(self, state: StreamState, tail: int, expected: _Digest) -> None:
        found = _Digest(begins_at(state), {})
        async for appends in self._target.appends(replace(state, tail=tail)):
            found.add(appends)
        if found.bytes != expected.bytes:
            raise StoreError(
                f"the target holds other bytes of the stream {state.path} than the source: "
                f"{expected} in the source, {found} in the target; delete it there, or choose another target"
            )

    async def _check(self, written: Sequence[tuple[StreamState, _Digest]]) -> None:
        """Read back the written streams and compare."""
        held = await self._target.held([state for state, _ in written])
        found = await _some_at_once(self._differs, written, held)
        different = [one for one in found if one is not None]
        if different:
            names = ", ".join(different[:_NAMED])
            raise StoreError(f"{len(different)} streams differ between source and target: {names}")

    async def _differs(self, written: tuple[StreamState, _Digest], held: Held) -> str | None:
        state, expected = written
        found = _Digest(begins_at(state), await self._target.producers(state))
        async for appends in self._target.appends(state):
            found.add(appends)
            self.report.verified += sum(map(len, appends))
        if found.bytes != expected.bytes:
            return f"{state.path} ({expected} in the source, {found} in the target)"
        if found.producers != expected.producers or held.state != state:
            return f"{state.path} (in its state or its producers)"
        return None


async def _some_at_once(
    do: Callable[[A, B], Coroutine[Any, Any, C]], ones: Sequence[A], others: Sequence[B]
) -> list[C]:
    """Return the results of ``do`` for each pair; the first failure cancels the running calls."""
    done: list[C] = []
    for at in range(0, len(ones), _AT_ONCE):
        pairs = zip(ones[at : at + _AT_ONCE], others[at : at + _AT_ONCE], strict=True)
        tasks = [asyncio.ensure_future(do(one, other)) for one, other in pairs]
        try:
            done += await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return done


def _went_on(there: StreamState, here: StreamState) -> bool:
    """Whether a copied stream was closed, deleted, forked or touched in the target only."""
    return (
        (there.closed and not here.closed)
        or (there.deleted and not here.deleted)
        or there.forks > here.forks
        or there.trims > here.trims
        or (there.deadline or 0) > (here.deadline or 0)
    )


class _Digest:
    """The comparable content of a stream: its bytes, the ends of its appends, and its producers."""

    def __init__(self, begin: int, producers: Mapping[str, ProducerState]) -> None:
        self.appends = 0
        self.position = self._begin = begin
        self.producers = _fingerprint(producers)
        self._bytes = hashlib.sha256()
        self._bounds = hashlib.sha256()

    def add(self, appends: Sequence[bytes]) -> None:
        """Add appends, in order."""
        for append in appends:
            self._bytes.update(append)
        self._bounds.update(array("Q", map(len, appends)))
        self.position += sum(map(len, appends))
        self.appends += len(appends)

    def add_up_to(self, appends: Sequence[bytes], position: int) -> int:
        """Add the appends that begin before ``position``; return how many."""
        count, end = 0, self.position
        while count < len(appends) and end < position:
            end += len(appends[count])
            count += 1
        if count:
            self.add(appends[:count])
        return count

    @property
    def bytes(self) -> tuple[int, int, str, str]:
        """A value that is equal for two streams with the same appends."""
        return self.appends, self.position, self._bytes.hexdigest(), self._bounds.hexdigest()

    def __str__(self) -> str:
        size = self.position - self._begin
        return f"{self.appends:,} appends of {size:,} bytes, SHA-256 {self._bytes.hexdigest()[:16]}"


def _fingerprint(producers: Mapping[str, ProducerState]) -> bytes:
    return hashlib.sha256(msgspec.json.encode(sorted(producers.items()))).digest()
