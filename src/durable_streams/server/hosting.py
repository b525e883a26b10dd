"""The end of the ASGI server that the application runs under.

ASGI tells of it in the lifespan only, and there it comes when every request is answered: a live read would hold the
server up for as long as it lasts. But each server first stops to listen, so the sockets that it listens on are watched.

Invariants: nothing of the server's is touched, held or replaced; a look costs one call for each socket, and there are
looks only while a request is open; a server that listens again, or whose sockets cannot be found, is served as before.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from durable_streams.server.peers import OPEN_FILES

__all__ = ["Listening", "ServerWatch", "listening"]

_TICK = 0.1  # seconds between looks at the listening sockets
_FIRST_PAUSE = 1.0  # seconds between two searches for them, doubled as long as there are none
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class Listening:
    """A socket that this process listens on: its file, and the address as text."""

    number: int
    identity: tuple[int, int]
    address: str

    @property
    def goes_on(self) -> bool:
        """Whether the file is still that socket."""
        return _identity(self.number) == self.identity


def listening(server: Any) -> list[Listening]:
    """Return the sockets that this process listens on at an address as ASGI writes it, a host or path and a port."""
    found = []
    for name in os.listdir(OPEN_FILES):  # noqa: PTH208 - thousands of names, no paths
        number = int(name)
        identity = _identity(number)
        address = None if identity is None else _listens_at(number)
        if identity is not None and address is not None and _is_meant(address, server):
            shown = ":".join(map(str, address[:2])) if isinstance(address, tuple) else str(address)
            found.append(Listening(number, identity, shown))
    return found


def _identity(number: int) -> tuple[int, int] | None:
    try:
        state = os.fstat(number)
    except OSError:
        return None
    return (state.st_dev, state.st_ino) if stat.S_ISSOCK(state.st_mode) else None


def _listens_at(number: int) -> Any:
    try:
        with socket.socket(fileno=os.dup(number)) as found:
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return found.getsockname()
    except OSError:  # closed meanwhile, or a kind of socket that says no such thing
        pass
    return None


def _is_meant(address: Any, server: Any) -> bool:
    if server is None:
        return True
    if server[1] is None:
        return bool(address == server[0])
    return isinstance(address, tuple) and str(address[1]) == str(server[1])  # Granian writes the port as text


class ServerWatch:
    """Calls ``on_end`` when the server stops to listen, and ``on_return`` if it listens again.

    ``begun`` and ``ended`` are called around each request, on the event loop.
    """

    def __init__(self, on_end: Callable[[], None], on_return: Callable[[], None]) -> None:
        self._on_end = on_end
        self._on_return = on_return
        self._open = 0
        self._tick: asyncio.TimerHandle | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the server: the application starts, perhaps under another one."""
        self._sockets: list[Listening] = []
        self._search_at, self._pause = 0.0, _FIRST_PAUSE
        self._server_ended = False
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None

    @property
    def addresses(self) -> list[str]:
        """Where the server listens; empty before the first request, or where the addresses cannot be found."""
        return [found.address for found in self._sockets]

    def begun(self, server: Any) -> None:
        """Note that a request has begun, which came in at the server's address."""
        self._open += 1
        if self._tick is None:
            if not self._sockets:
                self._search(server)
            if self._sockets:
                self._tick = asyncio.get_running_loop().call_later(_TICK, self._look)

    def ended(self) -> None:
        """Note that a request is answered, or its client gone."""
        self._open -= 1

    def _search(self, server: Any) -> None:
        now = time.monotonic()
        if now < self._search_at:
            return
        self._sockets = listening(server)
        self._search_at = now + self._pause
        self._pause = _FIRST_PAUSE if self._sockets else min(self._pause * 2, _LONGEST_PAUSE)
        if self._sockets and self._server_ended:
            self._server_ended = False
            self._on_return()

    def _look(self) -> None:
        self._tick = None
        # One is enough: a server that was given its socket may leave the file open that it was given.
        if not all(found.goes_on for found in self._sockets):
            self._sockets = []
            self._server_ended = True
            self._search_at = time.monotonic() + _FIRST_PAUSE
            self._on_end()
        elif self._open > 0:
            self._tick = asyncio.get_running_loop().call_later(_TICK, self._look)
