"""Lines out of chunks, for event streams and line-delimited JSON alike.

Invariants: where chunks are cut never changes the lines; only CR, LF and CRLF end a line (U+2028, U+0085 and
other bytes do not); a line without its end is never given out as if it were whole; every byte is looked at a
constant number of times, so that one huge line costs linear time; a line over the limit is an error, not a
growing buffer.
"""

from __future__ import annotations

from durable_streams.errors import StreamParseError

__all__ = ["DEFAULT_LIMIT", "MANY", "Buffer", "LineDecoder"]

DEFAULT_LIMIT = 64 * 1024 * 1024
"""Bytes that one line, event or body may have."""


MANY = 1024
"""This many pieces are joined before more are kept: each costs some 50 bytes, however small it is."""


class Buffer:
    """Bytes that came in pieces. They take memory by their size, not by the number of pieces."""

    __slots__ = ("_blocks", "_few", "size")

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._few: list[bytes] = []
        self.size = 0

    def add(self, piece: bytes) -> None:
        """Put a piece behind the others."""
        self._few.append(piece)
        self.size += len(piece)
        if len(self._few) == MANY:
            self._blocks.append(b"".join(self._few))
            self._few = []

    def drain(self) -> list[bytes]:
        """Return everything in blocks, and forget it."""
        blocks = self._blocks + self._few
        self._blocks, self._few, self.size = [], [], 0
        return blocks

    def take(self) -> bytes:
        """Return everything as one, and forget it."""
        return b"".join(self.drain())


class LineDecoder:
    """Splits chunks into lines, without their ends. ``bare_cr``: a CR alone ends a line too, as SSE wants.

    ``keep_cr``: the CR of a CRLF stays with its line, where it counts as white space: removing it costs more than
    finding the line. ``limit`` is the most bytes one line may have.
    """

    __slots__ = ("_after_cr", "_bare_cr", "_keep_cr", "_limit", "_parts")

    def __init__(self, limit: int = DEFAULT_LIMIT, *, bare_cr: bool = False, keep_cr: bool = False) -> None:
        self._limit = limit
        self._bare_cr = bare_cr
        self._keep_cr = keep_cr
        self._parts = Buffer()
        self._after_cr = False

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished line are held."""
        return self._parts.size

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that this chunk completes; raises StreamParseError for one over the limit."""
        if not chunk:
            return []
        if self._bare_cr:
            chunk = self._normalised(chunk)
        if b"\n" not in chunk:
            self._hold(chunk)
            return []
        head, *rest = chunk.split(b"\n")
        self._hold(head)
        tail = rest.pop()
        lines = [self._parts.take(), *rest]
        self._hold(tail)
        if not (self._bare_cr or self._keep_cr):
            lines = [line[:-1] if line[-1:] == b"\r" else line for line in lines]  # half of endswith's time
        return lines

    def flush(self) -> bytes:
        """Return the unfinished line and forget it: the last line of a body that ended cleanly."""
        line = self._parts.take()
        return line[:-1] if line.endswith(b"\r") else line

    def _normalised(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the second half of a CRLF whose first half ended the chunk before
            self._after_cr = False
            if not chunk:
                return chunk
        self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk

    def _hold(self, part: bytes) -> None:
        if not part:
            return
        self._parts.add(part)
        if self._parts.size > self._limit:
            raise StreamParseError(
                f"A line is longer than the limit of {self._limit} bytes; raise the limit to read it.",
                code="TOO_LARGE",
            )
