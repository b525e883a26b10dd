"""What every transport does alike with the headers of requests, and with answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from durable_streams.client.forks import Origin, answer_left_behind, leave_alone
from durable_streams.protocol.request import Request

__all__ = ["AnswerBase", "request_headers"]


class AnswerBase:
    """The head of one answer, and whose it is: in a child after a fork its connection is still the parent's."""

    def __init__(self, url: str, status: int, reason: str | None, lines: Iterable[tuple[str, str]]) -> None:
        self._url = url
        self._origin = Origin()
        self.status = status
        self.reason = reason or ""
        self.headers: Mapping[str, str] = _answer_headers(lines)

    def _check_origin(self) -> None:
        """Raise FetchError in a child after a fork, which would take bytes away from its parent."""
        if self._origin.left:
            raise answer_left_behind(self._url)

    def _leave(self) -> bool:
        """Return whether this is a child after a fork, which must not close what is its parent's."""
        if self._origin.left:
            leave_alone(self)
            return True
        return False


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


def _answer_headers(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return an answer's headers by their names in lower case; what was sent on several lines is joined."""
    headers: dict[str, str] = {}
    for name, value in lines:
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers
