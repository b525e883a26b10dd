"""NDJSON both ways: lines to JSON messages, and the messages of JSON streams to lines.

Invariants: a message's bytes are never re-encoded; blank lines are no records; lines end at LF only, so
that no character inside a string can split one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from durable_streams.protocol.jsonrule import InvalidJSONError, check

__all__ = ["Line", "flaw_of", "lines_of", "records"]

_WHITESPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank: its number, from 1, and its bytes without space around them."""

    line: int
    message: bytes


def records(lines: Iterable[bytes]) -> Iterator[Line]:
    """Yield the lines that are not blank; a byte order mark at the start is dropped.

    Args:
        lines: The lines of a file, with or without their ends.

    Yields:
        Each line with its number.
    """
    for number, line in enumerate(lines, start=1):
        message = line.removeprefix(_BOM) if number == 1 else line
        message = message.strip(_WHITESPACE)
        if message:
            yield Line(number, message)


def flaw_of(message: bytes) -> str | None:
    """Return why bytes are not a JSON message.

    Args:
        message: One line.

    Returns:
        The reason, None for a message.
    """
    try:
        check(message)
    except InvalidJSONError as error:
        return str(error)
    return None


def lines_of(messages: list[msgspec.Raw]) -> bytes:
    """Return messages one per line, each with its bytes as stored.

    A line break inside a message can only stand between its tokens; it becomes a space, so that a line
    stays one message.

    Args:
        messages: JSON messages as they are stored.

    Returns:
        Their lines, each with its end.
    """
    lines = b"\0".join([*map(bytes, messages), b""])  # no message has that byte
    if b"\n" in lines or b"\r" in lines:
        lines = lines.replace(b"\r", b" ").replace(b"\n", b" ")
    return lines.replace(b"\0", b"\n")
