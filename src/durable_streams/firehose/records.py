"""Records out of the chunks of a feed: JSON texts, one a line or one an event.

Invariants: where chunks are cut never changes the records; a record counts only with its end; every byte is looked
at a constant number of times; the records before one that is too long are given out; a record becomes a value if, and
only if, it is JSON by the rule of `jsonrule` and fits the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

from durable_streams.errors import StreamParseError
from durable_streams.protocol.jsonrule import (
    SHORT,
    WHITESPACE,
    InvalidJSONError,
    check,
    check_limits,
    check_utf8,
    may_hold_no_number,
)
from durable_streams.protocol.jsonvalues import decode as decode_value
from durable_streams.protocol.lines import DEFAULT_LIMIT, LineDecoder
from durable_streams.protocol.sse import SSEDecoder, SSEEvent

__all__ = [
    "Decode",
    "Decoding",
    "EventData",
    "FeedEvent",
    "Invalid",
    "Item",
    "Problem",
    "RecordDecoder",
    "RecordSplitter",
    "key_at",
]

Decode = Callable[[bytes], Any]
"""From the bytes of a record to the value that is handed over; raises if it cannot."""


class Decoding(NamedTuple):
    """How values are made of records.

    Attributes:
        fast: Makes a value of a record; it may refuse what the rule for JSON allows.
        exact: The same for a record that is JSON, where ``fast`` refused one near it.
        lenient: Whether ``fast`` takes NaN and infinities, which are not JSON.
        raw: Whether the data of an event goes to ``exact`` as it is, JSON or not.
    """

    fast: Decode
    exact: Decode
    lenient: bool = False
    raw: bool = False


class EventData(bytes):
    """The data of an event, with its ``id`` and type: a record like any other, so that lines pay nothing for events.

    ``id``: the last id that the stream gave up to this event, ``""`` before the first; ``event``: ``message`` where
    the stream gives no type.
    """

    id: str
    event: str


class FeedEvent(NamedTuple):
    """A record as it came, which is what ``response_model=FeedEvent`` gives.

    Attributes:
        data: The data of an event, which may be any text, or a line, which is JSON.
        id: What a feed of events takes as Last-Event-ID to go on after this record, ``""`` where it gave none.
        event: The event's type, ``message`` where it gave none; ``""`` for a line.
    """

    data: bytes
    id: str = ""
    event: str = ""


@dataclass(frozen=True, slots=True)
class Invalid:
    """A record that does not parse or validate."""

    raw: bytes
    cause: Exception


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that is a report of an error by the feed, instead of data."""

    raw: bytes
    payload: dict[str, Any]


Item = list[Any] | Invalid | Problem
"""One or more values in a row, or the record that interrupts them."""


class RecordSplitter:
    """Cuts chunks into records, still encoded: lines, some with the CR of their end, or the EventData of events.

    Empty lines and comments (heartbeats) are no records.

    Args:
        form: How records are framed.
        limit: The most bytes that one record may have. One that has more sets `error`, and ends the splitter's use.
        last_id: The id of the last event before the body, which holds until the body gives another one.
    """

    def __init__(
        self,
        form: Literal["ndjson", "sse"] = "ndjson",
        limit: int = DEFAULT_LIMIT,
        *,
        last_id: str = "",
    ) -> None:
        self._lines = LineDecoder(limit, keep_cr=True)
        self._events = SSEDecoder(limit, last_id=last_id) if form == "sse" else None
        self._limit = limit
        self.error: StreamParseError | None = None

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the records that this chunk completes."""
        records: list[bytes] = []
        try:
            if len(chunk) <= self._limit:
                # Only the first record can break the limit: no other one is lost with it.
                return self._split(chunk)
            for piece in chunk.splitlines(keepends=True):
                records += self._split(piece)
        except StreamParseError as error:
            self.error = error
        return records

    def _split(self, piece: bytes) -> list[bytes]:
        if self._events is not None:
            return [_event_data(event) for event in self._events.feed(piece)]
        return [line for line in self._lines.feed(piece) if line and line != b"\r"]

    @property
    def retry(self) -> float | None:
        """Seconds that the server asks to wait before a reconnect, None where it asks for nothing."""
        return None if self._events is None else self._events.retry

    @property
    def pending(self) -> bool:
        """Whether the beginning of a record is held."""
        return self._lines.pending > 0 if self._events is None else self._events.pending

    def finish(self) -> list[bytes]:
        """Return the last record of a body that ended cleanly, if it only lacks its newline; else `pending` stays.

        A number may be the beginning of a longer one; a text with brackets or quotes shows its end.
        """
        if self._events is not None or not self.pending:
            return []
        line = self._lines.flush()
        try:
            if line.lstrip()[:1] in {b"{", b"[", b'"'}:
                check(line)
                return [line]
        except InvalidJSONError:
            pass
        self._lines.feed(line)
        return []


def _event_data(event: SSEEvent) -> EventData:
    data = EventData(event.data)
    data.id, data.event = event.id, event.event
    return data


class RecordDecoder:
    """Makes values of records: as ``decode`` says, or plain JSON values. A callable does the fast and the exact way.

    ``problems``: whether records that report an error, such as ``{"errors": [...]}`` without ``data``, are a
    Problem.
    """

    def __init__(self, decode: Decoding | Decode | None = None, *, problems: bool = True) -> None:
        if decode is not None and not isinstance(decode, Decoding):
            decode = Decoding(decode, decode)
        self._decode, self._exact, self._lenient, self._raw = decode or _PLAIN
        self._typed = decode is not None
        self._problems = problems
        self.reached: bytes | None = None
        """The last record of the item that `items` gave last."""

    def items(self, records: list[bytes]) -> Iterator[Item]:
        """Yield the items of the records, in order."""
        for start in range(0, len(records), _AT_ONCE):
            yield from self._items(records[start : start + _AT_ONCE])

    def _items(self, records: list[bytes]) -> Iterator[Item]:
        if self._raw and isinstance(records[0], EventData):
            self.reached = records[-1]
            yield [self._exact(record) for record in records]
            return
        try:
            values = self._all(records)
        except Exception:  # noqa: BLE001 - a validator's own; met again, and named, one by one
            yield from self._one_by_one(records)
        else:
            if values is None:
                yield from self._one_by_one(records)
            else:
                self.reached = records[-1]
                yield values

    def _all(self, records: list[bytes]) -> list[Any] | None:
        """Return all values; None where one may be a problem."""
        if self._typed and self._problems and any(map(_may_be_problem, records)):
            return None
        text = b"\n".join(records)
        if not text.isascii():
            check_utf8(text)  # msgspec does not check strings
        if len(text) > SHORT:
            for record in records:
                if len(record) > SHORT:
                    check_limits(record)
        if self._lenient and may_hold_no_number(text):
            return None
        decode = self._decode
        values = [decode(record) for record in records]
        if self._problems and not self._typed:
            for value in values:
                if (
                    type(value) is dict
                    and "data" not in value
                    and ("errors" in value or "disconnect_type" in value or "connection_issue" in value)
                ):
                    return None
        return values

    def _one_by_one(self, records: list[bytes]) -> Iterator[Item]:
        values: list[Any] = []
        last: bytes | None = None  # of the values
        for record in records:
            if not record.strip(WHITESPACE):
                continue
            item = self._item(record)
            if not isinstance(item, (Invalid, Problem)):
                values.append(item)
                last = record
                continue
            if values:
                self.reached = last
                yield values
                values = []
            self.reached = record
            yield item
        if values:
            self.reached = last
            yield values

    def _item(self, record: bytes) -> Any:
        try:
            check(record)
            if self._problems and _may_be_problem(record):
                payload = decode_value(record)
                if isinstance(payload, dict) and _is_problem(payload):
                    return Problem(record.rstrip(b"\r"), payload)
            return self._exact(record)
        except Exception as error:  # noqa: BLE001 - a validator's own
            return Invalid(record.rstrip(b"\r"), error)


_AT_ONCE = 32  # values: more of them alive at once cost more time in the garbage collector than they save
_PLAIN = Decoding(msgspec.json.Decoder().decode, decode_value)
_PROBLEM_MARKS = re.compile(rb'"(?:errors|disconnect_type|connection_issue)"')


def _may_be_problem(record: bytes) -> bool:
    return not record.startswith(b'{"data"') and _PROBLEM_MARKS.search(record) is not None


def _is_problem(payload: dict[str, Any]) -> bool:
    if "data" in payload:
        return False  # partial errors: what could not be looked up for these data
    errors = payload.get("errors")
    if isinstance(errors, list) and errors and all(isinstance(error, dict) for error in errors):
        return True
    return "disconnect_type" in payload or "connection_issue" in payload


def key_at(path: str) -> Callable[[Any], Hashable]:
    """Return a function that finds the value at a path such as ``data.id`` in mappings and objects, or None."""
    names = path.split(".")

    def key(record: Any) -> Hashable:
        for name in names:
            record = record.get(name) if isinstance(record, dict) else getattr(record, name, None)
        return record if isinstance(record, Hashable) else None

    return key
