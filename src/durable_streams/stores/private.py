"""Files and folders that only their owner may read: other users of the machine do not see the streams."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path

__all__ = ["create_file", "create_folder", "sync"]

_FOLDER = 0o700
_FILE = 0o600
_OTHERS = 0o077
# The files of a data folder. A folder that holds other files too is shared, and keeps its mode.
_DATABASE = ("streams.db", "streams.db-wal", "streams.db-shm", "streams.db-journal")
_OWN = frozenset({"lock", "reserve", *_DATABASE})
_IGNORED = frozenset({"lost+found"})
_log = logging.getLogger("durable_streams.stores")


def create_folder(folder: Path) -> None:
    """Create a data folder, or make an existing one (of an older version) private; raises OSError."""
    try:
        folder.mkdir(mode=_FOLDER, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
        names = set(os.listdir(folder))  # noqa: PTH208 - names, not paths
        if names <= _OWN | _IGNORED:
            _close(folder, _FOLDER)
        for name in names & _OWN:
            _close(folder / name, _FILE)


def create_file(path: Path) -> None:
    """Create an empty file if there is none; raises OSError."""
    # An existing file is not opened: closing it would drop the locks that SQLite holds on it in this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE))


def _close(path: Path, mode: int) -> None:
    try:
        if stat.S_IMODE(path.stat().st_mode) & _OTHERS:
            path.chmod(mode)
    except OSError as error:
        _log.warning("%s may be readable by other users of this machine: %s", path, error.strerror)


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk.

    Args:
        path: The file or the folder.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
