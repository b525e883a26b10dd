"""A raw HTTP/1.1 connection: sends bytes as they are, reads answers strictly, and never waits without end."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from dataclasses import dataclass

__all__ = ["HangError", "NotHTTPError", "RawAnswer", "Wire"]

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n\x00]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\x00]*)")
_BODILESS = frozenset({204, 304})
_RESET = struct.pack("ii", 1, 0)


class NotHTTPError(Exception):
    """What the server sent is no HTTP answer."""


class HangError(Exception):
    """The server neither answered nor closed the connection in time."""


class _ClosedError(Exception):
    """The connection has ended."""


@dataclass(frozen=True)
class RawAnswer:
    """One answer; header names in lower case, each with all its values; ``whole``: the body was not cut off."""

    status: int
    headers: dict[str, list[str]]
    body: bytes
    whole: bool

    def header(self, name: str) -> str | None:
        values = self.headers.get(name)
        return values[0] if values else None


class Wire:
    """One connection, with a deadline for all that happens on it."""

    def __init__(self, port: int, within: float) -> None:
        self._deadline = time.monotonic() + within
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=within)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.ended = False

    def send(self, content: bytes) -> None:
        """Send bytes; that the server has closed meanwhile is seen when its answer is read."""
        with contextlib.suppress(ConnectionError):
            self._socket.settimeout(self._left())
            try:
                self._socket.sendall(content)
            except TimeoutError:
                raise HangError("the server takes no more bytes") from None

    def half_close(self) -> None:
        """Say that nothing more comes."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave without a word."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def answer(self, method: str) -> RawAnswer | None:
        """Return the next final answer, None if the connection ends without one."""
        while True:
            try:
                head = self._until(b"\r\n\r\n")
            except _ClosedError:
                if self._buffer:
                    raise NotHTTPError(f"the answer ends in its head: {self._buffer[:200]!r}") from None
                return None
            status, headers = _parsed(head)
            if status >= 200:
                body, whole = self._body(method, status, headers)
                return RawAnswer(status, headers, body, whole)

    def drained(self) -> bool:
        """Read until the server closes; whether it sent more than was read before."""
        more = bool(self._buffer)
        with contextlib.suppress(_ClosedError):
            while True:
                self._receive()
                more = True
        return more

    def _body(self, method: str, status: int, headers: dict[str, list[str]]) -> tuple[bytes, bool]:
        lengths, codings = headers.get("content-length", []), headers.get("transfer-encoding", [])
        if len(lengths) + len(codings) > 1:
            raise NotHTTPError(f"the answer is framed more than once: {lengths} {codings}")
        if method == "HEAD" or status in _BODILESS:
            return b"", True
        try:
            if codings:
                return self._chunks(), True
            if lengths:
                return self._exactly(int(lengths[0])), True
        except _ClosedError:
            body, self._buffer = self._buffer, b""
            return body, False
        with contextlib.suppress(_ClosedError):
            while True:
                self._receive()
        body, self._buffer = self._buffer, b""
        return body, True

    def _chunks(self) -> bytes:
        parts = []
        while True:
            line = self._until(b"\r\n")
            if line.startswith(b"HTTP/1.1 400 "):
                raise _ClosedError  # Uvicorn refuses a request behind this one in the middle of its answer
            size = int(line, 16)
            if not size:
                break
            parts.append(self._exactly(size))
            if self._exactly(2) != b"\r\n":
                raise NotHTTPError("a chunk of the answer does not end where it should")
        while self._until(b"\r\n"):
            pass
        return b"".join(parts)

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._receive()
        content, self._buffer = self._buffer[:size], self._buffer[size:]
        return content

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._receive()
        content, self._buffer = self._buffer.split(mark, 1)
        return content

    def _receive(self) -> None:
        if self.ended:
            raise _ClosedError
        try:
            self._socket.settimeout(self._left())
            part = self._socket.recv(1 << 16)
        except TimeoutError:
            raise HangError("the server neither answers nor closes the connection") from None
        except ConnectionError:
            part = b""
        if not part:
            self.ended = True
            raise _ClosedError
        self._buffer += part

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise HangError("the answer does not end")
        return left


def _parsed(head: bytes) -> tuple[int, dict[str, list[str]]]:
    line, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(line)
    if status is None:
        raise NotHTTPError(f"no status line: {line[:200]!r}")
    headers: dict[str, list[str]] = {}
    for one in lines:
        header = _HEADER.fullmatch(one)
        if header is None:
            raise NotHTTPError(f"no header: {one[:200]!r}")
        headers.setdefault(header[1].decode().lower(), []).append(header[2].decode("latin-1").strip())
    return int(status[1]), headers
