"""What every transport does alike with the headers of requests and of answers."""

from __future__ import annotations

from collections.abc import Iterable

from durable_streams.protocol.request import Request

__all__ = ["answer_headers", "request_headers"]


def request_headers(request: Request, decodable: str | None = None) -> dict[str, str]:
    """Return the headers to send, with the codings that a read takes: ``decodable``, and none for a live one.

    What compresses also buffers, and a live read wants each record at once. The caller's own header is kept;
    without ``decodable`` the library says on its own what it decodes.
    """
    headers = dict(request.headers)
    accepted = "identity" if request.streaming else decodable
    if request.method == "GET" and accepted is not None:
        headers.setdefault("accept-encoding", accepted)
    return headers


def answer_headers(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return an answer's headers by their names in lower case; what was sent on several lines is joined."""
    headers: dict[str, str] = {}
    for name, value in lines:
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers
