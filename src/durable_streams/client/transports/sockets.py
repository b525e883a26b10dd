"""Breaking a connection that another thread is blocked in."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

__all__ = ["break_off"]


def break_off(sock: Any) -> None:
    """End a socket in both directions: unlike closing it, that wakes a thread that is blocked in it."""
    with contextlib.suppress(Exception):  # it may be over already
        if isinstance(sock, socket.socket):
            # Not SSLSocket.shutdown, which turns TLS off: the reader would be handed what is left, encrypted.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)
