"""A Unix socket in front of the HTTP server: who may open a file may ask.

Granian takes connections of a Unix socket, but does not say which of them a request came through: what a client has
not taken could not be bounded (`peers`). So each connection goes on to an own one of the loopback, which has a name,
and the server answers no other one there.

Invariants: a connection holds a few hundred KiB at most, whatever its client does; a file that is no socket, or that
another server listens at, stays as it is, at the end too; the own file is gone after the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from durable_streams.server.listener import BACKLOG, ServerStartError

__all__ = ["Front"]

_PIECE = 64 << 10  # bytes
_PROBE = 1.0  # seconds for a connection to a server that may listen already


class Front:
    """The connections of a Unix socket.

    Attributes:
        peers: The names under which the HTTP server sees them.

    Args:
        path: The socket.
        mode: The permissions of its file.
        patience: Seconds that a client may take nothing.
    """

    def __init__(self, path: Path, mode: int, patience: float) -> None:
        self.peers: set[str] = set()
        self._path = path
        self._mode = mode
        self._patience = patience
        self._listener: socket.socket | None = None
        self._file: tuple[int, int] | None = (
            None  # which one is ours: another server may have put its own there
        )
        self._server: asyncio.Server | None = None
        self._to: tuple[str, int] = ("", 0)
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen at the socket within the block; raises ServerStartError."""
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                self._listen(listener)
                self._listener = listener
                yield
            finally:
                self._remove()

    def _listen(self, listener: socket.socket) -> None:
        try:
            self._make_room()
            before = os.umask(0o177)  # nobody else from the first moment on
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(before)
            self._file = _identity(self._path)
            self._path.chmod(self._mode)
            listener.listen(BACKLOG)
        except (OSError, ServerStartError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ServerStartError(
                f"cannot listen at {self._path}: {reason}; choose another path for --uds"
            ) from error

    def _make_room(self) -> None:
        """Remove the file of a server that ended without doing so; raises ServerStartError for any other one."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise ServerStartError("it is a file")
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_PROBE)
                try:
                    probe.connect(str(self._path))
                except ConnectionRefusedError:
                    self._path.unlink()
                except (TimeoutError, BlockingIOError):  # its queue is full
                    raise ServerStartError("a server listens there") from None
                else:
                    raise ServerStartError("a server listens there")

    async def start(self, to: tuple[str, int]) -> None:
        """Take connections, and pass them on to an address."""
        self._to = to
        self._server = await asyncio.start_unix_server(self._pass_on, sock=self._listener, limit=_PIECE)

    async def stop(self) -> None:
        """End what is left of the connections, and remove the file."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            if self._file is not None and _identity(self._path) == self._file:
                self._path.unlink()
        self._file = None

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        self._tasks.add(task)
        peer = ""
        try:
            answers, requests, peer = await self._connected()
            sending = asyncio.ensure_future(_copy(reader, requests, None))
            try:
                # What ends it is the server: a client that has said all may still be answered.
                await _copy(answers, writer, self._patience)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                requests.close()
        except (OSError, asyncio.TimeoutError, asyncio.CancelledError):
            writer.transport.abort()  # one of the two is gone, takes nothing, or the server ends
        finally:
            writer.close()
            self.peers.discard(peer)
            self._tasks.discard(task)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        inner = socket.socket(socket.AF_INET)
        try:
            inner.setblocking(False)
            # What this end has taken counts as taken by the client, so that it must not be much.
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
            await asyncio.get_running_loop().sock_connect(inner, self._to)
            host, port = inner.getsockname()
            peer = f"{host}:{port}"
            self.peers.add(peer)
            reader, writer = await asyncio.open_connection(sock=inner, limit=_PIECE)
        except BaseException:
            inner.close()
            raise
        return reader, writer, peer


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float | None) -> None:
    """Pass on what comes until it ends; raises TimeoutError after ``patience`` seconds in which nothing is taken."""
    while data := await reader.read(_PIECE):
        writer.write(data)
        if writer.transport.get_write_buffer_size():
            await asyncio.wait_for(writer.drain(), patience)
    with contextlib.suppress(OSError):
        writer.write_eof()
