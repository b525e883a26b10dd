"""NDJSON both ways: lines to JSON messages, and the bodies of JSON streams to lines.

Invariants: a message's bytes are never re-encoded; blank lines are no records; lines end at LF only, so
that no character inside a string can split one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import click
import msgspec

__all__ = ["Record", "flaw_of", "lines_of", "records"]

_WHITESPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"

_check = msgspec.json.Decoder(msgspec.Raw).decode
_split = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Record:
    """One line that is not blank: its number, from 1, and its bytes without space around them."""

    line: int
    message: bytes


def records(lines: Iterable[bytes]) -> Iterator[Record]:
    """Yield a record for every line that is not blank; a byte order mark at the start is dropped."""
    for number, line in enumerate(lines, start=1):
        message = line.removeprefix(_BOM) if number == 1 else line
        message = message.strip(_WHITESPACE)
        if message:
            yield Record(number, message)


def flaw_of(message: bytes) -> str | None:
    """Return why the bytes are no JSON text, None if they are one."""
    try:
        if not message.isascii():
            message.decode()  # msgspec does not look inside strings
        _check(message)
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start}"
    except (msgspec.DecodeError, RecursionError) as error:
        return str(error)
    return None


def lines_of(body: bytes) -> bytes:
    """Return the messages of a JSON stream's body (an array), one per line, each with its bytes as stored.

    A line break inside a message can only stand between its tokens; it becomes a space, so that a line
    stays one message. Raises ClickException where the body is not an array.
    """
    if not body:
        return b""
    try:
        messages = [bytes(raw) for raw in _split(body)]
    except (msgspec.DecodeError, RecursionError):
        raise click.ClickException(
            "the data is no JSON array of messages; --ndjson is for streams of type application/json."
        ) from None
    if b"\n" in body or b"\r" in body:
        messages = [message.replace(b"\r", b" ").replace(b"\n", b" ") for message in messages]
    messages.append(b"")
    return b"\n".join(messages)
