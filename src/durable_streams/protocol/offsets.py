"""Offsets as our server mints them: the byte position in the stream, as sixteen decimal digits (protocol section 2).

Invariants: text order is position order; a position is minted once per append, because every append holds at least
one byte; for JSON streams each message counts its bytes and one separator, so that a read is a slice.
"""

from __future__ import annotations

__all__ = ["format_offset", "parse_offset"]

_DIGITS = 16
MAX_POSITION = 10**_DIGITS - 1


def format_offset(position: int) -> str:
    """Return the offset of a byte position."""
    return f"{position:016d}"


def parse_offset(offset: str) -> int | None:
    """Return the byte position of an offset, or None for text that this server can never have minted."""
    if len(offset) == _DIGITS and offset.isascii() and offset.isdigit():
        return int(offset)
    return None
