"""Offsets as our server mints them: a log's number and a byte position in it, each as sixteen digits (section 2).

Invariants: text order is position order; a position is minted once per append, because every append holds at least
one byte, and read from the start of the append that holds it, for clients make offsets up; an offset that ends in "x"
stands inside an append and is read from exactly there: events of text end before a character that is not complete. For
JSON streams each message counts its bytes and one separator, so that a read is a slice. The log's number
is 0 in all streams of this version; it leaves room for streams whose bytes move to another log.
"""

from __future__ import annotations

__all__ = ["format_offset", "is_exact", "parse_offset"]

_DIGITS = 16
_LOG = "0" * _DIGITS + "_"
_LENGTH = len(_LOG) + _DIGITS
_EXACT = "x"


def format_offset(position: int, *, exact: bool = False) -> str:
    """Return the offset of a byte position; ``exact``: of one inside an append, which is read from there."""
    # Padding is several times as fast as a format with a width, and each append's answer has an offset.
    digits = str(position).rjust(_DIGITS, "0")
    return f"{_LOG}{digits}{_EXACT}" if exact else _LOG + digits


def is_exact(offset: str) -> bool:
    """Whether an offset is read from exactly its position."""
    return offset.endswith(_EXACT)


def parse_offset(offset: str) -> int | None:
    """Return the byte position of an offset, or None for text that this server can never have minted."""
    offset = offset.removesuffix(_EXACT)
    if len(offset) == _LENGTH and offset.startswith(_LOG):
        digits = offset[len(_LOG) :]
        if digits.isascii() and digits.isdigit():
            return int(digits)
    return None
