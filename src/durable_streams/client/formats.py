"""The formats in which a read hands over its portions: bytes, text, JSON items or events.

Invariants: a format decodes before it commits, so that an error in a decoder never moves the checkpoint past
data that was not handed over; a portion is committed together with its last piece.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from durable_streams.client import decoding
from durable_streams.errors import StreamParseError
from durable_streams.protocol import headers as h
from durable_streams.protocol.reader import Portion, Reader
from durable_streams.types import StreamEvent

_EARLY = 2 << 20  # bytes of a body from which on its messages are given out before it is complete

__all__ = [
    "Bytes",
    "Document",
    "EventMode",
    "Events",
    "ItemLists",
    "Items",
    "PortionFormat",
    "Texts",
    "merge_bodies",
    "merge_texts",
]

T_co = TypeVar("T_co", covariant=True)

EventMode = Literal["auto", "json", "json_batches", "text", "bytes"]
"""What ``StreamEvent.data`` is: a list of JSON values (``json`` and ``json_batches``), text, or bytes; ``auto`` goes by
the content type."""


class PortionFormat(Protocol[T_co]):
    """A format in which portions are handed over."""

    def take(self, portion: Portion) -> Iterable[T_co]:
        """Return the portion's pieces, committing it before the last of them is handed over."""


class Bytes:
    """Each portion's bytes."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def take(self, portion: Portion) -> Iterable[bytes]:
        """See PortionFormat."""
        self._reader.commit(portion)
        return (portion.data,) if portion.data else ()


class Texts:
    """Text: a character torn between two portions keeps the first one uncommitted. Raises StreamParseError."""

    def __init__(self, reader: Reader, encoding: str = "utf-8") -> None:
        self._reader = reader
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def take(self, portion: Portion) -> Iterable[str]:
        """See PortionFormat."""
        text = self.text(portion)
        return (text,) if text else ()

    def text(self, portion: Portion) -> str:
        """Return the portion's text, committing it unless it ends inside a character."""
        try:
            text = self._decoder.decode(portion.data, final=portion.closed)
        except UnicodeDecodeError as error:
            raise StreamParseError(
                f"The data after offset {self._reader.offset} is not {self._encoding.upper()}: {error.reason}.",
                offset=self._reader.offset,
                url=self._reader.url,
            ) from None
        if not self._decoder.getstate()[0]:
            self._reader.commit(portion)
        return text


class Items:
    """The messages of a JSON stream one by one, through ``decode`` (see `item_decoder`).

    ``refused`` is given those that are invalid, which are left out then; None raises StreamParseError at the first one.
    """

    _early: int | None = _EARLY

    def __init__(self, reader: Reader, decode: Any = None, refused: decoding.Refused | None = None) -> None:
        if self._early is not None:
            reader.give_early(self._early)
        self._reader = reader
        self._decode = decoding.item_decoder(decode)
        self._refused = refused

    def items(self, portion: Portion) -> decoding.Items[Any]:
        """Return the portion's messages, uncommitted; iterating over them may raise StreamParseError."""
        reader = self._reader
        return self._decode(portion.data, reader.offset, reader.url, self._refused) if portion.data else []

    def take(self, portion: Portion) -> Iterable[Any]:
        """See PortionFormat."""
        return decoding.deliver(self.items(portion), partial(self._reader.commit, portion))


class ItemLists(Items):
    """The messages of a JSON stream in the batches they came in; none is empty."""

    _early = None  # a portion is handed over as a whole, together with the place behind it

    def take(self, portion: Portion) -> Iterable[list[Any]]:
        """See PortionFormat. The messages before an invalid one are a list of their own."""
        items, failure = decoding.gathered(self.items(portion))
        if failure is not None:
            return _then_raise([items] if items else [], failure)
        self._reader.commit(portion)
        return (items,) if items else ()


class Document(Items):
    """All bytes up to the tail as one JSON text, of a stream that is not in JSON mode: the elements of its array.

    A text that is no array counts as one element. ``whole`` gives the elements as one list.
    """

    _early = None  # nothing is given out before the whole text is there

    def __init__(
        self, reader: Reader, decode: Any, refused: decoding.Refused | None, *, whole: bool = False
    ) -> None:
        super().__init__(reader, decode, refused)
        self._whole = whole
        self._held = bytearray()

    def take(self, portion: Portion) -> Iterable[Any]:
        """See PortionFormat."""
        self._held += portion.data
        if not portion.up_to_date:
            self._reader.commit(portion)
            return ()
        text = bytes(self._held).strip()
        array = text if text[:1] == b"[" else b"[" + text + b"]"
        items = list(self.items(replace(portion, data=array)))
        self._reader.commit(portion)
        return ([items] if items else []) if self._whole else items


class Events:
    """Batches with their positions, and news of the tail without data."""

    def __init__(
        self,
        reader: Reader,
        mode: EventMode,
        refused: decoding.Refused | None = None,
        *,
        encoding: str = "utf-8",
        decode: Any = None,
    ) -> None:
        if mode not in {"auto", "json", "json_batches", "text", "bytes"}:
            raise ValueError(f"mode must be 'auto', 'json', 'json_batches', 'text' or 'bytes', not {mode!r}.")
        self._reader = reader
        self._mode: EventMode = "json" if mode == "json_batches" else mode
        self._texts = Texts(reader, encoding)
        self._items = ItemLists(reader, decode, refused)

    def take(self, portion: Portion) -> Iterable[StreamEvent]:
        """See PortionFormat. The messages before an invalid one are an event of their own, at the offset before."""
        reader = self._reader
        news = (portion.up_to_date, portion.closed) != (reader.up_to_date, reader.stream_closed)
        mode = self._resolved_mode()
        data: Any
        if mode == "text":
            data = self._texts.text(portion)
        elif mode == "json":
            data, failure = decoding.gathered(self._items.items(portion))
            if failure is not None:
                before = StreamEvent(data, reader.offset, reader.up_to_date, reader.cursor)
                return _then_raise([before] if data else [], failure)
            reader.commit(portion)
        else:
            data = portion.data
            reader.commit(portion)
        if not (data or news):
            return ()
        return (StreamEvent(data, reader.offset, portion.up_to_date, portion.cursor),)

    def _resolved_mode(self) -> EventMode:
        if self._mode != "auto":
            return self._mode
        content_type = self._reader.content_type or h.DEFAULT_CONTENT_TYPE
        return "json" if h.is_json(content_type) else "text" if h.is_text(content_type) else "bytes"


def _then_raise(pieces: list[T_co], failure: Exception) -> Iterator[T_co]:
    yield from pieces
    raise failure


def merge_bodies(bodies: list[bytes], content_type: str | None) -> bytes:
    """Return the bodies as one: joined, or for a JSON stream as one array of all messages."""
    if content_type is None or not h.is_json(content_type):
        return b"".join(bodies)
    inner = (body.strip()[1:-1].strip() for body in bodies)
    return b"[" + b",".join(part for part in inner if part) + b"]"


def merge_texts(texts: list[str], content_type: str | None) -> str:
    """Return the texts as one, as `merge_bodies` does."""
    if content_type is None or not h.is_json(content_type):
        return "".join(texts)
    return merge_bodies([text.encode() for text in texts], content_type).decode()
