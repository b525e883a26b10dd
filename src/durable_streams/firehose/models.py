"""What a record's bytes become: the ``response_model`` of a feed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from durable_streams.client.decoding import is_data_type, is_pydantic
from durable_streams.protocol.operations import decode_json
from durable_streams.protocol.records import Decode

__all__ = ["decoder_for"]

_check = msgspec.json.Decoder(msgspec.Raw).decode


def decoder_for(model: Any) -> Decode | None:
    """Return what makes the values that ``model`` asks for; None for JSON values as they are.

    ``model``: a Pydantic model or ``TypeAdapter``; a msgspec Struct, dataclass, TypedDict or other type that JSON
    can be read into; ``bytes`` for the record as it came, checked to be JSON; another callable, which is given the
    JSON value. Raises TypeError for anything else.
    """
    if model is None:
        return None
    if model is bytes:
        return _raw
    if isinstance(model, type) and _is_plain_model(model):
        return _validator(model)
    for method in ("model_validate_json", "validate_json"):
        validate: Decode | None = getattr(model, method, None)
        if callable(validate):
            return validate
    if is_data_type(model):
        return _typed(model)
    if callable(model):
        return partial(_applied, model)
    raise TypeError(f"response_model must be a type or a callable, not {model!r}.")


def _typed(model: Any) -> Decode:
    if is_pydantic(model):
        return _validator(model)
    decode: Decode = msgspec.json.Decoder(model).decode
    return decode


def _is_plain_model(model: type) -> bool:
    """Whether it is a Pydantic model that validates JSON as all of them do."""
    method = getattr(model, "model_validate_json", None)
    return is_pydantic(model) and getattr(method, "__module__", "").partition(".")[0] == "pydantic"


def _validator(model: Any) -> Decode:
    from pydantic import TypeAdapter  # noqa: PLC0415 - only there where a caller's type comes from it

    # Pydantic's own core, without the layer above it, which costs as much as a small record.
    validate: Decode = TypeAdapter(model).validator.validate_json
    return validate


def _raw(record: bytes) -> bytes:
    try:
        _check(record)
    except msgspec.DecodeError:
        decode_json(record)  # numbers beyond a double are valid
    return record.rstrip(b"\r")


def _applied(function: Callable[[Any], Any], record: bytes) -> Any:
    return function(decode_json(record))
