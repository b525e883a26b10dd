"""Where the streams of runs are: in this process, or on a server."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import quote

from durable_streams.client.aio import AsyncDurableStream
from durable_streams.protocol.request import check_url
from durable_streams.protocol.retry import RetryPolicy

__all__ = ["JSON", "PATIENT", "Remote", "StreamsPlace", "handle"]

JSON = "application/json"
PATIENT = RetryPolicy(max_retries=9, max_delay=2.0)
"""Some ten seconds: a server that starts again takes one or two."""


class StreamsPlace(Protocol):
    """Streams by their paths."""

    @property
    def client(self) -> Any:
        """What the client's classes take as ``client=``."""

    def url(self, path: str) -> str:
        """Return the URL of the stream at a path."""


class Remote:
    """The streams of a server, under the URL of its root."""

    client = None

    def __init__(self, root: str) -> None:
        self._root = check_url(root).rstrip("/")

    def url(self, path: str) -> str:
        """Return the URL of the stream at a path."""
        return f"{self._root}/{quote(path)}"


def handle(place: StreamsPlace, path: str) -> AsyncDurableStream:
    """Return a handle of the stream of JSON at a path."""
    return AsyncDurableStream(place.url(path), content_type=JSON, client=place.client, retry=PATIENT)
