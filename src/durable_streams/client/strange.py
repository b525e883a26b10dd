"""Models out of messages that the rule allows and a library's own JSON parser refuses.

Such are escapes of lone surrogates, more levels than a parser takes, numbers beyond a double. Mostly they stand where
the model does not look. So the parser gets the message with something harmless in their place, twice, each time
something else: what comes out both times the same does not depend on it. Else the model is made of the message's
value instead of its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from durable_streams.protocol.jsonrule import is_deeper
from durable_streams.protocol.jsonvalues import decode

__all__ = ["is_strange", "read_strange"]

T = TypeVar("T")

_SHALLOW = 100
"""Levels that every parser takes, on almost every stack."""

_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_MARK = re.compile(rb'"[^"]*"|([\[{])|([\]}])')

_parse = msgspec.json.Decoder().decode


def is_strange(message: bytes) -> bool:
    """Whether some parser refuses a message that is JSON by the rule."""
    try:
        _parse(message)
    except (msgspec.DecodeError, RecursionError):
        return True
    return is_deeper(message, _SHALLOW)


def read_strange(message: bytes, parse: Callable[[bytes], T], make: Callable[[object], T]) -> T:
    """Return what a model makes of a strange message; raises what ``make`` raises where it fits in no way.

    ``parse`` makes it of a text, ``make`` of a value.
    """
    try:
        made = parse(_harmless(message, b"1"))
        if made == parse(_harmless(message, b"2")):
            return made
    except Exception:  # noqa: BLE001, S110 - the model needs what is strange, or does not fit: `make` tells
        pass
    return make(decode(message))


def _harmless(message: bytes, digit: bytes) -> bytes:
    """Return the message with a digit in place of what is strange."""
    # No byte below 32 is in a message, but for white space: it can stand for another.
    text = message.replace(b"\\\\", b"\x00\x00")
    text = _LONE.sub(rb"\\u003" + digit, text)
    if is_deeper(message, _SHALLOW):
        text = _without_depths(text, digit)
    return text.replace(b"\x00\x00", b"\\\\")


def _without_depths(text: bytes, digit: bytes) -> bytes:
    marks = text.replace(b'\\"', b"..")
    parts: list[bytes] = []
    begin = depth = 0
    for mark in _MARK.finditer(marks):
        if mark.lastindex == 1:
            depth += 1
            if depth == _SHALLOW + 1:
                parts.append(text[begin : mark.start()])
        elif mark.lastindex == 2:
            if depth == _SHALLOW + 1:
                parts.append(digit)
                begin = mark.end()
            depth -= 1
    parts.append(text[begin:])
    return b"".join(parts)
