"""Connections of http.client, on which urllib3 and requests stand, held to HTTP/1.1 (RFC 9112).

Invariants: an answer's head counts only if it came to its end; interim answers (1xx) are read past, and a change of
the protocol is an error; a connection is used again only if the last answer on it ended where its head says, with
nothing behind it; where the system took no byte of a request, `was_sent` says so; a head that trickles in ends at
the deadline that its request was begun with.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import threading
import time
import weakref
from functools import lru_cache
from typing import Any

from urllib3 import PoolManager

from durable_streams.client.forks import leave_alone
from durable_streams.client.transports.heads import ends_its_connection
from durable_streams.client.transports.sockets import break_off

__all__ = [
    "WatchedConnection",
    "WholeAnswer",
    "forget_connections",
    "trickled",
    "was_sent",
    "watch",
    "watching",
]

_MOST_INTERIM = 100
"""Interim answers before one request's answer; no server has that many to give."""

_SWITCHING = 101
_FRAMING = frozenset({"content-length", "transfer-encoding"})

_PLAIN_HEADERS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n){1,99}(?=\r\n)")
"""As many headers as http.client takes, none of them folded, or in any way to be put right."""
_DECIDES = _FRAMING | {"connection", "keep-alive", "proxy-connection"}
"""The headers by which http.client tells where an answer ends, and whether its connection does."""

_current = threading.local()


class _Head:
    """An answer's lines, complete ones only: http.client would take half a line for the whole, half an offset say."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._began = False
        self._deadline = getattr(_current, "deadline", None) if hasattr(file, "peek") else None
        self._ready = 0  # whole lines that the file holds already

    def readline(self, limit: int) -> bytes:
        line: bytes
        if self._deadline is None:
            line = self._file.readline(limit)
        elif self._ready:
            self._ready -= 1
            line = self._file.readline(limit)
        else:
            line = self._waited_for(limit)
        if not line.endswith(b"\n") and len(line) < limit and (line or self._began):
            raise http.client.IncompleteRead(line)
        self._began = True
        return line

    def _waited_for(self, limit: int) -> bytes:
        """Return the next line, with a look at the clock between any two pieces that come in."""
        line = b""
        while True:
            held: bytes = self._file.peek(1)
            end = held.find(b"\n", 0, limit - len(line)) + 1
            piece: bytes = self._file.read(end or min(len(held), limit - len(line)))
            line += piece
            if end or not held or len(line) >= limit:
                self._ready = held.count(b"\n", end)
                return line
            if self._deadline is not None and time.monotonic() > self._deadline:
                _current.trickled = True
                raise http.client.HTTPException("the head of the answer trickles in")

    def plain_headers(self) -> list[tuple[str, str]] | None:
        """Return the headers, if they are in the file already and nothing is odd about them; None otherwise."""
        found = _PLAIN_HEADERS.match(self._file.peek(1)) if self._ready else None
        if found is None:
            return None
        self._file.read(found.end() + len(b"\r\n"))
        lines = found[0].decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines[:-1])
        return [(name, value.strip(" \t")) for name, _, value in fields]

    def close(self) -> None:
        self._file.close()


class WholeAnswer(http.client.HTTPResponse):
    """An answer with a whole head, behind all interim ones, that knows whether bytes followed it."""

    fp: Any
    _method: str

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._sock = sock
        self._plain: list[tuple[str, str]] | None = None

    def begin(self) -> None:
        """Read the head."""
        file = self.fp
        self.fp = _Head(file)
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = file
        if self._plain is not None:
            self.headers = self.msg = _message(self._plain)
        self._check_framing()

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MOST_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status == _SWITCHING:
                raise http.client.HTTPException("the server switched to another protocol, unasked")
            if not 100 <= status < 200:
                # A tunnel through a proxy reads the status only.
                self._plain = self.fp.plain_headers() if isinstance(self.fp, _Head) else None
                if self._plain is not None:
                    # The parser of mail that http.client uses takes longer than all the rest of an exchange.
                    self.fp = _lines_of(self._plain)
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException("interim answers without end")

    def _check_framing(self) -> None:
        """Refuse a framing that http.client would misread; end the connection after a doubtful one."""
        if not any(name.lower() in _FRAMING for name in self.headers.keys()):  # noqa: SIM118 - no mapping
            return
        coding, length = _joined(self, "transfer-encoding"), _joined(self, "content-length")
        if self.status in {204, 304}:
            self.chunked = False  # nothing is waited for: there is no body
        elif self._method != "HEAD" and length is not None and not _is_size(length):
            raise http.client.HTTPException(f"the content-length of the answer is {length!r}")
        if ends_its_connection(self.status, length, coding):
            self.will_close = True

    def _close_conn(self) -> None:
        if not self.will_close and _has_more(self.fp, self._sock):
            break_off(self._sock)  # so that the pool finds it dead
        super()._close_conn()  # type: ignore[misc]


def _lines_of(headers: list[tuple[str, str]]) -> io.BytesIO:
    """Return the part of a head that http.client has to read."""
    lines = [f"{name}: {value}\r\n" for name, value in headers if name.lower() in _DECIDES]
    return io.BytesIO("".join([*lines, "\r\n"]).encode("latin-1"))


def _message(headers: list[tuple[str, str]]) -> http.client.HTTPMessage:
    """Return what the parser of http.client makes of these headers."""
    message = http.client.HTTPMessage()
    for name, value in headers:
        message.set_raw(name, value)
    message.set_payload("")
    return message


def _joined(answer: http.client.HTTPResponse, name: str) -> str | None:
    lines = answer.headers.get_all(name)
    return None if lines is None else ", ".join(line.strip() for line in lines)


def _is_size(text: str) -> bool:
    """Whether it is one number, however often it is said."""
    sizes = {part.strip() for part in text.split(",")}
    return len(sizes) == 1 and all(size.isascii() and size.isdigit() for size in sizes)


def _has_more(file: Any, sock: Any) -> bool:
    """Whether something is left at the end of an answer where a look at the system's socket does not find it.

    The file is of no use afterwards: it gets nothing more from the socket.
    """
    try:
        file.raw.readinto = _nothing
        if file.peek(1):
            return True
    except (OSError, ValueError, AttributeError):
        pass  # it is closed, or no file of a socket
    pending = getattr(sock, "pending", None)  # of TLS
    try:
        return pending is not None and bool(pending())
    except (OSError, ValueError):
        return True  # it is broken


def _nothing(_buffer: Any) -> None:
    """Stand in for reading from a socket that has nothing at present."""


class WatchedConnection:
    """Mixed into a connection of http.client: reads `WholeAnswer`, and notes what cannot have been sent."""

    sock: Any
    response_class: Any = WholeAnswer
    _is_first = False
    _is_used = False
    _is_unsent = False

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request."""
        self._is_first, self._is_unsent = True, False
        super().request(*args, **kwargs)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        """Send a piece of it."""
        if self._is_first and isinstance(data, bytes):
            self._is_first = False
            data = self._begun(data)
        if data:
            super().send(data)  # type: ignore[misc]

    def _begun(self, data: bytes) -> Any:
        """Send a part of the first piece; return the rest of it."""
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        try:
            count = self.sock.send(data)
        except OSError:
            self._is_unsent = _current.unsent = True
            raise
        _current.left = True
        return memoryview(data)[count:] if count < len(data) else None

    def getresponse(self, *args: Any, **kwargs: Any) -> Any:
        """Return the answer to it."""
        if self._is_used and self._is_unsent:
            # Urllib3 looks for an answer even so; on a connection that was used before it would be another's.
            raise http.client.RemoteDisconnected("the connection had ended")
        response = super().getresponse(*args, **kwargs)  # type: ignore[misc]
        self._is_used = self.sock is not None
        return response

    def close(self) -> None:
        """End the connection; another request opens it again."""
        self._is_used = False
        super().close()  # type: ignore[misc]


def watching(limit: float | None) -> None:
    """Begin a request in this thread, of any number of attempts. ``limit``: seconds until its answer's head comes."""
    _current.unsent = _current.left = _current.trickled = False
    _current.deadline = None if limit is None else time.monotonic() + limit


def trickled() -> bool:
    """Whether the head of the last answer to the request that this thread has begun took too long."""
    return getattr(_current, "trickled", False)


def was_sent() -> bool:
    """Whether any byte of the request that this thread has begun may have left; True where it cannot be known."""
    return getattr(_current, "left", False) or not getattr(_current, "unsent", False)


@lru_cache(maxsize=64)
def _watched(kind: Any) -> Any:
    """Return a subclass of a class of connections that is watched, or the class itself if it reads in its own way."""
    if not isinstance(kind, type) or not issubclass(kind, http.client.HTTPConnection):
        return kind
    if issubclass(kind, WatchedConnection) or kind.response_class is not http.client.HTTPResponse:
        return kind
    return type(kind.__name__, (WatchedConnection, kind), {})


_managers: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(manager: PoolManager) -> None:
    """Make a manager's connections `WatchedConnection`, those that it has and those that it will make."""
    if manager in _managers:
        return
    _managers.add(manager)
    kinds: dict[str, Any] = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {
        scheme: type(kind.__name__, (kind,), {"ConnectionCls": _watched(kind.ConnectionCls)})
        for scheme, kind in kinds.items()
    }
    for key in manager.pools.keys():  # noqa: SIM118 - it is not iterable
        pool: Any = manager.pools.get(key)
        if pool is None or pool.pool is None:
            continue
        pool.ConnectionCls = _watched(pool.ConnectionCls)
        for connection in list(pool.pool.queue):
            if getattr(connection, "response_class", None) is http.client.HTTPResponse:
                connection.response_class = WholeAnswer


def forget_connections(manager: PoolManager) -> None:
    """Give a manager fresh pools, after a fork: the locks of its old ones may be held by threads of the parent."""
    old = manager.pools
    leave_alone(old)
    manager.pools = type(old)(old._maxsize)  # noqa: SLF001
