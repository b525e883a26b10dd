"""What a JSON message is: the one rule for all that reads or writes one (protocol section 4, RFC 8259).

A message is a text of RFC 8259's grammar, in UTF-8, that nests at most 512 levels deep and has no integer of more than
4,300 digits.

* **Levels**: a number, string or literal has none, ``[]`` and ``{}`` have one, ``[[]]`` two. The array around the
  messages of a request or an answer is no part of any of them, and does not count.
* **Integers** are numbers without fraction and exponent; a minus is no digit. Other numbers may have any number of
  digits, and may lie beyond a double (``1e400``): they are read as infinity.
* Escapes of lone surrogates and keys that come more than once are what the grammar allows. A byte order mark, ``NaN``
  and ``Infinity`` are not.

Invariants: the bytes alone decide, not the interpreter's limits or the depth of the stack; where nothing is strange a
text costs one pass of msgspec, and a fraction of one for the limits; any text costs time that grows linearly, and
memory of a few times its size.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, Literal

import msgspec

from durable_streams.protocol.jsonparser import parse

__all__ = [
    "MAX_DEPTH",
    "MAX_INTEGER_DIGITS",
    "SHORT",
    "WHITESPACE",
    "InvalidJSONError",
    "OnInvalid",
    "check",
    "check_limits",
    "check_on_invalid",
    "check_utf8",
    "is_deeper",
    "may_hold_no_number",
]

MAX_DEPTH = 512
"""The most levels of arrays and objects in each other."""

MAX_INTEGER_DIGITS = 4300
"""The most digits of an integer: what Python reads and writes by default."""

SHORT = 2 * MAX_DEPTH + 1
"""A text of up to this many bytes is within the limits, whatever it holds."""

WHITESPACE = b" \t\r\n"
"""The bytes that may stand between tokens."""

OnInvalid = Literal["raise", "skip"] | Callable[[bytes, Any], object]
"""What becomes of a message that is not JSON, or not what was asked for: ``"raise"`` ends with its error, ``"skip"``
leaves
it out and counts it, and so does a callable, which is given its bytes and the error."""

_BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 18
_WINDOW = 512
_OBJECT = len(b'{"":}')  # bytes that a level takes; three less if it is one of an array
_FEW = 8
_STRIDE = 128
_ZEROS = b"0" * (MAX_INTEGER_DIGITS // _STRIDE)
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_ALL_BUT_OPENING = bytes(set(range(256)) - set(b"[{"))
_ALL_BUT_NAN = bytes(set(range(256)) - set(b"NaIf"))
_ALL_BUT_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_BRACES_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")
_STEPS = {ord("["): 1, ord("]"): -1}
_RUN = re.compile(rb"[0-9]*")

_grammar = msgspec.json.Decoder(msgspec.Raw).decode


class InvalidJSONError(ValueError):
    """A text that is no JSON message. Its text is the reason, to follow a colon.

    ``rest``: where only an array's beginning is valid, what is behind that.
    """

    def __init__(self, reason: str, rest: bytes = b"") -> None:
        super().__init__(reason)
        self.rest = rest


def check_on_invalid(on_invalid: object) -> None:
    """Raise ValueError for what is not an OnInvalid."""
    if not callable(on_invalid) and on_invalid not in {"skip", "raise"}:
        raise ValueError(f"on_invalid must be 'skip', 'raise' or a callable, not {on_invalid!r}.")


def check(text: bytes, depth: int = MAX_DEPTH) -> None:
    """Return if a text is JSON by the rule, with up to ``depth`` levels; else raise InvalidJSONError.

    White space around it is part of the text.
    """
    # Asked here already: on messages of a hundred bytes, calls are what it costs.
    if not text.isascii():
        check_utf8(text)
    if len(text) > SHORT:
        check_limits(text, depth)
    try:
        _grammar(text)
    except (msgspec.DecodeError, RecursionError):
        _check_slowly(text)


def check_utf8(text: bytes) -> None:
    """Raise InvalidJSONError for bytes that are not UTF-8; msgspec does not look at all of them."""
    if text.isascii():
        return
    decode = codecs.utf_8_decode
    start, end = 0, len(text)
    while start < end:
        # In blocks: as text it may take four times its bytes.
        block = text[start : start + _BLOCK] if end > _BLOCK else text
        try:
            start += decode(block, "strict", start + _BLOCK >= end)[1]
        except UnicodeDecodeError as error:
            raise InvalidJSONError(f"invalid UTF-8 at byte {start + error.start}") from None


def check_limits(text: bytes, depth: int = MAX_DEPTH) -> None:
    """Raise InvalidJSONError for a text beyond the limits. What is no JSON at all may pass, as far as that goes."""
    if len(text) <= SHORT:
        return
    if is_deeper(text, depth):
        raise InvalidJSONError(f"it nests more than {MAX_DEPTH} levels deep")
    if len(text) > MAX_INTEGER_DIGITS:
        place = _long_integer(text)
        if place is not None:
            raise InvalidJSONError(
                f"an integer of more than {MAX_INTEGER_DIGITS:,} digits begins at byte {place}"
            )


def may_hold_no_number(text: bytes) -> bool:
    """Whether a text may hold NaN or an infinity, which some parsers take for numbers."""
    if b"N" not in text and b"I" not in text:
        return False
    # Rid of all other bytes, a text takes a third of the time to look through.
    rest = text.translate(None, _ALL_BUT_NAN)
    return (b"NaN" in rest and b"NaN" in text) or (b"If" in rest and b"Infinity" in text)


def _check_slowly(text: bytes) -> None:
    """Accept what only msgspec refuses: escapes of lone surrogates, and what the stack has no room for just now."""
    if text.startswith(_BOM):
        raise InvalidJSONError("it begins with a byte order mark")
    if b"\\" in text:
        # Every escape of a surrogate as one of another character, of the same length.
        text = text.replace(b"\\\\", b"..").replace(b"\\ud", b"\\u0").replace(b"\\uD", b"\\u0")
    try:
        _grammar(text)
    except RecursionError:
        _parse_slowly(text)
    except msgspec.DecodeError as error:
        raise InvalidJSONError(_reason(error)) from None


def _parse_slowly(text: bytes) -> None:
    try:
        parse(text)
    except ValueError as error:
        raise InvalidJSONError(str(error)) from None


def _reason(error: Exception) -> str:
    reason = str(error)
    return (
        reason[:1].lower() + reason[1:] if reason[:2] != "JS" else reason.removeprefix("JSON is malformed: ")
    )


# -- depth


def is_deeper(text: bytes, depth: int) -> bool:
    """Whether a valid text has more than ``depth`` levels. For another one: before what makes it invalid."""
    if len(text) <= 2 * depth + 1:
        return False
    if len(text) <= _OBJECT * depth and len(text) + 3 * _arrays(text) <= _OBJECT * depth:
        return False
    # A bracket inside a string counts here: it may be too many, never too few.
    if len(text.translate(None, _ALL_BUT_OPENING)) <= depth:
        return False
    level = 0
    for brackets in _brackets(text):
        if _rises(brackets, depth - level):
            return True
        level += 2 * brackets.count(b"[") - len(brackets)
    return False


def _brackets(text: bytes) -> Iterator[bytes]:
    """Yield the text's brackets, block by block, without those in strings; braces as brackets, too."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")  # no other quotes but those of strings
    in_string = False
    for start in range(0, len(text), _BLOCK):
        block = text[start : start + _BLOCK].translate(_BRACES_AS_BRACKETS, _ALL_BUT_MARKS)
        marks = block.replace(b'""', b"")
        if in_string or b'"' in marks:
            parts = marks.split(b'"')
            marks = b"".join(parts[1 if in_string else 0 :: 2])
            in_string ^= len(parts) % 2 == 0
        yield marks


def _rises(brackets: bytes, room: int) -> bool:
    """Whether they open more than ``room`` levels at once."""
    if _fits(brackets, room):
        return False
    level = 0
    for place in range(0, len(brackets), _WINDOW):
        window = brackets[place : place + _WINDOW]
        if (
            not _fits(window, room - level)
            and max(accumulate(map(_STEPS.__getitem__, window))) > room - level
        ):
            return True
        level += 2 * window.count(b"[") - len(window)
    return False


def _fits(brackets: bytes, room: int) -> bool:
    """Whether they open no more than ``room`` levels, as far as a quick look shows."""
    for removed in range(4):
        if brackets.count(b"[") + removed <= room:
            return True
        # Without its innermost pairs it rises one level less, at most.
        brackets = brackets.replace(b"[]", b"")
    return False


def _arrays(text: bytes) -> int:
    """Return how many arrays a text may have at most; many if a quick look does not show it."""
    count, place = 0, text.find(b"[")
    while place >= 0:
        count += 1
        if count > _FEW:
            return len(text)
        place = text.find(b"[", place + 1)
    return count


# -- integers


def _long_integer(text: bytes) -> int | None:
    """Return where an integer of too many digits begins, None if there is none."""
    # A long run of digits shows in samples at regular distances of the text.
    sample = text[::_STRIDE].translate(_DIGITS_AS_ZERO)
    seen, checked, in_string = sample.find(_ZEROS), 0, False
    while seen >= 0:
        start, end = _run_at(text, seen * _STRIDE)
        if end - start > MAX_INTEGER_DIGITS:
            before = text[checked:start].replace(b"\\\\", b"").replace(b'\\"', b"")
            in_string ^= before.count(b'"') % 2 == 1
            checked = end
            if not in_string and _is_integer(text, start, end):
                return start
        seen = sample.find(_ZEROS, end // _STRIDE + 1)
    return None


def _run_at(text: bytes, place: int) -> tuple[int, int]:
    """Return the run of digits around a digit. Its beginning is not looked for further back than one stride."""
    found = _RUN.match(text, place)
    before = text[max(0, place - _STRIDE) : place]
    return place - len(before) + len(before.rstrip(b"0123456789")), found.end() if found else place


def _is_integer(text: bytes, start: int, end: int) -> bool:
    """Whether a run of digits outside of strings is a whole number, not a fraction, an exponent or part of either."""
    before = text[max(0, start - 2) : start]
    if before[-1:] in {b".", b"e", b"E", b"+"} or before in {b"e-", b"E-"}:
        return False
    return text[end : end + 1] not in {b".", b"e", b"E"}
