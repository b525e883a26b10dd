"""JSON messages to Python values and back, exactly, by the rule of `jsonrule`.

Invariants: whatever the rule allows has a value, the same one whatever the interpreter's limits and the depth of the
stack; integers keep all their digits; numbers beyond a double are infinite; what is encoded is a message by the rule,
or ValueError is raised. Where nothing is strange both ways cost one call of msgspec.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import msgspec

from durable_streams.protocol.jsonparser import SAFE_DIGITS, parse
from durable_streams.protocol.jsonrule import (
    MAX_DEPTH,
    MAX_INTEGER_DIGITS,
    SHORT,
    InvalidJSONError,
    check,
    check_limits,
    check_utf8,
)

__all__ = ["decode", "encode"]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_TOO_LARGE = 10**MAX_INTEGER_DIGITS


# -- from text


def decode(text: bytes, depth: int = MAX_DEPTH) -> Any:
    """Return the value of a text with up to ``depth`` levels; raises InvalidJSONError for what the rule refuses."""
    if not text.isascii():
        check_utf8(text)
    if len(text) > SHORT:
        check_limits(text, depth)
    try:
        return _decode(text)
    except (msgspec.DecodeError, RecursionError):
        check(text, depth)
        return parse(text)


# -- to text


def encode(value: Any, *, beyond_double: bool = False) -> bytes:
    """Return a value as a JSON message: what msgspec encodes, and lone surrogates, and integers of up to 4,300 digits.

    ``beyond_double``: write an infinity as a number that is read as one (``1e999``), since it came from one. Raises
    InvalidJSONError (a ValueError) for what the rule has no text for, TypeError for what JSON has none for.
    """
    try:
        encoded = _encode(value)
    except (ValueError, OverflowError, RecursionError):
        encoded = _encode_slowly(value, beyond_double)
    else:
        # msgspec writes what is no number as null: data would change in silence.
        if b"null" in encoded and not _is_finite(value):
            encoded = _encode_slowly(value, beyond_double)
    if len(encoded) > SHORT:
        check_limits(encoded)
    return encoded


def _is_finite(value: Any) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return False
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack.extend(item)
        elif item is not None and not isinstance(item, (str, int, bytes, bytearray, memoryview, msgspec.Raw)):
            stack.append(msgspec.to_builtins(item))
    return True


def _encode_slowly(value: Any, beyond_double: bool) -> bytes:
    """Encode without recursion, what is strange too."""
    parts: list[bytes] = []
    stack: list[tuple[bytes, Any]] = [(b"", value)]  # what to write, and the value behind it
    depth = 0
    while stack:
        before, item = stack.pop()
        parts.append(before)
        if item is _CLOSED:
            depth -= 1
            continue
        plain = _plain(item)
        if isinstance(plain, dict):
            members = [(_key(key), member) for key, member in plain.items()]
            opening, closing = b"{", b"}"
        elif isinstance(plain, (list, tuple, set, frozenset)):
            members = [(b"", member) for member in plain]
            opening, closing = b"[", b"]"
        else:
            parts.append(_encode_scalar(plain, beyond_double))
            continue
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidJSONError(f"it nests more than {MAX_DEPTH} levels deep")
        parts.append(opening)
        stack.append((closing, _CLOSED))
        members[1:] = [(b"," + key, member) for key, member in members[1:]]
        stack.extend(reversed(members))
    return b"".join(parts)


_CLOSED = object()


def _plain(item: Any) -> Any:
    """Return what msgspec makes of a value that is none of JSON's own."""
    if type(item) in _OWN or isinstance(item, (dict, list, tuple, set, frozenset)):
        return item
    return msgspec.to_builtins(item, str_keys=True)


_OWN = {type(None), str, bool, int, float, msgspec.Raw}


def _encode_scalar(item: Any, beyond_double: bool) -> bytes:
    if isinstance(item, str):
        return _string(item)
    if isinstance(item, msgspec.Raw):
        text = bytes(item)
        check(text)
        return text
    if isinstance(item, float) and not math.isfinite(item):
        if beyond_double and not math.isnan(item):
            return b"1e999" if item > 0 else b"-1e999"
        raise InvalidJSONError(f"JSON has no {item!r}")
    if isinstance(item, int) and not isinstance(item, bool):
        return _integer(item)
    return _encode(item)


def _string(text: str) -> bytes:
    # What UTF-8 has no bytes for are lone surrogates, for which JSON has escapes that look like Python's.
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _key(key: Any) -> bytes:
    if type(key) is not str:
        key = next(iter(msgspec.to_builtins({key: None}, str_keys=True)))
    return _string(key) + b":"


def _integer(number: int) -> bytes:
    if -sys.maxsize <= number <= sys.maxsize:
        return b"%d" % number
    rest = abs(number)
    if rest >= _TOO_LARGE:
        raise InvalidJSONError(f"an integer has more than {MAX_INTEGER_DIGITS:,} digits")
    parts = []
    while rest:
        rest, part = divmod(rest, 10**SAFE_DIGITS)
        parts.append(f"{part:0{SAFE_DIGITS}d}")
    digits = "".join(reversed(parts)).lstrip("0")
    return f"{'-' if number < 0 else ''}{digits}".encode()
