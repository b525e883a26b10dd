"""The kernel's view of a connection: how much of what was written has left the process, and the end of it.

The HTTP server owns the sockets and does not say how much waits in front of one. The kernel does: a socket is found by
the address of its peer among the open files of the process, asked, and never held.

Invariants: a file number is checked against its peer before each use, for another thread may have closed it; a look at
all open files takes at most a tenth of the time, however many connections ask for one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

from durable_streams.server.listener import limit_unsent

__all__ = ["OPEN_FILES", "PeerGoneError", "Peers"]

OPEN_FILES = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
_ADDRESS_SIZE = 128  # bytes of the longest socket address
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_PORT = slice(2, 4)  # where a socket address of either family has its port
_LOOKS_SHARE = 10
_TCP_INFO_SIZE = 192
_BYTES_ACKED = 120  # where struct tcp_info has tcpi_bytes_acked, an unsigned 64-bit number (Linux 4.1)
_SIOCOUTQ = 0x5411
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds


class PeerGoneError(Exception):
    """The connection has ended."""


class Peers:
    """Finds connections of this process by their peer, written as ``host:port``."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, list[int]] = {}  # of the files that have a peer, by its port
        self._looked_at = float("-inf")
        self._look_again_at = float("-inf")
        # socket.getpeername takes eight times as long, with the object that it needs.
        self._getpeername = ctypes.CDLL(None).getpeername

    def accepted(self, peer: str, asked_at: float) -> int | None:
        """Return how many bytes the kernel has taken for a connection since it began; None if that is not known yet.

        ``asked_at``: when the caller asked first, on ``time.monotonic``. Raises PeerGoneError.
        """
        with self._socket(peer, asked_at) as found:
            return None if found is None else _taken(found)

    def is_writable(self, peer: str, asked_at: float) -> bool:
        """Whether the kernel would take more for a connection now. Raises PeerGoneError."""
        with self._socket(peer, asked_at) as found:
            if found is None:
                return False
            poll = select.poll()
            poll.register(found, select.POLLOUT)
            return bool(poll.poll(0))

    def limit(self, peer: str) -> None:
        """Bound what the kernel takes for a connection that another server accepted, if it can be found."""
        with contextlib.suppress(PeerGoneError), self._socket(peer, time.monotonic()) as found:
            if found is not None:
                limit_unsent(found)

    def reset(self, peer: str) -> None:
        """End a connection at once, dropping what waits for it in the process and in the kernel."""
        self._look_again_at = float("-inf")
        with contextlib.suppress(PeerGoneError), self._socket(peer, time.monotonic()) as found:
            if found is not None:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                found.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _socket(self, peer: str, asked_at: float) -> Iterator[socket.socket | None]:
        found = self._find(peer)
        if found is None and self._look_again_at <= time.monotonic():
            self._look()
            found = self._find(peer)
        if found is None:
            if self._looked_at > asked_at:
                raise PeerGoneError
            yield None
            return
        try:
            yield found
        except OSError:
            raise PeerGoneError from None
        finally:
            found.detach()  # the HTTP server's file stays open

    def _find(self, peer: str) -> socket.socket | None:
        host, _, port = peer.rpartition(":")
        for number in self._numbers.get(int(port).to_bytes(2, "big"), ()):
            try:
                found = socket.socket(fileno=number)
            except OSError:
                continue  # closed in the meantime
            is_it = False
            try:
                is_it = found.family in _FAMILIES and found.getpeername()[0] == host.strip("[]")
            except OSError:
                pass  # its peer has left
            finally:
                if not is_it:
                    found.detach()  # whatever happens, the file is another's to close
            if is_it:
                return found
        return None

    def _look(self) -> None:
        """Learn the peers of all open files: one look serves a burst of questions."""
        began = time.monotonic()
        numbers: dict[bytes, list[int]] = {}
        address, size = ctypes.create_string_buffer(_ADDRESS_SIZE), ctypes.c_uint32()
        for name in os.listdir(OPEN_FILES):  # noqa: PTH208 - thousands of names, no paths
            size.value = _ADDRESS_SIZE
            if (
                self._getpeername(int(name), address, ctypes.byref(size)) == 0
                and _family(address.raw) in _FAMILIES
            ):
                numbers.setdefault(address.raw[_PORT], []).append(int(name))
        self._numbers = numbers
        ended = time.monotonic()
        self._looked_at = began
        self._look_again_at = ended + _LOOKS_SHARE * (ended - began)


def _family(address: bytes) -> int:
    """Return the family of a socket address; the event loop's own sockets have peers too, without a port."""
    return int.from_bytes(address[:2], sys.byteorder) if sys.platform == "linux" else address[1]


def _taken(found: socket.socket) -> int:
    info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    (acknowledged,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
    (waiting,) = struct.unpack("=i", fcntl.ioctl(found.fileno(), _SIOCOUTQ, bytes(4)))
    return int(acknowledged) + int(waiting)
