"""Commands on streams and their results: the vocabulary of handlers, rules and stores."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from durable_streams.protocol.state import Policy, ProducerStamp, ProducerState, StreamState

__all__ = [
    "Append",
    "Appended",
    "Create",
    "Created",
    "ForkPoint",
    "Rejection",
    "SetRetention",
    "Trim",
]


class Rejection(Exception):  # noqa: N818 - an answer of the protocol, not a failure of the server
    """A request that the protocol refuses: status, stable code, one sentence, and the headers that explain it."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers: Mapping[str, str] = headers or {}


class ForkPoint(msgspec.Struct, frozen=True, gc=False):
    """Where a fork leaves its source: the source's path and identity when the position was resolved."""

    path: str
    source_id: int
    position: int


class Create(msgspec.Struct, frozen=True, gc=False):
    """Create a stream (section 3). ``payload`` is its first data in stored form."""

    path: str
    content_type: str | None
    payload: bytes = b""
    closed: bool = False
    ttl: int | None = None
    expires_at: str | None = None
    deadline: float | None = None
    fork: ForkPoint | None = None
    policy: Policy | None = None


class Trim(msgspec.Struct, frozen=True, gc=False):
    """Give up what is before a position, where an append begins: of the stream that was there when it was resolved.

    ``max_age``: give up what is older than that, in seconds, as far as the stream knows; ``position`` is 0 then.
    """

    stream_id: int
    position: int
    max_age: int | None = None


class SetRetention(msgspec.Struct, frozen=True, gc=False):
    """Keep a stream by another policy from now on; None for all of it."""

    policy: Policy | None


class Created(msgspec.Struct, frozen=True, gc=False):
    """A stream that exists now; ``new`` unless it already did with the same configuration."""

    state: StreamState
    new: bool


class Append(msgspec.Struct, frozen=True, gc=False):
    """Append, close, or both (section 4). ``payload`` is in stored form, empty for a mere close.

    ``expected``: the position that the tail must have, None for any.
    """

    content_type: str | None
    payload: bytes
    close: bool = False
    seq: str | None = None
    producer: ProducerStamp | None = None
    expected: int | None = None


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The result of an append: the stream and the producer after it, and whether it was stored before."""

    state: StreamState
    producer: ProducerState | None = None
    duplicate: bool = False
