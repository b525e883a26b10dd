"""JSON mode: bodies to messages and back, byte for byte (protocol section 4).

Invariants: a stored payload is its messages, each followed by one comma (and by what white space was there); a
message's bytes are never re-encoded; any concatenation of payloads is therefore one array away from being an answer.
"""

from __future__ import annotations

from durable_streams.protocol.jsonarrays import check_array, split
from durable_streams.protocol.jsonrule import SHORT, WHITESPACE, InvalidJSONError, check

__all__ = ["InvalidJSONError", "message_end", "payload_from_body", "response_body"]


def payload_from_body(body: bytes) -> bytes:
    """Return the stored form of a request body: an array is flattened by one level, ``[]`` gives ``b""``.

    Raises InvalidJSONError for anything that is not one message by the rule (`jsonrule`), or an array of them.
    """
    text = body.strip(WHITESPACE)
    if not text.startswith(b"["):
        check(text)
        return text + b","
    if len(text) <= SHORT:
        check(text)  # whatever the array holds, it is within the limits
    else:
        check_array(text)
    # Valid as a whole, so that what is inside the brackets is its messages with a comma between any two.
    start, end = 1, len(text) - 1
    while start < end and text[start] in WHITESPACE:
        start += 1
    while start < end and text[end - 1] in WHITESPACE:
        end -= 1
    # A view, for each copy of a large body costs more than checking it did.
    return b"".join((memoryview(text)[start:end], b",")) if start < end else b""


def response_body(payload: bytes) -> bytes:
    """Return one JSON array of all messages in a stored payload."""
    # One copy: with +, each of the two in between is a megabyte that the system has to map.
    return b"".join((b"[", memoryview(payload)[:-1], b"]"))


def message_end(payload: bytes, count: int) -> int | None:
    """Return where the first ``count`` messages of a stored payload end, in bytes; None if it holds fewer."""
    messages = split(response_body(payload))
    if count > len(messages):
        return None
    end = 0
    for message in messages[:count]:
        end = payload.index(b",", payload.index(message, end) + len(message)) + 1
    return end
