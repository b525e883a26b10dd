"""The bearer tokens of a wake (protocol section 8): what a worker shows to acknowledge.

Pure: key and time are arguments. Invariants: a token is valid for one incarnation and one generation of one
subscription; the same wake has the same token, however often it is delivered; a signature is compared in constant time.
"""

from __future__ import annotations

import base64
import hmac
from hashlib import sha256

import msgspec

from durable_streams.protocol.commands import Rejection

__all__ = ["KEY_BYTES", "TOKEN_SECONDS", "Claims", "issue", "verify"]

KEY_BYTES = 32
TOKEN_SECONDS = 7 * 86400
"""Seconds that a token lives: its generation ends it long before, when the lease is not extended."""

_LONGEST = 4096  # characters


class Claims(msgspec.Struct, frozen=True):
    """What a token says.

    Attributes:
        sub: ``subscription:`` and the id.
        inc: The incarnation of the subscription: one that was deleted and made again has another one.
        gen: The generation of the wake.
        exp: When the token expires, in seconds since 1970.
        jti: The id of the wake.
    """

    sub: str
    inc: str
    gen: int
    exp: int
    jti: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Claims).decode


def issue(key: bytes, claims: Claims) -> str:
    """Return the token for some claims.

    Args:
        key: The secret of the server.
        claims: What the token says.
    """
    said = _text(_encode(claims))
    return f"{said}.{_signature(key, said)}"


def verify(key: bytes, token: str, subject: str, now: float) -> Claims:
    """Return the claims of a token; whether its incarnation is the present one is left to the caller.

    Args:
        key: The secret of the server.
        token: The token, as it was received.
        subject: ``subscription:`` and the id that it must be for.
        now: The time, in seconds since 1970.

    Raises:
        Rejection: 401, the token is not one of these, or expired.
    """
    said, _, signature = token.partition(".")
    if (
        len(token) > _LONGEST
        or not token.isascii()
        or not hmac.compare_digest(signature, _signature(key, said))
    ):
        raise invalid()
    try:
        claims = _decode(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)))
    except (ValueError, msgspec.DecodeError):
        raise invalid() from None
    if claims.sub != subject:
        raise invalid()
    if now >= claims.exp:
        raise Rejection(401, "TOKEN_EXPIRED", "the token expired: wait for the next wake, or claim again")
    return claims


def invalid() -> Rejection:
    """Return the 401 of a request without a valid token."""
    return Rejection(
        401,
        "TOKEN_INVALID",
        "this needs the token of the present wake: send it as Authorization: Bearer <token>",
        {"www-authenticate": "Bearer"},
    )


def _signature(key: bytes, said: str) -> str:
    return _text(hmac.digest(key, said.encode(), sha256))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
