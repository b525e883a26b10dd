"""Checksums of what a data folder holds: every row says what it is, so that damage is noticed and never served.

Invariants:
* a checksum covers the bytes of a row and its place, so that a row that moved is noticed too;
* the appends of a stream form a chain: each row holds the CRC-32 of the stream before and after it, so that one look at
  the joined bytes verifies any number of consecutive appends;
* a stream's name is kept a second time in a table of its own, so that a lost row is not taken for a free name.

A large append takes part in the chain with its size; each of its parts has a checksum of its own.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Collection
from zlib import crc32

import msgspec

from durable_streams.stores.base import StoreDamagedError

__all__ = [
    "CHECKSUM_TABLES",
    "SIZE_BITS",
    "Chains",
    "Ends",
    "after_append",
    "check_name",
    "damage_text",
    "damaged",
    "is_damage",
    "is_whole",
    "name_hash",
    "part_sum",
    "producer_sum",
    "reason",
    "seal",
    "state_sum",
    "unseal",
]

CHECKSUM_TABLES = """
CREATE TABLE name (
    hash INTEGER NOT NULL, stream INTEGER NOT NULL, PRIMARY KEY (hash, stream)
) WITHOUT ROWID;
"""
"""``name``: the hash of each stream's path, and its id."""

_ALL_BITS = 0xFFFF_FFFF_FFFF_FFFF
_CRC_BITS = 0xFFFF_FFFF
SIZE_BITS = 0xFFFF_FFFF
"""The bits of the number of a large append that hold its size in bytes."""
_SIGN = 1 << 63
_ODD, _ODD_TOO = 0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F  # spread numbers over 64 bits

_MOST_CHAINS = 200_000  # streams
_MOST_TAILS = 100_000
_STEP_TAILS = 1000
_TAILS_SECONDS = 10.0
_LAST = "SELECT start, data, sum FROM record WHERE stream = ? ORDER BY start DESC LIMIT 1"
_EARLIEST = "SELECT json_extract(state, '$.earliest') FROM stream WHERE id = ?"
_PATH = "SELECT path FROM stream WHERE id = ?"
_NAMES = (
    "SELECT stream, (SELECT path FROM stream NOT INDEXED WHERE id = name.stream) FROM name WHERE hash = ?"
)
_DAMAGE_TEXTS = (
    "malformed",
    "UTF-8",
    "BLOB values",
)  # what SQLite and sqlite3 say of a value that no store wrote


def is_damage(error: BaseException) -> bool:
    """Whether an error of a query says that the file is damaged, not that it cannot be used now.

    Args:
        error: What a query raised.
    """
    if isinstance(error, sqlite3.OperationalError):
        return any(text in str(error) for text in _DAMAGE_TEXTS)
    # A row that is there already, where none can be, is damage too.
    return type(error) is sqlite3.DatabaseError or isinstance(
        error, (sqlite3.IntegrityError, msgspec.DecodeError, UnicodeDecodeError)
    )


def reason(error: BaseException) -> str:
    """Return what an error of a query says, in a few words of one line.

    Args:
        error: What a query raised.
    """
    return "a text is not UTF-8" if "UTF-8" in str(error) else str(error).partition("\n")[0]


def damaged(connection: sqlite3.Connection, stream: int, position: int, what: str) -> StoreDamagedError:
    """Return the error for damage of a stream, with its name if that can be read.

    Args:
        connection: A connection in any state.
        stream: The id of the stream.
        position: Where the damage begins, in bytes.
        what: What is wrong, as a clause.
    """
    try:
        row = connection.execute(_PATH, (stream,)).fetchone()
    except sqlite3.Error:
        row = None
    name = f"the stream with the id {stream}" if row is None else f"the stream {row[0]}"
    return StoreDamagedError(damage_text(name, position, what), stream)


def damage_text(name: str, position: int, what: str) -> str:
    """Return the sentence that says what is damaged.

    Args:
        name: What it is.
        position: Where the damage begins, in bytes.
        what: What is wrong, as a clause.
    """
    return f"{name} is damaged at position {position}: {what}; durable-streams verify shows what is whole"


# -- appends


def _place(stream: int, start: int) -> int:
    return (stream * _ODD + start * _ODD_TOO) & _ALL_BITS


def seal(stream: int, start: int, before: int, after: int) -> int:
    """Return the checksum of an append.

    Args:
        stream: The id of its stream.
        start: Its position, in bytes.
        before: The CRC-32 of the stream's bytes before it.
        after: The CRC-32 of the bytes up to its end.
    """
    return ((before << 32 | after) ^ _place(stream, start)) - _SIGN


def unseal(stream: int, start: int, checksum: object) -> tuple[int, int]:
    """Return ``before`` and ``after`` of a checksum that `seal` made; of a damaged one numbers that match nothing."""
    if not isinstance(checksum, int):
        return 0, -1
    both = ((checksum + _SIGN) ^ _place(stream, start)) & _ALL_BITS
    return both >> 32, both & _CRC_BITS


def after_append(data: bytes | int, before: int) -> int:
    """Return the CRC-32 of a stream after a record.

    Args:
        data: What the record holds: the bytes of an append, or the number of a large one.
        before: The CRC-32 before it.
    """
    return crc32((data & SIZE_BITS).to_bytes(4, "big") if isinstance(data, int) else data, before)


def is_whole(stream: int, start: int, data: object, checksum: object) -> bool:
    """Whether a row of ``record``, whose columns the arguments are, is what was stored."""
    before, after = unseal(stream, start, checksum)
    return isinstance(data, (bytes, int)) and after_append(data, before) == after


def part_sum(stream: int, position: int, data: bytes | memoryview) -> int:
    """Return the checksum of a part of a large append.

    Args:
        stream: The id of the stream.
        position: Where the part begins in the stream, in bytes.
        data: The part.
    """
    return crc32(data, _place(stream, position) >> 32)


Ends = dict[int, tuple[int, int]]
"""The CRC-32 of streams after a transaction, and where they end, in bytes; by stream id."""


class Chains:
    """Where the chain of each stream goes on, and which rows of streams say less than their ends.

    Belongs to the thread that writes.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._tails: dict[int, int] = {}
        self._order: list[int] = []  # of the tails that are stored next, the next one last
        self._due = 0.0  # when the tails are to be stored

    def before(self, connection: sqlite3.Connection, stream: int, start: int) -> int:
        """Return the CRC-32 of a stream before its next append.

        Args:
            connection: The connection that writes.
            stream: The id of the stream.
            start: The position of the append: the present end, in bytes.

        Raises:
            StoreDamagedError: The last append is damaged, or does not end there.
        """
        known = self._ends.get(stream)
        if known is not None:
            return known
        row = connection.execute(_LAST, (stream,)).fetchone() if start else None
        if row is None:
            return 0
        begin, data, checksum = row
        if not is_whole(stream, begin, data, checksum):
            raise damaged(connection, stream, begin, "its last append is not what was stored")
        end = begin + (data & SIZE_BITS if isinstance(data, int) else len(data))
        if end < start and connection.execute(_EARLIEST, (stream,)).fetchone() == (start,):
            return 0  # what is missing was given up, by a repair of the folder
        if end != start:
            raise damaged(connection, stream, min(end, start), "an append is missing, or one too many")
        return unseal(stream, begin, checksum)[1]

    def go_on(self, ends: Ends, removed: Collection[int]) -> None:
        """Take over a transaction that was committed.

        Args:
            ends: Where the streams end that it appended to.
            removed: The ids of the streams that it removed.
        """
        if ends:
            if not self._tails:
                self.wait()
            if len(self._ends) > _MOST_CHAINS:
                self._ends.clear()  # they are read again
            for stream, (after, tail) in ends.items():
                self._ends[stream] = after
                self._tails[stream] = tail
        for stream in removed:
            self._ends.pop(stream, None)
            self._tails.pop(stream, None)

    def forget(self) -> None:
        """Drop everything: transactions were taken back."""
        self._ends.clear()
        self._tails.clear()
        self._order.clear()

    def wait(self) -> None:
        """Store the tails some time later."""
        self._due = time.monotonic() + _TAILS_SECONDS

    def pause(self) -> float | None:
        """Return in how many seconds tails are to be stored; None where there are none."""
        return max(0.0, self._due - time.monotonic()) if self._tails else None

    def due(self) -> bool:
        """Whether tails are to be stored now."""
        return bool(self._tails) and (time.monotonic() >= self._due or len(self._tails) > _MOST_TAILS)

    def some_tails(self) -> list[tuple[int, int]]:
        """Return some streams and where they end, in bytes; those that are stored with one transaction."""
        found: list[tuple[int, int]] = []
        while self._tails and not found:
            if not self._order:
                self._order = sorted(self._tails, reverse=True)  # neighbours share pages
            self._order, some = self._order[:-_STEP_TAILS], self._order[-_STEP_TAILS:]
            found = [(stream, self._tails[stream]) for stream in reversed(some) if stream in self._tails]
        return found

    def stored(self, tails: list[tuple[int, int]]) -> None:
        """Take over that tails were stored.

        Args:
            tails: What `some_tails` returned.
        """
        for stream, _ in tails:
            del self._tails[stream]


# -- states


def state_sum(stream: int, path: str, state: str) -> int:
    """Return the checksum of a row of ``stream``.

    Args:
        stream: The id.
        path: The path.
        state: The state, as the JSON text that is stored.
    """
    return crc32(f"{stream} {path} {state}".encode("utf-8", "surrogatepass"))


def producer_sum(stream: int, producer: str, epoch: int, seq: int) -> int:
    """Return the checksum of a row of ``producer``, whose columns the arguments are."""
    return crc32(f"{stream} {epoch} {seq} {producer}".encode("utf-8", "surrogatepass"))


def name_hash(path: str) -> int:
    """Return the number under which a path is in ``name``."""
    digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def check_name(connection: sqlite3.Connection, path: str) -> None:
    """Return if there is no stream at a path that was not found.

    Args:
        connection: A connection that reads.
        path: The path.

    Raises:
        StoreDamagedError: There is one, whose row is lost.
    """
    hashed = name_hash(path)
    for stream, found in connection.execute(_NAMES, (hashed,)):
        # Another path may have the same hash.
        if found is None or found == path or name_hash(found) != hashed:
            raise StoreDamagedError(damage_text(f"the stream {path}", 0, "its row is lost"), stream)
