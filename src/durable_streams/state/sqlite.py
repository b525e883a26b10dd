"""Rows in a SQLite file, with the offset that they belong to.

Invariants: rows and offset change in one transaction, so that whatever ends the process, the file holds what a prefix
of the stream says; a file of another stream, other types or another program is refused and left as it is; of two
processes that follow into one file, one is refused at its next batch.

Values are JSON text, as they were in the stream: the model only decides which rows are kept. SQL may read the table
``row``.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from durable_streams.errors import DurableStreamError
from durable_streams.protocol import headers as h
from durable_streams.protocol.changes import ABSENT
from durable_streams.protocol.jsonvalues import decode, encode

__all__ = ["SqliteRows"]

_APPLICATION_ID = 0x64737374  # "dsst"
_FORMAT = 1
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE row (
    type TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, snapshot INTEGER NOT NULL, PRIMARY KEY (type, key)
);
CREATE TABLE place (
    id INTEGER PRIMARY KEY CHECK (id = 1), stream TEXT NOT NULL, types TEXT NOT NULL, offset TEXT NOT NULL,
    snapshot INTEGER NOT NULL, in_snapshot INTEGER NOT NULL
);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
COMMIT;
"""
_GET = "SELECT value FROM row WHERE type = ? AND key = ?"
_PUT = "INSERT OR REPLACE INTO row VALUES (?, ?, ?, ?)"
_REMOVE = "DELETE FROM row WHERE type = ? AND key = ?"
_MOVE = "UPDATE place SET offset = ?, snapshot = ?, in_snapshot = ? WHERE offset = ?"
_PAGE = "SELECT key, value FROM row WHERE type = ? AND key > ? ORDER BY key LIMIT 500"
_WAIT = 5.0  # seconds for another program that has the file locked

Parse = Callable[[bytes], Any]


class SqliteRows:
    """Rows in a file, for one writer and readers in any thread.

    ``stream``: the URL of the stream. ``parsers``: what makes rows of each type out of text; None for values of all
    types.
    Raises DurableStreamError where the file cannot be used.
    """

    blocks = True

    def __init__(self, path: str | PathLike[str], stream: str, parsers: Mapping[str, Parse] | None) -> None:
        self._path = Path(path)
        self._parsers = parsers
        self._lock, self._writing = threading.Lock(), threading.Lock()
        # What the present batch has changed: a row with its text, or None for one that is gone.
        self._pending: dict[tuple[str, str], tuple[Any, str] | None] = {}
        with self._checked():
            self._writer = self._connect()
            try:
                self._prepare(stream)
                # A commit that was not synced yet is lost as a whole: rows and offset stay those of one prefix.
                self._writer.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
                self._reader = self._connect()
            except BaseException:
                self._writer.close()
                raise
        self._saved = (self.offset, self._snapshot, self._in_snapshot)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=_WAIT)

    def _prepare(self, stream: str) -> None:
        writer = self._writer
        [application], [version] = (
            writer.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if application == 0 and not writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            writer.executescript(_SCHEMA)
        elif application != _APPLICATION_ID:
            raise self._refusal("is a file of another program; choose another path")
        elif version != _FORMAT:
            raise self._refusal(
                f"has format {version}, and this version reads {_FORMAT}; use a newer version"
            )
        types = encode(None if self._parsers is None else sorted(self._parsers)).decode()
        writer.execute(
            "INSERT OR IGNORE INTO place VALUES (1, ?, ?, ?, 0, 0)", (stream, types, h.OFFSET_START)
        )
        found, kept, self.offset, self._snapshot, self._in_snapshot = writer.execute(
            "SELECT stream, types, offset, snapshot, in_snapshot FROM place"
        ).fetchone()
        if found != stream:
            raise self._refusal(f"holds the rows of {found}, not of {stream}; choose another path")
        if kept != types:
            raise self._refusal(
                f"holds rows of the types {kept}, not {types}; remove it, and it is made again from the stream"
            )

    # -- the writer, as the core sees it

    def _old(self, type: str, key: str) -> Any:  # noqa: A002
        """Return a row as the present batch has it; one that the model of today refuses as a JSON value."""
        name = (type, key)
        if name in self._pending:
            pending = self._pending[name]
            return ABSENT if pending is None else pending[0]
        found = self._writer.execute(_GET, name).fetchone()
        if found is None:
            return ABSENT
        try:
            return self._made(type, found[0])
        except Exception:  # noqa: BLE001 - of the model
            return decode(found[0].encode())

    def put(self, type: str, key: str, row: Any, value: Any, wanted: bool) -> Any:  # noqa: A002
        """See Rows."""
        old = self._old(type, key) if wanted else ABSENT
        self._pending[type, key] = (row, encode(value, beyond_double=True).decode())
        return old

    def remove(self, type: str, key: str, wanted: bool) -> Any:  # noqa: A002
        """See Rows."""
        old = self._old(type, key) if wanted else ABSENT
        self._pending[type, key] = None
        return old

    def clear(self) -> None:
        """See Rows."""
        self._pending.clear()
        self._writer.execute("DELETE FROM row")

    def begin_snapshot(self) -> None:
        """See Rows."""
        self._flush()
        self._snapshot += 1
        self._in_snapshot = 1

    def end_snapshot(self) -> list[tuple[str, str, Any]]:
        """See Rows."""
        if not self._in_snapshot:
            return []
        self._flush()
        self._in_snapshot = 0
        names = self._writer.execute(
            "SELECT type, key FROM row WHERE snapshot < ?", (self._snapshot,)
        ).fetchall()
        dropped = [(type_, key, self._old(type_, key)) for type_, key in names]
        self._writer.execute("DELETE FROM row WHERE snapshot < ?", (self._snapshot,))
        return dropped

    def _flush(self) -> None:
        pending, self._pending = self._pending, {}
        gone = [name for name, made in pending.items() if made is None]
        puts = [(*name, made[1], self._snapshot) for name, made in pending.items() if made is not None]
        self._writer.executemany(_REMOVE, gone)
        self._writer.executemany(_PUT, puts)

    # -- batches

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Around the changes of a batch and its `commit`; if that is not reached, nothing has changed."""
        with self._writing, self._checked():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                    self._pending.clear()
                    self.offset, self._snapshot, self._in_snapshot = self._saved

    def commit(self, offset: str) -> None:
        """Store the rows, and the offset that they belong to."""
        self._flush()
        moved = self._writer.execute(_MOVE, (offset, self._snapshot, self._in_snapshot, self.offset))
        if moved.rowcount != 1:
            raise self._refusal("is written by another process; one may follow into a file")
        self._writer.execute("COMMIT")
        self.offset = offset
        self._saved = (offset, self._snapshot, self._in_snapshot)

    # -- readers

    def find(self, type: str, key: str) -> Any:  # noqa: A002
        """See CommittedRows."""
        found = self._read(_GET, (type, key))
        return self._row(type, key, found[0][0]) if found else ABSENT

    def count(self, type: str) -> int:  # noqa: A002
        """See CommittedRows."""
        return int(self._read("SELECT count(*) FROM row WHERE type = ?", (type,))[0][0])

    def items(self, type: str) -> Iterator[tuple[str, Any]]:  # noqa: A002
        """See CommittedRows."""
        after = ""
        while found := self._read(_PAGE, (type, after)):
            for key, text in found:
                yield key, self._row(type, key, text)
            after = found[-1][0]

    def types(self) -> list[str]:
        """See CommittedRows."""
        return [type_ for (type_,) in self._read("SELECT DISTINCT type FROM row", ())]

    def close(self) -> None:
        """Close the file, after the batch that is being written."""
        with self._writing, self._lock, self._checked():
            self._reader.close()
            self._writer.close()

    def _read(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._lock, self._checked():
            return self._reader.execute(query, values).fetchall()

    def _made(self, type: str, text: str) -> Any:  # noqa: A002
        return decode(text.encode()) if self._parsers is None else self._parsers[type](text.encode())

    def _row(self, type: str, key: str, text: str) -> Any:  # noqa: A002
        try:
            return self._made(type, text)
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise self._refusal(
                f"holds a row (type {type!r}, key {key!r}) that its model refuses: {reason}; change the model, or "
                "remove the file"
            ) from error

    # -- errors

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._refusal(f"cannot be used: {error}") from error

    def _refusal(self, what: str) -> DurableStreamError:
        return DurableStreamError(f"The state file {self._path} {what}.", code="CHECKPOINT")
