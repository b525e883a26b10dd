"""Many streams over one event stream (``__ds/follow``): what is asked for, the events, and their ids.

Invariants: an event holds data of one stream, and where it ends; the id of each event says where all streams of the
connection are, so that one id is enough to go on; data arrives as the bytes that are stored, apart from the line
breaks between the parts of a JSON message.

    GET {root}/__ds/follow?streams=a,b&offsets=-1,now

    event:data
    data:{"stream":"a","offset":"…","messages":[{"n":1}]}     JSON; else "text", or "base64" if it is no UTF-8
    id:1c291ca3.12.0

    event:tail                                                at the start, of a stream that has nothing to send
    event:end                                                 with "closed", or with "error": nothing more comes of it

An id is a checksum of the list of streams, and the place of each: its position, with a ``c`` behind it once the
stream was closed there; ``e`` once it ended otherwise. Clients treat it as opaque.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote

import msgspec

from durable_streams.errors import StreamParseError
from durable_streams.protocol import headers as names
from durable_streams.protocol import sse
from durable_streams.protocol.jsonparser import MALFORMED
from durable_streams.protocol.offsets import format_offset

__all__ = [
    "MAX_STREAMS",
    "FollowEvent",
    "PartError",
    "PartPlace",
    "data_event",
    "data_head",
    "decoded_event",
    "event_id",
    "joined",
    "parse_event_id",
    "plain_event",
    "split",
]

MAX_STREAMS = 100
"""Streams that one connection follows at most."""

_CLOSED = "c"
_FAILED = "e"
_DIGITS = 16

_encode_json = msgspec.json.Encoder().encode


class PartPlace(NamedTuple):
    """Where one of the streams is. ``ended``: nothing more comes of it, for it is closed, or ``failed``."""

    position: int
    ended: bool = False
    failed: bool = False


class PartError(msgspec.Struct, frozen=True):
    """Why a stream ended early: the code and the sentence of a refusal; ``earliest``: where the stream begins now."""

    code: str
    message: str
    status: int = 0
    earliest: str | None = None


class FollowEvent(msgspec.Struct, frozen=True):
    """One event, as it is on the wire; of the three forms of data, one is there at most."""

    stream: str
    offset: str = ""
    messages: msgspec.Raw = msgspec.Raw(b"")
    text: str | None = None
    base64: str | None = None
    closed: bool = False
    error: PartError | None = None

    @property
    def data(self) -> bytes:
        """The data as bytes, of a JSON stream one array of messages; raises StreamParseError."""
        if messages := bytes(self.messages):
            return messages
        if self.base64 is not None:
            try:
                return base64.b64decode(self.base64, validate=True)
            except (binascii.Error, ValueError) as error:
                raise StreamParseError(f"An event's data is not the base64 it should be: {error}.") from None
        return b"" if self.text is None else self.text.encode("utf-8", "surrogatepass")


def joined(values: Sequence[str]) -> str:
    """Return a list as one value of a query: each part is percent-encoded, for it may hold a comma."""
    return ",".join(quote(value, safe="/") for value in values)


def split(value: str) -> list[str]:
    """Return the parts of a list that is one value of a query (decoded as such once)."""
    return [unquote(part) for part in value.split(",")]


def event_id(streams: Sequence[str], places: Sequence[PartPlace]) -> str:
    """Return the id that says where all streams of a connection are."""
    return ".".join([_checksum(streams), *map(_text_of, places)])


def _text_of(place: PartPlace) -> str:
    if place.failed:
        return _FAILED
    return f"{place.position}{_CLOSED if place.ended else ''}"


def parse_event_id(text: str, streams: Sequence[str]) -> list[PartPlace] | None:
    """Return the places that an id says; None for one that this list of streams never had."""
    checksum, *parts = text.split(".")
    if checksum != _checksum(streams) or len(parts) != len(streams):
        return None
    places = []
    for part in parts:
        digits = part.removesuffix(_CLOSED)
        if part == _FAILED:
            places.append(PartPlace(0, ended=True, failed=True))
        elif digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS:
            places.append(PartPlace(int(digits), ended=part != digits))
        else:
            return None
    return places


def _checksum(streams: Sequence[str]) -> str:
    return f"{binascii.crc32(chr(10).join(streams).encode('utf-8', 'surrogatepass')):08x}"


def data_head(stream: str, end: int, *, exact: bool) -> bytes:
    """Return the beginning of the object of a data event, up to what its data is.

    Args:
        stream: The stream.
        end: The position behind the data.
        exact: Whether that may be inside an append.
    """
    return b'{"stream":%b,"offset":"%b",' % (_encode_json(stream), format_offset(end, exact=exact).encode())


def data_event(head: bytes, payload: bytes, identifier: str, content_type: str) -> bytes:
    """Return a data event whose payload, as it is stored, is held whole.

    Args:
        head: What `data_head` returned.
        payload: The stored bytes: of JSON, messages that each have a comma behind them.
        identifier: The id.
        content_type: The content type of the stream.
    """
    if names.is_json(content_type):
        body = b"".join((b'"messages":[', memoryview(payload)[:-1], b"]}"))
    else:
        text = _as_text(payload) if names.is_text(content_type) else None
        body = (
            b'"base64":"%b"}' % base64.b64encode(payload)
            if text is None
            else b'"text":%b}' % _encode_json(text)
        )
    return sse.encode_event(b"data", head + body, identifier)


def _as_text(payload: bytes) -> str | None:
    """Return text, None where it is none by itself: an append, or an event, may end inside a character."""
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


def plain_event(
    name: str,
    stream: str,
    end: int | None,
    identifier: str,
    *,
    closed: bool = False,
    error: PartError | None = None,
) -> bytes:
    """Return an event without data.

    Args:
        name: ``tail`` or ``end``.
        stream: The stream.
        end: The position that the stream is at, None where there is none.
        identifier: The id.
        closed: Whether the stream is closed there.
        error: Why it ended otherwise.
    """
    value: dict[str, object] = {"stream": stream}
    if end is not None:
        value["offset"] = format_offset(end, exact=error is not None)
    if closed:
        value["closed"] = True
    if error is not None:
        value["error"] = {key: part for key, part in msgspec.structs.asdict(error).items() if part}
    return sse.encode_event(name.encode(), _encode_json(value), identifier)


_decoder = msgspec.json.Decoder(FollowEvent)


def decoded_event(data: bytes) -> FollowEvent:
    """Return the event that its data says; raises StreamParseError."""
    try:
        return _decoder.decode(data)
    except MALFORMED as error:
        raise StreamParseError(f"An event of several streams is not what it should be: {error}.") from None
