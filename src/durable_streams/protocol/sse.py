"""Server-sent events as section 5 uses them, encoded by the server and decoded by the client.

Invariants: a payload can never inject an event (CR, LF and CRLF all end a line, each line carries its own
``data:``); data is committed only by the control event that follows it.
"""

from __future__ import annotations

import base64
import codecs
from dataclasses import dataclass

import msgspec

from durable_streams.errors import StreamParseError
from durable_streams.protocol.lines import DEFAULT_LIMIT, MANY, LineDecoder

__all__ = [
    "DataEncoder",
    "SSEDecoder",
    "SSEEvent",
    "encode_control",
    "encode_data",
    "encode_event",
    "with_id",
]

_encode_json = msgspec.json.Encoder().encode


def encode_data(payload: bytes, *, text: bool) -> bytes:
    """Return one ``event: data`` block. ``text``: UTF-8 lines as they are; else base64 on a single line."""
    if not text:
        return b"event: data\ndata:" + base64.b64encode(payload) + b"\n\n"
    return encode_event(b"data", payload)


def encode_event(name: bytes, text: bytes, identifier: str | None = None) -> bytes:
    """Return one event of UTF-8 text. ``identifier``: its id, which is one line."""
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    # A client strips one space after the colon: such lines need one of their own to lose.
    colon = b"\ndata: " if text.startswith(b" ") or b"\n " in text else b"\ndata:"
    block = b"event: " + name + colon + text.replace(b"\n", colon) + b"\n\n"
    return block if identifier is None else with_id(block, identifier)


def with_id(block: bytes, identifier: str) -> bytes:
    """Return an event, or its end, with an id: behind the data, so that what is cut off moves nothing."""
    return block[:-1] + b"id:" + identifier.encode() + b"\n\n"


class DataEncoder:
    """Encodes one ``event: data`` block whose payload comes in pieces: what ``encode_data`` does, wherever it is cut.

    ``text``: UTF-8 lines as they are, bytes that are no UTF-8 replaced by U+FFFD; else base64 on a single line.
    """

    def __init__(self, *, text: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if text else None
        self._rest = b""  # base64: bytes that do not fill a group of three yet
        self._after_cr = False

    def begin(self) -> bytes:
        """Return the beginning of the block."""
        return b"event: data\ndata:" if self._decoder is None else b"event: data\ndata: "

    def feed(self, piece: bytes) -> bytes:
        """Return the next part of the block."""
        if self._decoder is None:
            piece = self._rest + piece
            whole = len(piece) // 3 * 3
            self._rest = piece[whole:]
            return base64.b64encode(memoryview(piece)[:whole])
        return self._lines(self._decoder.decode(piece).encode())

    @property
    def held(self) -> int:
        """How many bytes at the end of the pieces begin a character that is not complete; `end` leaves them out."""
        return 0 if self._decoder is None else len(self._decoder.getstate()[0])

    def end(self, *, final: bool = False) -> bytes:
        """Return the end of the block. ``final``: nothing can complete the last character any more."""
        if self._decoder is None:
            return base64.b64encode(self._rest) + b"\n\n"
        last = self._decoder.decode(b"", final=True) if final else ""
        return self._lines(last.encode()) + b"\n\n"

    def _lines(self, text: bytes) -> bytes:
        if self._after_cr and text:
            text = text.removeprefix(b"\n")  # of a CRLF that was cut in two: its CR has ended the line
            self._after_cr = False
        if b"\r" in text:
            self._after_cr = text.endswith(b"\r")
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return text.replace(b"\n", b"\ndata: ")


def encode_control(
    next_offset: str,
    *,
    cursor: str | None = None,
    up_to_date: bool = False,
    closed: bool = False,
    with_id: bool = False,
) -> bytes:
    """Return the ``event: control`` block that commits the data before it.

    ``with_id``: its id is the offset, which is then one line; a browser's own ``EventSource`` comes back with it as
    ``Last-Event-ID``.
    """
    control: dict[str, str | bool] = {"streamNextOffset": next_offset}
    if cursor is not None:
        control["streamCursor"] = cursor
    if up_to_date:
        control["upToDate"] = True
    if closed:
        control["streamClosed"] = True
    # Behind the data: clients in the field look for those right after the event's name.
    id_line = b"\nid:" + next_offset.encode() if with_id else b""
    return b"event: control\ndata:" + _encode_json(control) + id_line + b"\n\n"


@dataclass(frozen=True, slots=True)
class SSEEvent:
    """One complete event: its type, its data lines joined by LF, and the last id that the stream named."""

    event: str
    data: bytes
    id: str = ""


_BOM = b"\xef\xbb\xbf"
_RETRY_DIGITS = 12  # of milliseconds: more are no wait, and would be a long number to read
_FRAMING = 64  # a field name, a colon, a space: what a line carries besides its payload


class SSEDecoder:
    """Turns chunks of an event stream into events, wherever the chunks are cut.

    An event counts only with the empty line that ends it: what a dying connection cut off is never given out.
    ``limit`` is the most bytes one event's data may have. After an error the decoder must not be fed again.
    """

    __slots__ = ("_blocks", "_data", "_event", "_id", "_limit", "_lines", "_size", "_started", "retry")

    def __init__(self, limit: int = DEFAULT_LIMIT, *, last_id: str = "") -> None:
        self.retry: float | None = None
        """Seconds that the stream asks to wait before a reconnect, None where it asks for nothing."""
        self._id = last_id
        self._limit = limit
        self._lines = LineDecoder(limit + _FRAMING, bare_cr=True)
        self._started = False
        self._reset()

    def _reset(self) -> None:
        self._event = ""
        self._data: list[bytes] = []
        self._blocks: list[
            bytes
        ] = []  # of lines joined already, so that many short ones take little more than they are
        self._size = 0

    @property
    def pending(self) -> bool:
        """Whether the beginning of an event is held."""
        return self._lines.pending > 0 or self._size > 0

    def feed(self, chunk: bytes) -> list[SSEEvent]:
        """Return the events that this chunk completes; raises StreamParseError for one over the limit."""
        events: list[SSEEvent] = []
        for line in self._lines.feed(chunk):
            if not line:
                if self._size:
                    data = b"\n".join(self._blocks + self._data if self._blocks else self._data)
                    events.append(SSEEvent(self._event or "message", data, self._id))
                self._reset()
            else:
                self._field(line)
        return events

    def _field(self, line: bytes) -> None:
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._size += len(value) + 1
            if self._size > self._limit + 1:
                raise StreamParseError(
                    f"An event is longer than the limit of {self._limit} bytes; raise the limit to read it.",
                    code="TOO_LARGE",
                )
            self._data.append(value)
            if len(self._data) == MANY:
                self._blocks.append(b"\n".join(self._data))
                self._data = []
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry = int(value[:_RETRY_DIGITS]) / 1000
        # Anything else is a comment (a heartbeat) or a field that this protocol does not use.
