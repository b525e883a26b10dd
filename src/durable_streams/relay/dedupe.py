"""Records that the target has already: known by their id, or by their order.

Invariants: a record with an id is known by its id alone; records without one are compared in order with the
target's own, from the place where the state file says that target and source agree; memory is bounded by the
number of ids, whatever the target's length.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from durable_streams.protocol.jsonrule import InvalidJSONError
from durable_streams.protocol.jsonvalues import decode as decode_value
from durable_streams.relay.target import Target

IdReader = Callable[[bytes], str | int | None]

__all__ = ["IdWindow", "Known", "Tail", "id_reader"]


def id_reader(path: str) -> IdReader:
    """Return a function from a JSON record to its id at ``path`` (``data.id``), None where it has none.

    Only what leads to the id is decoded. Raises ValueError for a path with empty parts.
    """
    names = path.split(".")
    if not all(names):
        raise ValueError(f"An id field is a path such as 'data.id', not {path!r}.")
    kind: Any = Any
    for name in reversed(names):
        kind = msgspec.defstruct(
            "Level", [("value", kind | None if kind is not Any else Any, None)], rename={"value": name}
        )
    decode = msgspec.json.Decoder(kind).decode

    def read(record: bytes) -> str | int | None:
        value: Any
        try:
            value = decode(record)
            for _ in names:
                value = None if value is None else value.value
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = _value_at(
                names, record
            )  # another type on the way to the id, or JSON that msgspec does not take
        return value if isinstance(value, (str, int)) and not isinstance(value, bool) else None

    return read


def _value_at(names: list[str], record: bytes) -> Any:
    try:
        value = decode_value(record)
    except InvalidJSONError:
        return None
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


class IdWindow:
    """The last ``size`` ids that are stored, and the offset from which the target holds at least that many."""

    def __init__(self, size: int, start: str) -> None:
        self._size = size
        self._ids: OrderedDict[str | int, None] = OrderedDict()
        self._added = 0
        self._marks: deque[tuple[int, str]] = deque([(0, start)])

    @property
    def start(self) -> str:
        """Where to begin reading the target to know these ids again."""
        return self._marks[0][1]

    def __contains__(self, key: str | int) -> bool:
        return key in self._ids

    def add(self, key: str | int, *, keep: bool = False) -> None:
        """Remember an id, and forget the oldest one beyond the window unless all are to be kept for now."""
        self._ids[key] = None
        self._added += 1
        if len(self._ids) > self._size and not keep:
            self._ids.popitem(last=False)

    @property
    def added(self) -> int:
        """How many ids were added so far: what `mark` takes."""
        return self._added

    def mark(self, added: int, offset: str) -> None:
        """Note that the target holds the first ``added`` ids before this offset."""
        marks = self._marks
        if added > marks[-1][0]:
            marks.append((added, offset))
        while len(marks) > 1 and added - marks[1][0] >= self._size:
            marks.popleft()


class Tail:
    """The target from an offset on, compared with a source that is read again; ``counts`` selects records.

    `has` moves on in both: a record that it has found is not compared again.
    """

    def __init__(self, target: Target, offset: str, counts: Callable[[bytes], bool]) -> None:
        self._target = target
        self._counts = counts
        self.offset = offset
        self._records = self._read()

    def has(self, record: bytes) -> bool:
        """Whether the record is there, after those found before."""
        canonical = _canonical(record)
        return any(other == record or _canonical(other) == canonical for other in self._records)

    def extend(self) -> None:
        """Compare with records that were stored since the tail was reached."""
        self._records = self._read()

    def _read(self) -> Iterator[bytes]:
        for records, offset in self._target.batches(self.offset):
            self.offset = offset
            yield from filter(self._counts, records)


class Known:
    """The records that are stored already: ``ids``, and until `forget_tail` those of a run that was killed.

    ``agreed``: the offset up to which the target holds just what lies before the source's place; None where the
    source has no places.
    """

    def __init__(
        self, target: Target, id_of: IdReader | None, window: int, start: str, agreed: str | None
    ) -> None:
        self._target = target
        self._id_of = id_of
        self._read_to = start
        self._agreed = agreed
        self.ids = IdWindow(window, start)
        if id_of is not None:
            self._read_ids()
        self._tail: Tail | None = Tail(
            target, agreed or self._read_to, lambda record: self.id_of(record) is None
        )

    def id_of(self, record: bytes) -> str | int | None:
        """Return the record's id, None where it has none."""
        return self._id_of(record) if self._id_of is not None else None

    def has(self, record: bytes, key: str | int | None) -> bool:
        """Whether a record with this id, or without one, is stored."""
        if key is not None:
            return key in self.ids
        return self._tail is not None and self._tail.has(record)

    def extend(self) -> None:
        """Read the records that were stored since the target was read."""
        if self._id_of is not None:
            self._read_ids()
        if self._tail is not None:
            self._tail.extend()

    def forget_tail(self) -> None:
        """Stop comparing: no later record of the source is stored yet."""
        self._tail = None

    def _read_ids(self) -> None:
        for records, offset in self._target.batches(self._read_to):
            self._read_to = offset
            # All records behind the source's place come again, however many there are.
            keep = self._agreed is not None and offset > self._agreed
            for record in records:
                key = self.id_of(record)
                if key is not None:
                    self.ids.add(key, keep=keep)
            self.ids.mark(self.ids.added, offset)


def _canonical(record: bytes) -> object:
    # Not every server keeps the bytes of a message as they came.
    try:
        return json.dumps(decode_value(record), sort_keys=True)
    except (ValueError, RecursionError):
        return record  # not JSON, or nested too deeply to compare
