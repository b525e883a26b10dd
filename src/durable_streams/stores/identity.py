"""The identity of a data folder: a name in every ETag that a copy or a restored backup does not share.

Two folders that continue from the same state hold different bytes at the same positions of the same stream. A reader
of one folder must not be answered by the other that nothing has changed.

Invariant: a folder keeps its name only if its files are the same ones as at the last close, by device, inode and
change time, which no copy and no restore reproduces. After a crash the database may have changed since the note was
written; then its log must be the same file. The name and the note are in the lock file, which nothing else writes to:
its change time is that of the note.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import msgspec

__all__ = ["FolderIdentity"]

_BYTES = 6  # of randomness
_SIZE = 1024  # bytes of a note: written in one piece, always in the same place, also on a full disk
_WRITING = (
    250_000_000  # nanoseconds that writing a note may take; after a slower write the name changes once more
)

FileStamp = tuple[int, int, int]
"""A file's device, inode and change time (nanoseconds); zeros for no file."""


class _Note(msgspec.Struct, frozen=True):
    """The content of the lock file; ``closed``: the log was empty and no server had the folder open."""

    identity: str
    closed: bool
    lock: FileStamp
    file: FileStamp
    log: FileStamp


class FolderIdentity:
    """The name of a data folder: ``look`` before its database is opened, ``take`` after, ``leave`` before it is closed.

    At ``leave`` all of the log is in the database; a crash between ``leave`` and the close changes nothing.

    Args:
        file: The path of the database.
        log: The path of its log.
    """

    def __init__(self, file: Path, log: Path) -> None:
        self.name = ""
        self._file = file
        self._log = log
        self._lock = -1
        self._kept: str | None = None

    def look(self, lock: int) -> None:
        """Check whether the folder is the one that was closed last; ``lock`` is its lock file, open until the end."""
        self._lock, self._kept, self.name = lock, None, ""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            note = msgspec.json.decode(os.pread(lock, _SIZE, 0), type=_Note)
            if self._is_left(note):
                self._kept = note.identity

    def _is_left(self, note: _Note) -> bool:
        lock, file, log = _found(self._lock), _found(self._file), _found(self._log)
        if lock[:2] != note.lock[:2] or not 0 <= lock[2] - note.lock[2] < _WRITING:
            return False
        return file == note.file or (not note.closed and log[:2] == note.log[:2])

    def take(self) -> str:
        """Return the folder's name: the one it had, or a new one."""
        self.name = secrets.token_hex(_BYTES) if self._kept is None else self._kept
        self._write(closed=False)
        return self.name

    def adopt(self, name: str) -> None:
        """Take the name of the place that all streams of this folder were copied from."""
        self.name = name
        self._write(closed=False)

    def leave(self) -> None:
        """Write the note of a folder that is about to be closed."""
        self._write(closed=True)

    def _write(self, *, closed: bool) -> None:
        # If the write fails, the old note does not match any more: the next start takes a new name.
        with contextlib.suppress(OSError):
            # Twice: the second note holds a change time that is almost its own.
            for _ in range(2):
                files = _found(self._lock), _found(self._file), _found(self._log)
                content = msgspec.json.encode(_Note(self.name, closed, *files))
                os.pwrite(self._lock, content.ljust(_SIZE), 0)
            os.fsync(self._lock)


def _found(file: Path | int) -> FileStamp:
    try:
        status = os.stat(file)  # noqa: PTH116 - of a descriptor, too
    except OSError:
        return 0, 0, 0
    return status.st_dev, status.st_ino, status.st_ctime_ns
