"""How an answer is stored, and what its readers get: one format for each kind of front end.

A run's stream is JSON, one message for each piece. Its last message says how it ended, and is stored together with the
closing of the stream; only the AI SDK's own last pieces do that by themselves.

Invariants: what a format stores depends on the items of the source only; what it sends depends on the stored messages
and their places only, so that every reader gets the same pieces, however often it comes back.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any, Literal, Protocol
from uuid import uuid4

import msgspec

__all__ = ["AnswerWriter", "Format", "State", "format_of"]

State = Literal["completed", "stopped", "failed", "interrupted"]
"""How a run ended; ``interrupted``: its process did, or another run took its place."""

_END = "$end"
_EVENTS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the events
}
_encode = msgspec.json.encode
_decode = msgspec.json.decode


class AnswerWriter(Protocol):
    """Turns the items of one source into messages."""

    def messages(self, item: Any) -> Iterator[Any]:
        """Yield what is stored for an item; raises TypeError for one that the format cannot hold."""

    def last(self, state: State) -> Iterator[Any]:
        """Yield what is stored behind the last item, before the end."""


class Format(Protocol):
    """A way to store and to send answers.

    Attributes:
        headers: The headers of an answer, by name in lower case.
        done: What is sent behind the last piece.
        idle: What is sent while nothing comes; empty for formats that have no such thing.
    """

    headers: dict[str, str]
    done: bytes
    idle: bytes

    def writer(self) -> AnswerWriter:
        """Return the writer of one run."""

    def ending(self, state: State, reason: str | None) -> Any:
        """Return the last message of a run, None for none.

        Args:
            state: How it ended.
            reason: Why, for the reader of the answer; None where nothing went wrong.
        """

    def piece(self, message: bytes, place: str) -> bytes:
        """Return what a reader is sent for a stored message.

        Args:
            message: The message, as JSON.
            place: The place behind it, for readers that can come back there.
        """


def format_of(name: str | Format) -> Format:
    """Return a format by its name, or the caller's own; raises ValueError for a name that is not known."""
    if not isinstance(name, str):
        return name
    if name not in _FORMATS:
        raise ValueError(f"format is one of {', '.join(map(repr, _FORMATS))}, or a Format, not {name!r}.")
    return _FORMATS[name]


class _Texts:
    """Text out of items that are text or bytes, whose characters may be cut anywhere."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, item: str | bytes) -> str:
        return item if isinstance(item, str) else self._decoder.decode(item)

    def rest(self) -> str:
        return self._decoder.decode(b"", final=True)


class _PlainWriter:
    """Stores text, and values where the format has room for them."""

    def __init__(self, name: str, *, values: bool) -> None:
        self._name = name
        self._values = values
        self._texts = _Texts()

    def messages(self, item: Any) -> Iterator[Any]:
        if isinstance(item, (str, bytes)):
            if text := self._texts.of(item):
                yield text
        elif self._values:
            yield item
        else:
            raise TypeError(
                f"An answer in the format {self._name!r} takes text or bytes, not {type(item).__name__}."
            )

    def last(self, state: State) -> Iterator[Any]:
        del state
        if text := self._texts.rest():
            yield text


class _Events:
    """Server-sent events for `EventSource`: each piece is the JSON of one event, and the last event is named ``end``.

    Every event has an id, so that an EventSource comes back right behind it.
    """

    headers = _EVENTS
    done = b""
    idle = b":\n\n"

    def writer(self) -> AnswerWriter:
        return _PlainWriter("events", values=True)

    def ending(self, state: State, reason: str | None) -> Any:
        return {_END: state} if reason is None else {_END: state, "error": reason}

    def piece(self, message: bytes, place: str) -> bytes:
        if message.startswith(b'{"$end":'):
            end = _decode(message)
            data = {"state": end.pop(_END), **end}
            return b"event: end\nid: %s\ndata: %s\n\n" % (place.encode(), _encode(data))
        return b"id: %s\ndata: %s\n\n" % (place.encode(), message)


class _Text:
    """Plain text, as the AI SDK's text streams and `fetch` read it. How it ended is no part of the text."""

    headers = {**_EVENTS, "content-type": "text/plain; charset=utf-8"}  # noqa: RUF012 - a constant
    done = idle = b""

    def writer(self) -> AnswerWriter:
        return _PlainWriter("text", values=False)

    def ending(self, state: State, reason: str | None) -> Any:
        return _Events.ending(EVENTS, state, reason)

    def piece(self, message: bytes, place: str) -> bytes:
        del place
        value = _decode(message)
        return value.encode() if isinstance(value, str) else b""


class _UIMessageWriter:
    """Stores dicts as the pieces that they are, and wraps text into the pieces of a text part."""

    def __init__(self) -> None:
        self._texts = _Texts()
        self._parts = 0
        self._is_open = self._is_begun = self._is_wrapped = False

    def messages(self, item: Any) -> Iterator[Any]:
        if isinstance(item, dict):
            yield from self._close()
            self._is_begun = True
            yield item
        elif isinstance(item, (str, bytes)):
            if text := self._texts.of(item):
                yield from self._text(text)
        else:
            raise TypeError(
                "An answer in the format 'ai-sdk' takes text, bytes, or dicts that are pieces of a UI message stream, "
                f"not {type(item).__name__}."
            )

    def _text(self, text: str) -> Iterator[Any]:
        if not self._is_begun:
            self._is_begun = self._is_wrapped = True
            yield {"type": "start"}
        if not self._is_open:
            self._is_open = True
            self._parts += 1
            yield {"type": "text-start", "id": f"text-{self._parts}"}
        yield {"type": "text-delta", "id": f"text-{self._parts}", "delta": text}

    def _close(self) -> Iterator[Any]:
        if text := self._texts.rest():
            yield from self._text(text)
        if self._is_open:
            self._is_open = False
            yield {"type": "text-end", "id": f"text-{self._parts}"}

    def last(self, state: State) -> Iterator[Any]:
        yield from self._close()
        if state == "completed" and (self._is_wrapped or not self._is_begun):
            yield {"type": "finish"}


class _UIMessages:
    """The UI message stream of the AI SDK (version 1), as `useChat` reads it."""

    headers = {**_EVENTS, "x-vercel-ai-ui-message-stream": "v1"}  # noqa: RUF012 - a constant
    done = b"data: [DONE]\n\n"
    idle = b":\n\n"

    def writer(self) -> AnswerWriter:
        return _UIMessageWriter()

    def ending(self, state: State, reason: str | None) -> Any:
        if state == "stopped":
            return {"type": "abort"}
        return None if reason is None else {"type": "error", "errorText": reason}

    def piece(self, message: bytes, place: str) -> bytes:
        del place  # the transport reads from the start
        return b"data: %s\n\n" % message


class _AGUIWriter:
    """Stores dicts as the events that they are, and wraps text into a run with one message."""

    def __init__(self) -> None:
        self._texts = _Texts()
        self._run = f"run-{uuid4()}"
        self._is_begun = self._is_wrapped = False

    def messages(self, item: Any) -> Iterator[Any]:
        if isinstance(item, dict):
            if self._is_wrapped:
                raise TypeError(
                    "An answer in the format 'ag-ui' is text, or dicts that are events, not both."
                )
            self._is_begun = True
            yield item
        elif isinstance(item, (str, bytes)):
            if self._is_begun and not self._is_wrapped:
                raise TypeError(
                    "An answer in the format 'ag-ui' is text, or dicts that are events, not both."
                )
            if text := self._texts.of(item):
                yield from self._text(text)
        else:
            raise TypeError(
                "An answer in the format 'ag-ui' takes text, bytes, or dicts that are events of AG-UI, not "
                f"{type(item).__name__}."
            )

    def _text(self, text: str) -> Iterator[Any]:
        message = f"{self._run}-text"
        if not self._is_wrapped:
            self._is_begun = self._is_wrapped = True
            yield {"type": "RUN_STARTED", "threadId": self._run, "runId": self._run}
            yield {"type": "TEXT_MESSAGE_START", "messageId": message, "role": "assistant"}
        yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": message, "delta": text}

    def last(self, state: State) -> Iterator[Any]:
        if text := self._texts.rest():
            yield from self._text(text)
        if self._is_wrapped:
            yield {"type": "TEXT_MESSAGE_END", "messageId": f"{self._run}-text"}
        if state == "completed" and (self._is_wrapped or not self._is_begun):
            yield {"type": "RUN_FINISHED", "threadId": self._run, "runId": self._run}


class _AGUI:
    """Events of AG-UI, as TanStack AI's connections read them; each has an id, behind which they come back."""

    headers = _EVENTS
    done = b""
    idle = b":\n\n"

    def writer(self) -> AnswerWriter:
        return _AGUIWriter()

    def ending(self, state: State, reason: str | None) -> Any:
        if state == "completed":
            return None
        return {"type": "RUN_ERROR", "code": state, "message": reason or f"the answer was {state}"}

    def piece(self, message: bytes, place: str) -> bytes:
        return b"id: %s\ndata: %s\n\n" % (place.encode(), message)


EVENTS = _Events()
_FORMATS: dict[str, Format] = {"ai-sdk": _UIMessages(), "ag-ui": _AGUI(), "events": EVENTS, "text": _Text()}
