"""A data folder belongs to one server at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from durable_streams.stores.base import StoreError
from durable_streams.stores.identity import FolderIdentity
from durable_streams.stores.private import create_folder

__all__ = ["FolderLock"]


class FolderLock:
    """Holds ``folder/lock`` for the life of a server; the system lets go of it when the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.identity = FolderIdentity(folder / "streams.db", folder / "streams.db-wal")
        self._file: int | None = None

    def acquire(self) -> None:
        """Create the folder if need be and lock it; raises StoreError with one sentence if that fails."""
        try:
            create_folder(self._folder)
            self._file = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(
                f"cannot write to the folder {self._folder}: {error.strerror}; choose one that can be written to"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise StoreError(
                f"another server has the folder {self._folder} open; stop it or choose another folder"
            ) from error
        self.identity.look(self._file)

    def release(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
