"""Rows in memory: a batch is seen as a whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from durable_streams.protocol import headers as h
from durable_streams.protocol.materialized import MemoryRows

__all__ = ["SharedMemoryRows"]


class SharedMemoryRows(MemoryRows):
    """Rows in memory, for one writer and readers in any thread."""

    blocks = False
    offset = h.OFFSET_START

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Around what is seen as a whole."""
        with self._lock:
            yield

    def commit(self, offset: str) -> None:
        """Note the offset that the rows belong to."""
        self.offset = offset

    def find(self, type: str, key: str) -> Any:  # noqa: A002
        """See CommittedRows."""
        with self._lock:
            return self.get(type, key)

    def count(self, type: str) -> int:  # noqa: A002
        """See CommittedRows."""
        with self._lock:
            return len(self.tables.get(type, ()))

    def items(self, type: str) -> Iterator[tuple[str, Any]]:  # noqa: A002
        """See CommittedRows."""
        with self._lock:
            return iter(list(self.tables.get(type, {}).items()))

    def types(self) -> list[str]:
        """See CommittedRows."""
        with self._lock:
            return list(self.tables)

    def close(self) -> None:
        """Nothing is open; the rows stay."""
