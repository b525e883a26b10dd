"""JSON mode: bodies to messages and back, byte for byte (protocol section 4).

Invariants: a stored payload is its messages, each followed by one comma (and by what white space was there); a
message's bytes are never re-encoded; any concatenation of payloads is therefore one array away from being an answer.
"""

from __future__ import annotations

import json

import msgspec

__all__ = ["InvalidJSONError", "message_end", "payload_from_body", "response_body"]

_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_value = msgspec.json.Decoder(msgspec.Raw).decode
_WHITESPACE = b" \t\r\n"


class InvalidJSONError(ValueError):
    """A body that is not one JSON text. The message is a sentence for the sender."""


def payload_from_body(body: bytes) -> bytes:
    """Return the stored form of a request body: an array is flattened by one level, ``[]`` gives ``b""``.

    Raises InvalidJSONError for anything that is not one valid UTF-8 JSON text.
    """
    text = body.strip(_WHITESPACE)
    if not text.isascii():
        _check_utf8(text)
    _check_value(text)
    if not text.startswith(b"["):
        return text + b","
    # Valid as a whole, so that what is inside the brackets is its messages with a comma between any two.
    start, end = 1, len(text) - 1
    while start < end and text[start] in _WHITESPACE:
        start += 1
    while start < end and text[end - 1] in _WHITESPACE:
        end -= 1
    # A view, for each copy of a large body costs more than checking it did.
    return b"".join((memoryview(text)[start:end], b",")) if start < end else b""


def response_body(payload: bytes) -> bytes:
    """Return one JSON array of all messages in a stored payload."""
    # One copy: with +, each of the two in between is a megabyte that the system has to map.
    return b"".join((b"[", memoryview(payload)[:-1], b"]"))


def message_end(payload: bytes, count: int) -> int | None:
    """Return where the first ``count`` messages of a stored payload end, in bytes; None if it holds fewer."""
    messages = _split(response_body(payload))
    if count > len(messages):
        return None
    end = 0
    for message in messages[:count]:
        end = payload.index(b",", payload.index(bytes(message), end) + len(message)) + 1
    return end


def _check_utf8(text: bytes) -> None:
    # msgspec takes any bytes inside strings; readers would not.
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise InvalidJSONError(f"the body is not UTF-8: invalid byte at position {error.start}") from None


def _split(text: bytes) -> list[bytes | msgspec.Raw]:
    try:
        return list(_decode_list(text))
    except (msgspec.DecodeError, RecursionError) as error:
        return _split_slowly(text, error)


def _check_value(text: bytes) -> None:
    try:
        _decode_value(text)
    except (msgspec.DecodeError, RecursionError) as error:
        _load_slowly(text, error)


def _load_slowly(text: bytes, cause: Exception) -> object:
    """Accept what only msgspec refuses: valid JSON numbers beyond a double, such as 1e400."""
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant, parse_int=str, parse_float=str)
    except RecursionError:
        raise InvalidJSONError("the body nests too deeply") from None
    except ValueError:
        raise InvalidJSONError(f"the body is not valid JSON: {cause}") from None


def _split_slowly(text: bytes, cause: Exception) -> list[bytes | msgspec.Raw]:
    _load_slowly(text, cause)
    scan = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode
    source = text.decode()
    messages: list[bytes | msgspec.Raw] = []
    position = _skip(source, 1)
    while source[position] != "]":
        _, end = scan(source, position)
        messages.append(source[position:end].encode())
        position = _skip(source, end)
        if source[position] == ",":
            position = _skip(source, position + 1)
    return messages


def _skip(source: str, position: int) -> int:
    while source[position] in " \t\r\n":
        position += 1
    return position


def _refuse_constant(name: str) -> object:
    raise ValueError(name)
