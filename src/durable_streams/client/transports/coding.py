"""Compressed bodies: which codings a request asks for, and whether a body came to its coding's own end.

Invariant: decoding itself is the HTTP library's. What libraries let pass is a body that ends, as far as HTTP can
tell, before its compressed data does (a proxy that gives up): to us that is a failure and no end.
"""

from __future__ import annotations

from typing import Any

from durable_streams.protocol.request import Request

__all__ = ["ended_early", "with_accept_encoding"]

_LAYERS = ("_obj", "decompressor", "_decompressor")
"""Under which names the libraries' decoders keep the decompressor of zlib, Brotli or Zstandard."""


def with_accept_encoding(request: Request, decodable: str) -> dict[str, str]:
    """Return the request's headers, a read's with the codings that it takes: ``decodable``, none on a live read.

    What compresses also buffers, and a live read wants each record at once. The caller's own header is kept.
    """
    headers = dict(request.headers)
    if request.method == "GET":
        headers.setdefault("accept-encoding", "identity" if request.streaming else decodable)
    return headers


def ended_early(decoder: Any, received: int) -> bool:
    """Whether the decoder of an HTTP library whose body is over was still waiting for data, or left some unread.

    ``received``: the body's bytes as they came; a body of none needs no decoding. False where it cannot be told.
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
