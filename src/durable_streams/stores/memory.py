"""Streams in memory, for tests and caches. Nothing outlives the process."""

from __future__ import annotations

import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable

from sortedcontainers import SortedList

from durable_streams.protocol.listing import prefix_end
from durable_streams.protocol.retention import due_at
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import Chunk
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.commits import Committed
from durable_streams.stores.local import DEFAULT_LIMITS, LocalStore, StoreLimits
from durable_streams.stores.producers import first_producers
from durable_streams.stores.subscriptions import MemorySubscriptions, SubscriptionStore

__all__ = ["MemoryStore"]


class MemoryStore(LocalStore):
    """A Store in memory.

    Args:
        max_streams: The most streams whose state is cached.
        clock: Returns the seconds since 1970.
        limits: Bounds on waiting commands.
    """

    def __init__(
        self,
        *,
        max_streams: int = 200_000,
        clock: Callable[[], float] = time.time,
        limits: StoreLimits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(_MemoryBackend(), max_streams=max_streams, clock=clock, limits=limits)


class _MemoryLog:
    """The records of one stream: their starts and their payloads."""

    __slots__ = ("payloads", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.payloads: list[bytes] = []

    def trim(self, floor: int) -> None:
        """Drop what begins before ``floor``."""
        count = bisect_left(self.starts, floor)
        del self.starts[:count], self.payloads[:count]

    def lacks(self, position: int) -> bool:
        """Whether the append that holds a position was dropped."""
        return not self.starts or position < self.starts[0]


class _MemoryBackend:
    identity = ""  # ids of streams are never used again
    largest_append = sys.maxsize

    def __init__(self) -> None:
        self._states: dict[str, StreamState] = {}
        self._due: dict[str, float] = {}
        self._paths: SortedList[str] = SortedList()  # of the states, for the listing
        self._logs: dict[int, _MemoryLog] = {}
        self._producers: dict[int, dict[str, ProducerState]] = {}
        self.subscriptions: SubscriptionStore = MemorySubscriptions(lambda: self._states)

    async def open(self) -> int:
        return (
            time.time_ns() // 1000
        )  # caches must not confuse a stream of this process with one of an earlier process

    async def verify(self) -> None:
        pass

    async def close(self, timeout: float) -> None:  # noqa: ARG002 - of the Backend
        self._states.clear()
        self._paths.clear()
        self._logs.clear()
        self._producers.clear()
        self.subscriptions = MemorySubscriptions(lambda: self._states)

    async def load(self, paths: list[str]) -> dict[str, StreamState]:
        return {path: self._states[path] for path in paths if path in self._states}

    async def load_producer(self, stream_id: int, producer_id: str) -> ProducerState | None:
        return self._producers.get(stream_id, {}).get(producer_id)

    async def list_producers(self, stream_id: int, after: str, limit: int) -> list[tuple[str, ProducerState]]:
        return first_producers(self._producers.get(stream_id, {}), after, limit)

    def commit(self, batch: CommitBatch, committed: Committed) -> None:
        for slot, state in batch.changed.items():
            self._set(slot.path, state)
        for stream_id, start, payload, _ in batch.records:
            log = self._logs.get(stream_id)
            if log is None:
                log = self._logs[stream_id] = _MemoryLog()
            log.starts.append(start)
            log.payloads.append(payload)
        for (stream_id, producer_id), (producer, _) in batch.producers.items():
            self._producers.setdefault(stream_id, {})[producer_id] = producer
        for stream_id, floor in batch.trimmed.items():
            if stream_id in self._logs:
                self._logs[stream_id].trim(floor)
        for stream_id in batch.removed:
            self._logs.pop(stream_id, None)
            self._producers.pop(stream_id, None)
        committed(None)

    def _set(self, path: str, state: StreamState | None) -> None:
        if state is None:
            if self._states.pop(path, None) is not None:
                self._paths.remove(path)
        else:
            if path not in self._states:
                self._paths.add(path)
            self._states[path] = state
        due = None if state is None else due_at(state)
        if due is None:
            self._due.pop(path, None)
        else:
            self._due[path] = due

    async def read(self, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
        log = self._logs.get(stream_id)
        if log is None or log.lacks(start):
            return None
        first = bisect_right(log.starts, start) - 1
        last = bisect_right(log.starts, min(stop, start + limit) - 1)
        payload = b"".join(log.payloads[first:last])
        begin = log.starts[first]
        if begin + len(payload) > stop:
            payload = payload[: stop - begin]
        return Chunk(begin, begin + len(payload), payload)

    async def read_piece(
        self, stream_id: int, start: int, stop: int, limit: int, aligned: bool
    ) -> Chunk | None:
        log = self._logs.get(stream_id)
        if log is None or log.lacks(start):
            return None
        first = bisect_right(log.starts, start) - 1
        begin = log.starts[first] if aligned else start
        end = min(stop, begin + limit)
        last = bisect_left(log.starts, end)
        parts = [memoryview(payload) for payload in log.payloads[first:last]]
        parts[-1] = parts[-1][: end - log.starts[last - 1]]
        parts[0] = parts[0][begin - log.starts[first] :]
        payload = b"".join(parts)
        return Chunk(begin, begin + len(payload), payload)

    async def boundary(self, stream_id: int, position: int, stop: int) -> int | None:  # noqa: ARG002 - one signature for all
        log = self._logs.get(stream_id)
        index = 0 if log is None else bisect_left(log.starts, position)
        return None if log is None or index == len(log.starts) else log.starts[index]

    async def expired(self, now: float, limit: int) -> list[str]:
        return [path for path, due in self._due.items() if due <= now][:limit]

    async def list_states(self, prefix: str, after: str, limit: int) -> list[StreamState]:
        paths, end = self._paths, prefix_end(prefix)
        begin = max(paths.bisect_left(prefix), paths.bisect_right(after))
        stop = len(paths) if end is None else paths.bisect_left(end)
        return [self._states[path] for path in paths[begin : min(stop, begin + limit)]]
