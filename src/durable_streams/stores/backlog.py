"""The bound on commands that wait to be stored, over all streams and clients."""

from __future__ import annotations

from durable_streams.stores.base import StoreUnavailableError

__all__ = ["MAX_BYTES", "MAX_COMMANDS", "Backlog"]

MAX_BYTES = 128 << 20
MAX_COMMANDS = 16_384


class Backlog:
    """Counts commands and their bytes, from acceptance to answer.

    Args:
        max_bytes: The most bytes that may wait.
        max_commands: The most commands that may wait.
    """

    __slots__ = ("_commands", "_max_bytes", "_max_commands", "_size")

    def __init__(self, max_bytes: int = MAX_BYTES, max_commands: int = MAX_COMMANDS) -> None:
        self._max_bytes = max_bytes
        self._max_commands = max_commands
        self._size = 0
        self._commands = 0

    @property
    def commands(self) -> int:
        """Commands that wait."""
        return self._commands

    @property
    def size(self) -> int:
        """Their bytes."""
        return self._size

    def add(self, size: int) -> None:
        """Count a command that was accepted. A command that waits alone is never too large.

        Args:
            size: The command's bytes.

        Raises:
            StoreUnavailableError: Too much is waiting.
        """
        if self._commands >= self._max_commands or (self._size and self._size + size > self._max_bytes):
            raise StoreUnavailableError(
                "too much is waiting to be stored on this server; none of this request was stored, retry"
            )
        self._size += size
        self._commands += 1

    def remove(self, size: int, commands: int = 1) -> None:
        """Count commands that were answered, and their bytes."""
        self._size -= size
        self._commands -= commands
