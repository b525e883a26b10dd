"""Items out of JSON batches: as they are, through a callable, or as a type.

Invariants: the messages before an invalid one are given out, then StreamParseError is raised; a callable is
applied when its item is asked for, and what it raises is the caller's own; the errors of msgspec and Pydantic
never get out as they are. Where nothing is wrong, a batch costs one call into C, however many messages it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, get_args, get_origin, overload

import msgspec

from durable_streams.errors import StreamParseError
from durable_streams.protocol.operations import decode_json

__all__ = [
    "Decode",
    "ItemDecoder",
    "Items",
    "JSONValidator",
    "LazyItems",
    "deliver",
    "is_data_type",
    "is_pydantic",
    "item_decoder",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class JSONValidator(Protocol[T_co]):
    """What a ``pydantic.TypeAdapter`` is: something that makes a value of one JSON text, or raises ValueError."""

    def validate_json(self, data: bytes, /) -> T_co:
        """Return the value of one JSON text."""


class LazyItems(Generic[T]):
    """The items of one batch, each made when it is asked for. Its length counts the ones that cannot be made too."""

    __slots__ = ("_items", "_size")

    def __init__(self, items: Iterator[T], size: int) -> None:
        self._items = items
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        return self._items


Decode: TypeAlias = type[T] | Callable[[Any], T] | JSONValidator[T]
"""A type (msgspec Struct, dataclass, TypedDict, NamedTuple, attrs class, Pydantic model, generic alias, union), a
callable from a JSON value to an item (a builtin or other plain class is one), or a ``pydantic.TypeAdapter``."""

Items: TypeAlias = list[T] | LazyItems[T]
"""A batch's items: a list where all of them are there already."""

ItemDecoder: TypeAlias = Callable[[bytes, str | None, str], Items[T]]
"""From a batch's body, the last safe offset before it and the stream's URL to its items.

Raises StreamParseError for a body that is not a JSON array in UTF-8; for a message that is not what was asked
for, iterating over the items raises it.
"""


def deliver(items: Items[T], commit: Callable[[], object]) -> Iterator[T]:
    """Yield the items, and call ``commit`` when the last one is there, just before it is handed over."""
    if isinstance(items, list):
        last = items[-1:]
        del items[-1:]
        yield from items
        commit()
        yield from last
        return
    left = len(items)
    if not left:
        commit()
    for item in items:
        left -= 1
        if not left:
            commit()
        yield item


@overload
def item_decoder(decode: None = None) -> ItemDecoder[Any]: ...
@overload
def item_decoder(decode: Decode[T]) -> ItemDecoder[T]: ...
@overload
def item_decoder(decode: Any) -> ItemDecoder[Any]: ...
def item_decoder(decode: Any = None) -> ItemDecoder[Any]:
    """Return what makes the items that ``decode`` asks for; None leaves JSON values as they are.

    Raises TypeError for what is neither a type that JSON can be read into nor callable.
    """
    if decode is None:
        return _values
    if not isinstance(decode, type) and hasattr(decode, "validate_json"):
        return _Typed(None, _of_raw(decode.validate_json), ValueError, "item of that type")
    if is_data_type(decode):
        # Unions that differ in their order alone are equal, but not to Pydantic: hence the text.
        return _cached(decode, str(decode)) if _is_hashable(decode) else _typed(decode)
    if callable(decode):
        return _applied(decode)
    raise TypeError(f"decode must be None, a type or a callable, not {decode!r}.")


# -- JSON values


def _values(body: bytes, offset: str | None, url: str) -> list[Any]:
    if not body:
        return []
    try:
        items = decode_json(body, offset)
    except StreamParseError as error:
        error.url = url
        raise
    if not isinstance(items, list):
        raise StreamParseError(
            f"The JSON after offset {offset} is not an array of messages.", offset=offset, url=url
        )
    return items


def _applied(function: Callable[[Any], T]) -> ItemDecoder[T]:
    def decode(body: bytes, offset: str | None, url: str) -> Items[T]:
        items = _values(body, offset, url)
        # Not map(): a StopIteration out of the function would end it, and lose the rest in silence.
        return LazyItems((function(item) for item in items), len(items))

    return decode


# -- types


def is_data_type(decode: Any) -> bool:
    """Whether it says how data is shaped, so that a library can read JSON into it."""
    if get_origin(decode) is not None or decode is Any:
        return True
    if not isinstance(decode, type):  # NewType, TypeAliasType
        return hasattr(decode, "__supertype__") or hasattr(decode, "__value__")
    return (
        issubclass(decode, msgspec.Struct)
        or dataclasses.is_dataclass(decode)
        or any(hasattr(decode, mark) for mark in ("__attrs_attrs__", "__pydantic_validator__"))
        or (issubclass(decode, dict) and hasattr(decode, "__required_keys__"))
        or (issubclass(decode, tuple) and hasattr(decode, "_fields"))
    )


def is_pydantic(kind: Any) -> bool:
    """Whether it is for Pydantic to read: a model, or a type with one in it."""
    if hasattr(kind, "__pydantic_validator__") or type(kind).__module__.partition(".")[0] == "pydantic":
        return True
    inner = [getattr(kind, "__value__", None), getattr(kind, "__supertype__", None), *get_args(kind)]
    return any(is_pydantic(part) for part in inner if part is not None)


def _typed(kind: Any) -> ItemDecoder[Any]:
    try:
        return _pydantic_decoder(kind) if is_pydantic(kind) else _msgspec_decoder(kind)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise TypeError(f"decode={_name(kind)} is not a type that JSON can be read into: {reason}") from error


def _is_hashable(kind: Any) -> bool:
    try:
        hash(kind)
    except TypeError:  # an Annotated with a list or a dict in it
        return False
    return True


@lru_cache(maxsize=128)
def _cached(kind: Any, _text: str) -> ItemDecoder[Any]:
    return _typed(kind)


def _msgspec_decoder(kind: Any) -> ItemDecoder[Any]:
    whole: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list[kind]).decode
    return _Typed(whole, msgspec.json.Decoder(kind).decode, msgspec.MsgspecError, _name(kind))


def _pydantic_decoder(kind: Any) -> ItemDecoder[Any]:
    from pydantic import TypeAdapter  # noqa: PLC0415 - only there where a caller's type comes from it

    whole: Callable[[bytes], list[Any]] = TypeAdapter(list[kind]).validate_json
    whole(b"[]")  # a type that is not fully defined is refused here, not at the first batch
    return _Typed(whole, _of_raw(TypeAdapter(kind).validate_json), ValueError, _name(kind))


def _of_raw(validate: Callable[[bytes], T]) -> Callable[[msgspec.Raw], T]:
    return lambda message: validate(bytes(message))


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind)


_split = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Typed:
    """Reads a batch as a whole, and message by message only where that fails."""

    def __init__(
        self,
        whole: Callable[[bytes], list[Any]] | None,
        one: Callable[[msgspec.Raw], Any],
        refusal: type[Exception],
        name: str,
    ) -> None:
        self._whole = whole
        self._one = one
        self._refusal = refusal
        self._name = name

    def __call__(self, body: bytes, offset: str | None, url: str) -> Items[Any]:
        if not body:
            return []
        try:
            if not body.isascii():
                body.decode()  # msgspec does not look inside strings
            if self._whole is not None:
                return self._whole(body)
        except Exception:  # noqa: BLE001, S110 - also a validator's own: it is raised again where it belongs
            pass
        return self._one_by_one(body, offset, url)

    def _one_by_one(self, body: bytes, offset: str | None, url: str) -> LazyItems[Any]:
        try:
            body.decode()
            messages = _split(body)
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
            _values(body, offset, url)  # raises for what is no JSON array at all
            raise StreamParseError(
                f"The messages after offset {offset} cannot be read: {error}.", offset=offset, url=url
            ) from error
        return LazyItems(self._items(messages, offset, url), len(messages))

    def _items(self, messages: Iterable[msgspec.Raw], offset: str | None, url: str) -> Iterator[Any]:
        for number, message in enumerate(messages, 1):
            try:
                item = self._one(message)
            except (self._refusal, RecursionError) as error:
                raise self._error(error, number, message, offset, url) from error
            yield item

    def _error(
        self, error: Exception, number: int, message: msgspec.Raw, offset: str | None, url: str
    ) -> StreamParseError:
        listed = getattr(error, "errors", None)  # Pydantic's
        errors = listed(include_url=False) if callable(listed) else [{"msg": str(error)}]
        return StreamParseError(
            f"Message {number} of the batch after offset {offset} is not a valid {self._name}: "
            f"{_reason(errors, str(error))}.",
            offset=offset,
            url=url,
            details={"number": number, "json": bytes(message).decode(), "errors": errors},
        )


def _reason(errors: list[dict[str, Any]], text: str) -> str:
    """Return the library's first complaint in one line."""
    first = errors[0] if errors else {"msg": text}
    place = ".".join(str(part) for part in first.get("loc", ()))
    reason = " ".join(str(first["msg"]).split()).rstrip(".")
    return (f"{place}: " if place else "") + reason + (f" (and {len(errors) - 1} more)" if errors[1:] else "")
