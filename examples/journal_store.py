"""A store of its own kind: every commit is one frame of a journal, and the journal is replayed at start.

docs/write-a-store.md explains it; tests/contract/test_journal_store.py runs it against the contract of every store.
"""

from __future__ import annotations

import os
import secrets
import time
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path

import msgspec

from durable_streams.file_lock import try_lock
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import Chunk, StoreError, StoreFullError, StoreLostError
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.commits import Committed
from durable_streams.stores.local import LocalStore

HEAD = 8  # bytes before a frame: its length and its CRC


class Frame(msgspec.Struct, array_like=True):
    """What one commit changes."""

    states: list[StreamState]
    gone: list[str]  # paths
    records: list[tuple[int, int, bytes]]  # stream id, position, payload
    producers: list[tuple[int, str, ProducerState]]
    removed: list[int]  # ids of streams whose bytes go


class JournalBackend:
    """Where LocalStore keeps its streams. It knows no rule of the protocol: it keeps what it is given."""

    identity = ""
    largest_append = 1 << 30

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal"
        self._file = -1
        self._size = 0
        self._clear()

    def _clear(self) -> None:
        self._states: dict[str, StreamState] = {}
        self._starts: dict[int, list[int]] = {}
        self._payloads: dict[int, list[bytes]] = {}
        self._producers: dict[tuple[int, str], ProducerState] = {}
        self._last_id = 0

    # -- from open to close

    async def open(self) -> int:
        self._clear()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(self._file):
            os.close(self._file)
            raise StoreError(f"another server has {self.path} open; stop it, or choose another folder")
        self._size = self._replay()
        os.ftruncate(self._file, self._size)  # a frame that was cut off by a crash was never acknowledged
        # Bytes that differ must never have one ETag, and the journal may be a copy: every start has a new identity.
        self.identity = secrets.token_hex(6)
        return max(self._last_id, int(time.time()))

    def _replay(self) -> int:
        """Apply every whole frame; return where the last one ends."""
        journal, end = self.path.read_bytes(), 0
        while end + HEAD <= len(journal):
            length, checksum = (
                int.from_bytes(journal[end : end + 4], "big"),
                int.from_bytes(journal[end + 4 : end + 8], "big"),
            )
            frame = journal[end + HEAD : end + HEAD + length]
            if len(frame) < length or zlib.crc32(frame) != checksum:
                break
            self._apply(msgspec.msgpack.decode(frame, type=Frame))
            end += HEAD + length
        return end

    async def close(self, timeout: float) -> None:  # noqa: ARG002 - of the Backend
        os.close(self._file)

    async def verify(self) -> None:
        try:
            found = self.path.stat()
        except OSError as error:
            raise StoreLostError(f"{self.path} cannot be found any more: {error.strerror}") from error
        if not os.path.samestat(found, os.fstat(self._file)):
            raise StoreLostError(f"{self.path} was replaced")

    # -- writing

    def commit(self, batch: CommitBatch, committed: Committed) -> None:
        changed = batch.changed.items()
        frame = Frame(
            [state for _, state in changed if state is not None],
            [slot.path for slot, state in changed if state is None],
            [record[:3] for record in batch.records],
            [(*key, producer) for key, (producer, _) in batch.producers.items()],
            batch.removed,
        )
        try:
            self._write(msgspec.msgpack.encode(frame))
        except OSError as error:
            os.ftruncate(self._file, self._size)
            committed(
                StoreFullError(f"the journal cannot be written: {error}; none of this request was stored")
            )
        else:
            self._apply(frame)
            committed(None)

    def _write(self, data: bytes) -> None:
        wire = len(data).to_bytes(4, "big") + zlib.crc32(data).to_bytes(4, "big") + data
        written = 0
        while written < len(wire):
            written += os.pwrite(self._file, wire[written:], self._size + written)
        os.fsync(self._file)
        self._size += len(wire)

    def _apply(self, frame: Frame) -> None:
        for path in frame.gone:
            self._states.pop(path, None)
        for state in frame.states:
            self._states[state.path] = state
            self._last_id = max(self._last_id, state.id)
        for stream, start, payload in frame.records:
            self._starts.setdefault(stream, []).append(start)
            self._payloads.setdefault(stream, []).append(payload)
        for stream, name, producer in frame.producers:
            self._producers[stream, name] = producer
        for stream in frame.removed:
            self._starts.pop(stream, None)
            self._payloads.pop(stream, None)

    # -- reading

    async def load(self, paths: list[str]) -> dict[str, StreamState]:
        return {path: self._states[path] for path in paths if path in self._states}

    async def load_producer(self, stream_id: int, producer_id: str) -> ProducerState | None:
        return self._producers.get((stream_id, producer_id))

    async def list_producers(self, stream_id: int, after: str, limit: int) -> list[tuple[str, ProducerState]]:
        mine = (
            (name, state)
            for (stream, name), state in self._producers.items()
            if stream == stream_id and name > after
        )
        return sorted(mine)[:limit]

    async def read(self, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
        starts = self._starts.get(stream_id)
        if starts is None:
            return None
        first = bisect_right(starts, start) - 1
        last = bisect_right(starts, min(stop, start + limit) - 1)
        payload = b"".join(self._payloads[stream_id][first:last])[: stop - starts[first]]
        return Chunk(starts[first], starts[first] + len(payload), payload)

    async def read_piece(
        self, stream_id: int, start: int, stop: int, limit: int, aligned: bool
    ) -> Chunk | None:
        chunk = await self.read(stream_id, start, stop, limit)
        if chunk is None:
            return None
        begin = chunk.start if aligned else start
        payload = chunk.payload[begin - chunk.start :][:limit]
        return Chunk(begin, begin + len(payload), payload)

    async def boundary(self, stream_id: int, position: int, stop: int) -> int | None:  # noqa: ARG002 - of the Backend
        starts = self._starts.get(stream_id, [])
        index = bisect_left(starts, position)
        return starts[index] if index < len(starts) else None

    async def expired(self, now: float, limit: int) -> list[str]:
        states = self._states.values()
        return [state.path for state in states if state.deadline is not None and state.deadline <= now][
            :limit
        ]

    async def list_states(self, prefix: str, after: str, limit: int) -> list[StreamState]:
        paths = sorted(path for path in self._states if path.startswith(prefix) and path > after)
        return [self._states[path] for path in paths[:limit]]


class JournalStore(LocalStore):
    """A durable store in ``folder``. All of it is in memory, too."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(JournalBackend(folder), clock=clock)
