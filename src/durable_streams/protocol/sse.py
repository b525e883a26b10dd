"""Server-sent events as section 5 uses them: what the server encodes and the client decodes.

Invariants: a payload can never inject an event (CR, LF and CRLF all end a line, each line carries its own
``data:``); data is committed only by the control event that follows it.
"""

from __future__ import annotations

import base64

import msgspec

__all__ = ["encode_control", "encode_data"]

_encode_json = msgspec.json.Encoder().encode


def encode_data(payload: bytes, *, text: bool) -> bytes:
    """Return one ``event: data`` block. ``text``: UTF-8 lines as they are; else base64 on a single line."""
    if not text:
        return b"event: data\ndata:" + base64.b64encode(payload) + b"\n\n"
    if b"\r" in payload:
        payload = payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if payload.startswith(b" ") or b"\n " in payload:
        # A client strips one space after the colon: such lines need one of their own to lose.
        return b"event: data\ndata: " + payload.replace(b"\n", b"\ndata: ") + b"\n\n"
    return b"event: data\ndata:" + payload.replace(b"\n", b"\ndata:") + b"\n\n"


def encode_control(
    next_offset: str, *, cursor: str | None = None, up_to_date: bool = False, closed: bool = False
) -> bytes:
    """Return the ``event: control`` block that commits the data before it."""
    control: dict[str, str | bool] = {"streamNextOffset": next_offset}
    if cursor is not None:
        control["streamCursor"] = cursor
    if up_to_date:
        control["upToDate"] = True
    if closed:
        control["streamClosed"] = True
    return b"event: control\ndata:" + _encode_json(control) + b"\n\n"
