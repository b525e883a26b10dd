"""Models out of messages that the rule allows and a library's own JSON parser refuses.

Examples are escapes of lone surrogates, more levels than a parser takes, numbers that are too long for it. Mostly they
are in parts that the model does not use. So the parser gets the message with a harmless digit in their place, twice,
with a different digit each time: equal results do not depend on it. Otherwise the model is made of the message's value
instead of its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from durable_streams.protocol.jsonparser import MALFORMED
from durable_streams.protocol.jsonrule import is_deeper
from durable_streams.protocol.jsonvalues import decode

__all__ = ["is_strange", "read_strange"]

T = TypeVar("T")

_SHALLOW = 100
"""Levels that every parser takes, on almost every stack."""

_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_LONG_NUMBER = re.compile(rb"-?[0-9][0-9.eE+-]{600,}")
_MARK = re.compile(rb'"[^"]*"|([\[{])|([\]}])|(%b)' % _LONG_NUMBER.pattern)
_OPENS, _CLOSES, _NUMBER = 1, 2, 3

_parse = msgspec.json.Decoder().decode


def is_strange(message: bytes) -> bool:
    """Whether some parser refuses a message that is JSON by the rule."""
    try:
        _parse(message)
    except MALFORMED:
        return True
    return is_deeper(message, _SHALLOW) or _LONG_NUMBER.search(message) is not None


def read_strange(message: bytes, parse: Callable[[bytes], T], make: Callable[[object], T]) -> T:
    """Return the model of a strange message; raises the error of ``make`` where the message does not fit.

    ``parse`` makes it of a text, ``make`` of a value.
    """
    try:
        made = parse(_harmless(message, b"1"))
        if made == parse(_harmless(message, b"2")):
            return made
    except Exception:  # noqa: BLE001, S110 - the model needs the strange part, or does not fit: `make` decides
        pass
    return make(decode(message))


def _harmless(message: bytes, digit: bytes) -> bytes:
    """Return the message with a digit in place of each strange part."""
    # No byte below 32 is in a message, but for white space: it can stand for another.
    text = message.replace(b"\\\\", b"\x00\x00").replace(b'\\"', b"\x01\x01")
    text = _LONE.sub(rb"\\u003" + digit, text)
    if len(text) > _SHALLOW:
        text = b"".join(_plain_parts(text, digit))
    return text.replace(b"\x01\x01", b'\\"').replace(b"\x00\x00", b"\\\\")


def _plain_parts(text: bytes, digit: bytes) -> Iterator[bytes]:
    """Yield the text with a digit in place of each container that is too deep, and of each number that is too long."""
    begin = depth = 0
    for mark in _MARK.finditer(text):
        kind = mark.lastindex
        depth += kind == _OPENS
        replaced = depth == _SHALLOW + 1 and kind == _CLOSES
        if (kind == _OPENS and depth == _SHALLOW + 1) or (kind == _NUMBER and depth <= _SHALLOW):
            yield text[begin : mark.start()]
            replaced = kind == _NUMBER
        if replaced:
            yield digit
            begin = mark.end()
        depth -= kind == _CLOSES
    yield text[begin:]
