"""A TCP proxy that understands just enough of HTTP to let single requests meet a fault.

Invariants: what meets no fault passes byte for byte, with backpressure, half-closes and resets in both
directions; a request that meets one travels on an upstream connection of its own, after which the client's
connection ends; nothing of a connection outlives the client, the proxy or, where it has no fault, the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["NOTHING", "Fault", "Plan", "Proxy", "RequestHead"]

NOTHING = -(1 << 30)
"""``Fault.after`` for an answer of which not even the head gets through."""

_READ_SIZE = 64 * 1024
_HEAD_LIMIT = 256 * 1024
_HEAD_END = b"\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, and say so


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's head: ``raw`` as it came, header names in lower case."""

    raw: bytes
    method: str
    target: str
    headers: dict[str, str]

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def alone(self) -> bytes:
        """The head of the same request as the only one of its connection."""
        lines = self.raw.removesuffix(_HEAD_END).split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith((b"connection:", b"expect:"))]
        return b"\r\n".join([*kept, b"connection: close"]) + _HEAD_END


@dataclass(frozen=True, slots=True)
class Fault:
    """The treatment of one request and its answer, in this order; by default both pass unchanged.

    ``delay``: seconds before the request is delivered. ``upload``: bytes of it that are delivered before both
    connections break. ``copies``: how often it is delivered, one after the other, and ``answered_by``: the
    index of the copy whose answer counts. ``answer``: given in the server's place. ``pieces``: the most bytes
    that are written at once, 0 for as they come. ``after``: how many bytes of the answer, counted from the
    start of its body, come before its ``ending``. ``seconds``: how long an answer stalls before it goes on.
    """

    delay: float = 0.0
    upload: int | None = None
    copies: int = 1
    answered_by: int = 0
    answer: bytes | None = None
    pieces: int = 0
    after: int = NOTHING
    ending: Literal["whole", "close", "reset", "stall"] = "whole"
    seconds: float = math.inf


Plan = Callable[[RequestHead], Fault | None]
"""Names the fault that a request meets. Called on the proxy's event loop, once for each request."""


class Proxy:
    """Passes connections on to ``upstream``, which may be set later: until then they wait."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.upstream: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._closing = False

    async def open(self, listener: socket.socket) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=_HEAD_LIMIT)

    async def close(self) -> None:
        """End all connections and wait until they have ended."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0)  # a task that is cancelled before it began could not end its connection
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self.upstream.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:
            writer.transport.abort()
            return
        connection = asyncio.ensure_future(_Connection(self, _Side(reader, writer)).run())
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)


class _Side:
    """One side of a connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    async def send(self, data: bytes, pieces: int = 0) -> None:
        """Write, and wait while the other end takes no more."""
        for start in range(0, len(data), pieces or len(data) or 1):
            if self._writer.is_closing():
                raise ConnectionResetError
            self._writer.write(data[start : start + pieces] if pieces else data)
            await self._writer.drain()
            if pieces:
                await asyncio.sleep(0)  # else the event loop would join what is written in one turn

    def finish(self) -> None:
        """Announce the end of the output; input from the other end is still read."""
        if not self._writer.is_closing():
            with contextlib.suppress(OSError, RuntimeError):  # it went away meanwhile
                self._writer.write_eof()

    def close(self) -> None:
        """Close the connection, once all that was written is sent."""
        self._writer.close()

    async def ended(self) -> None:
        """Wait until it has ended."""
        with contextlib.suppress(OSError):
            # Shielded, because a cancelled wait could not be repeated.
            await asyncio.shield(asyncio.ensure_future(self._writer.wait_closed()))

    def reset(self) -> None:
        """Reset the connection."""
        if not self._writer.is_closing():
            with contextlib.suppress(OSError):
                opened = self._writer.get_extra_info("socket")
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()


class _Connection:
    """A client's connection: its requests one after the other, and the upstream connection they share."""

    def __init__(self, proxy: Proxy, client: _Side) -> None:
        self._proxy = proxy
        self._client = client
        self._upstream: _Side | None = None
        self._answers: asyncio.Task[None] | None = None
        self._sides = [client]

    async def run(self) -> None:
        """Serve the connection to its end."""
        try:
            await self._requests()
        except asyncio.IncompleteReadError as end:
            await self._no_more_requests(end.partial)
        except OSError:
            self._reset()
        except asyncio.CancelledError:
            self._reset()
            raise
        finally:
            await self._end()

    def _reset(self) -> None:
        for side in self._sides:
            side.reset()

    async def _end(self) -> None:
        # Closed before anything is waited for: the wait may be cancelled.
        if self._answers is not None:
            self._answers.cancel()
        for side in self._sides:
            side.close()
        try:
            await self._ended()
        except asyncio.CancelledError:
            self._reset()  # the data already written reaches no reader
            await self._ended()
            raise

    async def _ended(self) -> None:
        tasks = [] if self._answers is None else [self._answers]
        await asyncio.gather(*tasks, *(side.ended() for side in self._sides), return_exceptions=True)

    async def _requests(self) -> None:
        reader = self._client.reader
        while True:
            try:
                raw = await reader.readuntil(_HEAD_END)
            except asyncio.LimitOverrunError:
                raw = b""
            head = _parse(raw)
            if head is None:
                # No HTTP that could be understood: the server shall say so.
                await self._pass_on(raw)
                await self._copy(reader)
                return
            fault = self._proxy.plan(head)
            if fault is None:
                await self._pass_on(raw)
                async for part in _body(reader, head):
                    await self._pass_on(part)
            elif not await self._meet(fault, head):
                return

    async def _pass_on(self, data: bytes) -> None:
        if self._upstream is None:
            self._upstream = await self._connect()
            self._answers = asyncio.ensure_future(self._pass_back(self._upstream))
        await self._upstream.send(data)

    async def _copy(self, reader: asyncio.StreamReader) -> None:
        while part := await reader.read(_READ_SIZE):
            await self._pass_on(part)
        await self._no_more_requests(b"")

    async def _no_more_requests(self, rest: bytes) -> None:
        """Pass on the end of the client's output; the answer may still be on its way."""
        with contextlib.suppress(OSError):
            if rest:
                await self._pass_on(rest)
            if self._upstream is not None and self._answers is not None:
                self._upstream.finish()
                await self._answers

    async def _pass_back(self, upstream: _Side) -> None:
        try:
            while data := await upstream.reader.read(_READ_SIZE):
                await self._client.send(data)
        except OSError:
            self._client.reset()
        else:
            self._client.finish()

    async def _connect(self) -> _Side:
        host, port = await asyncio.shield(self._proxy.upstream)
        side = _Side(*await asyncio.open_connection(host, port, limit=_HEAD_LIMIT))
        self._sides.append(side)
        return side

    # -- faults

    async def _meet(self, fault: Fault, head: RequestHead) -> bool:
        """Let a request meet its fault; return whether the connection can take another one."""
        if "expect" in head.headers:
            await self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join([part async for part in _body(self._client.reader, head)])
        await asyncio.sleep(fault.delay)
        request = head.alone + body
        if fault.upload is not None:
            await self._break_off(request[: fault.upload], fault)
            return False
        answers = []
        for _ in range(fault.copies):
            upstream = await self._connect()
            await upstream.send(request, fault.pieces)
            answering = upstream.reader.readuntil(_HEAD_END)
            # What is late is executed even if its sender has gone, so that its connection has to last.
            answers.append((upstream, await (answering if fault.delay else self._while_connected(answering))))
        if fault.answer is None:
            await self._while_connected(self._answer(*answers[fault.answered_by], fault))
            return False
        whole = fault.answer if head.method != "HEAD" else fault.answer.partition(_HEAD_END)[0] + _HEAD_END
        await self._client.send(whole, fault.pieces)
        return True

    async def _break_off(self, sent: bytes, fault: Fault) -> None:
        if sent:
            upstream = await self._connect()
            await upstream.send(sent, fault.pieces)
        if fault.ending == "reset":
            raise ConnectionResetError

    async def _answer(self, upstream: _Side, head: bytes, fault: Fault) -> None:
        if fault.ending == "whole":
            await self._give(upstream, head, fault.pieces)
            return
        rest = await self._give(upstream, head, fault.pieces, max(0, len(head) + fault.after))
        if fault.ending == "reset":
            self._client.reset()
        elif fault.ending == "stall":
            await (asyncio.sleep(fault.seconds) if math.isfinite(fault.seconds) else asyncio.Event().wait())
            await self._give(upstream, rest or await upstream.reader.read(_READ_SIZE), fault.pieces)

    async def _give(self, upstream: _Side, first: bytes, pieces: int, most: float = math.inf) -> bytes:
        """Send the client at most this many bytes of an answer; return what was read beyond them."""
        data = first
        while data and most > 0:
            now, data = (data, b"") if len(data) <= most else (data[: int(most)], data[int(most) :])
            await self._client.send(now, pieces)
            most -= len(now)
            if not data and most > 0:
                data = await upstream.reader.read(_READ_SIZE)
        return data

    async def _while_connected(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what ``work`` returns; raises ConnectionAbortedError once the client has gone."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._client.reader.read(1))
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ConnectionAbortedError
            return working.result()
        finally:
            for task in (working, gone):
                task.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)


def _parse(raw: bytes) -> RequestHead | None:
    """Return a request's head, None for bytes that are no head."""
    first, *lines = raw.removesuffix(_HEAD_END).decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if not headers.get("content-length", "0").isdigit():
        return None
    return RequestHead(raw, words[0], words[1], headers)


async def _body(reader: asyncio.StreamReader, head: RequestHead) -> AsyncIterator[bytes]:
    """Yield a request's body in the form in which it is sent on the wire."""
    if not head.chunked:
        async for part in _exactly(reader, int(head.headers.get("content-length", "0"))):
            yield part
        return
    while True:
        line = await reader.readuntil(b"\r\n")
        yield line
        size = _chunk_size(line)
        if not size:
            break
        async for part in _exactly(reader, size + 2):
            yield part
    while line != b"\r\n":  # trailers
        line = await reader.readuntil(b"\r\n")
        yield line


def _chunk_size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise ConnectionAbortedError from None  # what follows cannot be understood


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        part = await reader.read(min(size, _READ_SIZE))
        if not part:
            raise asyncio.IncompleteReadError(b"", size)
        yield part
        size -= len(part)
