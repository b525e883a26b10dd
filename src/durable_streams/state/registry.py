"""The stream ``__registry__``, in which a server lists its streams: the schema of its rows."""

from __future__ import annotations

import msgspec

from durable_streams.state.schema import Collection, StateSchema

__all__ = ["REGISTRY", "RegisteredStream"]


class RegisteredStream(msgspec.Struct, frozen=True, rename="camel"):
    """A stream of a server.

    Args:
        path: The path below the root of the streams.
        content_type: The content type.
        created_at: When it was created, in milliseconds since 1970.
    """

    path: str
    content_type: str
    created_at: int


REGISTRY = StateSchema(streams=Collection(RegisteredStream, type="stream", key="path"))
"""The schema of a server's ``__registry__``: one row for each stream, under its path."""
