"""The verification of a data folder, and its repair: what can be proven whole is kept, the rest is said.

Invariants: a verification changes nothing; a repair writes another file from the rows that are whole, and replaces the
damaged one, which stays beside it, in one step; positions stay what they were.

A stream that lost bytes begins behind them after a repair, as after a trim. What was whole before them is in closed
streams of their own, as forks: ``PATH~BEGIN`` has the bytes from that position on, at their positions.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from durable_streams.protocol import retention, rules
from durable_streams.protocol.commands import Create, ForkPoint
from durable_streams.protocol.headers import DEFAULT_CONTENT_TYPE
from durable_streams.protocol.state import StreamState
from durable_streams.stores.base import StoreDamagedError, StoreError
from durable_streams.stores.checksums import (
    SIZE_BITS,
    is_damage,
    is_whole,
    name_hash,
    part_sum,
    producer_sum,
    reason,
    state_sum,
    unseal,
)
from durable_streams.stores.commit_log import cut_log, load_log
from durable_streams.stores.folder import FolderLock
from durable_streams.stores.private import create_folder, sync
from durable_streams.stores.sqlite import (
    FILE_NAME,
    LARGE,
    check_whole,
    connect,
    opening,
    prepare,
    settle,
    state_statements,
)

__all__ = ["Damage", "Found", "repair", "verify"]

Show = Callable[[int, int], None]
"""Called with the bytes that were looked at, and the bytes of all."""

_CACHE_KIB = 16 << 10
_REPAIR = "repair"  # the folder of the new file, until it replaces the damaged one
_ROWS = 1000
_PARTS = "SELECT id, data, sum FROM large WHERE id BETWEEN ? AND ? ORDER BY id"
_NOT_STORED = "not what was stored"

_decode_state = msgspec.json.Decoder(StreamState).decode


class Damage(NamedTuple):
    """Something that is not what was stored.

    Attributes:
        name: The path of the stream, or what else it is.
        begin: Where the lost bytes begin, in bytes.
        end: Where they end; equal to ``begin`` if no bytes are lost.
        what: What is wrong, as a clause.
    """

    name: str
    begin: int
    end: int
    what: str

    def __str__(self) -> str:
        """Return one line."""
        if self.begin == self.end:
            return f"{self.name}: {self.what}"
        return f"{self.name}: {self.end - self.begin} bytes lost, positions {self.begin} to {self.end}: {self.what}"


class Found(NamedTuple):
    """What a verification found.

    Attributes:
        streams: How many streams there are.
        size: Their bytes that are whole.
        damages: What is damaged, in the order of the streams' paths.
        kept: The streams that a repair made of what was whole before lost bytes.
        aside: The name that the damaged file has after a repair; None if there was none.
    """

    streams: int
    size: int
    damages: list[Damage]
    kept: list[str]
    aside: str | None


class _Run:
    """Consecutive appends that are whole: from ``begin`` to ``end``, with the CRC-32 of the stream at both."""

    __slots__ = ("after", "before", "begin", "end")

    def __init__(self, begin: int, end: int, before: int, after: int) -> None:
        self.begin, self.end, self.before, self.after = begin, end, before, after

    def take(self, other: _Run) -> bool:
        """Grow by a run at either end; return whether it is one."""
        if (self.end, self.after) == (other.begin, other.before):
            self.end, self.after = other.end, other.after
        elif (self.begin, self.before) == (other.end, other.after):
            self.begin, self.before = other.begin, other.before
        else:
            return False
        return True


class _Stream(NamedTuple):
    """What is stored of a stream."""

    state: StreamState
    runs: list[_Run]
    damages: list[Damage]


def verify(folder: Path, show: Show) -> Found:
    """Check all rows of a data folder; no server may have it open.

    Args:
        folder: The data folder.
        show: Is given the progress.

    Returns:
        What was found.

    Raises:
        StoreError: The folder cannot be used, or nothing of its file can be read; one sentence says why.
    """
    with _opened(folder) as (connection, _):
        scan = _Scan(connection, show)
        with opening(folder):
            scan.open(folder)
        return _found(scan.streams(), scan)


def repair(folder: Path, show: Show) -> Found:
    """Check all rows of a data folder, and write a file of those that are whole if there is damage.

    The damaged file stays in the folder, as ``streams.db.damaged`` with a number. There has to be room for a second
    copy of all that is whole.

    Args:
        folder: The data folder.
        show: Is given the progress.

    Returns:
        What was found, and what became of it.

    Raises:
        StoreError: As of `verify`; or the folder cannot be written to.
    """
    with _opened(folder) as (connection, lock):
        scan = _Scan(connection, show)
        with opening(folder):
            scan.open(folder, cuts=True)
        streams = scan.streams()
        found = _found(streams, scan)
        if not found.damages:
            return found
        target = lock.folder / _REPAIR
        try:
            kept = _write(connection, target, scan, streams)
            settle(connection)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot repair {folder}: {reason(error)}; nothing was changed") from error
        finally:
            connection.close()
        return found._replace(kept=kept, aside=_swap(lock.folder, target))


def _found(streams: Sequence[_Stream], scan: _Scan) -> Found:
    damages = [damage for stream in streams for damage in stream.damages]
    size = sum(run.end - run.begin for stream in streams for run in stream.runs)
    return Found(len(streams), size, [*damages, *scan.damages], [], None)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[tuple[sqlite3.Connection, FolderLock]]:
    if not (folder / FILE_NAME).is_file():
        raise StoreError(f"the folder {folder} holds no streams: it has no file {FILE_NAME}")
    lock = FolderLock(folder)
    lock.acquire()
    try:
        with opening(folder):
            check_whole(folder)
            connection = connect(folder, _CACHE_KIB)
        with closing(connection):
            yield connection, lock
    finally:
        lock.release()


# -- reading what may be damaged


def _salvaged(
    connection: sqlite3.Connection, table: str, key: tuple[str, ...], columns: str
) -> Iterator[tuple[Any, ...]]:
    """Yield the key and the columns of the rows of a table: from both ends where a part of it cannot be read."""
    first: tuple[Any, ...] | None = None
    ended = False
    for row in _one_way(connection, table, key, columns, descending=False):
        if row is None:
            ended = True
        else:
            first = row[: len(key)]
            yield row
    if ended:
        return
    for row in _one_way(connection, table, key, columns, descending=True):
        if row is None or (first is not None and not _is_after(row[: len(key)], first)):
            return
        yield row


def _one_way(
    connection: sqlite3.Connection, table: str, key: tuple[str, ...], columns: str, *, descending: bool
) -> Iterator[tuple[Any, ...] | None]:
    """Yield rows in the order of their keys up to the first that cannot be read; None after the last one."""
    names, marks = ", ".join(key), ", ".join("?" * len(key))
    order = ", ".join(f"{name} DESC" if descending else name for name in key)
    last: tuple[Any, ...] | None = None
    while True:
        bound = "" if last is None else f"WHERE ({names}) {'<' if descending else '>'} ({marks})"
        sql = f"SELECT {names}, {columns} FROM {table} {bound} ORDER BY {order} LIMIT {_ROWS}"  # noqa: S608
        count = 0
        try:
            for row in connection.execute(sql, last or ()):
                found = row[: len(key)]
                # Where a page refers to itself, rows come again, without end.
                if last is not None and not (
                    _is_after(last, found) if descending else _is_after(found, last)
                ):
                    return
                last = found
                count += 1
                yield row
        except sqlite3.Error as error:
            if is_damage(error):
                return
            raise
        if count < _ROWS:
            yield None
            return


def _is_after(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    try:
        return one > other
    except TypeError:  # a key of another type
        return False


class _Scan:
    """One look at all rows.

    Attributes:
        damages: What is damaged besides streams.
        last_id: The largest id of a stream.
    """

    def __init__(self, connection: sqlite3.Connection, show: Show) -> None:
        self._connection = connection
        self._waiting: dict[int, int] = {}
        self._show = show
        self.damages: list[Damage] = []
        self.last_id = 0

    def open(self, folder: Path, *, cuts: bool = False) -> None:
        """Bring the file to the state that a start of the server would.

        Args:
            folder: The data folder.
            cuts: Whether to remove what is damaged of the log of commits.
        """
        try:
            prepare(self._connection, folder)
            left = load_log(self._connection)
        except StoreDamagedError as damage:
            if not cuts:
                raise
            rows = cut_log(self._connection)
            what = f"{damage}: {rows} commits are lost, the ends of their streams are not known"
            self.damages.append(Damage("the log of commits", 0, 0, what))
            prepare(self._connection, folder)
            left = load_log(self._connection)
        if left is not None:  # the tables cannot take it
            self._waiting = {stream: one.end for stream, one in left.streams.items() if one.payloads}
        self._connection.text_factory = bytes  # a text that is damaged is no error by itself

    def streams(self) -> list[_Stream]:
        """Return all streams, in the order of their paths."""
        garbage = {row[0] for row in self._rows("garbage", ("stream",), "1")}
        states, names = self._states(), self._names()
        paths = {**_origins(states), **self._paths(names)}
        runs, read = self._runs(), _read_by_forks(states)
        lost = {*names, *runs} - states.keys() - garbage
        found = [
            _checked(state, tail, runs.get(stream, []), read.get(stream, []), paths.get(stream))
            for stream, (state, tail) in states.items()
        ]
        taken = {one.state.path for one in found}
        for stream in sorted(lost):
            path = _free(paths.get(stream) or f"lost/{stream}", taken)
            taken.add(path)
            forks = sum(_forks_of(state, stream, path) for state, _ in states.values())
            found.append(_lost(stream, path, runs.get(stream, []), forks))
        self.last_id = max([self.last_id, *[one.state.id for one in found], *garbage])
        self._check_producers(states)
        found.sort(key=lambda one: one.state.path)
        return found

    def _rows(self, table: str, key: tuple[str, ...], columns: str) -> Iterator[tuple[Any, ...]]:
        return _salvaged(self._connection, table, key, columns)

    def _states(self) -> dict[int, tuple[StreamState, int]]:
        """Return the states that are whole, and how far their records reach at least, by id."""
        states: dict[int, tuple[StreamState, int]] = {}
        for stream, path, text, checksum, tail in self._rows(
            "stream NOT INDEXED", ("id",), "path, state, sum, tail"
        ):
            with contextlib.suppress(UnicodeDecodeError, AttributeError, msgspec.DecodeError):
                if state_sum(stream, path.decode(), text.decode()) == checksum and isinstance(tail, int):
                    states[stream] = _decode_state(text), max(tail, self._waiting.get(stream, 0))
        return states

    def _paths(self, names: dict[int, set[int]]) -> dict[int, str]:
        """Return the paths that are in the index of paths and have a name, by id."""
        paths: dict[int, str] = {}
        for path, stream in self._rows("stream INDEXED BY sqlite_autoindex_stream_1", ("path",), "id"):
            with contextlib.suppress(UnicodeDecodeError, AttributeError):
                paths[stream] = path.decode()
        return {stream: path for stream, path in paths.items() if name_hash(path) in names.get(stream, ())}

    def _names(self) -> dict[int, set[int]]:
        names: dict[int, set[int]] = {}
        for hashed, stream, _ in self._rows("name", ("hash", "stream"), "1"):
            names.setdefault(stream, set()).add(hashed)
        return names

    def _runs(self) -> dict[int, list[_Run]]:
        """Return the appends that are whole, by stream."""
        found: dict[int, list[_Run]] = {}
        done, size = 0, _size(self._connection)
        for stream, start, data, checksum in self._rows("record", ("stream", "start"), "data, sum"):
            runs = found.setdefault(stream, [])
            length = data & SIZE_BITS if isinstance(data, int) else len(data)
            done += length
            self._show(min(done, size), size)
            if not is_whole(stream, start, data, checksum) or not self.has_parts(stream, start, data):
                continue
            run = _Run(start, start + length, *unseal(stream, start, checksum))
            if not runs or not runs[-1].take(run):
                runs.append(run)
        for runs in found.values():
            runs.sort(key=lambda run: run.begin)
        self._show(size, size)
        return found

    def has_parts(self, stream: int, start: int, data: bytes | int) -> bool:
        """Whether all parts of an append are whole, if it has some."""
        if isinstance(data, bytes):
            return True
        at = 0
        try:
            for _, part, checksum in self._connection.execute(_PARTS, _part_ids(data)):
                if part_sum(stream, start + at, part) != checksum:
                    return False
                at += len(part)
        except (sqlite3.Error, TypeError):
            return False
        return at == data & SIZE_BITS

    def _check_producers(self, states: Container[int]) -> None:
        for stream, name, epoch, seq, checksum in self._rows("producer", ("stream", "id"), "epoch, seq, sum"):
            if stream in states and not _is_producer(stream, name, epoch, seq, checksum):
                text = name.decode(errors="replace") if isinstance(name, bytes) else name
                self.damages.append(
                    Damage(f"the producer {text} of the stream with the id {stream}", 0, 0, _NOT_STORED)
                )


def _part_ids(data: int) -> tuple[int, int]:
    """Return the ids of the first and the last part of a large append whose record holds ``data``."""
    first = data >> 32
    return first, first + max(0, (data & SIZE_BITS) - 1) // LARGE


def _size(connection: sqlite3.Connection) -> int:
    page, pages = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count"))
    return int(page * pages)


def _is_producer(stream: int, name: Any, epoch: Any, seq: Any, checksum: Any) -> bool:
    try:
        return bool(producer_sum(stream, name.decode(), epoch, seq) == checksum)
    except (UnicodeDecodeError, AttributeError):
        return False


def _checked(
    state: StreamState, stored: int, runs: list[_Run], read: list[tuple[int, int]], path: str | None
) -> _Stream:
    """Compare what is whole of a stream with what can be read of it, by itself and by its forks."""
    begin = max(state.earliest, state.lineage[-1].end if state.lineage else 0)
    end = max(begin, state.tail, stored, *[run.end for run in runs])
    wanted = [*read, *([] if state.deleted else [(begin, end)])]
    damages = [Damage(state.path, low, high, _NOT_STORED) for low, high in _gaps(runs, wanted)]
    if path != state.path:
        damages.append(Damage(state.path, 0, 0, "its name is lost"))
    return _Stream(replace(state, tail=end), runs, damages)


def _read_by_forks(states: Mapping[int, tuple[StreamState, int]]) -> dict[int, list[tuple[int, int]]]:
    """Return what forks read of other streams, by the ids of these."""
    read: dict[int, list[tuple[int, int]]] = {}
    for state, _ in states.values():
        begin = state.earliest
        for part in state.lineage:
            if begin < part.end:
                read.setdefault(part.id, []).append((begin, part.end))
                begin = part.end
    return read


def _origins(states: Mapping[int, tuple[StreamState, int]]) -> dict[int, str]:
    """Return the paths of the streams that others were forked from, by id."""
    return {
        state.lineage[-1].id: state.forked_from
        for state, _ in states.values()
        if state.forked_from is not None and state.lineage
    }


def _forks_of(state: StreamState, stream: int, path: str) -> bool:
    return state.forked_from == path and any(part.id == stream for part in state.lineage)


def _lost(stream: int, path: str, runs: list[_Run], forks: int) -> _Stream:
    """Return the stream whose row is lost: nothing is known of it but its bytes."""
    begin = runs[0].begin if runs else 0
    end = max([0, *[run.end for run in runs]])
    state = StreamState(
        id=stream,
        path=path,
        content_type=DEFAULT_CONTENT_TYPE,
        tail=end,
        closed=True,
        forks=forks,
        earliest=begin,
        floor=begin,
    )
    damages = [Damage(path, low, high, _NOT_STORED) for low, high in _gaps(runs, [(begin, end)])]
    what = f"its row is lost, with its content type, its end and its expiry; its bytes from {begin} to {end} are whole"
    return _Stream(state, runs, [Damage(path, 0, 0, what), *damages])


def _gaps(runs: Sequence[_Run], wanted: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what is wanted and not in the runs, in order, each position once."""
    done = 0
    for low, end in sorted(wanted):
        begin = max(low, done)
        done = max(done, end)
        for run in runs:
            if begin < run.begin and begin < end:
                yield begin, min(run.begin, end)
            begin = max(begin, run.end)
        if begin < end:
            yield begin, end


def _free(path: str, taken: Container[str]) -> str:
    """Return a path that no stream has."""
    if path not in taken:
        return path
    return next(name for n in itertools.count(1) if (name := f"{path}~{n}") not in taken)


# -- the repair


def _repaired(streams: list[_Stream], last_id: int) -> tuple[list[StreamState], list[StreamState]]:
    """Return the states after a repair, and the streams that it makes of what was whole before lost bytes."""
    ends: dict[int, int] = {}  # where the lost bytes of streams end, by id
    for one in streams:
        gaps = [damage.end for damage in one.damages if damage.end > damage.begin]
        if gaps:
            ends[one.state.id] = max(gaps)
    taken = {one.state.path for one in streams}
    kept: list[StreamState] = []
    states: list[StreamState] = []
    for one in streams:
        state, end = one.state, ends.get(one.state.id, 0)
        parts = [run for run in one.runs if state.earliest < run.end <= end]
        for run in parts:
            path = _free(f"{state.path}~{run.begin}", taken)
            taken.add(path)
            last_id += 1
            fork = Create(path, None, closed=True, fork=ForkPoint(state.path, state.id, run.end))
            made = rules.decide_create(None, replace(state, deleted=False), fork, last_id, 0.0).state
            kept.append(
                replace(
                    made,
                    earliest=max(run.begin, state.earliest),
                    floor=max(run.begin, state.earliest),
                    ttl=None,
                    expires_at=None,
                    deadline=None,
                    retention=None,
                )
            )
        # What a fork inherits may be lost too.
        lost = max([end, *[min(ends.get(part.id, 0), part.end) for part in state.lineage]])
        states.append(_without(state, lost, len(parts)))
    return states, kept


def _without(state: StreamState, end: int, forks: int) -> StreamState:
    """Return a state that begins behind its lost bytes, and has more forks."""
    if end <= state.earliest:
        return replace(state, forks=state.forks + forks)
    policy = None if state.retention is None else state.retention.policy
    begun = replace(state, earliest=end, forks=state.forks + forks, trims=state.trims + 1, retention=None)
    if not begun.forks:
        begun = replace(begun, floor=end)
    return replace(begun, retention=retention.retention_of(policy, begun, time.time()))


def _write(source: sqlite3.Connection, target: Path, scan: _Scan, streams: list[_Stream]) -> list[str]:
    """Write the file of what is whole; return the paths of the streams that the repair makes."""
    states, kept = _repaired(streams, scan.last_id)
    shutil.rmtree(target, ignore_errors=True)  # of a repair that was interrupted
    create_folder(target)
    with closing(connect(target, _CACHE_KIB)) as copy:
        copy.execute("PRAGMA synchronous = OFF")  # it is synced as a whole
        prepare(copy, target)
        copy.execute("BEGIN")
        for sql, values in state_statements([*states, *kept], [*states, *kept]):
            copy.execute(sql, values)
        copy.execute(
            "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'stream'", (scan.last_id + len(kept),)
        )
        _copy_records(scan, source, copy, {state.id for state in states})
        _copy_producers(source, copy, {state.id for state in states})
        _copy_subscriptions(source, copy)
        copy.execute("COMMIT")
        settle(copy)
    return [state.path for state in kept]


def _copy_records(
    scan: _Scan, source: sqlite3.Connection, copy: sqlite3.Connection, streams: Container[int]
) -> None:
    """Copy the appends that are whole, found the way that the scan found them."""
    for row in _salvaged(source, "record", ("stream", "start"), "data, sum"):
        stream, start, data, _ = row
        if stream in streams and is_whole(*row) and scan.has_parts(stream, start, data):
            copy.execute("INSERT INTO record VALUES (?, ?, ?, ?)", row)
            if isinstance(data, int):
                parts = source.execute(_PARTS, _part_ids(data))
                copy.executemany("INSERT INTO large VALUES (?, ?, ?)", parts)


def _copy_producers(source: sqlite3.Connection, copy: sqlite3.Connection, streams: Container[int]) -> None:
    for row in _salvaged(source, "producer", ("stream", "id"), "epoch, seq, sum"):
        if row[0] in streams and _is_producer(*row):
            copy.execute("INSERT INTO producer VALUES (?, ?, ?, ?, ?)", (row[0], row[1].decode(), *row[2:]))


def _copy_subscriptions(source: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    """Copy what can be read of the subscriptions."""
    source.text_factory = str  # a secret is no text
    with contextlib.suppress(sqlite3.Error):
        made = source.execute(
            "SELECT name, sql FROM sqlite_master WHERE name LIKE 'subscription%' AND sql NOT NULL"
        )
        for name, sql in made.fetchall():
            copy.execute(sql)
            with contextlib.suppress(sqlite3.Error):
                for row in source.execute(f"SELECT * FROM {name}"):  # noqa: S608 - of this program's tables
                    copy.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608


def _swap(folder: Path, target: Path) -> str:
    """Let the new file take the place of the damaged one; return the name of that from now on."""
    file = folder / FILE_NAME
    if (folder / f"{FILE_NAME}-wal").exists():
        raise StoreError(f"the log of {file} cannot be moved into it; nothing was changed: restore a backup")
    aside = folder / _free_name(folder)
    os.link(file, aside)
    sync(target / FILE_NAME)
    (target / FILE_NAME).rename(file)
    sync(folder)
    shutil.rmtree(target, ignore_errors=True)
    return aside.name


def _free_name(folder: Path) -> str:
    names = (f"{FILE_NAME}.damaged-{number}" for number in itertools.count(1))
    return next(name for name in names if not (folder / name).exists())
