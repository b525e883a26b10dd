"""Whole messages out of a JSON array that is still on its way (protocol section 4).

Invariants: a piece is an array of whole messages, each with its bytes as they came; no piece is given out before it is
certain where its last message ends; every byte is looked at a bounded number of times, however the array is cut; a
message over the limit is an error, not a growing buffer.

Where the last whole message ends is guessed, by what stood between two messages before it, and the decoder that counts
the messages checks the guess: what is before a comma is the content of a whole array if, and only if, the comma stands
between two messages of it. A guess that was wrong costs time, never data: then the brackets are counted.
"""

from __future__ import annotations

import contextlib
import re
from itertools import accumulate
from typing import NamedTuple

import msgspec

from durable_streams.errors import StreamParseError
from durable_streams.protocol.jsonarrays import count_messages, messages, split
from durable_streams.protocol.jsonrule import WHITESPACE, InvalidJSONError
from durable_streams.protocol.lines import DEFAULT_LIMIT, Buffer

__all__ = ["PIECE_SIZE", "ArraySplitter", "Piece", "without_first"]

PIECE_SIZE = 256 * 1024
"""Bytes of a piece: many enough for the decoder's speed, few enough for the processor's cache."""

_GUESSES = 2  # for each mark, before the exact way
_MISSES = 3  # rounds of guesses that were all wrong, before no more are made
_BLOCK = 4096
_SPACE = re.compile(rb"[ \t\r\n]*")
_KEY = re.compile(rb'\{[ \t\r\n]*"[^"\\]{0,64}"')
_CLOSING = {b"}", b"]", b'"'}
_OPENING = {b"{", b"[", b'"'}
_ALL_BUT_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_BRACES_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")
_STEPS = {ord("["): 1, ord("]"): -1}
_TOKEN = re.compile(rb'"[^"]*"|[\[{]|[\]}]|,|"')

_check = msgspec.json.Decoder(msgspec.Raw).decode


class Piece(NamedTuple):
    """An array of whole messages, and how many they are."""

    body: bytes
    messages: int


class ArraySplitter:
    """Takes a JSON array chunk by chunk and gives its messages in pieces.

    ``limit``: bytes of the longest message; ``size``: about how many bytes a piece has. Raises StreamParseError for
    what is not an array, and for a message over the limit.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, *, size: int = PIECE_SIZE) -> None:
        self._limit = limit
        self._size = size
        self._held = Buffer()
        self._next_look = size
        self._opened = False
        self._marks: list[_Mark] = []
        self._misses = 0

    def feed(self, chunk: bytes) -> Piece | None:
        """Return the whole messages that are there now, None until it is worth a look."""
        self._held.add(chunk)
        if self._held.size < self._next_look:
            return None
        content = self._content()
        piece = self._cut(content)
        if piece is None and len(content) > self._limit:
            raise StreamParseError(
                f"A message is longer than the limit of {self._limit} bytes, or the array is not valid JSON.",
                code="TOO_LARGE",
            )
        if piece is None:  # a long message: look again when there is much more of it
            self._held.add(content)
            self._next_look = min(4 * len(content), self._limit + 1)
        else:
            self._next_look = self._held.size + self._size
        return piece

    def finish(self) -> Piece | None:
        """Return the last messages of an array that ended; None if it did not come to its end.

        Its count is that of its messages if they are valid JSON; whether they are is for their reader to find out.
        """
        content = self._content().rstrip(WHITESPACE)
        if not content.endswith(b"]"):
            return None
        body = b"[" + content
        return Piece(body, _count_of(body))

    def _content(self) -> bytes:
        """Return what follows the opening bracket, or the last piece."""
        content = self._held.take()
        if self._opened:
            return content
        start = _first_byte(content)
        if content[start : start + 1] not in {b"[", b""}:
            raise StreamParseError("The answer is not a JSON array of messages.")
        self._opened = start < len(content)
        return content[start + 1 :]

    def _cut(self, content: bytes) -> Piece | None:
        """Return the whole messages, and hold what is behind them."""
        for mark in self._marks:
            end = len(content)
            for _ in range(_GUESSES):
                end = content.rfind(mark.text, 0, end)
                if end < 0:
                    break
                body = _array(content, end + mark.before)
                count = _count(body)
                if count is not None:
                    self._held.add(content[end + mark.after :])
                    return Piece(body, count)
        comma = _last_comma(content)
        if comma is None:
            return None
        # Where messages hold what looks like their own ends, guesses cost more than they save.
        self._misses += bool(self._marks)
        self._marks = _marks_at(content, comma) if self._misses < _MISSES else []
        self._held.add(content[comma + 1 :])
        body = _array(content, comma)
        return Piece(body, _count_of(body))


class _Mark(NamedTuple):
    """What stands between messages: one ends ``before`` bytes into it, the next one begins ``after`` bytes into it."""

    text: bytes
    before: int
    after: int


def _marks_at(content: bytes, comma: int) -> list[_Mark]:
    """Return what stands between the two messages around a comma, the most telling form of it first."""
    before = content[max(0, comma - 64) : comma]
    space = before[len(before.rstrip(WHITESPACE)) :]
    last = before.rstrip(WHITESPACE)[-1:]
    begin = comma + 1 + _first_byte(content[comma + 1 : comma + 64])
    # Brackets and quotes stand at the ends of every message of the kind, other bytes are their own.
    left = last if last in _CLOSING else b""
    right = content[begin : begin + 1]
    text = left + space + content[comma:begin]
    marks = [_Mark(text + (right if right in _OPENING else b""), len(left), len(text))]
    key = _KEY.match(content, begin)
    if key is not None:
        marks.insert(0, _Mark(text + key[0], len(left), len(text)))
    return marks


def _array(content: bytes, end: int) -> bytes:
    return b"".join((b"[", memoryview(content)[:end], b"]"))


def _count(body: bytes) -> int | None:
    """Return how many messages an array holds, None if it is not valid."""
    try:
        if b'"' not in body and b"{" not in body and body.find(b"[", 1) < 0 and b"," in body:
            _check(body)  # numbers and the like: they may be very many, and their commas tell how many
            return body.count(b",") + 1
    except msgspec.DecodeError:
        return None
    return count_messages(body)


def _count_of(body: bytes) -> int:
    """Return how many messages an array holds, as far as it is one."""
    count = _count(body)
    if count is None:
        count = 0
        with contextlib.suppress(InvalidJSONError):
            for _ in messages(body):
                count += 1
    return count


def _first_byte(content: bytes) -> int:
    found = _SPACE.match(content)
    return found.end() if found else 0


def _last_comma(content: bytes) -> int | None:
    """Return the last comma between messages in the beginning of an array's content: none inside a message."""
    if b"\\" in content:
        # The same length, and no other quotes but those of strings.
        content = content.replace(b"\\\\", b"..").replace(b'\\"', b"..")
    for start, level, in_string in reversed(_shallow_blocks(content)):
        comma = _last_comma_of(content, start, level, in_string=in_string)
        if comma is not None:
            return comma
    return None


def _shallow_blocks(content: bytes) -> list[tuple[int, int, bool]]:
    """Return the blocks in which a message may end: where each starts, its level there, and whether inside a string."""
    blocks = []
    level, in_string = 0, False
    for start in range(0, len(content), _BLOCK):
        marks = (
            content[start : start + _BLOCK].translate(_BRACES_AS_BRACKETS, _ALL_BUT_MARKS).replace(b'""', b"")
        )
        began_in_string = in_string
        if in_string or b'"' in marks:
            parts = marks.split(b'"')
            marks = b"".join(parts[1 if in_string else 0 :: 2])
            in_string ^= len(parts) % 2 == 0
        opened = marks.count(b"[")
        closed = len(marks) - opened
        if level <= closed and (
            not level or min(accumulate(map(_STEPS.__getitem__, marks), initial=level)) <= 0
        ):
            blocks.append((start, level, began_in_string))
        level += opened - closed
    return blocks


def _last_comma_of(content: bytes, start: int, level: int, *, in_string: bool) -> int | None:
    end = min(len(content), start + _BLOCK)
    place = content.find(b'"', start, end) + 1 if in_string else start
    if in_string and not place:
        return None
    comma = None
    while (token := _TOKEN.search(content, place)) is not None and token.start() < end:
        mark, place = token[0][:1], token.end()
        if mark in b"[{":
            level += 1
        elif mark in b"]}":
            level -= 1
        elif mark == b"," and not level:
            comma = token.start()
        elif token[0] == b'"':
            break  # a string that is not whole yet
    return comma


def without_first(body: bytes, count: int) -> bytes:
    """Return an array without its first ``count`` messages."""
    return b"[" + b",".join(split(body)[count:]) + b"]"
