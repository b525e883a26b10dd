"""Sockets below the HTTP libraries: breaking one that a thread is blocked in, and noticing one whose peer is gone."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any

__all__ = ["KEEP_ALIVE", "break_off", "has_input", "keep_alive"]

_TIMES = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))

KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _TIMES
        if hasattr(socket, name)  # not every system has all of them
    ),
]
"""Options that end a connection two minutes after its peer has vanished, on idle connections too."""


def keep_alive(sock: Any) -> None:
    """Set `KEEP_ALIVE` on a socket, if it is one of TCP."""
    with contextlib.suppress(OSError, AttributeError):
        for option in KEEP_ALIVE:
            sock.setsockopt(*option)


def has_input(sock: Any) -> bool:
    """Whether there is something to read from a socket: data, its end, or an error. False if it is not a socket."""
    try:
        number = sock.fileno()
        if number < 0:
            return True
        if not hasattr(select, "poll"):
            return bool(select.select([number], [], [], 0)[0])
        poll = select.poll()
        poll.register(number, select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def break_off(sock: Any) -> None:
    """End a socket in both directions: unlike closing it, that wakes a thread that is blocked in it."""
    with contextlib.suppress(Exception):  # it may be over already
        if isinstance(sock, socket.socket):
            # Not SSLSocket.shutdown, which turns TLS off: the reader would then get the remaining bytes, encrypted.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)
