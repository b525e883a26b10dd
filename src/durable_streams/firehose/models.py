"""What a record's bytes become: the ``response_model`` of a feed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from durable_streams.client.decoding import is_data_type, is_pydantic, one_of, one_with
from durable_streams.firehose.records import Decode, Decoding, FeedEvent
from durable_streams.protocol.jsonrule import check
from durable_streams.protocol.jsonvalues import decode

__all__ = ["decoder_for"]


def decoder_for(model: Any) -> Decoding | None:
    """Return what makes the values that a ``response_model`` asks for.

    Args:
        model: A Pydantic model or ``TypeAdapter``; a msgspec Struct, dataclass, TypedDict or other type that JSON can
            be read into; ``bytes`` for the record as it came, checked to be JSON; FeedEvent for the record with its
            id and type, where the data of an event may be any text; an object with a method ``model_validate`` of its
            own, or another callable, which is given the JSON value.

    Returns:
        The decoding; None, for ``model=None``: JSON values as they are.

    Raises:
        TypeError: The model is none of these.
    """
    if model is None:
        return None
    if model is bytes:
        return Decoding(_raw, _stripped)
    if model is FeedEvent:
        return Decoding(_checked(_event), _event, raw=True)
    if isinstance(model, type) and _is_plain_model(model):
        return _validator(model)
    if (by_method := _by_method(model)) is not None:
        return by_method
    if is_data_type(model):
        return (
            _validator(model)
            if is_pydantic(model)
            else Decoding(msgspec.json.Decoder(model).decode, one_of(model))
        )
    if callable(model):
        return Decoding(_applied(model), _applied(model))
    raise TypeError(f"response_model must be a type or a callable, not {model!r}.")


def _is_plain_model(model: type) -> bool:
    """Whether it is a Pydantic model that validates values and JSON as all of them do."""
    return is_pydantic(model) and not any(
        _is_own(model, name) for name in ("model_validate", "model_validate_json")
    )


def _by_method(model: Any) -> Decoding | None:
    """Return the decoding of a model with methods as Pydantic's have; None for one without."""
    for of_json, of_value in (
        ("model_validate_json", "model_validate"),
        ("validate_json", "validate_python"),
    ):
        make: Any = getattr(model, of_value, None)
        parse: Decode | None = getattr(model, of_json, None)
        # The caller's own validation of values is the one that counts, wherever there is one.
        if callable(make) and (_is_own(model, of_value) or not callable(parse)):
            return Decoding(_applied(make), _applied(make))
        if callable(parse):
            return Decoding(_checked(parse), one_with(parse, make))
    return None


def _is_own(model: Any, name: str) -> bool:
    """Whether a method of a model is not Pydantic's."""
    method = getattr(model, name, None)
    return callable(method) and str(getattr(method, "__module__", "")).partition(".")[0] != "pydantic"


def _validator(model: Any) -> Decoding:
    from pydantic import TypeAdapter  # noqa: PLC0415 - only there where a caller's type comes from it

    adapter = TypeAdapter(model)
    # Pydantic's own core, without the layer above it, which costs as much as a small record.
    return Decoding(adapter.validator.validate_json, one_of(adapter), lenient=True)


def _raw(record: bytes) -> bytes:
    check(record)
    return record.rstrip(b"\r")


def _stripped(record: bytes) -> bytes:
    return record.rstrip(b"\r")


def _event(record: bytes) -> FeedEvent:
    return FeedEvent(_stripped(record), getattr(record, "id", ""), getattr(record, "event", ""))


def _checked(validate: Decode) -> Decode:
    """Return a caller's validator, which may take more than JSON, behind a check."""

    def decode_checked(record: bytes) -> Any:
        check(record)
        return validate(record)

    return decode_checked


def _applied(function: Callable[[Any], Any]) -> Decode:
    return lambda record: function(decode(record))
