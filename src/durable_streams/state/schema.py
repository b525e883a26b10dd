"""What rows a stream holds, and the messages that change them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar

from durable_streams.protocol.changes import ABSENT, Operation, change_message
from durable_streams.state.models import RowModel

__all__ = ["Collection", "StateSchema"]

T = TypeVar("T")

_TAKEN = frozenset({"actions", "close", "collections", "preload", "utils"})
"""Names that the StreamDB of TypeScript has members of, so that a collection of it cannot have them."""


class Collection(Generic[T]):
    """Rows of one type. Its methods make the messages that change them: plain dictionaries, to be appended.

    Args:
        model: What a row is: a msgspec Struct, a dataclass, a TypedDict or a Pydantic model; None for any JSON object.
        type: The type that messages name.
        key: The member of a row, as JSON names it, whose value is the row's key.

    Raises:
        TypeError: The model is not one of these.
        ValueError: ``type`` or ``key`` is empty.
    """

    def __init__(self, model: type[T] | None = None, *, type: str, key: str = "id") -> None:  # noqa: A002
        if not type or not key:
            raise ValueError("A collection needs the type of its rows and the member that is their key.")
        self.model = RowModel[T](Any if model is None else model)
        self.type = type
        self.key = key

    def __repr__(self) -> str:
        return f"Collection({self.model.name}, type={self.type!r}, key={self.key!r})"

    def insert(
        self,
        row: T | Mapping[str, Any],
        *,
        key: str | None = None,
        txid: str | None = None,
        timestamp: datetime | str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the message that adds a row.

        Args:
            row: The row, or the JSON object that it is made of.
            key: Its key; None for the value of the collection's ``key``.
            txid: The name of the transaction, for `StreamDB.wait_txid`.
            timestamp: When it was, with its time zone.
            headers: More headers of the message.

        Raises:
            ValueError: The row is not of the model, or has no key.
        """
        return self._put("insert", row, key, ABSENT, txid=txid, timestamp=timestamp, headers=headers)

    def update(
        self,
        row: T | Mapping[str, Any],
        *,
        key: str | None = None,
        old: T | Mapping[str, Any] | None = None,
        txid: str | None = None,
        timestamp: datetime | str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the message that puts a whole row in place of the one before.

        Args:
            row: The row, or the JSON object that it is made of.
            key: Its key; None for the value of the collection's ``key``.
            old: The row before, which goes with the message; None leaves it out.
            txid: The name of the transaction, for `StreamDB.wait_txid`.
            timestamp: When it was, with its time zone.
            headers: More headers of the message.

        Raises:
            ValueError: A row is not of the model, or has no key.
        """
        return self._put("update", row, key, self._old(old), txid=txid, timestamp=timestamp, headers=headers)

    def upsert(
        self,
        row: T | Mapping[str, Any],
        *,
        key: str | None = None,
        txid: str | None = None,
        timestamp: datetime | str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the message that adds a row, or puts it in place of the one before.

        The TypeScript reads and writes it; the protocol's own text does not have it. `insert` and `update` do the same
        for every reader.

        Args:
            row: The row, or the JSON object that it is made of.
            key: Its key; None for the value of the collection's ``key``.
            txid: The name of the transaction, for `StreamDB.wait_txid`.
            timestamp: When it was, with its time zone.
            headers: More headers of the message.

        Raises:
            ValueError: The row is not of the model, or has no key.
        """
        return self._put("upsert", row, key, ABSENT, txid=txid, timestamp=timestamp, headers=headers)

    def delete(
        self,
        key: str | None = None,
        *,
        old: T | Mapping[str, Any] | None = None,
        txid: str | None = None,
        timestamp: datetime | str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the message that removes a row.

        Args:
            key: Its key; None for that of ``old``.
            old: The row before, which goes with the message; None leaves it out.
            txid: The name of the transaction, for `StreamDB.wait_txid`.
            timestamp: When it was, with its time zone.
            headers: More headers of the message.

        Raises:
            ValueError: Neither ``key`` nor ``old`` names a row.
        """
        value = self._old(old)
        if key is None and value is ABSENT:
            raise ValueError("A delete needs the key of the row, or the row as old.")
        key = self._key_of(value) if key is None else key
        return change_message(
            "delete", self.type, key, old_value=value, txid=txid, timestamp=timestamp, headers=headers
        )

    def _put(
        self,
        operation: Operation,
        row: Any,
        key: str | None,
        old: Any,
        **named: Any,
    ) -> dict[str, Any]:
        value = self.model.checked(row)
        if not isinstance(value, dict):
            raise ValueError(f"A row is a JSON object, and {row!r} is none.")  # noqa: TRY004 - as for other rows
        key = self._key_of(value) if key is None else key
        return change_message(
            operation,
            self.type,
            key,
            value,
            old_value=old,
            **named,
        )

    def _old(self, row: Any) -> Any:
        return ABSENT if row is None else self.model.checked(row)

    def _key_of(self, value: Any) -> str:
        key = value.get(self.key) if isinstance(value, dict) else None
        if isinstance(key, bool) or not isinstance(key, (str, int)) or key == "":
            raise ValueError(
                f"The row's {self.key!r} is {key!r}, and a key is text or a whole number; pass key= to name it."
            )
        return str(key)


class StateSchema:
    """The collections of a stream; each one is an attribute under its name.

    Args:
        **collections: The collections.

    Attributes:
        collections: The same, by their names.

    Raises:
        ValueError: Two of them have one type, or a name cannot be that of a collection.
    """

    def __init__(self, **collections: Collection[Any]) -> None:
        types: dict[str, str] = {}
        for name, collection in collections.items():
            if name in _TAKEN or name.startswith("_"):
                raise ValueError(f"A collection cannot be named {name!r}; choose another name.")
            if (other := types.setdefault(collection.type, name)) != name:
                raise ValueError(
                    f"The collections {other!r} and {name!r} have the same type, {collection.type!r}; "
                    "each needs its own."
                )
        self.collections: Mapping[str, Collection[Any]] = collections

    def __getattr__(self, name: str) -> Collection[Any]:
        found: Mapping[str, Collection[Any]] = vars(self).get("collections", {})
        if name not in found:
            raise AttributeError(f"The schema has no collection {name!r}.")
        return found[name]
