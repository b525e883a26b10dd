"""Faults on demand: what the next requests to a test server meet.

Invariants: a request meets one fault at most, the one armed first of those that match; arming, clearing and
counting are safe from any thread.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Literal
from urllib.parse import unquote

from durable_streams.protocol.request import check_header
from durable_streams.server.browsers import NO_PAGE
from durable_streams.server.control import error_response
from durable_streams.server.http import BASE_HEADERS, STREAM_ROOT
from durable_streams.testing.proxy import NOTHING, Fault, RequestHead

__all__ = ["Faults", "answer"]


@dataclass
class _Armed:
    fault: Fault
    left: int | None
    path: str | None
    method: str | None

    def matches(self, method: str, path: str) -> bool:
        return self.path in (None, path) and self.method in (None, method)


class Faults:
    """The faults that the next requests to a server meet, in the order in which they were armed. Thread-safe."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []
        self._lock = threading.Lock()

    @property
    def pending(self) -> int:
        """The number of requests that are still to meet a fault; a fault for all requests counts once."""
        with self._lock:
            return sum(1 if armed.left is None else armed.left for armed in self._armed)

    def clear(self) -> None:
        """Remove all armed faults; a fault that a request has already met continues."""
        with self._lock:
            self._armed.clear()

    def respond(
        self,
        status: int,
        *,
        retry_after: float | str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        times: int | None = 1,
        path: str | None = None,
        method: str | None = None,
    ) -> None:
        """Answer with a status in the server's place: the request is not executed.

        Args:
            status: The HTTP status, from 200 to 599.
            retry_after: The ``Retry-After`` header: seconds, or its text; None for no such header.
            headers: Added to those of the server's own answers.
            body: The answer's body; None for the server's JSON for an error.
            times: How many requests meet the fault; None for all of them, until `clear`.
            path: Only requests for the stream at this path, as ``server.url`` takes it; None for any.
            method: Only requests with this method, such as ``"POST"``; None for any.

        Raises:
            ValueError: An argument is out of its range.
        """
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ValueError(f"status must be an HTTP status from 200 to 599, not {status!r}.")
        extra = {name.lower(): check_header(name, value) for name, value in (headers or {}).items()}
        if retry_after is not None:
            extra["retry-after"] = check_header("retry-after", str(retry_after))
        self._arm(Fault(copies=0, answer=answer(status, extra, body)), times, path, method)

    def cut(
        self,
        after: int | None = None,
        *,
        reset: bool = False,
        times: int | None = 1,
        path: str | None = None,
        method: str | None = None,
    ) -> None:
        """Let the request be executed, and cut off its answer.

        Args:
            after: How many bytes of the answer's body, as sent on the wire, get through; None: not even its head.
            reset: Whether the connection is reset instead of closed.
            times: How many requests meet the fault; None for all of them, until `clear`.
            path: Only requests for the stream at this path, as ``server.url`` takes it; None for any.
            method: Only requests with this method, such as ``"POST"``; None for any.

        Raises:
            ValueError: An argument is out of its range.
        """
        self._arm(
            Fault(after=_after(after), ending="reset" if reset else "close"),
            times,
            path,
            method,
        )

    def delay(
        self,
        seconds: float,
        *,
        times: int | None = 1,
        path: str | None = None,
        method: str | None = None,
    ) -> None:
        """Deliver the request late, even if its sender has given up on it by then.

        Args:
            seconds: How late.
            times: How many requests meet the fault; None for all of them, until `clear`.
            path: Only requests for the stream at this path, as ``server.url`` takes it; None for any.
            method: Only requests with this method, such as ``"POST"``; None for any.

        Raises:
            ValueError: An argument is out of its range.
        """
        self._arm(Fault(delay=_seconds(seconds)), times, path, method)

    def stall(
        self,
        after: int | None = None,
        *,
        seconds: float | None = None,
        times: int | None = 1,
        path: str | None = None,
        method: str | None = None,
    ) -> None:
        """Let the request be executed, and its answer fall silent on a connection that stays open.

        Args:
            after: How many bytes of the answer's body, as sent on the wire, come before; None: not even its head.
            seconds: After how long the answer continues; None for never.
            times: How many requests meet the fault; None for all of them, until `clear`.
            path: Only requests for the stream at this path, as ``server.url`` takes it; None for any.
            method: Only requests with this method, such as ``"POST"``; None for any.

        Raises:
            ValueError: An argument is out of its range.
        """
        silence = math.inf if seconds is None else _seconds(seconds)
        self._arm(Fault(after=_after(after), ending="stall", seconds=silence), times, path, method)

    def reset(self, *, times: int | None = 1, path: str | None = None, method: str | None = None) -> None:
        """Reset the connection: the request is not executed, which its sender cannot know.

        Args:
            times: How many requests meet the fault; None for all of them, until `clear`.
            path: Only requests for the stream at this path, as ``server.url`` takes it; None for any.
            method: Only requests with this method, such as ``"POST"``; None for any.

        Raises:
            ValueError: An argument is out of its range.
        """
        self._arm(Fault(upload=0, ending="reset"), times, path, method)

    def duplicate(
        self,
        *,
        answer: Literal["first", "second"] = "first",
        times: int | None = 1,
        path: str | None = None,
        method: str | None = None,
    ) -> None:
        """Deliver the request twice, the second time after the first was answered.

        Args:
            answer: Which of the two answers the sender gets. A network that repeats a request after the loss of
                its answer gives the second.
            times: How many requests meet the fault; None for all of them, until `clear`.
            path: Only requests for the stream at this path, as ``server.url`` takes it; None for any.
            method: Only requests with this method, such as ``"POST"``; None for any.

        Raises:
            ValueError: An argument is out of its range.
        """
        if answer not in ("first", "second"):
            raise ValueError(f"answer must be 'first' or 'second', not {answer!r}.")
        self._arm(Fault(copies=2, answered_by=int(answer == "second")), times, path, method)

    def take(self, head: RequestHead) -> Fault | None:
        """Return the fault that a request meets, which is used up by it."""
        if not self._armed:
            return None
        path = unquote(head.target.partition("?")[0])
        with self._lock:
            armed = next((armed for armed in self._armed if armed.matches(head.method, path)), None)
            if armed is None:
                return None
            if armed.left is not None:
                armed.left -= 1
                if not armed.left:
                    self._armed.remove(armed)
            return armed.fault

    def _arm(self, fault: Fault, times: int | None, path: str | None, method: str | None) -> None:
        if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
            raise ValueError(f"times must be a count from 1, or None for every request, not {times!r}.")
        full = None if path is None else STREAM_ROOT + unquote(path).lstrip("/")
        with self._lock:
            self._armed.append(_Armed(fault, times, full, method and method.upper()))


def _after(after: int | None) -> int:
    if after is None:
        return NOTHING
    if isinstance(after, bool) or not isinstance(after, int) or after < 0:
        raise ValueError(f"after must be a number of bytes from 0, or None, not {after!r}.")
    return after


def _seconds(seconds: float) -> float:
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"seconds must be a finite number from 0, not {seconds!r}.")
    return seconds


def answer(status: int, extra: Mapping[str, str], body: bytes | None = None) -> bytes:
    """Return an answer as the server would send it, with more headers, and by default its body for an error."""
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"
    headers = dict([*BASE_HEADERS, *NO_PAGE])
    if body is None and status >= 400:
        code = phrase.upper().replace(" ", "_").replace("-", "_").replace("'", "")
        error = error_response(status, code, "this answer is a fault that a test asked for", [])
        headers, body = dict([*error.headers, *NO_PAGE]), error.body if isinstance(error.body, bytes) else b""
    if status not in (204, 304):
        headers["content-length"] = str(len(body or b""))
    headers["date"] = formatdate(usegmt=True)
    lines = [
        f"HTTP/1.1 {status} {phrase}",
        *(f"{name}: {value}" for name, value in {**headers, **extra}.items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")
