"""A data folder belongs to one server at a time, and a server writes only to the folder that the path leads to.

Invariants: the folder itself and its file ``lock`` are locked together, so that a replaced lock file admits no second
server; ``check`` returns only while every guarded path leads to the file that was opened.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from durable_streams.file_lock import try_lock
from durable_streams.stores.base import StoreError, StoreLostError
from durable_streams.stores.identity import FolderIdentity
from durable_streams.stores.private import create_folder

__all__ = ["FolderLock"]

_LOCK = "lock"


class FolderLock:
    """Holds a folder while a server runs; the system releases it when the process ends.

    Attributes:
        log_size: The size of the log at the last look, in bytes.

    Args:
        folder: The data folder.
    """

    def __init__(self, folder: Path) -> None:
        # Absolute, so that it stays the same folder when the working directory changes; links are followed at each use.
        self.folder = folder.absolute()
        self._log = self.folder / "streams.db-wal"
        self.identity = FolderIdentity(self.folder / "streams.db", self._log)
        self._files: list[int] = []
        self._guarded: dict[str, tuple[int, int]] = {}
        self.log_size = 0

    def acquire(self) -> None:
        """Create the folder if it is missing, and lock it.

        Raises:
            StoreError: The folder cannot be created, or another server has it open.
        """
        try:
            create_folder(self.folder)
            self._files.append(os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY))
            self._files.append(os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            self.release()
            raise StoreError(
                f"cannot write to the folder {self.folder}: {error.strerror}; choose one that can be written to"
            ) from error
        if not self._lock_both(*self._files):
            self.release()
            raise StoreError(
                f"another server has the folder {self.folder} open; stop it or choose another folder "
                "(several workers cannot share it: let one process serve, and the others be its clients; or use NATS)"
            )
        status = os.fstat(self._files[1])
        self._guarded[str(self.folder / _LOCK)] = (status.st_dev, status.st_ino)
        self.identity.look(self._files[1])

    @staticmethod
    def _lock_both(folder: int, file: int) -> bool:
        with contextlib.suppress(
            OSError
        ):  # some network file systems lock no folders: the file has to do there
            if not try_lock(folder):
                return False
        try:
            return try_lock(file)
        except OSError:
            return False

    def guard(self, *names: str) -> None:
        """Let ``check`` include files of the folder that were just opened.

        Args:
            names: The names of the files.

        Raises:
            StoreLostError: One of the files is not there.
        """
        for name in names:
            path = str(self.folder / name)
            self._guarded[path] = self._identity(path)
        self.check()

    def check(self) -> None:
        """Return if all guarded files are where they were opened.

        Raises:
            StoreLostError: A file was moved, removed or replaced.
        """
        for path, opened in self._guarded.items():
            if self._identity(path) != opened:
                raise self._lost(path, "another file is in its place")

    def log_shrank(self) -> bool:
        """Whether the log is shorter than at the last call: another program checkpointed it, or cut it off.

        Raises:
            StoreLostError: The log was removed.
        """
        before, self.log_size = self.log_size, self._status(str(self._log)).st_size
        return self.log_size < before

    def check_log(self, size: int) -> None:
        """Return if the log, as `log_shrank` found it, holds all that it has to.

        Args:
            size: The bytes that SQLite expects in it.

        Raises:
            StoreLostError: It is shorter.
        """
        if self.log_size < size:
            raise self._lost(str(self._log), "it was cut off")

    def lacks_only(self, name: str) -> bool:
        """Whether the guarded file ``name`` is gone, without a replacement, and no other one."""
        lacking = str(self.folder / name)
        for path, opened in self._guarded.items():
            try:
                found: tuple[int, int] | None = self._identity(path)
            except StoreLostError:
                found = None
            if found != (None if path == lacking else opened):
                return False
        return True

    def _identity(self, path: str) -> tuple[int, int]:
        status = self._status(path)
        return status.st_dev, status.st_ino

    def _status(self, path: str) -> os.stat_result:
        try:
            return os.stat(path)  # noqa: PTH116 - at every commit, and half the time of Path.stat
        except OSError as error:
            raise self._lost(path, error.strerror) from error

    def _lost(self, path: str, reason: str | None) -> StoreLostError:
        return StoreLostError(
            f"the folder {self.folder} is no longer the one that was opened ({path}: {reason}); nothing more is "
            "stored or read: put the folder back if it was moved, and restart the server"
        )

    def release(self) -> None:
        """Release the folder."""
        for file in self._files:
            os.close(file)
        self._files.clear()
        self._guarded.clear()
