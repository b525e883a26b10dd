"""Reads logs back: from a position in a stream to the records that hold it.

Invariants:
* a chunk begins with an append, or, inside one, with a record that begins before the requested position;
* a chunk ends with an append, or at ``stop``: a replica that lags makes it shorter, never different;
* only the record before says whether an append begins with a record: a search therefore ends before its position, and a
  remembered place is the beginning of an append.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from itertools import accumulate

from durable_streams.stores.base import Chunk
from durable_streams.stores.jetstream.nats.bus import Bus, Stored
from durable_streams.stores.jetstream.records import decode_record

__all__ = ["LogReader"]

_SCAN_MESSAGES = 1000
_SCAN_BYTES = 4 << 20
_OVERHEAD = 320  # about how many bytes of a message are not data: subject and headers
_LAG_TRIES = 3
_LAG_PAUSE = 0.005  # seconds
_LEADER_RECORDS = 16
_SOME = 4 << 10  # the assumed size of a record, before one is known
_NEAR = 8 << 10  # bytes that are cheaper to read and drop than to skip by a search,
_NEAR_RECORDS = 64  # unless there are more records than this


class LogReader:
    """Reads logs in chunks.

    Args:
        bus: The bucket.
        max_places: The most ends of reads to remember, where later reads begin.
    """

    def __init__(self, bus: Bus, *, max_places: int = 65536) -> None:
        self._bus = bus
        self._max_places = max_places
        self._places: OrderedDict[tuple[int, int], int] = OrderedDict()

    async def read(self, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
        """Return whole appends, from the one that holds ``start`` to the last that begins less than ``limit`` after it.

        Args:
            stream_id: The id of the stream that owns the bytes.
            start: The position to read from.
            stop: The position to end at; everything before it is committed.
            limit: About how many bytes to return, at least one append.

        Returns:
            The bytes, None if the log is gone. The chunk begins before ``start`` if that is inside an append; of a
            large append only the bytes near ``start`` are read. A chunk is shorter where replicas lag.

        Raises:
            StoreUnavailableError: NATS does not answer.
        """
        return await self._read(stream_id, start, stop, limit, cut=False)

    async def _read(self, stream_id: int, start: int, stop: int, limit: int, *, cut: bool) -> Chunk | None:
        place = (1, 0) if start == 0 else self._place(stream_id, start)
        if place is None:
            place = await self._search(stream_id, start)
            if place is None:
                return None
        reading = _Reading(*place, start, stop, limit, cut=cut)
        if not await self._fill(reading, self._bus.layout.log(stream_id)):
            return None
        chunk = reading.chunk()
        if start < chunk.end == reading.whole and not cut:
            self.remember(stream_id, chunk.end, reading.whole_seq)
        return chunk

    async def read_appends(self, stream_id: int, start: int, stop: int, limit: int) -> Chunk | None:
        """Return the chunk of `read`, but from the start of the append that holds ``start``, however large."""
        chunk = await self.read(stream_id, start, stop, limit)
        if chunk is None or chunk.start == start:
            return chunk
        begin = await self.append_start(stream_id, chunk.start)
        if begin is None or begin == chunk.start:
            return None if begin is None else chunk
        return await self.read(stream_id, begin, stop, limit)

    async def append_start(self, stream_id: int, position: int) -> int | None:
        """Return where the append that holds ``position`` begins; None if the log is gone."""
        subject = self._bus.layout.log(stream_id)
        while self._place(stream_id, position) is None:
            place = await self._search(stream_id, position)
            if place is None:
                return None
            search = _AppendSearch(place[0], position)
            while not search.found:
                records = await self._bus.scan(subject, search.seq, _SCAN_BYTES, _NEAR_RECORDS)
                if not records and (record := await self._bus.next(subject, search.seq)) is not None:
                    records = [record]
                if not records or not all(map(search.look_at, records)):
                    return None
            if search.is_exact:
                return search.begin
            position = search.begin  # a piece of the append: the records before it must be searched
        return position

    async def read_piece(
        self, stream_id: int, start: int, stop: int, limit: int, aligned: bool
    ) -> Chunk | None:
        """Return at most ``limit`` bytes, from ``start`` or from the append that holds it; None if they are gone."""
        begin: int | None = start
        if aligned and start and (stream_id, start) not in self._places:
            begin = await self._begins(stream_id, start, stop)
        if begin is None:
            return None
        chunk = await self._read(stream_id, begin, stop, limit, cut=True)
        if chunk is None:
            return None
        payload = chunk.payload[begin - chunk.start :][:limit]
        return Chunk(begin, begin + len(payload), payload)

    async def _begins(self, stream_id: int, position: int, stop: int) -> int | None:
        chunk = await self._read(stream_id, position, stop, 1, cut=True)
        if chunk is None or chunk.start == position:
            return None if chunk is None else position
        return await self.append_start(stream_id, chunk.start)

    async def boundary(self, stream_id: int, position: int, stop: int) -> int | None:
        """Return where the first append at or after ``position`` begins; None if the log is gone."""
        chunk = await self.read(stream_id, position, stop, 1)
        if chunk is None:
            return None
        return position if chunk.start == position else chunk.end

    async def record_at(self, stream_id: int, position: int) -> int | None:
        """Return the sequence of the record that holds ``position``; None if the log is gone."""
        place = await self._search(stream_id, position)
        subject, seq = self._bus.layout.log(stream_id), 0 if place is None else place[0]
        while seq and (stored := await self._bus.next(subject, seq)) is not None:
            _, start, end = _extent(stored)
            if end > position or start >= position:
                return stored.seq
            seq = stored.seq + 1
        return None

    def remember(self, stream_id: int, position: int, seq: int) -> None:
        """Remember that the append at ``position`` is in the first record of the log at or after ``seq``."""
        self._places[stream_id, position] = seq
        self._places.move_to_end((stream_id, position))
        if len(self._places) > self._max_places:
            self._places.popitem(last=False)

    def _place(self, stream_id: int, position: int) -> tuple[int, int] | None:
        seq = self._places.get((stream_id, position))
        if seq is None:
            return None
        self._places.move_to_end((stream_id, position))
        return seq, position

    async def _fill(self, reading: _Reading, subject: str) -> bool:
        """Read records until the chunk is complete, from replicas, then from the leader; False if they are gone."""
        tries = 0
        while not reading.complete and tries <= _LAG_TRIES:
            if tries:
                await asyncio.sleep(_LAG_PAUSE)
            found = await self._bus.scan(subject, reading.seq, *reading.wanted())
            if not found:
                tries += 1
            elif not all(map(reading.add, found)):
                return False
        asked = 0
        while not reading.complete and (asked < _LEADER_RECORDS or reading.whole == reading.start):
            record = await self._bus.next(subject, reading.seq)
            if record is None or not reading.add(record):
                return False
            asked += 1
        return True

    # -- from a position to a sequence

    async def _search(self, stream_id: int, position: int) -> tuple[int, int] | None:
        """Return sequence and start of a record that begins shortly before a position; None if the log is gone.

        By interpolation, and by bisection after each step that did not halve the range: streams are written in bursts.
        """
        subject = self._bus.layout.log(stream_id)
        first, last = await asyncio.gather(self._peek(subject, 1), self._peek_last(subject))
        if first is None or last is None:
            return None
        (low, low_start, low_end), (high, high_start, _) = _extent(first), _extent(last)
        if low_start > position:
            return None  # it is being removed, or was given up
        self.remember(stream_id, low_start, low)  # also where the log was cut, an append begins
        if high_start < position:
            return high, high_start
        near = min(_NEAR, _NEAR_RECORDS * (high_start - low_start) // decode_record(last.record).n)
        # The record at `low` begins before the position, or is the first; those from `high` on begin at it or later.
        halved = True
        while high - low > 1 and position - low_end > near:
            width = high - low
            share = (position - near // 2 - low_end) / (high_start - low_end) if halved else 0.5
            guess = min(high - 1, low + 1 + int(share * (width - 1)))
            found = await self._peek(subject, guess)
            seq, start, end = (high, high_start, 0) if found is None else _extent(found)
            if start < position:
                low, low_start, low_end = seq, start, end
            else:
                high, high_start = guess, start
            halved = not halved or (high - low) * 2 <= width
        return low, low_start

    async def _peek(self, subject: str, seq: int) -> Stored | None:
        return await self._bus.peek(subject, seq) or await self._bus.next(subject, seq)

    async def _peek_last(self, subject: str) -> Stored | None:
        return await self._bus.peek_last(subject) or await self._bus.last(subject)


def _extent(stored: Stored) -> tuple[int, int, int]:
    """Return the sequence of a record and the positions where it begins and ends."""
    start = decode_record(stored.record).start
    return stored.seq, start, start + len(stored.data)


class _AppendSearch:
    """Searches records, in order, for the start of the append that holds ``position``; the first begins before it.

    ``begin`` is that start if ``is_exact``, else the start of the first record, which is a piece of the same append.
    """

    def __init__(self, seq: int, position: int) -> None:
        self.seq = seq
        self.begin = -1
        self.is_exact = False
        self.found = False
        self._position = position
        self._end = -1
        self._more = False

    def look_at(self, stored: Stored) -> bool:
        """Examine the next record; False if a record before it is missing."""
        if self.found:
            return True
        record = decode_record(stored.record)
        if self._end not in (-1, record.start):
            return False
        end = record.start + len(stored.data)
        if not self._more:
            self.begin, self.is_exact = record.start, self._end >= 0 or record.n == 1
        self.seq, self._end, self._more = stored.seq + 1, end, record.more
        if record.lengths:
            bounds = list(accumulate(record.lengths, initial=record.start))
            self.begin, self.is_exact = bounds[bisect_right(bounds, self._position) - 1], True
        self.found = end > self._position
        return True


class _Reading:
    """A chunk that is built from the records of a log, in order; the first begins near ``origin``.

    ``seq``: the next record is at or behind it. ``whole``: the end of the last complete append. ``whole_seq``: the
    record with the bytes after ``whole`` is at or behind it. ``cut``: the chunk may end inside an append.
    """

    def __init__(self, seq: int, origin: int, start: int, stop: int, limit: int, *, cut: bool) -> None:
        self._cut = cut
        self.seq = self.whole_seq = seq
        self.start = self.whole = self._begin = start
        self._stop = stop
        self._until = min(stop, start + max(1, limit))
        self._parts: list[bytes] = []
        self._origin = origin
        self._position = -1  # where the next record begins, -1 if unknown
        self._seen = self._records = 0

    @property
    def complete(self) -> bool:
        """Whether nothing more is needed."""
        reached = self._position if self._cut else self.whole
        return reached >= self._until or self._position >= self._stop

    def wanted(self) -> tuple[int, int]:
        """Return how many bytes and how many messages the next scan should return."""
        missing = self._until - (self._origin if self._position < 0 else self._position)
        if missing <= 0:  # inside an append of unknown length
            missing = self._stop - self._position
        size = self._seen // self._records if self._seen else _SOME
        messages = min(_SCAN_MESSAGES, missing // (size + 1) + 1)
        return min(_SCAN_BYTES, missing + missing // 16 + messages * _OVERHEAD), messages

    def add(self, stored: Stored) -> bool:
        """Add the part of the next record that belongs to the chunk; False if a record before it is missing."""
        if self.complete:
            return True
        record, data = decode_record(stored.record), stored.data
        begin = record.start
        if begin != self._position and (self._position >= 0 or begin > self.start):
            return False
        end = begin + len(data)
        self.seq, self._position = stored.seq + 1, end
        self._seen += len(data)
        self._records += 1
        if end < self.start or not data or (end == self.start and not record.more):
            return True
        whole, whole_seq = end, self.seq
        if record.lengths and (begin < self.start or end > self._until):
            bounds = list(accumulate(record.lengths, initial=begin))
            first = bounds[bisect_right(bounds, self.start) - 1] if begin < self.start else begin
            if end > self._until and not self._cut:
                whole, whole_seq = bounds[bisect_left(bounds, self._until)], stored.seq
            data = data[first - begin : whole - begin]
            begin = first
        if not self._parts:
            self._begin = begin
        self._parts.append(data)
        if not record.more:
            self.whole, self.whole_seq = whole, whole_seq
        return True

    def chunk(self) -> Chunk:
        """Return the chunk, up to the end of the last complete append, or to the stop."""
        beyond = self.whole < self._until and self._position >= self._stop
        end = self._stop if beyond else min(self._position if self._cut else self.whole, self._stop)
        parts = self._parts
        payload = parts[0] if len(parts) == 1 else b"".join(parts)
        return Chunk(self._begin, end, payload[: end - self._begin])
