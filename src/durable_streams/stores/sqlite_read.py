"""Reading records back from a SQLite file.

Invariants: what is returned has no gap; whole appends cost about ``limit`` bytes and one append at most, a piece of
them what it holds and a part of ``LARGE`` bytes at either end (appends that format 1 stored cost as much as they are).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from durable_streams.stores.base import Chunk
from durable_streams.stores.lanes import Lookup
from durable_streams.stores.sqlite_file import read_large, size_of

__all__ = ["read_appends", "read_piece"]

# What is small as one value: a row each would give up the interpreter lock, and win it back, a thousand times. Of what
# is large there is a number instead, which makes the value too short: nothing has to look at each row for that.
_RUN = """
SELECT (SELECT max(start) FROM record WHERE stream = ?1 AND start <= ?2), CAST(group_concat(data, '') AS BLOB),
(SELECT min(start) FROM record WHERE stream = ?1 AND start >= ?3) FROM (SELECT data FROM record WHERE stream = ?1
AND start >= (SELECT max(start) FROM record WHERE stream = ?1 AND start <= ?2) AND start < ?3 ORDER BY start)"""
_MIXED = """
SELECT CAST(group_concat(small, '') AS BLOB), json_group_array(json(large)) FILTER (WHERE large IS NOT NULL) FROM (
SELECT CASE typeof(data) WHEN 'integer' THEN NULL ELSE data END AS small,
CASE typeof(data) WHEN 'integer' THEN json_array(start, data) END AS large
FROM record WHERE stream = ?1 AND start >= ?2 AND start < ?3 ORDER BY start)"""
_FIRST = "SELECT max(start) FROM record WHERE stream = ? AND start <= ?"
_ALIVE = "SELECT 1 FROM stream WHERE id = ?"

_RUN_BYTES = 4 << 20  # between two looks whether anybody wants it still

_decode_large = msgspec.json.Decoder(list[tuple[int, int]]).decode


def read_appends(
    connection: sqlite3.Connection, lookup: Lookup, *, stream: int, start: int, stop: int, limit: int
) -> Chunk | None:
    """Return appends from the one that holds ``start``, nothing past ``stop``; None if they are gone."""
    file = _File(connection, stream, stop)
    parts: list[bytes] = []
    begin = end = start
    while lookup.wanted and end < min(stop, begin + limit):
        run = file.find(end, min(stop, end + min(begin + limit - end, _RUN_BYTES)))
        if run is None:
            break
        if not parts:
            begin = end = run.first
        for append in run.in_order():
            part: bytes | None = None
            if isinstance(append, bytes):
                part = append
            elif lookup.wanted and (not parts or end + size_of(append) <= begin + limit):
                part = file.large(append, 0, size_of(append))
            if part is None:
                return _chunk(begin, stop, parts)
            parts.append(part)
            end += len(part)
    return _chunk(begin, stop, parts)


def read_piece(
    connection: sqlite3.Connection,
    lookup: Lookup,
    *,
    stream: int,
    start: int,
    stop: int,
    limit: int,
    aligned: bool,
) -> Chunk | None:
    """Return ``limit`` bytes, but nothing past ``stop``, from ``start`` or its append; None if they are gone."""
    file = _File(connection, stream, stop)
    begin: int | None = start
    if aligned:
        (begin,) = connection.execute(_FIRST, (stream, start)).fetchone()
    if begin is None:
        return None
    position, end = begin, min(stop, begin + limit)
    parts: list[bytes] = []
    while lookup.wanted and position < end:
        run = file.find(position, min(end, position + _RUN_BYTES))
        if run is None:
            break
        at = run.first
        for append in run.in_order():
            size = size_of(append) if isinstance(append, int) else len(append)
            low, high = max(0, position - at), min(size, end - at)
            part = append[low:high] if isinstance(append, bytes) else file.large(append, low, high)
            if part is None or not lookup.wanted:
                return _chunk(begin, end, parts)
            parts.append(part)
            at, position = at + size, at + high
    return _chunk(begin, end, parts)


def _chunk(begin: int, stop: int, parts: list[bytes]) -> Chunk | None:
    if not parts:
        return None
    payload = parts[0] if len(parts) == 1 else b"".join(parts)
    if begin + len(payload) > stop:
        payload = payload[: stop - begin]
    return Chunk(begin, begin + len(payload), payload)


class _Run(NamedTuple):
    """Appends from ``first`` on: the bytes of small ones in a row, and start and record of each large one."""

    first: int
    small: bytes
    large: list[tuple[int, int]]

    def in_order(self) -> Iterator[bytes | int]:
        """Yield what is small, several appends in one, and what the records of large ones hold."""
        at, used = self.first, 0
        for start, data in self.large:
            if start > at:
                yield self.small[used : used + start - at]
                used += start - at
            yield data
            at = start + size_of(data)
        if used < len(self.small):
            yield self.small[used:]

    def end(self) -> int:
        """Return where it ends, if nothing is missing."""
        return self.first + len(self.small) + sum([size_of(data) for _, data in self.large])


class _File:
    """The records of a stream, all of which up to ``stop`` were committed."""

    def __init__(self, connection: sqlite3.Connection, stream: int, stop: int) -> None:
        self._connection = connection
        self._stream = stream
        self._stop = stop

    def find(self, position: int, until: int) -> _Run | None:
        """Return the appends from the one that holds ``position`` to the last that begins before ``until``.

        None if they are gone; raises sqlite3.DatabaseError if one is missing.
        """
        first, small, following = self._connection.execute(_RUN, (self._stream, position, until)).fetchone()
        if first is None or small is None:
            self._explain()
            return None
        run = _Run(first, small, [])
        end = self._stop if following is None else following
        if run.end() < end:
            small, large = self._connection.execute(_MIXED, (self._stream, first, until)).fetchone()
            run = _Run(first, small or b"", _decode_large(large))
            if run.end() < end:
                self._explain()
                return None
        return run

    def large(self, data: int, begin: int, end: int) -> bytes | None:
        """Return ``[begin, end)`` of a large append whose record holds ``data``; None, or raises, as ``find`` does."""
        payload = read_large(self._connection, data, begin, end)
        if payload is None:
            self._explain()
        return payload

    def _explain(self) -> None:
        """Return for a stream that is being removed; raises the error of a damaged file for one that is not."""
        if self._connection.execute(_ALIVE, (self._stream,)).fetchone() is not None:
            raise sqlite3.DatabaseError("the file is damaged: bytes of a stream are missing")
