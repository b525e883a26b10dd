"""Which history a data folder is: a name that stands in ETags, and that a copy or a restored backup does not share.

Two folders that went on from the same state hold different bytes at the same positions of the same stream: a reader
of one must not get the answer from the other that nothing has changed.

Invariant: a folder keeps its name only if its files are the very ones that were left: known by device, inode and
change time, which no copy, and no program that restores one, can bring along. After a crash the database may have
changed since they were noted; its log is the one that was left, then. The name and the note are in the lock file, which
nothing else is written to: it was changed when the note was written, and not since.
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
    250_000_000  # nanoseconds that writing a note may take; if it took longer, the name changes once more
)

FileStamp = tuple[int, int, int]
"""Of a file: its device, its inode, and when it was changed last (in nanoseconds); zeros for none."""


class _Note(msgspec.Struct, frozen=True):
    """What the lock file holds; ``closed``: all was in the database, and no server had the folder any more."""

    identity: str
    closed: bool
    lock: FileStamp
    file: FileStamp
    log: FileStamp


class FolderIdentity:
    """The name of a data folder. ``look`` before its database is opened, ``take`` after.

    ``leave`` before it is closed, when all of its log is in the file: a crash between the two changes nothing.

    ``file`` and ``log`` are the paths of the database and its log.
    """

    def __init__(self, file: Path, log: Path) -> None:
        self.name = ""
        self._file = file
        self._log = log
        self._lock = -1
        self._kept: str | None = None

    def look(self, lock: int) -> None:
        """See whether the folder is the one that was left. ``lock``: its lock file, open until the end."""
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
        """Take over the name of the place that all of this folder's streams come from."""
        self.name = name
        self._write(closed=False)

    def leave(self) -> None:
        """Note how the folder is left."""
        self._write(closed=True)

    def _write(self, *, closed: bool) -> None:
        # Where it cannot be written, what is there fits no more: the next start takes a new name.
        with contextlib.suppress(OSError):
            # Twice, since what is written last says when the file was changed: almost when it is written itself.
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
