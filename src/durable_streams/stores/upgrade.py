"""The upgrade to format 4: every row gets its checksum.

Invariants: a step is one transaction, and the file says where the next one begins, so that an interrupted upgrade goes
on; no server serves the file before the last step.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from durable_streams.stores.checksums import (
    CHECKSUM_TABLES,
    SIZE_BITS,
    after_append,
    name_hash,
    part_sum,
    producer_sum,
    seal,
    state_sum,
)

__all__ = ["CHECKSUM_COLUMNS", "finish_upgrade"]

CHECKSUM_COLUMNS = f"""
ALTER TABLE stream ADD COLUMN sum INTEGER;
ALTER TABLE stream ADD COLUMN tail INTEGER;
ALTER TABLE record ADD COLUMN sum INTEGER;
ALTER TABLE large ADD COLUMN sum INTEGER;
ALTER TABLE producer ADD COLUMN sum INTEGER;
{CHECKSUM_TABLES}
CREATE TABLE upgrade (step INTEGER NOT NULL, stream INTEGER NOT NULL, at, before INTEGER NOT NULL);
INSERT INTO upgrade VALUES (0, -1, '', 0);
"""  # noqa: S608
"""``upgrade``: where the next step begins, and the CRC-32 of the stream there; gone when all steps are done."""

_ROWS = 2000
_BYTES = 16 << 20
_STREAMS = f"""
SELECT id, path, state, (SELECT start + CASE typeof(data) WHEN 'integer' THEN data & {SIZE_BITS} ELSE length(data) END
FROM record WHERE stream = stream.id ORDER BY start DESC LIMIT 1) FROM stream WHERE id > ? ORDER BY id LIMIT ?"""  # noqa: S608
_PRODUCERS = """
SELECT stream, id, epoch, seq FROM producer WHERE (stream, id) > (?, ?) ORDER BY stream, id LIMIT ?"""
_RECORDS = """
SELECT stream, start, data FROM record WHERE (stream, start) > (?, ?) ORDER BY stream, start LIMIT ?"""

_Place = tuple[int, Any, int]
"""The last row that is done, by its key, and the CRC-32 of its stream after it."""

_log = logging.getLogger("durable_streams.stores")


def finish_upgrade(connection: sqlite3.Connection, large: int) -> None:
    """Take the steps that are left, if there are any.

    Args:
        connection: The only connection to the file, in no transaction.
        large: The size of a part in the table ``large``, in bytes.
    """
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'upgrade'").fetchone() is None:
        return
    _log.warning(
        "the streams get checksums: that reads all of them once, and goes on where it is interrupted"
    )
    steps: list[Callable[[sqlite3.Connection, _Place], _Place | None]] = [
        _seal_streams,
        _seal_producers,
        lambda connection, place: _seal_records(connection, place, large),
    ]
    while True:
        number, *place = connection.execute("SELECT * FROM upgrade").fetchone()
        if number == len(steps):
            break
        with _transaction(connection):
            done = steps[number](connection, (place[0], place[1], place[2]))
            if done is None:
                number, done = number + 1, (-1, "", 0) if number == 0 else (-1, -1, 0)
            connection.execute("UPDATE upgrade SET step = ?, stream = ?, at = ?, before = ?", (number, *done))
    connection.execute("DROP TABLE upgrade")
    _log.warning("all streams have checksums")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.rollback()
        raise


def _seal_streams(connection: sqlite3.Connection, place: _Place) -> _Place | None:
    rows = connection.execute(_STREAMS, (place[0], _ROWS)).fetchall()
    connection.executemany(
        "UPDATE stream SET sum = ?, tail = coalesce(?, 0) WHERE id = ?",
        [(state_sum(stream, path, state), tail, stream) for stream, path, state, tail in rows],
    )
    names = [(name_hash(path), stream) for stream, path, _, _ in rows]
    connection.executemany("INSERT INTO name VALUES (?, ?)", names)
    return (rows[-1][0], "", 0) if rows else None


def _seal_producers(connection: sqlite3.Connection, place: _Place) -> _Place | None:
    rows = connection.execute(_PRODUCERS, (*place[:2], _ROWS)).fetchall()
    connection.executemany(
        "UPDATE producer SET sum = ? WHERE stream = ? AND id = ?",
        [(producer_sum(*row), row[0], row[1]) for row in rows],
    )
    return (rows[-1][0], rows[-1][1], 0) if rows else None


def _seal_records(connection: sqlite3.Connection, place: _Place, large: int) -> _Place | None:
    stream, last, before = place
    sums: list[tuple[int, int, int]] = []
    size = 0
    rows = connection.execute(_RECORDS, (stream, last, _ROWS))
    for owner, start, data in rows:
        if owner != stream:
            stream, before = owner, 0
        after = after_append(data, before)
        sums.append((seal(stream, start, before, after), stream, start))
        if isinstance(data, int):
            size += _seal_parts(connection, stream, start, data, large)
        else:
            size += len(data)
        last, before = start, after
        if size >= _BYTES:
            break
    rows.close()
    connection.executemany("UPDATE record SET sum = ? WHERE stream = ? AND start = ?", sums)
    return (stream, last, before) if sums else None


def _seal_parts(connection: sqlite3.Connection, stream: int, start: int, data: int, large: int) -> int:
    """Seal the parts of a large append; return its bytes."""
    size = data & SIZE_BITS
    for number, at in enumerate(range(0, size, large)):
        key = (data >> 32) + number
        row = connection.execute("SELECT data FROM large WHERE id = ?", (key,)).fetchone()
        if row is not None:  # else it is being removed
            sealed = part_sum(stream, start + at, row[0])
            connection.execute("UPDATE large SET sum = ? WHERE id = ?", (sealed, key))
    return size
