"""Requests and responses as the server sees them, whatever carries them (RSGI, ASGI)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import msgspec

from durable_streams.protocol import headers as names
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.grants import Grant

__all__ = [
    "ALLOWED_HEADERS",
    "BASE_HEADERS",
    "CLOSE",
    "METHODS",
    "READ_HEADERS",
    "SANDBOX",
    "STREAM_ROOT",
    "AnswerBody",
    "Headers",
    "ServerRequest",
    "ServerResponse",
    "cut_short",
    "repeated",
    "too_large",
    "unreadable",
]

Headers = list[tuple[str, str]]

_EXPOSED = (
    names.STREAM_NEXT_OFFSET,
    names.STREAM_CURSOR,
    names.STREAM_UP_TO_DATE,
    names.STREAM_CLOSED,
    names.STREAM_TTL,
    names.STREAM_EXPIRES_AT,
    names.STREAM_EARLIEST_OFFSET,
    names.STREAM_RETENTION_MAX_AGE,
    names.STREAM_RETENTION_MAX_BYTES,
    names.SSE_DATA_ENCODING,
    names.PRODUCER_EPOCH,
    names.PRODUCER_SEQ,
    names.PRODUCER_EXPECTED_SEQ,
    names.PRODUCER_RECEIVED_SEQ,
    names.ETAG,
    "location",
    "retry-after",
)
ALLOWED_HEADERS = (
    "content-type",
    "authorization",
    names.IF_MATCH,
    "if-none-match",
    "last-event-id",
    names.STREAM_MAX_BYTES,
    names.STREAM_SEQ,
    names.STREAM_TTL,
    names.STREAM_EXPIRES_AT,
    names.STREAM_CLOSED,
    names.STREAM_RETENTION_MAX_AGE,
    names.STREAM_RETENTION_MAX_BYTES,
    names.STREAM_FORKED_FROM,
    names.STREAM_FORK_OFFSET,
    names.STREAM_FORK_SUB_OFFSET,
    names.PRODUCER_ID,
    names.PRODUCER_EPOCH,
    names.PRODUCER_SEQ,
)
CLOSE = ("connection", "close")
STREAM_ROOT = names.STREAM_ROOT
METHODS = "GET, HEAD, POST, PUT, DELETE, OPTIONS"

# Every response carries these, and what `browsers` says (protocol section 7).
BASE_HEADERS: Headers = [
    ("x-content-type-options", "nosniff"),
    ("cross-origin-resource-policy", "cross-origin"),
    ("access-control-expose-headers", ", ".join(_EXPOSED)),
]
# Content comes from writers: a browser that shows it must not run it as a page of the server's origin.
SANDBOX = ("content-security-policy", "sandbox")
READ_HEADERS: Headers = [*BASE_HEADERS, SANDBOX]


class Disconnection(Protocol):
    """What live reads need of a future."""

    def add_done_callback(self, callback: Callable[[Any], object], /) -> None:
        """Call ``callback`` on the event loop once the client has gone, or the wait was cancelled."""

    def done(self) -> bool:
        """Whether that has happened."""

    def cancel(self) -> bool:
        """Wait no more."""


class ServerRequest(Protocol):
    """One HTTP request; header names in lower case, the path percent-decoded.

    ``mount``: the path under which the application is mounted, which is no part of ``path``.
    ``grant``: what its caller may do, once that was asked (`access`), also if it was refused; None where nothing asks.
    """

    method: str
    path: str
    mount: str
    grant: Grant | None

    @property
    def scope(self) -> Any:
        """What the interface knows of it: the scope of ASGI (``scope["user"]``, ``scope["state"]``), or of RSGI."""

    @property
    def query(self) -> str:
        """What follows the ``?``."""

    @property
    def scheme(self) -> str:
        """Whether it came by http or https."""

    def header(self, name: str, /) -> str | None:
        """Return the value of a header that has one; raises the 400 of one that was sent twice, or is not ASCII."""

    def listed(self, name: str, /) -> str | None:
        """Return the value of a header that is a list, however many lines it was sent on."""

    def has_any(self, names: frozenset[str]) -> bool:
        """Whether the request has any of some headers."""

    def authority(self) -> str:
        """Return the host, and the port, that were asked for."""

    def peer(self) -> str:
        """Return the client's address, ``""`` if it is not known."""

    async def body(self, limit: int) -> bytes:
        """Return the whole body; raises the 413 without reading further than ``limit`` bytes."""

    def has_unread(self) -> bool:
        """Whether there is a body that was not read to its end: nothing else can come on this connection."""

    def disconnected(self) -> Disconnection:
        """Return a future that is done once the client has gone away."""


class AnswerBody(Protocol):
    """The parts of a streamed answer."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Release what the parts are made from, whether all of them were taken or not."""


class ServerResponse(msgspec.Struct):
    """One HTTP response; the body whole, or as it comes.

    ``refused``: whether it refuses what its caller asked for, even if it looks like that of a missing stream.
    """

    status: int
    headers: Headers
    body: bytes | AnswerBody = b""
    refused: bool = False


def too_large(limit: int) -> Rejection:
    """Return the 413 of a body over the limit."""
    return Rejection(
        413, "TOO_LARGE", f"the body is larger than this server takes, {limit} bytes: send it in parts"
    )


def cut_short() -> Rejection:
    """Return the 400 of a body that ended before it was whole; its sender is gone, nothing may be stored."""
    return Rejection(400, "BAD_REQUEST", "the body ended before it was complete; nothing was stored")


def repeated(name: str) -> Rejection:
    """Return the 400 of a single-valued header that was sent more than once: which value counts is unknown."""
    return Rejection(400, "BAD_REQUEST", f"{name.title()} was sent more than once: send it once")


def unreadable(name: str) -> Rejection:
    """Return the 400 of a header value that is not ASCII text."""
    return Rejection(400, "BAD_REQUEST", f"{name.title()} is not ASCII text: percent-encode it")
