"""The feed behind the imitated filtered stream: its connections, what each has still to get, and its past.

Invariants: used on one event loop only; a line goes to all connections in the order of publishing; backfill and
what is published meanwhile join without a gap.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

__all__ = ["LONGEST_BACKFILL", "Ending", "Feed", "RateLimit"]

LONGEST_BACKFILL = 5  # minutes
Ending = Literal["regular", "cut", "reset"]
"""Of an answer: as it should be; of its connection, in the middle of the answer; or broken."""

_HEARTBEAT = b"\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, and say so


@dataclass(frozen=True, slots=True)
class _End:
    """What a connection ends with: bytes, then as ``how`` says."""

    last: bytes
    how: Ending


@dataclass(eq=False, slots=True)
class _Reader:
    """One open connection."""

    queue: asyncio.Queue[bytes | _End] = field(default_factory=asyncio.Queue)
    flowing: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self, within: float) -> bytes | _End:
        """Return what is to be sent next: a heartbeat after this many seconds without a record."""
        try:
            return await asyncio.wait_for(self.queue.get(), within)
        except asyncio.TimeoutError:
            return _HEARTBEAT


class Feed:
    """Published posts and their connections. ``heartbeat``, ``minute`` and ``overlap`` are in seconds."""

    def __init__(
        self, *, heartbeat: float, connections: int, minute: float, overlap: float, compress: bool
    ) -> None:
        self.readers: set[_Reader] = set()
        self._heartbeat = heartbeat
        self._connections = connections
        self._minute = minute
        self._overlap = overlap
        self._compress = compress
        self._history: deque[tuple[float, bytes]] = deque()
        self._left: float | None = None
        self._waiting: set[asyncio.Event] = set()

    @property
    def full(self) -> bool:
        """Whether no further connection is allowed."""
        return len(self.readers) >= self._connections

    def publish(self, lines: Iterable[bytes]) -> None:
        """Give these lines to all connections, and keep them for backfill."""
        now = time.monotonic()
        for line in lines:
            self._history.append((now, line))
            for reader in self.readers:
                reader.queue.put_nowait(line)
        while self._history and self._history[0][0] < now - LONGEST_BACKFILL * self._minute:
            self._history.popleft()

    def end(self, last: bytes, how: Ending) -> None:
        """End all connections once they got what was published, and ``last``; also those that are stalled."""
        for reader in self.readers:
            reader.queue.put_nowait(_End(last, how))
            reader.flowing.set()

    def stall(self) -> None:
        """Send nothing more on the connections of now."""
        for reader in self.readers:
            reader.flowing.clear()

    async def wait(self, met: Callable[[int], bool], seconds: float) -> None:
        """Wait until the number of connections meets this; raises TimeoutError."""

        async def until() -> None:
            while not met(len(self.readers)):
                changed.clear()
                await changed.wait()

        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            await asyncio.wait_for(until(), seconds)
        except asyncio.TimeoutError:
            raise TimeoutError(
                f"After {seconds:g} seconds there were {len(self.readers)} connections."
            ) from None
        finally:
            self._waiting.discard(changed)

    async def serve(
        self, request: web.Request, minutes: int, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Answer with the stream, beginning with this many minutes of backfill, until it ends or is abandoned."""
        reader = _Reader()
        reader.flowing.set()
        for line in self._missed(minutes):
            reader.queue.put_nowait(line)
        self._set(reader, joined=True)
        try:
            response = web.StreamResponse(
                headers={"Content-Type": "application/json; charset=utf-8", **headers}
            )
            body = (_Gzip if self._compress and _accepts_gzip(request) else _Plain)(response)
            await response.prepare(request)
            await self._send(reader, request, body)
        finally:
            self._left = time.monotonic()
            self._set(reader, joined=False)
        return response

    async def _send(self, reader: _Reader, request: web.Request, body: _Plain) -> None:
        while True:
            item = await reader.next(self._heartbeat)
            await reader.flowing.wait()
            if isinstance(item, bytes):
                await body.write(item)
                continue
            if item.last:
                await body.write(item.last)
            if item.how == "regular":
                await body.finish()
            elif request.transport is not None:
                _break(request.transport, reset=item.how == "reset")
            return

    def _missed(self, minutes: int) -> Iterator[bytes]:
        if self._left is None:
            return
        since = max(time.monotonic() - minutes * self._minute, self._left - self._overlap)
        yield from (line for published, line in self._history if published >= since)

    def _set(self, reader: _Reader, *, joined: bool) -> None:
        (self.readers.add if joined else self.readers.discard)(reader)
        for changed in self._waiting:
            changed.set()


class RateLimit:
    """A number of requests in a window of some seconds, which begins with the first of them."""

    def __init__(self, most: int, window: float) -> None:
        self._most = most
        self._window = window
        self._left = most
        self._reset = 0.0

    def take(self) -> tuple[bool, dict[str, str]]:
        """Return whether a request is within the limit, and the headers that tell."""
        now = time.time()
        if now >= self._reset:
            self._left, self._reset = self._most, now + self._window
        allowed = self._left > 0
        self._left -= allowed
        return allowed, {
            "x-rate-limit-limit": str(self._most),
            "x-rate-limit-remaining": str(self._left),
            "x-rate-limit-reset": str(math.ceil(self._reset)),
        }


def _accepts_gzip(request: web.Request) -> bool:
    return "gzip" in request.headers.get("Accept-Encoding", "").lower()


class _Plain:
    """Writes a body as it is."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response

    async def write(self, data: bytes) -> None:
        await self._response.write(data)

    async def finish(self) -> None:
        """Write what belongs to the regular end."""


class _Gzip(_Plain):
    """Writes it compressed, so that every line can be decoded as soon as its bytes are there."""

    def __init__(self, response: web.StreamResponse) -> None:
        super().__init__(response)
        response.headers["Content-Encoding"] = "gzip"
        self._coder = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)

    async def write(self, data: bytes) -> None:
        await super().write(self._coder.compress(data) + self._coder.flush(zlib.Z_SYNC_FLUSH))

    async def finish(self) -> None:
        await super().write(self._coder.flush())


def _break(transport: asyncio.Transport, *, reset: bool) -> None:
    if reset:
        opened = transport.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()
    else:
        transport.close()
