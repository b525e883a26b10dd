"""The array of a batch and the messages in it, each with its bytes as they came (protocol section 4).

Invariants: a piece is an array of whole messages, or the array's content is not valid; `messages` goes by brackets,
commas and quotes alone, so that a message that is not JSON by the rule costs no other one; every byte is looked at a
constant number of times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import msgspec

from durable_streams.protocol.jsonrule import (
    MAX_DEPTH,
    WHITESPACE,
    InvalidJSONError,
    check,
    check_limits,
    check_utf8,
    is_deeper,
)

__all__ = ["ARRAY_DEPTH", "ArrayPieces", "check_array", "count_messages", "messages", "messages_of", "split"]

ARRAY_DEPTH = MAX_DEPTH + 1
"""The most levels of an array of messages, which is none of theirs."""

_PIECE = 1 << 14
_WINDOWS = (1 << 10, 1 << 14)
_ENDS = {",", "]"}
_FIRST = re.compile(rb"[ \t\r\n]*\[[ \t\r\n]*")
_OPENING = re.compile(rb'\[|\{[ \t\r\n]*"[^"\\]{0,64}"')
_SPACE = re.compile(r"[ \t\r\n]*")
_MARK = re.compile(rb'"[^"]*"|([\[{])|([\]}])|(,)|(")')
_OPENS, _CLOSES, _PARTS, _UNENDED = 1, 2, 3, 4

_split = msgspec.json.Decoder(list[msgspec.Raw]).decode
_grammar = msgspec.json.Decoder(msgspec.Raw).decode
_scan = json.JSONDecoder(parse_int=len, parse_float=len).raw_decode


class ArrayPieces:
    """An array cut into smaller ones, where its messages seem to begin.

    A reader that takes every piece for a valid array has proved that they were cut at the right places: a comma
    stands between two messages if what is before it is a valid array's content. (The limits of a short text are
    quickly checked, and one odd message spoils the fast way for its own piece only.) Where a piece is not valid,
    `rest` gives it together with all that follows, uncut.
    """

    def __init__(self, array: bytes) -> None:
        self._array = array
        self._next = (
            0  # where the content of the next piece begins; 0 before the first, beyond the end after the last
        )
        self._began = 0
        self._between: bytes | None = None

    @property
    def last(self) -> bool:
        """Whether the last piece was given."""
        return self._next > len(self._array)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces; go on where an earlier iteration ended."""
        while not self.last:
            yield self._piece()

    def rest(self) -> bytes:
        """Return an array of the last piece and of all behind it; no piece follows."""
        array, began = self._array, self._began
        self._next = len(array) + 1
        return b"".join((b"[", memoryview(array)[began:])) if began else array

    def _piece(self) -> bytes:
        array = self._array
        began, end = self._next, self._cut()
        if not began and end is None:
            self._next = len(array) + 1
            return array
        if not began:
            first = _FIRST.match(array)
            began = first.end() if first else 0
        self._began = began
        if end is None:
            self._next = len(array) + 1
            return b"".join((b"[", memoryview(array)[began:]))
        self._next = end + 1
        return b"".join((b"[", memoryview(array)[began:end], b"]"))

    def _cut(self) -> int | None:
        """Return the comma at which the next piece should end, None where it goes to the end."""
        array, begin = self._array, self._next
        if len(array) - begin <= 2 * _PIECE:
            return None
        if self._between is None:
            self._between = _between(array)
        if not self._between:
            return None
        found = array.rfind(self._between, begin + 1, begin + _PIECE)
        if found < 0:
            found = array.find(self._between, begin + _PIECE)
        return found if found > begin else None


def _between(array: bytes) -> bytes:
    """Return what stands between two messages of an array, as far as its beginning shows; b"" if it does not."""
    first = _FIRST.match(array)
    opening = _OPENING.match(array, first.end()) if first else None
    if opening is None:
        return b""  # of messages without brackets nothing is gained by cutting
    marks = (comma + opening[0] for comma in (b",", b", ", b",\n"))
    return next((mark for mark in marks if array.find(mark, 0, 4 * _PIECE) > 0), b"")


def count_messages(array: bytes) -> int | None:
    """Return how many messages a valid array has; None where that takes a closer look."""
    found = 0
    try:
        for piece in ArrayPieces(array):
            check_limits(piece, ARRAY_DEPTH)
            found += len(_split(piece))
    except (InvalidJSONError, msgspec.DecodeError, RecursionError):
        return None
    return found


def check_array(array: bytes) -> None:
    """Return if this is an array of messages by the rule; raises InvalidJSONError."""
    check_utf8(array)
    pieces = ArrayPieces(array)
    try:
        for piece in pieces:
            check_limits(piece, ARRAY_DEPTH)
            _grammar(piece)
    except (InvalidJSONError, msgspec.DecodeError, RecursionError):
        check(array, ARRAY_DEPTH)


def messages(array: bytes) -> Iterator[bytes]:
    """Yield the messages of an array, of whatever depth and size; what is between two commas may be no JSON at all.

    Raises InvalidJSONError for what is no array, after the messages before the place where that shows.
    """
    text = array
    if b"\\" in text:
        # The same length, and no other quotes but those of strings.
        text = text.replace(b"\\\\", b"..").replace(b'\\"', b"..")
    first = _FIRST.match(text)
    if first is None:
        raise InvalidJSONError("it is not an array of messages", array)
    begin, commas = first.end(), 0
    while (end := _end_of(text, begin)) is not None:
        message, mark = array[begin:end].strip(WHITESPACE), text[end : end + 1]
        if message or commas or mark == b",":
            yield message
        if mark != b",":
            if mark == b"}" or text[end + 1 :].strip(WHITESPACE):
                behind = end + (mark == b"]")
                raise InvalidJSONError(f"unexpected characters at byte {behind}", array[behind:])
            return
        begin, commas = end + 1, commas + 1
    raise InvalidJSONError("it is cut off", array[begin:])


def _end_of(text: bytes, begin: int) -> int | None:
    """Return the comma or bracket behind the message that begins here, None where there is none."""
    # One call for most messages; of long ones, and of what only the slow way can tell, the marks are looked at.
    for size in _WINDOWS:
        part = text[begin : begin + size]
        if is_deeper(part, MAX_DEPTH):
            break  # recursion is not for texts of any depth
        window = part.decode("latin-1")
        try:
            _, end = _scan(window, _skip(window, 0))
        except (ValueError, RecursionError):
            continue
        end = _skip(window, end)
        if window[end : end + 1] in _ENDS:
            return begin + end
    return _end_by_marks(text, begin)


def _end_by_marks(text: bytes, begin: int) -> int | None:
    depth = 0
    for mark in _MARK.finditer(text, begin):
        kind = mark.lastindex
        if kind == _OPENS:
            depth += 1
        elif kind in {_CLOSES, _PARTS} and not depth:
            return mark.start()
        elif kind == _CLOSES:
            depth -= 1
        elif kind == _UNENDED:
            return None
    return None


def _skip(window: str, place: int) -> int:
    found = _SPACE.match(window, place)
    return found.end() if found else place


def split(array: bytes) -> list[bytes]:
    """Return the messages of an array, split as `messages` does; raises InvalidJSONError if it is no array."""
    found: list[bytes] = []
    pieces = ArrayPieces(array)
    for piece in pieces:
        try:
            check_limits(piece, ARRAY_DEPTH)
            found += map(bytes, _split(piece))
        except (InvalidJSONError, msgspec.DecodeError, RecursionError):
            found += messages_of(pieces, piece)
    return found


def messages_of(pieces: ArrayPieces, piece: bytes) -> Iterable[bytes]:
    """Return the messages of a piece that is not a valid array; of all that is left where it was cut wrongly."""
    try:
        return list(messages(piece))
    except InvalidJSONError:
        return messages(pieces.rest())
