"""One lock for every file and folder that a single process may use at a time.

The lock belongs to the open file: the system releases it when the file is closed or the process ends, however it ends.
"""

from __future__ import annotations

import sys
from typing import IO, Any

if sys.platform != "win32":
    import fcntl

__all__ = ["try_lock"]


def try_lock(file: int | IO[Any]) -> bool:
    """Lock an open file or folder exclusively, without waiting.

    Args:
        file: The open file, or its descriptor. The lock lasts until it is closed.

    Returns:
        False if another process, or another open file of this one, holds the lock. Windows has no such lock: nothing
        is locked there, and the result is True.

    Raises:
        OSError: The file system supports no locks.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
