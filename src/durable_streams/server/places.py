"""Where a list goes on, for a caller that must not learn which stream that is.

Invariants: without the key a place says nothing of the path in it, not even its length, and two places of one path have
nothing in common; one that was made up, changed, or made with another key is no place.

Nothing of the standard library encrypts, and `cryptography` is an extra that a server with static keys does without: a
place is the padded path under a keystream of SHAKE-256, keyed and with a nonce, and an HMAC over both.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from hashlib import shake_256

__all__ = ["KEY_BYTES", "is_place", "path_of", "place_of"]

KEY_BYTES = 32
_MARK = "./"  # no path of a stream begins with a segment that is .
_NONCE = 16  # bytes
_TAG = 16  # bytes
_SIZES = (1024, 4096)  # bytes of a padded path: the second one is that of 1024 characters that are not ASCII
_END = b"\x00"  # no path has it


def is_place(text: str) -> bool:
    """Whether a text has the form of a place."""
    return text.startswith(_MARK)


def place_of(path: str, key: bytes) -> str:
    """Return the place behind a path.

    Args:
        path: The path of a stream.
        key: `KEY_BYTES` random bytes.
    """
    content = path.encode()
    size = next(size for size in _SIZES if len(content) < size or size == _SIZES[-1])
    nonce = secrets.token_bytes(_NONCE)
    hidden = nonce + _masked(content.ljust(size, _END), key, nonce)
    return _MARK + base64.urlsafe_b64encode(hidden + _tag(hidden, key)).rstrip(b"=").decode()


def path_of(place: str, key: bytes) -> str:
    """Return the path of a place; raises ValueError for one that was not made with this key."""
    digits = place.removeprefix(_MARK)
    whole = base64.urlsafe_b64decode(digits + "=" * (-len(digits) % 4))
    hidden, tag = whole[:-_TAG], whole[-_TAG:]
    if not hmac.compare_digest(tag, _tag(hidden, key)):
        raise ValueError("it was not made with this key")
    nonce, content = hidden[:_NONCE], hidden[_NONCE:]
    return _masked(content, key, nonce).rstrip(_END).decode()


def _masked(content: bytes, key: bytes, nonce: bytes) -> bytes:
    stream = shake_256(b"place" + key + nonce).digest(len(content))
    mixed = int.from_bytes(content, "big") ^ int.from_bytes(stream, "big")
    return mixed.to_bytes(len(content), "big")


def _tag(hidden: bytes, key: bytes) -> bytes:
    return hmac.digest(key, b"place\x00" + hidden, "sha256")[:_TAG]
