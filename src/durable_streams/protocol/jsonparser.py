"""Values of JSON texts without recursion, where the fast decoder gives up: deep texts, long integers, large numbers.

Invariants: the depth of the stack and the interpreter's limits change nothing; every integer keeps all its digits.
What is JSON here, apart from limits, is what RFC 8259 says; `jsonrule` has the limits.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

__all__ = ["MALFORMED", "SAFE_DIGITS", "parse"]

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON of a form: another text, none of UTF-8, or one too deep."""


SAFE_DIGITS = 600
"""So long an integer Python never refuses to convert from text or to it."""

_space = re.compile(r"[ \t\r\n]*").match


def parse(text: bytes) -> Any:
    """Return the value of a text of any depth that is UTF-8; raises ValueError, with the reason alone, for no JSON."""
    try:
        return _Parser(text.decode()).value()
    except json.JSONDecodeError as error:
        raise ValueError(error.msg[:1].lower() + error.msg[1:]) from None


class _Parser:
    """One text. Containers that are not complete are on a stack, with the keys that wait for their values."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._place = 0
        self._containers: list[Any] = []
        self._keys: list[str] = []

    def value(self) -> Any:
        while True:
            value = self._begin()
            if value is _OPENED:
                continue
            while self._containers:
                container = self._containers[-1]
                if type(container) is list:
                    container.append(value)
                else:
                    container[self._keys.pop()] = value
                if self._goes_on(container):
                    break
                value = self._containers.pop()
            else:
                if self._next():
                    raise self._unexpected()
                return value

    def _begin(self) -> Any:
        """Return the value that begins here if it is complete; else what begins is on the stack."""
        mark = self._next()
        if mark not in {"[", "{"} or not mark:
            value, self._place = _scalar(self._source, self._place)
            return value
        container: Any = [] if mark == "[" else {}
        self._place += 1
        if self._next() == _CLOSING[mark]:
            self._place += 1
            return container
        self._containers.append(container)
        if mark == "{":
            self._key()
        return _OPENED

    def _goes_on(self, container: Any) -> bool:
        """Whether another value of the container follows; else its end was there."""
        mark = self._next()
        self._place += 1
        if mark == ",":
            if type(container) is dict:
                self._key()
            return True
        if mark != ("]" if type(container) is list else "}"):
            self._place -= 1
            raise self._unexpected()
        return False

    def _key(self) -> None:
        if self._next() != '"':
            raise self._unexpected()
        key, self._place = _scalar(self._source, self._place)
        if self._next() != ":":
            raise self._unexpected()
        self._place += 1
        self._keys.append(key)

    def _next(self) -> str:
        """Go to the next character that is no white space, and return it; "" at the end."""
        found = _space(self._source, self._place)
        self._place = found.end() if found else self._place
        return self._source[self._place : self._place + 1]

    def _unexpected(self) -> ValueError:
        found = self._source[self._place : self._place + 1]
        return ValueError(f"unexpected {found!r} at character {self._place}" if found else "it is cut off")


_OPENED = object()
_CLOSING = {"[": "]", "{": "}"}


def _exact(digits: str) -> int:
    """Return an integer of any length, whatever the interpreter's limit."""
    if len(digits) <= SAFE_DIGITS:
        return int(digits)
    value = 0
    sign = -1 if digits.startswith("-") else 1
    digits = digits.removeprefix("-")
    for start in range(0, len(digits), SAFE_DIGITS):
        part = digits[start : start + SAFE_DIGITS]
        value = value * 10 ** len(part) + int(part)
    return sign * value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


_scalar = json.JSONDecoder(parse_int=_exact, parse_constant=_refuse_constant).raw_decode
