"""Rows out of messages of the State Protocol: what each message does to them.

Invariants: the rows after any messages are the same however those came in batches; the last message about a row counts,
whatever operation it names; a message that is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from durable_streams.errors import RetentionGoneError, StreamParseError
from durable_streams.protocol import headers as h
from durable_streams.protocol.changes import (
    ABSENT,
    OPERATIONS,
    RESET,
    SNAPSHOT_END,
    SNAPSHOT_START,
    RowChange,
    StateMessage,
    encode_message,
    why_invalid,
)

__all__ = ["Applied", "Materializer", "MemoryRows", "Refuse", "RowMaker", "Rows"]

RowMaker = Callable[[Any], Any]
"""Makes a row of a JSON value; raises where it is not one."""

Refuse = Callable[[bytes, StreamParseError], object]
"""Called with a message that is left out, and its error; may raise it."""


class Rows(Protocol):
    """Where rows are kept."""

    def get(self, type: str, key: str) -> Any:  # noqa: A002
        """Return a row, ABSENT where there is none."""

    def put(self, type: str, key: str, row: Any, value: Any) -> None:  # noqa: A002
        """Keep a row in place of the one of its name; ``value``: what it was made of."""

    def remove(self, type: str, key: str) -> None:  # noqa: A002
        """Remove a row that is there."""

    def clear(self) -> None:
        """Remove all rows."""

    def begin_snapshot(self) -> None:
        """Note that what is put from now on are all rows, once the snapshot has ended."""

    def end_snapshot(self) -> Iterable[tuple[str, str, Any]]:
        """Remove the rows that were not put since the begin of the snapshot, if there was one, and return them."""


class MemoryRows:
    """Rows in memory, by type and key."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Any]] = {}
        self._snapshot: set[tuple[str, str]] | None = None

    def get(self, type: str, key: str) -> Any:  # noqa: A002
        """See Rows."""
        table = self.tables.get(type)
        return ABSENT if table is None else table.get(key, ABSENT)

    def put(self, type: str, key: str, row: Any, value: Any) -> None:  # noqa: A002, ARG002
        """See Rows."""
        table = self.tables.get(type)
        if table is None:
            table = self.tables[type] = {}
        table[key] = row
        if self._snapshot is not None:
            self._snapshot.add((type, key))

    def remove(self, type: str, key: str) -> None:  # noqa: A002
        """See Rows."""
        table = self.tables[type]
        del table[key]
        if not table:
            del self.tables[type]

    def clear(self) -> None:
        """See Rows."""
        self.tables.clear()

    def begin_snapshot(self) -> None:
        """See Rows."""
        self._snapshot = set()

    def end_snapshot(self) -> list[tuple[str, str, Any]]:
        """See Rows."""
        kept, self._snapshot = self._snapshot, None
        if kept is None:
            return []
        dropped = [
            (type_, key, row)
            for type_, table in self.tables.items()
            for key, row in table.items()
            if (type_, key) not in kept
        ]
        for type_, key, _ in dropped:
            self.remove(type_, key)
        return dropped


class Applied(NamedTuple):
    """What some messages did.

    ``restart``: where the read has to go on, since a reset skips what is before that; None to go on as it is.
    """

    changes: list[RowChange]
    txids: list[str]
    restart: str | None


class Materializer:
    """Applies messages to rows, in the order of the stream.

    ``makers`` makes the rows of each type that is wanted, and rows of other types are not kept; None keeps the JSON
    values of all types. ``refuse`` is called with messages that are no changes by the protocol, or not of their type.

    Attributes:
        snapshots: How many snapshots have begun.
    """

    def __init__(self, rows: Rows, makers: Mapping[str, RowMaker] | None, refuse: Refuse) -> None:
        self._rows = rows
        self._makers = makers
        self._refuse = refuse
        self._gone: RetentionGoneError | None = None
        self.snapshots = 0

    def expect_snapshot(self, gone: RetentionGoneError) -> None:
        """Note that messages are missing: only a snapshot makes up for them, and it has to come next."""
        self._gone = gone

    def check_complete(self) -> None:
        """Raise RetentionGoneError if messages are missing: the tail was reached, and no snapshot has come."""
        if self._gone is not None:
            raise self._gone

    def apply(self, messages: Iterable[StateMessage], before: str) -> Applied:
        """Apply messages that stand behind an offset; those behind a reset that skips them are left out.

        Raises:
            RetentionGoneError: Messages are missing, and no snapshot begins here.
            Exception: What ``refuse`` raises.
        """
        changes: list[RowChange] = []
        txids: list[str] = []
        for message in messages:
            headers = message.headers
            if self._gone is not None:
                self._check_begin(headers)
            operation = headers.get("operation")
            if isinstance(operation, str) and operation in OPERATIONS:
                txid = headers.get("txid")
                if isinstance(txid, str):
                    txids.append(txid)
                change = self._change(message, operation, before)
                if change is not None:
                    changes.append(change)
            elif operation is None and "control" in headers:
                restart = self._control(headers, changes, before)
                if restart is not None:
                    return Applied(changes, txids, restart)
            else:
                self._refused(message, why_invalid(message) or "", before)
        return Applied(changes, txids, None)

    def _check_begin(self, headers: Mapping[str, Any]) -> None:
        if headers.get("operation") is not None or headers.get("control") not in {SNAPSHOT_START, RESET}:
            self.check_complete()
        self._gone = None

    def _change(self, message: StateMessage, operation: str, before: str) -> RowChange | None:
        type_, key, value, rows = message.type, message.key, message.value, self._rows
        usual = type_ and key and type_.isascii() and key.isascii()
        if (not usual or value is ABSENT) and (reason := why_invalid(message)) is not None:
            self._refused(message, reason, before)
            return None
        makers = self._makers
        if makers is not None and type_ not in makers:
            return None
        old = rows.get(type_, key)
        if operation == "delete":
            if old is ABSENT:
                return None
            rows.remove(type_, key)
            return RowChange(type_, key, "delete", old, None, message.headers)
        row = value
        if makers is not None:
            try:
                row = makers[type_](value)
            except Exception as error:  # noqa: BLE001 - a validator's own, too
                reason = " ".join(str(error).split()).rstrip(".")
                self._refused(message, f"its value is not a valid {type_}: {reason}", before, error)
                return None
        rows.put(type_, key, row, value)
        if old is ABSENT:
            return RowChange(type_, key, "insert", None, row, message.headers)
        return RowChange(type_, key, "update", old, row, message.headers)

    def _control(self, headers: Mapping[str, Any], changes: list[RowChange], before: str) -> str | None:
        """Do what a control message says; return the offset to go on from, if it is another one."""
        control, rows = headers["control"], self._rows
        if control == SNAPSHOT_START:
            rows.begin_snapshot()
            self.snapshots += 1
        elif control == SNAPSHOT_END:
            dropped = rows.end_snapshot()
            changes += [RowChange(type_, key, "delete", row, None, headers) for type_, key, row in dropped]
        elif control == RESET:
            rows.clear()
            changes.append(RowChange("", "", RESET, None, None, headers))
            offset = headers.get("offset")
            # Up to ``before`` everything is known to be behind. An offset beyond it may be before this message all the
            # same; then the message comes again, and ``before`` is that offset.
            if isinstance(offset, str) and h.is_position(offset) and offset > before:
                return offset
        else:
            self._refused(StateMessage(dict(headers)), f"its control is {control!r}", before)
        return None

    def _refused(
        self, message: StateMessage, reason: str, before: str, cause: Exception | None = None
    ) -> None:
        raw = encode_message(message)
        row = f" (type {message.type!r}, key {message.key!r})" if message.type else ""
        error = StreamParseError(
            f"A message after offset {before} is not a message of the State Protocol: {reason}{row}.",
            offset=before,
            details={"json": raw.decode(errors="replace")},
        )
        error.__cause__ = cause
        self._refuse(raw, error)
