"""A reserve of disk space, so that a stream can be deleted, closed and trimmed while the disk is full.

Invariants: the file is whole or not there; what gets its room is smaller than it; until it is taken again, or the
database has as many free pages, no data is appended.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from durable_streams.stores.private import create_file

__all__ = ["DiskReserve"]

_NAME = "reserve"
_SHARE = 8  # of the free room: a reserve on a small disk is smaller
_PAGE = 4096


class DiskReserve:
    """The file, in a data folder.

    Attributes:
        held: Whether the file is there.

    Args:
        folder: The data folder.
        size: Its size in bytes, on a disk with enough room; 0 for no reserve.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._path = folder / _NAME
        self._wanted = size
        self._size = 0
        self.held = False

    @property
    def in_use(self) -> bool:
        """Whether there is to be a reserve, and its room is given up at present."""
        return self._size > 0 and not self.held

    def open(self) -> None:
        """Take the reserve, at the start; a file that an earlier start left is adapted."""
        with contextlib.suppress(OSError):
            if self._wanted and self._path.stat().st_size == self._wanted:
                self._size, self.held = self._wanted, True
                return
        with contextlib.suppress(OSError):
            self._path.unlink()
        if not self._wanted:
            return
        free = self._free()
        self._size = min(self._wanted, free // _SHARE) // _PAGE * _PAGE or _PAGE
        self._take()

    def give_up(self) -> bool:
        """Give the room to a commit that found none; return whether there was any."""
        if not self.held:
            return False
        self.held = False
        with contextlib.suppress(OSError):
            self._path.unlink()
            return True
        return False

    def has_room(self, connection: sqlite3.Connection) -> bool:
        """Whether data can be appended: the reserve is there (again), or the database has as much room in itself."""
        if not self.in_use or (self._free() >= 2 * self._size and self._take()):
            return True
        try:
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            (page,) = connection.execute("PRAGMA page_size").fetchone()
        except sqlite3.Error:
            return False
        return int(free) * int(page) >= self._size

    def _take(self) -> bool:
        try:
            create_file(self._path)
            with self._path.open("r+b", buffering=0) as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, self._size)
                else:  # macOS
                    for at in range(0, self._size, 1 << 20):
                        file.write(bytes(min(1 << 20, self._size - at)))
        except OSError:
            with contextlib.suppress(OSError):
                self._path.unlink()
            return False
        self.held = True
        return True

    def _free(self) -> int:
        try:
            status = os.statvfs(self._path.parent)
        except OSError:
            return 0
        return status.f_bavail * status.f_frsize
