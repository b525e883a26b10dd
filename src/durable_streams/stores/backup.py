"""Copies of a data folder: a backup beside a running server, its restoration, and the compaction of a folder.

Invariants: a copy is one moment of the streams, whatever is written meanwhile; it is whole and checked before it gets
its name; nothing is replaced; a restored folder takes a new identity, so that ETags of its origin do not match it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from durable_streams.stores.base import StoreError
from durable_streams.stores.folder import FolderLock
from durable_streams.stores.private import create_file, create_folder, sync
from durable_streams.stores.sqlite import (
    FILE_NAME,
    check_file,
    check_whole,
    connect,
    opening,
    prepare,
    purge_step,
    settle,
)

__all__ = ["Show", "back_up", "compact", "restore"]

Show = Callable[[int, int], None]
"""Called with the bytes that were copied, and the bytes of all."""

_PART = FILE_NAME + ".part"
_STEP_PAGES = 2560
_CACHE_KIB = 16 << 10


def back_up(source: Path, target: Path, show: Show) -> int:
    """Copy the streams of a data folder, of the present moment; a server may have it open.

    Args:
        source: The data folder, or a backup of one.
        target: The folder of the copy; it is made if it is missing, and must hold no streams.
        show: Is given the progress.

    Returns:
        The bytes of the copy.

    Raises:
        StoreError: The source cannot be read, the target holds streams or has no room; one sentence says which.
    """
    if not (source / FILE_NAME).is_file():
        raise StoreError(f"the folder {source} holds no streams: it has no file {FILE_NAME}")
    if (target / FILE_NAME).exists():
        raise StoreError(
            f"the folder {target} holds streams already: choose another one, or remove {FILE_NAME}"
        )
    part = target / _PART
    try:
        create_folder(target)
        part.unlink(missing_ok=True)  # of a copy that was interrupted
        create_file(part)
        _copy(source, part, show)
        sync(part)
        part.rename(target / FILE_NAME)
        sync(target)
    except (sqlite3.Error, OSError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise StoreError(
            f"cannot copy {source} to {target}: {error}; nothing was changed in {source}"
        ) from error
    return (target / FILE_NAME).stat().st_size


def _copy(source: Path, part: Path, show: Show) -> None:
    path = (source / FILE_NAME).absolute().as_uri()
    with (
        closing(sqlite3.connect(f"{path}?mode=rw", uri=True, isolation_level=None, timeout=30.0)) as reader,
        closing(sqlite3.connect(part, isolation_level=None)) as copy,
    ):
        check_file(reader, source)
        (page,) = reader.execute("PRAGMA page_size").fetchone()
        # A transaction keeps the moment: without it, each commit of the server would make the copy start again.
        reader.execute("BEGIN")
        reader.execute("SELECT 1 FROM stream LIMIT 1").fetchone()
        copy.execute("PRAGMA synchronous = OFF")  # it is synced as a whole
        reader.backup(
            copy,
            pages=_STEP_PAGES,
            progress=lambda _, left, pages: show((pages - left) * page, pages * page),
        )
        reader.execute("COMMIT")
        found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(f"the copy is damaged, and so is the source: {found}")


def restore(source: Path, target: Path, show: Show) -> int:
    """Make a data folder from a backup; takes and raises what `back_up` does, and no server may have it open.

    Args:
        source: The folder of the backup.
        target: The data folder; it must hold no streams.
        show: Is given the progress.

    Returns:
        The bytes of the streams.
    """
    lock = FolderLock(target)
    lock.acquire()
    try:
        return back_up(source, target, show)
    finally:
        lock.release()


def compact(folder: Path) -> tuple[int, int]:
    """Give the free pages of a data folder back to the file system; no server may have it open.

    Args:
        folder: The data folder.

    Returns:
        The bytes of its file before and after.

    Raises:
        StoreError: The folder cannot be used, or there is no room for a second copy of what it holds.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise StoreError(f"the folder {folder} holds no streams: it has no file {FILE_NAME}")
    lock = FolderLock(folder)
    lock.acquire()
    try:
        with opening(folder):
            check_whole(folder)
            with closing(connect(folder, _CACHE_KIB)) as connection:
                prepare(connection, folder)
                lock.identity.take()
                before = file.stat().st_size
                while purge_step(connection):
                    pass
                connection.execute("VACUUM")
                settle(connection)
                lock.identity.leave()
        return before, file.stat().st_size
    finally:
        lock.release()
