"""What the scripted server says, byte by byte. Standard library only: either side's interpreter imports it."""

from __future__ import annotations

import json
import socket
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any, Literal

Reply = Callable[[socket.socket], None]
Coding = Literal["chunked", "plain", "gzip"]
Ending = Literal["end", "cut", "reset", "hold"]

HOLD = 30.0  # seconds that a connection is held at most


def record(number: int, **more: Any) -> bytes:
    """Return a record as a line."""
    return json.dumps({"data": {"id": str(number), "text": f"record {number}"}, **more}).encode() + b"\r\n"


def records(*numbers: int) -> bytes:
    return b"".join(record(number) for number in numbers)


def answer(status: int, body: bytes = b"", **headers: str) -> Reply:
    """A complete answer; ``x_name="..."`` is the header ``x-name``."""

    def reply(connection: socket.socket) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        _send_head(connection, status, {"content-length": str(len(body)), "connection": "close", **named})
        connection.sendall(body)
        raise ConnectionAbortedError

    return reply


def feed(*steps: bytes | float, coding: Coding = "chunked", ending: Ending = "end") -> Reply:
    """A stream: bytes are sent, each alone, numbers are seconds of silence; then it ends, breaks, or is held open."""

    def reply(connection: socket.socket) -> None:
        _send_head(connection, 200, {"content-type": "application/json", **_CODINGS[coding]})
        coder = zlib.compressobj(wbits=31)
        for step in steps:
            if isinstance(step, bytes):
                data = coder.compress(step) + coder.flush(zlib.Z_SYNC_FLUSH) if coding == "gzip" else step
                connection.sendall(_chunk(data) if coding != "plain" else data)
            else:
                time.sleep(step)
        if ending == "end" and coding != "plain":
            rest = coder.flush() if coding == "gzip" else b""
            connection.sendall((_chunk(rest) if rest else b"") + b"0\r\n\r\n")
        finish(connection, ending)

    return reply


def finish(connection: socket.socket, ending: Ending) -> None:
    """End a connection, or hold it until the other end goes."""
    if ending == "hold":
        connection.settimeout(HOLD)
        while connection.recv(4096):
            pass
    if ending == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise ConnectionAbortedError


_CODINGS: dict[str, dict[str, str]] = {
    "chunked": {"transfer-encoding": "chunked"},
    "plain": {"connection": "close"},
    "gzip": {"transfer-encoding": "chunked", "content-encoding": "gzip"},
}


def _send_head(connection: socket.socket, status: int, headers: dict[str, str]) -> None:
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers.items())]
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
