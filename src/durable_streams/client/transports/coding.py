"""Compressed bodies: whether one reached the end of its coding.

Invariant: decoding itself is the HTTP library's. Libraries accept a body that ends, as far as HTTP
can see, before its compressed data does (a proxy that gives up): here that is a failure and not an end.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ended_early"]

_LAYERS = ("_obj", "decompressor", "_decompressor")
"""Under which names the libraries' decoders keep the decompressor of zlib, Brotli or Zstandard."""


def ended_early(decoder: Any, received: int) -> bool:
    """Whether the decoder of an HTTP library whose body is over was still waiting for data, or left some unread.

    ``received``: the body's bytes as they came; a body of none needs no decoding. False where it cannot be known.
    """
    if decoder is None or not received:
        return False
    inner = decoder
    while (
        below := next((getattr(inner, name) for name in _LAYERS if hasattr(inner, name)), None)
    ) is not None:
        inner = below
    if hasattr(inner, "is_finished"):  # Brotli
        return not inner.is_finished()
    # Data left unread: a second member of a gzip file, which httpx drops.
    return getattr(inner, "eof", True) is False or bool(getattr(inner, "unused_data", b""))
