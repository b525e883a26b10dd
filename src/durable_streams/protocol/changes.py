"""Messages of the State Protocol, which say how rows change: what is one, and how one is made.

A row is named by two texts, its type and its key. A message is a change of one row, or a control message: ``reset``, or
the begin or end of a snapshot. What is written has the members of the protocol and no others; of what is read, members
and headers that it does not know are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from durable_streams.protocol.jsonvalues import encode

__all__ = [
    "ABSENT",
    "OPERATIONS",
    "RESET",
    "SNAPSHOT_END",
    "SNAPSHOT_START",
    "Operation",
    "RowChange",
    "StateMessage",
    "change_message",
    "control_message",
    "encode_message",
    "why_invalid",
]

Operation = Literal["insert", "update", "upsert", "delete"]

OPERATIONS = frozenset({"insert", "update", "upsert", "delete"})
RESET, SNAPSHOT_START, SNAPSHOT_END = "reset", "snapshot-start", "snapshot-end"

ABSENT = msgspec.UNSET
"""In place of a value that is not there; ``null`` is a value."""


class StateMessage(msgspec.Struct, omit_defaults=True, gc=False):
    """A message as it was read."""

    headers: dict[str, Any]
    type: str = ""
    key: str = ""
    value: Any = ABSENT
    old_value: Any = ABSENT


class RowChange(NamedTuple):
    """What a message has changed.

    Attributes:
        type: The type of the row; of a reset ``""``.
        key: The key of the row; of a reset ``""``.
        operation: ``insert``, ``update`` or ``delete``, as it was for the row; ``reset`` where all rows are gone.
        old: The row before, None where there was none.
        new: The row now, None where there is none.
        headers: The headers of the message.
    """

    type: str
    key: str
    operation: str
    old: Any
    new: Any
    headers: Mapping[str, Any]

    @property
    def txid(self) -> str | None:
        """The transaction that the writer named, if any."""
        return self.headers.get("txid")


def why_invalid(message: StateMessage) -> str | None:
    """Return why this is no change by the protocol, to follow a colon; None for one."""
    operation = message.headers.get("operation")
    if operation is None:
        return "its headers have neither operation nor control"
    if not isinstance(operation, str) or operation not in OPERATIONS:
        return f"its operation is {operation!r}, not insert, update, upsert or delete"
    for name, text in (("type", message.type), ("key", message.key)):
        if not text:
            return f"its {name} is missing or empty"
        if not _is_text(text):
            return f"its {name} holds half of a surrogate pair"
    if operation != "delete" and message.value is ABSENT:
        return f"it has no value, which {operation} needs"
    return None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def change_message(
    operation: Operation,
    type: str,  # noqa: A002 - the protocol's name
    key: str,
    value: Any = ABSENT,
    *,
    old_value: Any = ABSENT,
    txid: str | None = None,
    timestamp: datetime | str | None = None,
    headers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a message that changes a row.

    Args:
        operation: What it does to the row.
        type: The type of the row.
        key: The key of the row.
        value: The row, as JSON has it; for a delete none.
        old_value: The row before, for checks and audits.
        txid: The name of the transaction, by which a writer recognises its own change.
        timestamp: When it was, with its time zone: a datetime, or text as RFC 3339 has it.
        headers: More headers; the ones above go before them.

    Raises:
        ValueError: An argument makes no message of the protocol.
    """
    more = dict(headers or {})
    more["operation"] = operation
    if txid is not None:
        if not isinstance(txid, str) or not txid:
            raise ValueError(f"txid must be text that is not empty, not {txid!r}.")
        more["txid"] = txid
    if timestamp is not None:
        more["timestamp"] = _rfc3339(timestamp)
    message = StateMessage(more, type, key, value, old_value)
    if (reason := why_invalid(message)) is not None:
        raise ValueError(f"This is no change of the State Protocol: {reason}.")
    if operation == "delete" and value is not ABSENT:
        raise ValueError("A delete has no value; the row before is its old_value.")
    made = {"type": type, "key": key, "value": value, "old_value": old_value, "headers": more}
    return {name: member for name, member in made.items() if member is not ABSENT}


def _rfc3339(timestamp: datetime | str) -> str:
    try:
        time = msgspec.convert(timestamp, datetime)
    except msgspec.ValidationError:
        time = None
    if time is None or time.tzinfo is None:
        raise ValueError(
            f"timestamp must be a time with its time zone, such as 2026-01-31T12:00:00Z, not {timestamp!r}."
        )
    return timestamp if isinstance(timestamp, str) else str(msgspec.to_builtins(time))


def control_message(control: Literal["reset", "snapshot-start", "snapshot-end"]) -> dict[str, Any]:
    """Return a message that concerns all rows.

    Args:
        control: ``reset``: all rows are gone. ``snapshot-start`` and ``snapshot-end``: what is between them are all
            rows that there are.
    """
    return {"headers": {"control": control}}


def encode_message(message: StateMessage) -> bytes:
    """Return a message that was read, as JSON."""
    members = msgspec.structs.asdict(message)
    return encode({name: value for name, value in members.items() if value != "" and value is not ABSENT})
