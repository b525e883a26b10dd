"""The rows of one type, as a program sees them: those of whole batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from durable_streams.protocol.changes import ABSENT

__all__ = ["CommittedRows", "Table"]

T = TypeVar("T")


class CommittedRows(Protocol):
    """Where whole batches can be seen, from any thread."""

    def find(self, type: str, key: str) -> Any:  # noqa: A002
        """Return a row, ABSENT where there is none."""

    def count(self, type: str) -> int:  # noqa: A002
        """Return how many rows of a type there are."""

    def items(self, type: str) -> Iterator[tuple[str, Any]]:  # noqa: A002
        """Yield the keys and rows of a type."""

    def types(self) -> list[str]:
        """Return the types that have rows."""


class Table(Generic[T]):
    """The rows of one type, by their keys; it changes as the stream is followed.

    It has the reading half of a dictionary. A row is a value of the collection's model, and not to be changed.
    """

    def __init__(self, rows: CommittedRows, type: str) -> None:  # noqa: A002
        self._rows = rows
        self._type = type

    def __repr__(self) -> str:
        return f"Table({self._type!r}, {len(self)} rows)"

    def __getitem__(self, key: str) -> T:
        if (row := self._rows.find(self._type, key)) is ABSENT:
            raise KeyError(key)
        return row  # type: ignore[no-any-return]

    def get(self, key: str) -> T | None:
        """Return a row, None where there is none.

        Args:
            key: The key of the row.
        """
        row = self._rows.find(self._type, key)
        return None if row is ABSENT else row

    def __contains__(self, key: str) -> bool:
        return self._rows.find(self._type, key) is not ABSENT

    def __len__(self) -> int:
        return self._rows.count(self._type)

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def keys(self) -> Iterator[str]:
        """Yield the keys."""
        return (key for key, _ in self._rows.items(self._type))

    def values(self) -> Iterator[T]:
        """Yield the rows. What changes meanwhile may be among them, or not, where they are in a file."""
        return (row for _, row in self._rows.items(self._type))

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield the keys with their rows, as `values` does."""
        return self._rows.items(self._type)
