"""The log in front of the tables: a commit over many streams is one row of it, sorted into the tables later.

A commit that touches a hundred streams would write a hundred pages; as a row of the log it writes two or three. What
is in the log and not in the tables is in memory too, by stream, so that readers see no difference. It is sorted in
order of the streams, many commits at once, so that a page is written once for all of them.

Invariants:
* the log holds changes of streams that are in the tables: creations and removals go to the tables at once, with what
  waits of the streams that they touch;
* a row is removed after all its streams are sorted; ``log_sorted`` says, in the transaction that sorts a stream, up to
  which row that is, so that a crash between two steps sorts nothing twice;
* of each stream, what waits follows what the tables hold, and what came later in the log follows that;
* what waits is bounded: a commit that finds no room goes to the tables.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from durable_streams.protocol.retention import due_at
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import Chunk, StoreDamagedError, StoreError
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.slots import Slot

__all__ = [
    "DEFAULT_LOG",
    "LOG_TABLES",
    "CommitLog",
    "Generation",
    "LogLimits",
    "Sorting",
    "Waiting",
    "WaitingRecords",
    "cut_log",
    "insert_row",
    "load_log",
    "mark_sorted",
]

LOG_TABLES = """
CREATE TABLE log (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE log_sorted (id INTEGER PRIMARY KEY, last INTEGER NOT NULL, streams BLOB NOT NULL);
"""
"""``log``: commits, under consecutive ids; ``log_sorted``: of ``streams``, the rows up to ``last`` are in the tables.
Either blob is a CRC-32 and MessagePack."""

_INSERT_ROW = "INSERT INTO log VALUES (?, ?)"
_MARK = "INSERT INTO log_sorted (last, streams) VALUES (?, ?)"
_SORTED = "SELECT last, CAST(streams AS BLOB) FROM log_sorted"
_ROWS = "SELECT id, CAST(data AS BLOB) FROM log ORDER BY id"
_FIRST_ROW = "SELECT min(id) FROM log"
_DROP_ROWS = "DELETE FROM log WHERE id <= ?"
_DROP_MARKS = "DELETE FROM log_sorted WHERE last <= ?"

_SUM_BYTES = 4
_RECORD_COST, _STREAM_COST = 100, 700  # bytes of memory, about
_PAGE = 4096  # bytes: a stream that gets more in one commit writes pages of its own anyway
_DROPPED_ROWS = 500  # in a step
_RETRY_SECONDS = 5.0


class LogLimits(NamedTuple):
    """Bounds of the log.

    Attributes:
        streams: A commit that touches more streams goes to the log.
        max_bytes: About how much of the log may wait in memory, in bytes.
        quiet: Seconds without such a commit after which all of it is sorted.
        step_records: How many appends a step sorts.
    """

    streams: int = 4
    max_bytes: int = 96 << 20
    quiet: float = 1.0
    step_records: int = 256


DEFAULT_LOG = LogLimits()


class _Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A commit: stream, start and payload of each append; states; stream, id, epoch and number of producers; floors."""

    records: list[tuple[int, int, bytes]]
    states: list[StreamState]
    producers: list[tuple[int, str, int, int]]
    trimmed: list[tuple[int, int]]


_encode = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(_Row).decode
_decode_streams = msgspec.msgpack.Decoder(list[int]).decode


def _seal(number: int, body: bytes) -> bytes:
    return crc32(body, number & 0xFFFFFFFF).to_bytes(_SUM_BYTES, "big") + body


def _unseal(number: int, data: bytes) -> bytes | None:
    """Return the body of a blob; None if it is not what was stored."""
    body = data[_SUM_BYTES:]
    whole = crc32(body, number & 0xFFFFFFFF).to_bytes(_SUM_BYTES, "big") == data[:_SUM_BYTES]
    return body if whole else None


def insert_row(number: int, batch: CommitBatch) -> tuple[str, tuple[int, bytes]]:
    """Return the statement that writes a batch to the log.

    Args:
        number: The id of the row.
        batch: The batch.
    """
    row = _Row(
        [record[:3] for record in batch.records],
        [state for slot in batch.dirty if (state := batch.changed[slot]) is not None],
        [(*key, one.epoch, one.seq) for key, (one, _) in batch.producers.items()],
        list(batch.trimmed.items()),
    )
    return _INSERT_ROW, (number, _seal(number, _encode(row)))


def mark_sorted(last: int, streams: Sequence[int]) -> tuple[str, tuple[int, bytes]]:
    """Return the statement that says that streams are sorted.

    Args:
        last: The id of the last row that they are sorted of.
        streams: Their ids.
    """
    return _MARK, (last, _seal(last, _encode(streams)))


class Waiting(msgspec.Struct, gc=False):
    """What waits of one stream.

    Attributes:
        state: The present state; None once the stream was removed.
        starts: Where each append that waits begins, in bytes.
        payloads: The appends.
        dirty: Whether the state waits, not only its tail.
        producers: The producers that wait.
        floor: The position before which bytes can be removed; 0 if that does not wait.
    """

    state: StreamState | None
    starts: list[int] = []
    payloads: list[bytes] = []
    dirty: bool = False
    producers: dict[str, ProducerState] | None = None
    floor: int = 0

    @property
    def end(self) -> int:
        """Where the last append ends, in bytes."""
        return self.starts[-1] + len(self.payloads[-1])


class Generation:
    """What consecutive rows of the log hold, by stream.

    The event loop fills it; once it is given to be sorted, it only loses what went to the tables with a commit.

    Attributes:
        streams: What waits, by stream id.
        paths: The same by path; what went to the tables since stays, with its state.
        due: When streams are due whose state waits, by path, in seconds since 1970.
        last: The id of its last row; 0 if it has none.
        size: About how many bytes of memory it takes.
        done: The ids of streams that are in the tables; belongs to the thread that writes.
    """

    def __init__(self) -> None:
        self.streams: dict[int, Waiting] = {}
        self.paths: dict[str, Waiting] = {}
        self.due: dict[str, float] = {}
        self.last = 0
        self.size = 0
        self.done: set[int] = set()

    def add(self, stream: int, path: str, state: StreamState) -> Waiting:
        """Return what waits of a stream, with its present state.

        Args:
            stream: The id.
            path: The path.
            state: The state.
        """
        waiting = self.streams.get(stream)
        if waiting is None:
            waiting = self.streams[stream] = self.paths[path] = Waiting(state)
            self.size += _STREAM_COST
        else:
            waiting.state = state
        return waiting

    def store(self, state: StreamState) -> None:
        """Let the state of a stream wait of which something waits, not only its tail."""
        waiting = self.streams[state.id]
        waiting.state, waiting.dirty = state, True
        due = due_at(state)
        if due is not None:
            self.due[state.path] = due

    def append(self, stream: int, start: int, payload: bytes) -> None:
        """Let an append wait of a stream of which something waits."""
        waiting = self.streams[stream]
        waiting.starts.append(start)
        waiting.payloads.append(payload)
        self.size += _RECORD_COST + len(payload)

    def produce(self, stream: int, producer: str, state: ProducerState) -> None:
        """Let a producer wait."""
        waiting = self.streams[stream]
        if waiting.producers is None:
            waiting.producers = {}
        waiting.producers[producer] = state
        self.size += _RECORD_COST

    def settle(self, path: str, state: StreamState | None) -> None:
        """Take over a commit to the tables that took along what waited of a stream."""
        waiting = self.paths.get(path)
        if waiting is None:
            return
        if waiting.state is not None and self.streams.get(waiting.state.id) is waiting:
            del self.streams[waiting.state.id]
            self.size -= _RECORD_COST * len(waiting.payloads) + sum(map(len, waiting.payloads))
        self.due.pop(path, None)
        # Another object: what reads or sorts keeps the old one.
        self.paths[path] = Waiting(state)


class WaitingRecords:
    """The appends of a stream that wait, in order.

    Attributes:
        begin: Where the first one begins, in bytes.

    Args:
        parts: What waits of the stream, earlier things first: at least one append in each.
    """

    def __init__(self, parts: list[Waiting]) -> None:
        self._parts = parts
        self.begin = parts[0].starts[0]

    def boundary(self, position: int) -> int | None:
        """Return where the first append at or after a position begins; None if none does.

        Args:
            position: The position, in bytes.
        """
        for part in self._parts:
            if position <= part.starts[-1]:
                return part.starts[bisect_left(part.starts, position)]
        return None

    def holding(self, position: int) -> int:
        """Return where the append begins that holds a position.

        Args:
            position: The position, in bytes; not before ``begin``.
        """
        starts = next(part.starts for part in reversed(self._parts) if part.starts[0] <= position)
        return starts[bisect_right(starts, position) - 1]

    def read(self, position: int, stop: int, limit: int) -> Chunk:
        """Return whole appends, from the one that holds a position to the last that begins within the limit.

        Args:
            position: Where to begin, in bytes; not before ``begin``.
            stop: The position to end at.
            limit: About how many bytes to return.
        """
        begin = self.holding(position)
        return self._between(begin, min(stop, begin + limit), stop)

    def piece(self, position: int, end: int) -> Chunk:
        """Return the bytes between two positions.

        Args:
            position: Where to begin, in bytes; not before ``begin``.
            end: Where to end.
        """
        chunk = self._between(self.holding(position), end, end)
        return Chunk(position, chunk.end, chunk.payload[position - chunk.start :])

    def _between(self, begin: int, until: int, stop: int) -> Chunk:
        """Return the appends from ``begin`` on that begin before ``until``, without what is past ``stop``."""
        found: list[bytes] = []
        for part in self._parts:
            first, last = bisect_left(part.starts, begin), bisect_left(part.starts, until)
            found += part.payloads[first:last]
        payload = b"".join(found)[: stop - begin]
        return Chunk(begin, begin + len(payload), payload)


class CommitLog:
    """Decides which commits go to the log, and answers what the tables do not hold yet. Belongs to the event loop.

    Args:
        limits: The bounds.
        sort: Gives a generation to the thread that writes.
        left: What is left of the log of an earlier process, if the tables could not take it.
    """

    def __init__(
        self, limits: LogLimits, sort: Callable[[Generation], None], left: Generation | None = None
    ) -> None:
        self._limits = limits
        self._sort = sort
        self._active = Generation()
        self._sorted = left  # being sorted
        self._last = 0 if left is None else left.last
        self._busy_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # -- commits

    def takes(self, batch: CommitBatch) -> bool:
        """Whether a batch is to go to the log."""
        many = len(batch.changed) > self._limits.streams
        if not (many or (self._busy() and self._touched(batch))) or not self._can_take(batch):
            return False
        if many:
            self._busy_until = time.monotonic() + self._limits.quiet
        return True

    def _busy(self) -> bool:
        return time.monotonic() < self._busy_until

    def _touched(self, batch: CommitBatch) -> bool:
        return any(self._waiting(slot) for slot in batch.changed)

    def _waiting(self, slot: Slot) -> bool:
        state = slot.state
        return state is not None and any(state.id in one.streams for one in self._generations())

    def _can_take(self, batch: CommitBatch) -> bool:
        if batch.removed or not batch.changed or self._active.size >= self._limits.max_bytes // 2:
            return False
        for slot in batch.dirty:
            state = batch.changed[slot]
            if state is None or slot.state is None or slot.state.id != state.id:
                return False  # it is created
        size = sum([len(record[2]) for record in batch.records])
        return size < _PAGE * len(batch.changed)

    def next_row(self) -> int:
        """Return the id of the next row; it is used once `logged` was called."""
        return self._last + 1

    @property
    def last_row(self) -> int:
        """The id of the last row that was committed."""
        return self._last

    def logged(self, batch: CommitBatch) -> None:
        """Take over a batch that was committed as the next row.

        Args:
            batch: The batch.
        """
        active = self._active
        self._last += 1
        active.last = self._last
        for slot, state in batch.changed.items():
            if state is not None:
                active.add(state.id, slot.path, state)
        for slot in batch.dirty:
            state = batch.changed[slot]
            if state is not None:
                active.store(state)
        for stream, start, payload, _ in batch.records:
            active.append(stream, start, payload)
        for (stream, producer), (known, _) in batch.producers.items():
            active.produce(stream, producer, known)
        for stream, floor in batch.trimmed.items():
            active.streams[stream].floor = floor
        if self._sorted is None and active.size >= self._limits.max_bytes // 2:
            self._freeze()
        self._watch()

    def waiting(self, batch: CommitBatch) -> list[tuple[Generation, dict[int, Waiting]]]:
        """Return what waits of the streams that a batch touches, earlier things first.

        Args:
            batch: The batch.
        """
        found = []
        for generation in self._generations():
            touched: dict[int, Waiting] = {}
            for slot in batch.changed:
                # The stream that was there before the batch: it may remove it.
                if slot.state is not None and (one := generation.streams.get(slot.state.id)) is not None:
                    touched[slot.state.id] = one
            if touched:
                found.append((generation, touched))
        return found

    def settled(self, batch: CommitBatch) -> None:
        """Take over a batch that was committed to the tables, with what waited of its streams.

        Args:
            batch: The batch.
        """
        for generation in self._generations():
            for slot, state in batch.changed.items():
                generation.settle(slot.path, state)
                if generation is self._active and slot.state is not None:
                    generation.done.discard(slot.state.id)  # later rows of it may come

    # -- from the log to the tables

    def _generations(self) -> list[Generation]:
        found = [] if self._sorted is None else [self._sorted]
        if self._active.last:
            found.append(self._active)
        return found

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._limits.quiet, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._busy() and self._sorted is None and self._active.last:
            self._freeze()
        if self._active.last:
            self._watch()

    def _freeze(self) -> None:
        generation, self._active = self._active, Generation()
        self._sorted = generation
        self._sort(generation)

    def finished(self, generation: Generation) -> None:
        """Forget a generation: it is in the tables.

        Args:
            generation: What `sort` was called with.
        """
        if generation is self._sorted:
            self._sorted = None

    def close(self) -> list[Generation]:
        """Return what waits, earlier things first, and sort nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        return self._generations()

    # -- reading

    def states(self, paths: Iterable[str]) -> dict[str, StreamState | None]:
        """Return the present states of those paths that something waits of; None for a stream that was removed.

        Args:
            paths: The paths.
        """
        generations = self._generations()
        if not generations:
            return {}
        found: dict[str, StreamState | None] = {}
        for path in paths:
            for generation in generations:  # the later one counts
                waiting = generation.paths.get(path)
                if waiting is not None:
                    found[path] = waiting.state
        return found

    def overlay(self) -> Callable[[StreamState], StreamState]:
        """Return what replaces a state of the tables, read after this call, by the present one."""
        generations = self._generations()

        def present(state: StreamState) -> StreamState:
            for generation in reversed(generations):
                waiting = generation.paths.get(state.path)
                if waiting is not None:
                    return waiting.state or state  # one that was removed meanwhile may be listed
            return state

        return present

    def producer(self, stream: int, producer: str) -> ProducerState | None:
        """Return a producer that waits; None if the tables know it, or nothing does.

        Args:
            stream: The id of the stream.
            producer: The id of the producer.
        """
        for generation in reversed(self._generations()):
            waiting = generation.streams.get(stream)
            if waiting is not None and waiting.producers is not None and producer in waiting.producers:
                return waiting.producers[producer]
        return None

    def producers(self, stream: int) -> dict[str, ProducerState]:
        """Return the producers of a stream that wait, by id.

        Args:
            stream: The id of the stream.
        """
        found: dict[str, ProducerState] = {}
        for generation in self._generations():
            waiting = generation.streams.get(stream)
            if waiting is not None:
                found.update(waiting.producers or {})
        return found

    def records(self, stream: int) -> WaitingRecords | None:
        """Return the appends of a stream that wait; None if all are in the tables.

        Args:
            stream: The id of the stream.
        """
        parts = [
            waiting
            for generation in self._generations()
            if (waiting := generation.streams.get(stream)) is not None and waiting.payloads
        ]
        return WaitingRecords(parts) if parts else None

    def due(self, now: float) -> list[str]:
        """Return paths of streams that are due, as far as their states wait.

        Args:
            now: The time, in seconds since 1970.
        """
        return [
            path for generation in self._generations() for path, due in generation.due.items() if due <= now
        ]


class Sorting:
    """Sorts a generation into the tables, step by step. Belongs to the thread that writes.

    Attributes:
        generation: The generation; None if there is none.

    Args:
        write: Writes what waits of some streams, and a mark, in one transaction that needs no sync of its own: the log
            has it. Raises StoreError, or sqlite3.Error.
        on_damage: Called with the damage of a stream that the tables cannot take: what the log holds of it stays there.
        limits: The bounds.
    """

    def __init__(
        self,
        write: Callable[[sqlite3.Connection, Generation, dict[int, Waiting]], None],
        on_damage: Callable[[StoreDamagedError], object],
        limits: LogLimits,
    ) -> None:
        self._write = write
        self._on_damage = on_damage
        self._step_records = limits.step_records
        self.generation: Generation | None = None
        self._ids: list[int] = []  # what is left, the next one last
        self._stuck = False  # the tables cannot take some of it
        self._resumes = 0.0

    def begin(self, generation: Generation) -> None:
        """Sort a generation with the next steps.

        Args:
            generation: It follows what was sorted before.
        """
        self.generation = generation
        self._ids = sorted(generation.streams, reverse=True)
        self._stuck = False

    def pause(self) -> float | None:
        """Return in how many seconds a step can be taken; None where there is nothing to sort."""
        if self.generation is None:
            return None
        return max(0.0, self._resumes - time.monotonic()) if self._resumes else 0.0

    def resume(self) -> None:
        """Let the next step come at once: there may be room."""
        self._resumes = 0.0

    def step(self, connection: sqlite3.Connection) -> Generation | None:
        """Take a step; return the generation once it is in the tables, and its rows are gone.

        Args:
            connection: The connection that writes, in no transaction.

        Raises:
            sqlite3.Error: There is no room; a later step tries again.
        """
        generation = self.generation
        if generation is None:
            return None
        try:
            if self._ids:
                self._sort_some(connection, generation)
                return None
            if not self._stuck and self._drop_some(connection, generation.last):
                return None
        except (sqlite3.Error, StoreError):
            self._resumes = time.monotonic() + _RETRY_SECONDS
            raise
        self.generation = None
        return None if self._stuck else generation

    def _sort_some(self, connection: sqlite3.Connection, generation: Generation) -> None:
        some: dict[int, Waiting] = {}
        rows, left = 0, len(self._ids)
        while left and rows < self._step_records:
            left -= 1
            stream = self._ids[left]
            waiting = None if stream in generation.done else generation.streams.get(stream)
            if waiting is not None:
                some[stream] = waiting
                rows += 1 + len(waiting.payloads)
        try:
            if some:
                self._write(connection, generation, some)
        except StoreDamagedError:
            for stream, waiting in some.items():
                self._sort_alone(connection, generation, stream, waiting)
        del self._ids[left:]

    def _sort_alone(
        self, connection: sqlite3.Connection, generation: Generation, stream: int, waiting: Waiting
    ) -> None:
        """Sort one stream; if it is damaged, what waits of it stays in the log."""
        try:
            self._write(connection, generation, {stream: waiting})
        except StoreDamagedError as damage:
            self._stuck = True
            self._on_damage(damage)

    @staticmethod
    def _drop_some(connection: sqlite3.Connection, last: int) -> bool:
        """Remove some rows, then the marks; return whether there were rows."""
        (first,) = connection.execute(_FIRST_ROW).fetchone()
        if first is None or first > last:
            connection.execute(_DROP_MARKS, (last,))
            return False
        connection.execute(_DROP_ROWS, (min(last, first + _DROPPED_ROWS),))
        return True


def load_log(connection: sqlite3.Connection) -> Generation | None:
    """Return what the log of a file holds and its tables do not; None if the log is empty.

    Args:
        connection: A connection to the file.

    Raises:
        StoreDamagedError: A row is missing, or not what was stored.
    """
    done: dict[int, int] = {}
    for last, data in connection.execute(_SORTED):
        body = _unseal(last, data)
        if body is None:
            raise _damaged_log(last)
        for stream in _decode_streams(body):
            done[stream] = max(last, done.get(stream, 0))
    generation = Generation()
    for number, data in connection.execute(_ROWS):
        body = _unseal(number, data)
        if body is None or generation.last not in {0, number - 1}:
            raise _damaged_log(number)
        generation.last = number
        _load_row(generation, _decode_row(body), partial(_waits, done, number))
    return generation if generation.last else None


def cut_log(connection: sqlite3.Connection) -> int:
    """Remove the rows from the first one that is damaged: what they hold cannot be proven to follow the tables.

    Args:
        connection: The connection that writes, in no transaction.

    Returns:
        How many rows were removed, and are missing before them.
    """
    expected: int | None = None
    number = 0
    for number, data in connection.execute(_ROWS):
        if expected not in {None, number} or _unseal(number, data) is None:
            break
        expected = number + 1
    else:
        connection.execute(
            "DELETE FROM log_sorted"
        )  # it is what is damaged; its rows are sorted again, or refused
        return 0
    first = number if expected is None else expected
    (last,) = connection.execute("SELECT max(id) FROM log").fetchone()
    connection.execute("DELETE FROM log WHERE id >= ?", (first,))
    return int(last) - first + 1


def _waits(done: Mapping[int, int], number: int, stream: int) -> bool:
    return done.get(stream, 0) < number


def _load_row(generation: Generation, row: _Row, waits: Callable[[int], bool]) -> None:
    """Let a row wait, as far as its streams are not sorted."""
    streams = generation.streams
    for stream, *_ in chain[tuple[Any, ...]](row.records, row.producers, row.trimmed):
        if stream not in streams and waits(stream):
            streams[stream] = Waiting(None)
    for state in filter(lambda state: waits(state.id), row.states):
        streams.setdefault(state.id, Waiting(None))
        generation.store(state)
    for record in filter(lambda record: waits(record[0]), row.records):
        generation.append(*record)
    for stream, producer, epoch, seq in row.producers:
        if waits(stream):
            generation.produce(stream, producer, ProducerState(epoch, seq))
    for stream, floor in row.trimmed:
        if waits(stream):
            streams[stream].floor = floor


def _damaged_log(number: int) -> StoreDamagedError:
    return StoreDamagedError(
        f"row {number} of the table log is missing or not what was stored: the file is damaged; "
        "restore a backup of the folder"
    )
