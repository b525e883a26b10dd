"""What the sync and the async StreamDB share: rows, the place in the stream, and those who wait. No network here.

Invariants: what a batch did is seen as a whole; rows and offset belong together; news goes out after that. What is kept
for others is bounded: the last transactions, and the changes that a consumer has not taken.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Literal, NamedTuple, TypeVar, overload

from durable_streams.errors import DurableStreamError, RetentionGoneError, StreamParseError
from durable_streams.protocol.changes import RowChange, change_message
from durable_streams.protocol.jsonrule import OnInvalid, check_on_invalid
from durable_streams.protocol.jsonvalues import encode
from durable_streams.protocol.materialized import Applied, Materializer
from durable_streams.protocol.request import without_query
from durable_streams.state.errors import ChangesLostError, StateTimeoutError
from durable_streams.state.memory import SharedMemoryRows
from durable_streams.state.schema import Collection, StateSchema
from durable_streams.state.sqlite import SqliteRows
from durable_streams.state.views import Table
from durable_streams.types import StreamEvent

__all__ = ["CHUNK", "Compaction", "Inbox", "OnChange", "OnTrimmed", "SnapshotPlan", "StreamDBBase"]

T = TypeVar("T")

OnChange = Callable[[list[RowChange]], object]
"""Called with the changes of each batch, after they were committed."""

OnTrimmed = Literal["resync", "raise"]
"""What becomes of rows whose stream has given up what would come next: ``"resync"`` takes them from the snapshot that
the stream begins with now, if it does; ``"raise"`` ends with the error."""

CHUNK = 256 << 10
"""The bytes that a request of a snapshot has, and a row more."""

_log = logging.getLogger("durable_streams.state")


class Compaction(NamedTuple):
    """What a compaction did.

    Attributes:
        rows: How many rows the snapshot has.
        offset: Where the snapshot begins: a new reader needs nothing before it.
        trimmed: Whether the stream has given up what is before it.
    """

    rows: int
    offset: str
    trimmed: bool


class Inbox:
    """The changes that one consumer has not taken yet, no more than a limit. Any thread may put or take."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._batches: deque[list[RowChange]] = deque()
        self._count = 0
        self._lost = False

    def __len__(self) -> int:
        return self._count or self._lost

    def put(self, changes: list[RowChange]) -> bool:
        """Add the changes of a batch; return whether there was room for them."""
        with self._lock:
            if self._count and self._count + len(changes) > self._limit:
                self._lost = True
            else:
                self._batches.append(changes)
                self._count += len(changes)
            return not self._lost

    def take(self) -> list[RowChange]:
        """Return the changes of the oldest batch; raises ChangesLostError where the next one is missing."""
        with self._lock:
            if self._batches:
                changes = self._batches.popleft()
                self._count -= len(changes)
                return changes
        raise ChangesLostError(
            f"More than {self._limit:,} changes were waiting for the consumer of changes(), and those behind them are "
            "lost to it; read the rows and call changes() again, with a larger max_pending, or use on_change."
        )


class StreamDBBase:
    """The state of a StreamDB."""

    def __init__(
        self,
        url: str,
        schema: StateSchema | None,
        path: str | PathLike[str] | None,
        news: Any,
        *,
        on_invalid: OnInvalid,
        on_trimmed: OnTrimmed,
        on_change: Any,
        max_txids: int,
    ) -> None:
        check_on_invalid(on_invalid)
        if on_trimmed not in {"resync", "raise"}:
            raise ValueError(f"on_trimmed must be 'resync' or 'raise', not {on_trimmed!r}.")
        if isinstance(max_txids, bool) or not isinstance(max_txids, int) or max_txids < 1:
            raise ValueError(f"max_txids must be a whole number from 1, not {max_txids!r}.")
        self._url = without_query(url)
        models = None if schema is None else {one.type: one.model for one in schema.collections.values()}
        self._rows: Any
        if path is None:
            self._rows = SharedMemoryRows()
        else:
            parsers = None if models is None else {name: model.parse for name, model in models.items()}
            self._rows = SqliteRows(path, self._url, parsers)
        makers = None if models is None else {name: model.load for name, model in models.items()}
        self._core = Materializer(self._rows, makers, self._refuse)
        self._types = None if models is None else frozenset(models)
        self.collections: Mapping[str, Table[Any]] = (
            {}
            if schema is None
            else {name: Table(self._rows, one.type) for name, one in schema.collections.items()}
        )
        self._news = news
        self._on_invalid = on_invalid
        self._on_trimmed = on_trimmed
        self._on_change = on_change
        self._max_txids = max_txids
        self._txids: OrderedDict[str, None] = OrderedDict()
        self._inboxes: list[Inbox] = []
        self._lock = threading.Lock()  # around the list of inboxes: the follower may be in another thread
        self._invalid = 0
        self._is_ready = self._ended = self._closing = False
        self._error: Exception | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r}, offset={self.offset!r})"

    # -- what a program sees

    def __getattr__(self, name: str) -> Table[Any]:
        found: Mapping[str, Table[Any]] = vars(self).get("collections", {})
        if name not in found:
            raise AttributeError(f"{type(self).__name__} has neither an attribute nor a collection {name!r}.")
        return found[name]

    @overload
    def table(self, of: Collection[T]) -> Table[T]: ...
    @overload
    def table(self, of: str) -> Table[Any]: ...
    def table(self, of: Collection[Any] | str) -> Table[Any]:
        """Return the rows of a type.

        Args:
            of: The collection, by which a type checker knows the rows; or the type that messages name.

        Raises:
            ValueError: The schema has no such type.
        """
        name = of if isinstance(of, str) else of.type
        if self._types is not None and name not in self._types:
            raise ValueError(f"The schema has no collection of the type {name!r}.")
        return Table(self._rows, name)

    @property
    def types(self) -> list[str]:
        """The types that have rows."""
        found: list[str] = self._rows.types()
        return found

    @property
    def offset(self) -> str:
        """The offset that the rows belong to: all of the stream before it, and nothing behind it."""
        offset: str = self._rows.offset
        return offset

    @property
    def invalid(self) -> int:
        """How many messages were left out, since they are not of the protocol or not of their model."""
        return self._invalid

    @property
    def error(self) -> Exception | None:
        """The error that ended the following, None for none. The rows stay as they were."""
        return self._error

    # -- what the follower does

    def _take(self, event: StreamEvent) -> Applied:
        """Apply a batch and commit it, with its place."""
        if not event.data and event.next_offset == self._rows.offset:
            if event.up_to_date:
                self._core.check_complete()
            return Applied([], [], None)
        with self._rows.batch():
            wanted = self._on_change is not None or bool(self._inboxes)
            applied = self._core.apply(event.data or (), self._rows.offset, wanted=wanted)
            if event.up_to_date:
                self._core.check_complete()
            self._rows.commit(applied.restart or event.next_offset)
        for txid in applied.txids:
            self._txids[txid] = None
            self._txids.move_to_end(txid)
        while len(self._txids) > self._max_txids:
            self._txids.popitem(last=False)
        if applied.changes:
            with self._lock:
                self._inboxes = [inbox for inbox in self._inboxes if inbox.put(applied.changes)]
        return applied

    def _refuse(self, raw: bytes, error: StreamParseError) -> None:
        """Treat a message that is left out as ``on_invalid`` says."""
        if self._on_invalid == "raise":
            raise error
        self._invalid += 1
        if callable(self._on_invalid):
            self._on_invalid(raw, error)
        elif self._invalid == 1:
            _log.warning("%s It is left out; `invalid` counts it, and those that follow.", error.message)

    def _gone(self, error: RetentionGoneError) -> None:
        """Note that the stream has given up what would come next."""
        if self._on_trimmed == "raise":
            raise error
        self._core.expect_snapshot(error)

    def _is_closing(self) -> bool:
        return self._closing

    def _note_failure(self, error: Exception) -> None:
        if self._closing:
            return
        self._error = error
        _log.warning("The rows of %s are not followed any more: %s", self._url, error)

    # -- those who wait

    def _inbox(self, max_pending: int) -> Inbox:
        if isinstance(max_pending, bool) or not isinstance(max_pending, int) or max_pending < 1:
            raise ValueError(f"max_pending must be a whole number from 1, not {max_pending!r}.")
        inbox = Inbox(max_pending)
        with self._lock:
            self._inboxes.append(inbox)
        return inbox

    def _drop(self, inbox: Inbox) -> None:
        with self._lock:
            self._inboxes = [other for other in self._inboxes if other is not inbox]

    def _has_seen(self, txid: str) -> bool:
        return txid in self._txids or self._ended

    def _is_at(self, offset: str) -> bool:
        return self.offset >= offset or self._ended

    def _settled(self) -> bool:
        return self._is_ready or self._ended

    def _require(self, there: bool, what: str, timeout: float | None) -> None:
        """Raise the reason why something that was waited for is not there."""
        if there:
            return
        if self._error is not None:
            raise self._error
        if self._ended:
            raise DurableStreamError(
                f"{what} cannot come any more: the stream, or the following of it, has ended.",
                code="CLOSED",
                url=self._url,
            )
        raise StateTimeoutError(
            f"{what} did not arrive within {timeout:g} seconds; it may still come.", url=self._url
        )


class SnapshotPlan:
    """The messages of a snapshot, piece by piece, each of what the rows are when it is asked for."""

    def __init__(self, db: StreamDBBase) -> None:
        self._tables = {name: db.table(name) for name in db.types}
        self._names = [(name, key) for name, table in self._tables.items() for key in table]
        self._taken = self._next = 0
        self.rows = self._in_piece = 0

    def piece(self) -> list[bytes]:
        """Return the next piece of rows, as JSON; none where all of them were taken."""
        records: list[bytes] = []
        size, at = 0, self._taken
        while at < len(self._names) and size < CHUNK:
            name, key = self._names[at]
            at += 1
            # A row that was removed meanwhile is not one of the snapshot.
            if key in (table := self._tables[name]):
                message = change_message("insert", name, key, table.get(key))
                records.append(encode(message, beyond_double=True))
                size += len(records[-1])
        self._next, self._in_piece = at, len(records)
        return records

    def stored(self) -> None:
        """Note that the last piece was stored."""
        self._taken = self._next
        self.rows += self._in_piece
