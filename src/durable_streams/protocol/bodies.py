"""The body of an answer with a stream's data, whole or piece by piece (protocol section 5).

A server may answer a read with everything up to the tail, in one body of any size. Such a body is given out as it
comes. If it is cut, the next answer begins at the same offset, and what was given out already is skipped there: bytes
at an offset never change.

Invariants: a body of up to ``whole`` bytes is one piece, and certain as a whole; of a larger one memory holds no more
than the message that is incomplete, or one chunk; what is skipped is counted in the stream's own units, bytes or
messages, so that another server may cut its answers elsewhere.
"""

from __future__ import annotations

from durable_streams.protocol.jsonchunks import PIECE_SIZE, ArraySplitter, Piece, without_first
from durable_streams.protocol.lines import Buffer

__all__ = ["Body"]


class Body:
    """One body. ``skip``: how many units (bytes, of a JSON stream messages) at its start were given out before.

    ``expected``: its length in bytes, None where the headers do not tell. ``whole``: up to how many bytes it is given
    out as one. ``limit``: the most bytes that one message may have. Raises StreamParseError for a message over the
    limit, and for what is not an array of messages.
    """

    def __init__(self, *, is_json: bool, expected: int | None, whole: int, limit: int, skip: int = 0) -> None:
        self.received = 0
        self.units = 0
        """How many units of a body in pieces were given out or skipped: what to skip after a cut."""
        self.whole = whole
        self._expected = expected
        self._skip = skip
        self._held = Buffer()
        self._array = ArraySplitter(limit, size=PIECE_SIZE) if is_json else None
        self._in_pieces = skip > 0

    @property
    def is_short(self) -> bool:
        """Whether bytes are missing, as far as the headers tell."""
        return self._expected is not None and self.received < self._expected

    def receive(self, chunk: bytes) -> list[bytes]:
        """Take a chunk; return the pieces that may be given out although the body is not complete."""
        self.received += len(chunk)
        if self._in_pieces:
            return self._taken(chunk)
        self._held.add(chunk)
        if max(self.received, self._expected or 0) <= self.whole:
            return []
        self._in_pieces = True
        return [piece for held in self._held.drain() for piece in self._taken(held)]

    def finish(self) -> bytes | None:
        """Return the last piece, or the body as a whole; None if it shows by itself that it was cut."""
        if self._array is None or not self._in_pieces:
            return self._unknown(self._held.take())
        last = self._array.finish() if self.received else Piece(b"", 0)
        return None if last is None else self._unknown_messages(last)

    def _taken(self, chunk: bytes) -> list[bytes]:
        if self._array is not None:
            piece = self._array.feed(chunk)
            pieces = [] if piece is None else [self._unknown_messages(piece)]
        else:
            pieces = [self._unknown(held) for held in self._held.drain()]
            if self.is_short:
                pieces.append(self._unknown(chunk))
            else:  # perhaps the last one, with which the position moves
                self._held.add(chunk)
        return [piece for piece in pieces if piece]

    def _unknown(self, data: bytes) -> bytes:
        """Return of the next bytes what was not given out before."""
        known = max(0, self._skip - self.units)
        self.units += len(data)
        return data[known:] if known else data

    def _unknown_messages(self, piece: Piece) -> bytes:
        known = max(0, self._skip - self.units)
        self.units += piece.messages
        if known >= piece.messages:
            return piece.body if not known else b""
        return without_first(piece.body, known) if known else piece.body
