"""Rows out of messages of the State Protocol: what each message does to them.

Invariants: the rows after any messages are the same however those came in batches; the last message about a row counts,
whatever operation it names; a message that is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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

    def put(self, type: str, key: str, row: Any, value: Any, wanted: bool) -> Any:  # noqa: A002
        """Keep a row, and return the one before, ABSENT where there is none.

        ``value``: what the row was made of. ``wanted``: whether the row before is asked for; else anything is returned.
        """

    def remove(self, type: str, key: str, wanted: bool) -> Any:  # noqa: A002
        """Remove a row, if it is there, and return it as `put` does."""

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
        """Return a row, ABSENT where there is none."""
        table = self.tables.get(type)
        return ABSENT if table is None else table.get(key, ABSENT)

    def put(self, type: str, key: str, row: Any, value: Any, wanted: bool) -> Any:  # noqa: A002, ARG002
        """See Rows."""
        table = self.tables.get(type)
        if table is None:
            table = self.tables[type] = {}
        old = table.get(key, ABSENT) if wanted else ABSENT
        table[key] = row
        if self._snapshot is not None:
            self._snapshot.add((type, key))
        return old

    def remove(self, type: str, key: str, wanted: bool) -> Any:  # noqa: A002, ARG002
        """See Rows."""
        table = self.tables.get(type)
        if table is None:
            return ABSENT
        old = table.pop(key, ABSENT)
        if not table:
            del self.tables[type]
        return old

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
            self.remove(type_, key, False)
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

    def apply(self, messages: Sequence[StateMessage], before: str, *, wanted: bool = True) -> Applied:
        """Apply messages that stand behind an offset; those behind a reset that skips them are left out.

        ``wanted``: whether the changes are asked for.

        Raises:
            RetentionGoneError: Messages are missing, and no snapshot begins here.
            Exception: What ``refuse`` raises.
        """
        if self._gone is not None and messages:
            self._check_begin(messages[0].headers)
        applied = Applied([], [], None)
        changes, txids, put, row_of = applied.changes, applied.txids, self._rows.put, self._row_of
        for message in messages:
            headers = message.headers
            operation = headers.get("operation")
            if type(operation) is not str or operation not in OPERATIONS:
                restart = self._other(message, changes, before)
                if restart is not None:
                    return applied._replace(restart=restart)
                continue
            if "txid" in headers:
                _note_txid(headers["txid"], txids)
            row = row_of(message, operation, before)
            if row is ABSENT:
                continue
            type_, key = message.type, message.key
            if operation == "delete":
                old = self._rows.remove(type_, key, wanted)
                if wanted and old is not ABSENT:
                    changes.append(RowChange(type_, key, "delete", old, None, headers))
                continue
            old = put(type_, key, row, message.value, wanted)
            if wanted:
                done, old = ("insert", None) if old is ABSENT else ("update", old)
                changes.append(RowChange(type_, key, done, old, row, headers))
        return applied

    def _check_begin(self, headers: Mapping[str, Any]) -> None:
        if headers.get("operation") is not None or headers.get("control") not in {SNAPSHOT_START, RESET}:
            self.check_complete()
        self._gone = None

    def _row_of(self, message: StateMessage, operation: str, before: str) -> Any:
        """Return the row that a change brings, None of a delete; ABSENT where the message is not to be applied."""
        type_, key, value, makers = message.type, message.key, message.value, self._makers
        if value is ABSENT or not (key.isascii() and key and type_.isascii() and type_):
            if (reason := why_invalid(message)) is not None:
                return self._refused(message, reason, before)
            if value is ABSENT:
                value = None
        if makers is None:
            return value
        maker = makers.get(type_)
        if maker is None:
            return ABSENT
        if operation == "delete":
            return None
        try:
            return maker(value)
        except Exception as error:  # noqa: BLE001 - a validator's own, too
            reason = " ".join(str(error).split()).rstrip(".")
            return self._refused(message, f"its value is not a valid {type_}: {reason}", before, error)

    def _other(self, message: StateMessage, changes: list[RowChange], before: str) -> str | None:
        """Do what a message says that is no change; return the offset to go on from, if it is another one."""
        headers = message.headers
        if headers.get("operation") is None and "control" in headers:
            return self._control(headers, changes, before)
        self._refused(message, why_invalid(message) or "", before)
        return None

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
    ) -> Any:
        """Leave a message out: return ABSENT, or raise what ``refuse`` raises."""
        raw = encode_message(message)
        row = f" (type {message.type!r}, key {message.key!r})" if message.type else ""
        error = StreamParseError(
            f"A message after offset {before} is not a message of the State Protocol: {reason}{row}.",
            offset=before,
            details={"json": raw.decode(errors="replace")},
        )
        error.__cause__ = cause
        self._refuse(raw, error)
        return ABSENT


def _note_txid(txid: object, txids: list[str]) -> None:
    if isinstance(txid, str):
        txids.append(txid)
