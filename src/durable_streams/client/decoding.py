"""Items out of JSON batches: as they are, through a callable, or as a type.

Invariants: the messages before an invalid one are given out, then StreamParseError is raised, or the message is left
out where that is asked for; a message that is JSON by the rule is never refused for a part that the model does not use;
the errors of msgspec and Pydantic never get out as they are. Where all messages are valid, a batch costs a few
calls into C, for any number of messages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, get_args, get_origin, overload

import msgspec

from durable_streams.client.strange import is_strange, read_strange
from durable_streams.errors import StreamParseError
from durable_streams.protocol.jsonarrays import ARRAY_DEPTH, ArrayPieces, messages_of, split
from durable_streams.protocol.jsonrule import (
    SHORT,
    InvalidJSONError,
    check,
    check_limits,
    check_utf8,
    may_hold_no_number,
)
from durable_streams.protocol.jsonvalues import decode as decode_value

__all__ = [
    "Decode",
    "ItemDecoder",
    "Items",
    "JSONValidator",
    "LazyItems",
    "Model",
    "Refused",
    "deliver",
    "gathered",
    "is_data_type",
    "is_pydantic",
    "item_decoder",
    "one_of",
    "one_with",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class JSONValidator(Protocol[T_co]):
    """The method of ``pydantic.TypeAdapter`` that is used: it makes a value of one JSON text, or raises ValueError."""

    def validate_json(self, data: bytes, /) -> T_co:
        """Return the value of one JSON text."""


class LazyItems(Generic[T]):
    """The items of one batch, each made when it is asked for. ``done``: whether the one just given is the last."""

    __slots__ = ("_items", "done")

    def __init__(self) -> None:
        self._items: Iterator[T] = iter(())
        self.done = False

    def __iter__(self) -> Iterator[T]:
        return self._items

    def of(self, items: Iterator[T]) -> LazyItems[T]:
        """Take an iterator of the items, which sets ``done`` itself; return self."""
        self._items = items
        return self

    def ahead(self, items: Iterator[T]) -> LazyItems[T]:
        """Take an iterator that does not know its last item: each is made before the one before is given."""
        self._items = self._ahead(items)
        return self

    def _ahead(self, items: Iterator[T]) -> Iterator[T]:
        held: list[T] = []
        failure = None
        while True:
            try:
                item = next(items)
            except StopIteration:
                self.done = True
                break
            except Exception as error:  # noqa: BLE001 - it is raised after the items before it
                failure = error
                break
            yield from held
            held = [item]
        yield from held
        if failure is not None:
            raise failure


Decode: TypeAlias = type[T] | Callable[[Any], T] | JSONValidator[T]
"""A type (msgspec Struct, dataclass, TypedDict, NamedTuple, attrs class, Pydantic model, generic alias, union), a
callable from a JSON value to an item (a builtin or other plain class is one), or a ``pydantic.TypeAdapter``."""

Items: TypeAlias = list[T] | LazyItems[T]
"""A batch's items: a list where all of them exist already."""

Refused: TypeAlias = Callable[[bytes, StreamParseError], object]
"""Called with a message that is left out, and its error."""


class ItemDecoder(Protocol[T]):
    """Makes items of a batch's body; ``offset`` is the last safe one before it, ``url`` the stream's."""

    def __call__(self, body: bytes, offset: str | None, url: str, refused: Refused | None = None) -> Items[T]:
        """Return the items.

        A message that is not JSON by the rule, or not of the wanted form, raises StreamParseError when its item is
        asked for; with ``refused`` it is given to that function and left out.
        """


def deliver(items: Items[T], commit: Callable[[], object]) -> Iterator[T]:
    """Yield the items, and call ``commit`` just before the last one."""
    if isinstance(items, list):
        last = items[-1:]
        del items[-1:]
        yield from items
        commit()
        yield from last
        return
    committed = False
    for item in items:
        if items.done:
            committed = True
            commit()
        yield item
    if not committed:
        commit()


def gathered(items: Items[T]) -> tuple[list[T], Exception | None]:
    """Return all items; or those before an invalid one, and its error."""
    if isinstance(items, list):
        return items, None
    good: list[T] = []
    try:
        good.extend(items)  # the items before an error stay in the list
    except Exception as error:  # noqa: BLE001 - it is raised when they were handed over
        return good, error
    return good, None


@overload
def item_decoder(decode: None = None) -> ItemDecoder[Any]: ...
@overload
def item_decoder(decode: Decode[T]) -> ItemDecoder[T]: ...
@overload
def item_decoder(decode: Any) -> ItemDecoder[Any]: ...
def item_decoder(decode: Any = None) -> ItemDecoder[Any]:
    """Return the decoder for ``decode``; None leaves JSON values as they are.

    Raises TypeError for an argument that is neither a type that JSON can be read into nor callable.
    """
    if decode is None:
        return _VALUES
    if not isinstance(decode, type) and hasattr(decode, "validate_json"):
        return _Reader(_adapter_model(decode))
    if is_data_type(decode):
        # Unions that differ in their order alone are equal, but not to Pydantic: hence the text.
        return _cached(decode, str(decode)) if _is_hashable(decode) else _typed(decode)
    if callable(decode):
        return _Applied(decode)
    raise TypeError(f"decode must be None, a type or a callable, not {decode!r}.")


# -- types


def is_data_type(decode: Any) -> bool:
    """Whether it says how data is shaped, so that a library can read JSON into it."""
    if get_origin(decode) is not None or decode is Any:
        return True
    if not isinstance(decode, type):  # NewType, TypeAliasType
        return hasattr(decode, "__supertype__") or hasattr(decode, "__value__")
    return (
        issubclass(decode, (msgspec.Struct, msgspec.Raw))
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


class Model(NamedTuple):
    """How one kind of item is made. ``refusal``: the type of its errors, ``name``: its name in messages.

    ``whole`` makes all items of an array, and may refuse what the rule allows; ``lenient`` whether it may also take
    what the rule refuses. ``one`` makes the item of one message that is JSON by the rule.
    """

    whole: Callable[[bytes], list[Any]]
    one: Callable[[bytes], Any]
    refusal: type[Exception]
    name: str
    lenient: bool = False


def _typed(kind: Any) -> ItemDecoder[Any]:
    try:
        return _Reader(_pydantic_model(kind) if is_pydantic(kind) else _msgspec_model(kind))
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


def _msgspec_model(kind: Any) -> Model:
    whole: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list[kind]).decode
    return Model(whole, one_of(kind), msgspec.MsgspecError, _name(kind))


def _pydantic_model(kind: Any) -> Model:
    from pydantic import TypeAdapter  # noqa: PLC0415 - only there where a caller's type comes from it

    whole: Callable[[bytes], list[Any]] = TypeAdapter(list[kind]).validate_json
    whole(b"[]")  # a type that is not fully defined is refused here, not at the first batch
    return Model(whole, one_of(TypeAdapter(kind)), ValueError, _name(kind), lenient=True)


def _adapter_model(adapter: Any) -> Model:
    one = one_of(adapter)

    def whole(body: bytes) -> list[Any]:
        return [one(bytes(message)) for message in _split(body)]

    return Model(whole, one, ValueError, "item of that type")


def one_of(kind: Any) -> Callable[[bytes], Any]:
    """Return what makes one item of a message that is JSON by the rule: of a type, or as a ``TypeAdapter`` does."""
    if kind is msgspec.Raw:
        return msgspec.Raw
    if hasattr(kind, "validate_json"):
        return one_with(kind.validate_json, getattr(kind, "validate_python", None))
    return one_with(msgspec.json.Decoder(kind).decode, lambda value: msgspec.convert(value, kind))


def one_with(parse: Callable[[bytes], Any], make: Callable[[Any], Any] | None) -> Callable[[bytes], Any]:
    """Return the same, of what makes it of a text, and of a value where the text is strange (`strange`)."""

    def one(message: bytes) -> Any:
        try:
            return parse(message)
        except (ValueError, RecursionError):
            if make is None or not is_strange(message):
                raise
        try:
            return read_strange(message, parse, make)
        except RecursionError:
            # Once more in a thread, whose stack is empty: how much room the caller's has must not matter.
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(read_strange, message, parse, make).result()

    return one


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind)


_split = msgspec.json.Decoder(list[msgspec.Raw]).decode
_grammar = msgspec.json.Decoder(msgspec.Raw).decode


# -- batches


class _Part(NamedTuple):
    """Some items of a batch, and the text they were made of: an array, or one message."""

    items: list[Any]
    text: bytes
    is_array: bool

    def message(self, number: int) -> bytes:
        return split(self.text)[number] if self.is_array else self.text


class _Reader:
    """Reads a batch in large pieces, and message by message only where that fails."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._whole = model.whole
        self._strict = not model.lenient

    def __call__(
        self, body: bytes, offset: str | None, url: str, refused: Refused | None = None
    ) -> Items[Any]:
        if len(body) <= _AT_ONCE:
            if not body:
                return []
            try:
                if len(body) <= SHORT and self._strict and body.isascii():
                    return self._whole(body)
                return self._fast(body)
            except Exception:  # noqa: BLE001, S110 - also a validator's own: it is raised again where it belongs
                pass
        items: list[Any] = []
        parts = self.parts(body, _Place(offset, url, refused))
        try:
            for part in parts:
                items += part.items
                if not part.is_array:
                    rest = chain.from_iterable(part.items for part in parts)
                    return LazyItems[Any]().ahead(chain(items, rest))
        except Exception as error:  # noqa: BLE001 - it comes after the items before it
            return LazyItems[Any]().ahead(chain(items, _raised(error)))
        return items

    def parts(self, body: bytes, place: _Place) -> Iterator[_Part]:
        """Yield the items of a batch, in pieces as they are made."""
        pieces = ArrayPieces(body)
        for piece in pieces:
            try:
                part = _Part(self._fast(piece), piece, is_array=True)
            except Exception:  # noqa: BLE001 - as above
                yield from self._one_by_one(piece, pieces, place)
            else:
                place.number += len(part.items)
                yield part

    def _fast(self, body: bytes) -> list[Any]:
        model = self._model
        if not body.isascii():
            check_utf8(body)
        if len(body) > SHORT:
            check_limits(body, ARRAY_DEPTH)
        if model.lenient and may_hold_no_number(body):
            _grammar(body)
        return model.whole(body)

    def _one_by_one(self, piece: bytes, pieces: ArrayPieces, place: _Place) -> Iterator[_Part]:
        model = self._model
        try:
            messages = messages_of(pieces, piece)
            # A text that is not an array, a part of one say, is not read up to the error, unless that was asked for.
            for message in messages if place.refused is not None else list(messages):
                place.number += 1
                try:
                    check(message)
                    item = model.one(message)
                except InvalidJSONError as error:
                    place.refuse(message, error, "valid JSON")
                except (model.refusal, RecursionError) as error:
                    place.refuse(message, error, f"a valid {model.name}")
                except Exception as error:
                    if place.refused is None:
                        raise
                    place.refuse(message, error, f"a valid {model.name}")
                else:
                    yield _Part([item], message, is_array=False)
        except InvalidJSONError as error:
            place.refuse_rest(error)


class _Applied:
    """The items of a batch through a function of the caller's."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(
        self, body: bytes, offset: str | None, url: str, refused: Refused | None = None
    ) -> Items[Any]:
        lazy = LazyItems[Any]()
        if refused is not None:
            return lazy.ahead(self._taken(body, _Place(offset, url, refused)))
        items = _VALUES(body, offset, url)
        # Not map(): a StopIteration out of the function would end it, and lose the rest in silence.
        if not isinstance(items, list):
            return lazy.ahead(self._function(item) for item in items)
        return lazy.of(self._counted(items, lazy))

    def _counted(self, items: list[Any], lazy: LazyItems[Any]) -> Iterator[Any]:
        last = len(items) - 1
        for number, item in enumerate(items):
            made = self._function(item)
            lazy.done = number == last
            yield made

    def _taken(self, body: bytes, place: _Place) -> Iterator[Any]:
        for part in _VALUES.parts(body, place) if body else ():
            place.number -= len(part.items)
            for number, item in enumerate(part.items):
                place.number += 1
                try:
                    made = self._function(item)
                except Exception as error:  # noqa: BLE001 - of the caller's function: handled as on_invalid says
                    place.refuse(part.message(number), error, "what decode takes")
                else:
                    yield made


class _Place:
    """A batch's position in the stream, how many of its messages were read, and the handler of invalid ones."""

    def __init__(self, offset: str | None, url: str, refused: Refused | None) -> None:
        self.offset = offset
        self.url = url
        self.refused = refused
        self.number = 0

    def refuse(self, message: bytes, cause: Exception, wanted: str) -> None:
        """Leave a message out, or raise its error."""
        listed = getattr(cause, "errors", None)  # Pydantic's
        errors = listed(include_url=False) if callable(listed) else [{"msg": str(cause)}]
        reason = _reason(errors, str(cause))
        error = StreamParseError(
            f"Message {self.number} of the batch after offset {self.offset} is not {wanted}: {reason}.",
            offset=self.offset,
            url=self.url,
            details={"number": self.number, "json": message.decode(errors="replace"), "errors": errors},
        )
        error.__cause__ = cause
        self._refused(message, error)

    def refuse_rest(self, cause: InvalidJSONError) -> None:
        """Leave out the rest, which is not a part of an array."""
        error = StreamParseError(
            f"The data after offset {self.offset} is not valid JSON: {cause}.",
            offset=self.offset,
            url=self.url,
        )
        self._refused(cause.rest, error)

    def _refused(self, raw: bytes, error: StreamParseError) -> None:
        if self.refused is None:
            raise error
        self.refused(raw, error)


def _raised(error: Exception) -> Iterator[Any]:
    yield from ()
    raise error


def _reason(errors: list[dict[str, Any]], text: str) -> str:
    """Return the library's first complaint in one line."""
    first = errors[0] if errors else {"msg": text}
    place = ".".join(str(part) for part in first.get("loc", ()))
    reason = " ".join(str(first["msg"]).split()).rstrip(".")
    return (f"{place}: " if place else "") + reason + (f" (and {len(errors) - 1} more)" if errors[1:] else "")


_AT_ONCE = 1 << 15  # bytes: a batch of this size is not cut into pieces
_VALUES = _Reader(Model(msgspec.json.Decoder(list[Any]).decode, decode_value, InvalidJSONError, "JSON"))
