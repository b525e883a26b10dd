"""Which records a relay stores: those whose fields have the values that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from durable_streams.protocol.jsonrule import InvalidJSONError
from durable_streams.protocol.jsonvalues import decode

__all__ = ["selector"]


def selector(where: Iterable[tuple[str, str]]) -> Callable[[bytes], bool]:
    """Return a function that says whether a record is stored.

    Args:
        where: Pairs of a field's path (``data.lang``) and a value. Each field that is named must have one of its
            values. A text equals a value that is written like it; a number, ``true``, ``false`` and ``null`` equal
            their JSON. A record without the field, or one that is not JSON, is not stored.

    Returns:
        The function, which takes the record's bytes.

    Raises:
        ValueError: A path has empty parts.
    """
    wanted: dict[tuple[str, ...], list[tuple[str, Any]]] = {}
    for path, text in where:
        names = tuple(path.split("."))
        if not all(names):
            raise ValueError(f"A field is a path such as 'data.lang', not {path!r}.")
        wanted.setdefault(names, []).append((text, _value(text)))

    def selects(record: bytes) -> bool:
        try:
            value = decode(record)
        except (InvalidJSONError, ValueError, RecursionError):
            return False
        return all(_is_one_of(_at(value, names), values) for names, values in wanted.items())

    return selects


_MISSING = object()


def _value(text: str) -> Any:
    try:
        value = decode(text.encode())
    except (InvalidJSONError, ValueError, RecursionError):
        return _MISSING
    return _MISSING if isinstance(value, (str, dict, list)) else value


def _at(value: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        if not isinstance(value, dict) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _is_one_of(found: Any, values: list[tuple[str, Any]]) -> bool:
    if found is _MISSING:
        return False
    if isinstance(found, str):
        return any(found == text for text, _ in values)
    # In Python 1 equals True.
    return any(found == value and isinstance(found, bool) == isinstance(value, bool) for _, value in values)
