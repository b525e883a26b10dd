"""How much may wait to be stored, over all streams and clients."""

from __future__ import annotations

from durable_streams.stores.base import StoreUnavailableError

__all__ = ["MAX_BYTES", "MAX_COMMANDS", "Backlog"]

MAX_BYTES = 128 << 20
MAX_COMMANDS = 16_384


class Backlog:
    """Counts commands, and the bytes in them, from when they are accepted until they are answered."""

    __slots__ = ("_commands", "_max_bytes", "_max_commands", "_size")

    def __init__(self, max_bytes: int = MAX_BYTES, max_commands: int = MAX_COMMANDS) -> None:
        self._max_bytes = max_bytes
        self._max_commands = max_commands
        self._size = 0
        self._commands = 0

    def add(self, size: int) -> None:
        """Count a command in; raises StoreUnavailableError if that would be too much. One alone is never too large."""
        if self._commands >= self._max_commands or (self._size and self._size + size > self._max_bytes):
            raise StoreUnavailableError(
                "the server has as much waiting to be stored as it takes; nothing of this request was stored, "
                "repeat it"
            )
        self._size += size
        self._commands += 1

    def remove(self, size: int, commands: int = 1) -> None:
        """Count commands out."""
        self._size -= size
        self._commands -= commands
