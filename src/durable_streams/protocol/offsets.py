"""Offsets as our server mints them: a log's number and a byte position in it, each as sixteen digits (section 2).

Invariants: text order is position order; a position is minted once per append, because every append holds at least
one byte; for JSON streams each message counts its bytes and one separator, so that a read is a slice. The log's number
is 0 in all streams of this version; it leaves room for streams whose bytes move to another log.
"""

from __future__ import annotations

__all__ = ["format_offset", "parse_offset"]

_DIGITS = 16
_LOG = "0" * _DIGITS + "_"
_LENGTH = len(_LOG) + _DIGITS


def format_offset(position: int) -> str:
    """Return the offset of a byte position."""
    return f"{_LOG}{position:016d}"


def parse_offset(offset: str) -> int | None:
    """Return the byte position of an offset, or None for text that this server can never have minted."""
    if len(offset) == _LENGTH and offset.startswith(_LOG):
        digits = offset[len(_LOG) :]
        if digits.isascii() and digits.isdigit():
            return int(digits)
    return None
