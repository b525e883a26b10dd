"""Removal of bytes that no stream holds any more: of deleted streams, and of what trimmed streams gave up.

Invariants: a step is one short transaction, bounded by bytes, rows and time, however large a stream or an append is; a
step may be repeated, so that a crash costs nothing; what is to be removed is in the file, so that a restart goes on
with it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import time
from typing import NamedTuple

__all__ = ["PURGE_TABLES", "Purge", "purge"]

PURGE_TABLES = "CREATE TABLE trim (stream INTEGER PRIMARY KEY, floor INTEGER NOT NULL);"
"""``trim``: the records of a stream that begin before ``floor`` can be removed; ``garbage``: all of a stream."""

STEP_BYTES = 4 << 20
_LEAST_STEP, _LARGEST_STEP = 256 << 10, 16 << 20
_STEP_SECONDS = 0.01  # an append that comes during a step waits for as long
_RETRY_SECONDS = 5.0
_ROWS = 2000
_SIZE_BITS = 0xFFFFFFFF

# A row that damage changed must not remove what a stream holds.
_WORK = """
SELECT stream, NULL FROM (
SELECT stream FROM garbage WHERE NOT EXISTS (SELECT 1 FROM stream WHERE id = garbage.stream) LIMIT 1) UNION ALL
SELECT stream, floor FROM (
SELECT stream, min(floor, coalesce((
SELECT coalesce(json_extract(state, '$.floor'), 0) FROM stream WHERE id = trim.stream), floor)) AS floor
FROM trim LIMIT 1) LIMIT 1"""
_RECORDS = """
SELECT start, CASE typeof(data) WHEN 'integer' THEN data END, length(data) FROM record
WHERE stream = ? AND start < ? ORDER BY start LIMIT ?"""
_FIRST_PART = "SELECT min(id) FROM large WHERE id BETWEEN ? AND ?"
_PARTS = "DELETE FROM large WHERE id BETWEEN ? AND ?"
_PRODUCERS = """
DELETE FROM producer WHERE stream = ?1 AND id IN (SELECT id FROM producer WHERE stream = ?1 ORDER BY id LIMIT ?2)"""


class _Work(NamedTuple):
    """The records of ``stream`` before ``floor``; with its producers where ``floor`` is None."""

    stream: int
    floor: int | None


class Purge:
    """Removes in steps what no stream holds any more; after a failure it goes on some seconds later.

    Attributes:
        pending: Whether there may be something to remove.

    Args:
        large: The size of a part in the table ``large``, in bytes.
    """

    def __init__(self, large: int) -> None:
        self.pending = True  # perhaps: the first step finds out
        self._large = large
        self._step = STEP_BYTES
        self._resumes = 0.0

    def pause(self) -> float | None:
        """Return in how many seconds a step can be taken; None where there is nothing to remove."""
        return max(0.0, self._resumes - time.monotonic()) if self.pending else None

    def step(self, connection: sqlite3.Connection) -> None:
        """Take a step; its size follows from the time that the last one took. Raises sqlite3.Error without room."""
        began = time.monotonic()
        try:
            self.pending = purge(connection, self._large, self._step)
        except sqlite3.Error:
            self._resumes = began + _RETRY_SECONDS
            raise
        took = max(1e-4, time.monotonic() - began)
        wanted = self._step * min(2.0, _STEP_SECONDS / took)
        self._step = int(min(_LARGEST_STEP, max(_LEAST_STEP, wanted)))

    def resume(self) -> None:
        """Let the next step come at once: there may be room."""
        self._resumes = 0.0


def purge(connection: sqlite3.Connection, large: int, step: int = STEP_BYTES) -> bool:
    """Remove about ``step`` bytes; return True while there are more.

    Args:
        connection: The writer's connection, in no transaction.
        large: The size of a part in the table ``large``, in bytes.
        step: How much to remove, in bytes.
    """
    found = connection.execute(_WORK).fetchone()
    if found is None:
        return False
    work = _Work(*found)
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not (_records(connection, work, large, step) or _producers(connection, work)):
            table = "garbage" if work.floor is None else "trim"
            connection.execute(f"DELETE FROM {table} WHERE stream = ?", (work.stream,))  # noqa: S608 - one of two names
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.rollback()
        raise
    return True


def _records(connection: sqlite3.Connection, work: _Work, large: int, step: int) -> bool:
    """Remove records in order, up to ``step`` bytes; return whether there were any."""
    before = sys.maxsize if work.floor is None else work.floor
    last, found, rows = None, False, connection.execute(_RECORDS, (work.stream, before, _ROWS))
    for start, data, length in rows:
        found = True
        if data is None:
            step -= length
        else:
            step -= _parts(connection, data, large, step)
            if step <= 0:  # perhaps there are more parts: the record goes with the last one
                break
        last = start
        if step <= 0:  # the rows behind it are not even read
            break
    rows.close()
    if last is not None:
        connection.execute("DELETE FROM record WHERE stream = ? AND start <= ?", (work.stream, last))
    return found


def _parts(connection: sqlite3.Connection, data: int, large: int, step: int) -> int:
    """Remove parts of a large payload; return about how many bytes they had."""
    begin = data >> 32
    end = begin + max(0, (data & _SIZE_BITS) - 1) // large
    first: int | None = connection.execute(_FIRST_PART, (begin, end)).fetchone()[0]
    if first is None:
        return 0
    last = min(end, first + max(1, step // large) - 1)
    connection.execute(_PARTS, (first, last))
    return (last - first + 1) * large


def _producers(connection: sqlite3.Connection, work: _Work) -> bool:
    return work.floor is None and connection.execute(_PRODUCERS, (work.stream, _ROWS)).rowcount > 0
