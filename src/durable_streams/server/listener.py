"""The socket that a server listens on, and what every connection that it accepts inherits."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from durable_streams.server.config import ServerConfig

__all__ = ["BACKLOG", "ServerStartError", "limit_unsent", "listen"]

BACKLOG = 1024
"""Connections that may wait to be accepted."""

_UNSENT_BYTES = 128 << 10
"""Bytes that the kernel takes beyond those on their way: a client that does not read would cost it megabytes."""


class ServerStartError(Exception):
    """The server cannot start. The message is one sentence for the operator."""


@contextlib.contextmanager
def listen(config: ServerConfig) -> Iterator[socket.socket]:
    """Listen where ``config`` says; raises ServerStartError for an address that cannot be listened on."""
    family, address = _resolve(config.host, config.port)
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ServerStartError(f"{config.host} cannot be listened on: {error.strerror}") from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            _set_inherited(listener, config.send_timeout)
            listener.listen(BACKLOG)
        except OSError as error:
            advice = "choose another port, 0 for a free one"
            if error.errno == errno.EADDRNOTAVAIL:
                advice = "choose an address of this machine"
            raise ServerStartError(
                f"cannot listen on {config.host}:{config.port}: {error.strerror}; {advice}"
            ) from error
        listener.setblocking(False)
        yield listener


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ServerStartError(f"{host} is no address of this machine: {error.strerror}") from error
    return family, (str(address[0]), port)


def _set_inherited(listener: socket.socket, send_timeout: float) -> None:
    """Set what accepted connections inherit; where a system lacks an option, docs/limits.md says what holds."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # The kernel ends a connection whose client takes nothing for that long.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(send_timeout * 1000)))
    limit_unsent(listener)


def limit_unsent(connection: socket.socket) -> None:
    """Let the kernel take no more for a connection, or for those that are accepted, than it needs to keep it busy."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
