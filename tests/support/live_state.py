"""Rows that the tests of live state follow, and both sides of its API in one shape."""

from __future__ import annotations

from typing import Any

import msgspec
from facade import Loop

from durable_streams import AsyncDurableStream, DurableStream
from durable_streams.state import (
    AsyncStreamDB,
    Collection,
    Compaction,
    StateSchema,
    StreamDB,
    acompact,
    compact,
)


class User(msgspec.Struct):
    id: str
    name: str


class Message(msgspec.Struct, rename="camel"):
    message_id: int
    text: str


schema = StateSchema(
    users=Collection(User, type="user"), messages=Collection(Message, type="message", key="messageId")
)


class Side:
    """The sync API, or the async one in the shape of it. What it opens is closed at the end."""

    def __init__(self, loop: Loop | None) -> None:
        self.is_sync = loop is None
        self._loop = loop
        self._open: list[Any] = []

    def db(self, stream: str | DurableStream, *arguments: Any, **options: Any) -> Any:
        """Return a StreamDB."""
        if self._loop is None:
            made: Any = StreamDB(stream, *arguments, **options)
        else:
            its = AsyncDurableStream(stream.url) if isinstance(stream, DurableStream) else stream
            made = self._loop.call(AsyncStreamDB, its, *arguments, **options)
        self._open.append(made)
        return made

    def compact(self, stream: Any, **options: Any) -> Compaction:
        """Compact a stream."""
        if self._loop is None:
            return compact(stream, **options)
        return self._loop.run(acompact(stream, **options))

    def close(self) -> None:
        for db in self._open:
            db.close()
