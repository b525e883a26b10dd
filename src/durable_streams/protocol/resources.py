"""What a server says of itself and of all its streams: the operations of a client outside single streams.

Invariants: each is a generator whose only effect is a request (`operations`); each may be repeated.
"""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import quote, unquote, urlencode

import msgspec

from durable_streams.errors import StreamParseError
from durable_streams.protocol.headers import RESERVED, STREAM_ROOT
from durable_streams.protocol.jsonparser import MALFORMED
from durable_streams.protocol.listing import Page
from durable_streams.protocol.request import Op, Request, Response, error_from, without_query
from durable_streams.types import StreamInfo

__all__ = [
    "ProducerInfo",
    "ProducersPage",
    "health",
    "list_page",
    "producers_page",
    "split_root",
    "stream_info",
]

T = TypeVar("T")

_ROOT = STREAM_ROOT.rstrip("/")


class ProducerInfo(msgspec.Struct, frozen=True):
    """A producer of a stream, with the epoch and the number of the last request that was accepted from it."""

    id: str
    epoch: int
    seq: int


class ProducersPage(msgspec.Struct, frozen=True):
    """Producers of a stream. ``next``: what to ask for as ``after``, None at the end."""

    producers: list[ProducerInfo]
    next: str | None = None


def list_page(root: str, prefix: str = "", after: str = "", limit: int | None = None) -> Op[Page]:
    """Return a page of the list of streams at ``root``, the URL of a server's streams, or of those below a path of it.

    Raises StreamNotFoundError where the server has no list.
    """
    root, path = split_root(root)
    asked = {"after": after, "limit": limit, "prefix": f"{path}/{prefix}" if path else prefix}
    query = urlencode({name: value for name, value in asked.items() if value})
    request = Request("GET", f"{root}/{RESERVED}/streams" + (f"?{query}" if query else ""))
    response = yield request
    return _decoded(response, request, Page)


def stream_info(root: str, path: str) -> Op[StreamInfo]:
    """Return what the list says of one stream; raises StreamNotFoundError where there is none, or no list."""
    request = Request("GET", f"{root}/{RESERVED}/streams/{quote(path)}")
    response = yield request
    return _decoded(response, request, StreamInfo)


def producers_page(root: str, path: str, after: str = "", limit: int | None = None) -> Op[ProducersPage]:
    """Return a page of the producers of a stream, in the order of their ids.

    Raises StreamNotFoundError where there is no such stream, or the server has no list of producers.
    """
    asked = {"after": after, "limit": limit}
    query = urlencode({name: value for name, value in asked.items() if value})
    request = Request("GET", f"{root}/{RESERVED}/producers/{quote(path)}" + (f"?{query}" if query else ""))
    response = yield request
    return _decoded(response, request, ProducersPage)


def health(root: str, *, live: bool = False) -> Op[None]:
    """Return if the server is healthy; with ``live`` if it answers at all. Raises the error of any other answer."""
    request = Request("GET", root.removesuffix(_ROOT) + ("/health/live" if live else "/health"))
    response = yield request
    if response.status != 200:
        raise error_from(response, request)


def split_root(url: str) -> tuple[str, str]:
    """Return the URL of the root of a server's streams, and the path below it; the URL itself where it names none."""
    origin, found, path = url.partition(_ROOT)
    if not found or path[:1] not in ("", "/"):
        return url.rstrip("/"), ""
    return origin + found, unquote(path).strip("/")


def _decoded(response: Response, request: Request, form: type[T]) -> T:
    if response.status != 200:
        raise error_from(response, request)
    try:
        return msgspec.json.decode(response.body, type=form)
    except MALFORMED as error:
        url = without_query(request.url)
        raise StreamParseError(
            f"GET {url} succeeded with something else than was asked for ({error}); check that it is this server.",
            status=response.status,
            url=url,
            headers=dict(response.headers),
        ) from None
