"""Files and folders that only their owner may see: what streams hold is nobody else's on the machine."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path

__all__ = ["create_file", "create_folder"]

_FOLDER = 0o700
_FILE = 0o600
_OTHERS = 0o077
# Of a data folder; one with anything else in it is not ours alone, and stays as open as it is.
_DATABASE = ("streams.db", "streams.db-wal", "streams.db-shm", "streams.db-journal")
_OURS = frozenset({"lock", *_DATABASE})
_ANYBODYS = frozenset({"lost+found"})
_log = logging.getLogger("durable_streams.stores")


def create_folder(folder: Path) -> None:
    """Create a data folder, or close one that is there already (of an older version) to others; raises OSError."""
    try:
        folder.mkdir(mode=_FOLDER, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
        names = set(os.listdir(folder))  # noqa: PTH208 - names, not paths
        if names <= _OURS | _ANYBODYS:
            _close(folder, _FOLDER)
        for name in names & _OURS:
            _close(folder / name, _FILE)


def create_file(path: Path) -> None:
    """Create an empty file if there is none; raises OSError."""
    # One that is there is not opened: to close it would take away the locks that SQLite has on it in this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE))


def _close(path: Path, mode: int) -> None:
    try:
        if stat.S_IMODE(path.stat().st_mode) & _OTHERS:
            path.chmod(mode)
    except OSError as error:
        _log.warning("%s may be seen by others on this machine: %s", path, error.strerror)
