"""The headers of requests and the heads of answers, alike for all transports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from typing import Any

from durable_streams.client.forks import Origin, answer_left_behind, leave_alone
from durable_streams.client.transports.failures import Failure, fetch_error
from durable_streams.protocol.request import Request, server_date
from durable_streams.version import USER_AGENT

__all__ = ["AnswerBase", "ends_its_connection", "request_headers"]


def ends_its_connection(status: int, length: str | None, coding: str | None) -> bool:
    """Whether an answer may be the last one of its connection only: its head says two things about where it ends.

    ``length`` and ``coding``: its Content-Length and its Transfer-Encoding. A 204 has no body, and a server that
    announces one may send it later; where both framings are given, a proxy may have used the other one (RFC 9112,
    section 6.3).
    """
    if status == 204:
        return coding is not None or (length is not None and length.strip() != "0")
    return coding is not None and length is not None


class _UnusableError(Exception):
    """Why an answer cannot be used."""


class AnswerBase:
    """The head of one answer, and its process: in a child after a fork its connection is still the parent's.

    Raises FetchError for one that is not final (the libraries skip those, but for 101, which was not requested),
    and for one whose body is in a coding that the libraries would hand over as it is.
    """

    def __init__(self, url: str, status: int, reason: str | None, lines: Iterable[tuple[str, str]]) -> None:
        self._url = url
        self._origin = Origin()
        self.status = status
        self.reason = reason or ""
        headers = _answer_headers(lines)
        if "retry-after" in headers and server_date(headers) is None:
            # A recipient adds the date that a server left out (RFC 9110, section 6.6.1).
            headers["date"] = formatdate(usegmt=True)
        self.headers: Mapping[str, str] = headers
        self._check_head()

    def refusal(self, body: bytes) -> Exception | None:
        """Return the error that the library itself raises for this answer, with this body; None without one."""
        del body
        return None

    def _check_head(self) -> None:
        coding = self.headers.get("transfer-encoding", "chunked").lower()
        if 100 <= self.status < 200:
            why = f"the server answered {self.status} and nothing else"
        elif coding not in {"chunked", "identity"} and self.status not in {204, 304}:
            why = f"the answer has the transfer-encoding {coding!r}, which was not requested"
        else:
            return
        raise fetch_error(Failure.BROKEN, self._url, _UnusableError(why), status=self.status)

    def _check_origin(self) -> None:
        """Raise FetchError in a child after a fork, which would take bytes away from its parent."""
        if self._origin.left:
            raise answer_left_behind(self._url)

    def _leave(self) -> bool:
        """Return whether this is a child after a fork, which must not close its parent's connection."""
        if self._origin.left:
            leave_alone(self)
            return True
        return False


def request_headers(
    request: Request, decodable: str | None = None, client: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Return the headers to send, with the codings that a read takes, and a ``User-Agent``.

    What compresses also buffers, and a live read wants each record at once. The caller's own headers are kept.

    Args:
        request: What is sent.
        decodable: The codings of a read that is not live; None where the library itself names those it decodes.
        client: The headers of the caller's client, which the library adds; None for a client of ours.
    """
    headers = dict(request.headers)
    accepted = "identity" if request.streaming else decodable
    if request.method == "GET" and accepted is not None:
        headers.setdefault("accept-encoding", accepted)
    if "user-agent" not in headers and "user-agent" not in request.dropped and not _names_itself(client):
        headers["user-agent"] = USER_AGENT
    return headers


_LIBRARIES = re.compile(r"python-(?:requests|httpx2?|urllib3)/|Python/\S+ aiohttp/")
"""How a ``User-Agent`` begins that a library sends by itself; public feeds refuse it."""


def _names_itself(client: Mapping[str, Any] | None) -> bool:
    """Whether the caller's client has a ``User-Agent`` that its owner chose."""
    if not isinstance(client, Mapping):
        return False
    for name, value in client.items():
        if str(name).lower() == "user-agent" and value is not None:
            given = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            return _LIBRARIES.match(given) is None
    return False


def _answer_headers(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return an answer's headers by their names in lower case; different values on several lines are joined."""
    headers: dict[str, str] = {}
    repeated: dict[str, dict[str, None]] = {}
    for line, given in lines:
        name, value = line.lower(), given.strip()
        first = headers.setdefault(name, value)
        if first != value:
            repeated.setdefault(name, {first: None})[value] = None
    return {**headers, **{name: ", ".join(values) for name, values in repeated.items()}}
