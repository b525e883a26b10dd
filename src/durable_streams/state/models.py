"""Rows as values of a type: a msgspec Struct, dataclass, TypedDict or Pydantic model; out of JSON and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from durable_streams.client.decoding import is_data_type, is_pydantic, one_of
from durable_streams.protocol.jsonvalues import decode, encode

__all__ = ["RowModel"]

T = TypeVar("T")


class RowModel(Generic[T]):
    """How rows of one type are made, and written.

    Attributes:
        name: The name of the type, for messages.
        load: Makes a row of a JSON value; raises what its library raises.
        parse: Makes a row of a JSON text.
        dump: Makes a JSON value of a row, with the names that JSON has.
    """

    load: Callable[[Any], T]
    parse: Callable[[bytes], T]
    dump: Callable[[Any], Any]

    def __init__(self, kind: Any) -> None:
        self.name = getattr(kind, "__name__", str(kind))
        if kind is Any:
            self.load, self.parse, self.dump = _as_it_is, decode, _builtins
        elif not is_data_type(kind):
            raise TypeError(
                f"A collection holds a msgspec Struct, a dataclass, a TypedDict or a Pydantic model, not {kind!r}."
            )
        elif is_pydantic(kind):
            self._use_pydantic(kind)
        else:
            self.load = partial(msgspec.convert, type=kind)
            self.parse = one_of(kind)
            self.dump = _builtins

    def _use_pydantic(self, kind: Any) -> None:
        from pydantic import TypeAdapter  # noqa: PLC0415 - only there where a caller's type comes from it

        adapter = TypeAdapter(kind)
        self.parse = parse = one_of(adapter)
        # As JSON, not as a Python value: what a strict model takes depends on it.
        self.load = lambda value: parse(encode(value, beyond_double=True))
        self.dump = lambda row: adapter.dump_python(
            row if not isinstance(row, dict) else self.load(row), mode="json", by_alias=True
        )

    def checked(self, row: Any) -> Any:
        """Return the JSON value of a row, or of what a row is made of; raises ValueError where it is not one."""
        try:
            return self.dump(self.load(self.dump(row)))
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{_short(row)} is not a valid {self.name}: {reason}.") from error


def _as_it_is(value: Any) -> Any:
    return value


def _builtins(value: Any) -> Any:
    return msgspec.to_builtins(value, str_keys=True)


def _short(row: Any) -> str:
    shown = repr(row)
    return shown if len(shown) <= 100 else shown[:100] + "…"
