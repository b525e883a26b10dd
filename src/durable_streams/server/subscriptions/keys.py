"""The keys that sign webhooks (protocol section 8): Ed25519, kept in the store, which only its owner may read.

Invariants: a new key is published before it signs, for as long as receivers may keep the old list; an old one stays
published until nothing that it signed is accepted any more.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from durable_streams.protocol.commands import Rejection
from durable_streams.stores.subscriptions import SubscriptionStore

if TYPE_CHECKING:  # an extra
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["JWKS_SECONDS", "MISSING", "Signer", "is_available", "rotate"]

JWKS_SECONDS = 300
"""How long receivers may keep the list of keys, and accept a signature."""

_NAME = "webhook-keys"
_SEED_BYTES = 32
_AHEAD = 2 * JWKS_SECONDS  # seconds from the publication of a key to its use
_BEHIND = 2 * JWKS_SECONDS  # seconds that a key stays published after its use
_REFRESH = 30.0  # seconds
MISSING = 'webhooks need the package cryptography: pip install "durable-streams[webhooks]", and start again'


class _Key(msgspec.Struct, frozen=True):
    """A private key, and the time from which it signs, in seconds since 1970."""

    seed: bytes
    since: float


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[_Key]).decode


def is_available() -> bool:
    """Whether signatures can be made: the extra is installed."""
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401, PLC0415
    except ImportError:
        return False
    return True


def _private(seed: bytes) -> Ed25519PrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    except ImportError:
        raise Rejection(400, "INVALID_REQUEST", MISSING) from None
    return Ed25519PrivateKey.from_private_bytes(seed)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Pair:
    """A key, ready to sign, as it is published."""

    def __init__(self, key: _Key) -> None:
        self.since = key.since
        self._private = _private(key.seed)
        x = _text(self._private.public_key().public_bytes_raw())
        # RFC 7638: the members in this order, without blanks.
        thumbprint = sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest()
        self.kid = f"ds_{_text(thumbprint)}"
        self.jwk = {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": self.kid, "use": "sig", "alg": "EdDSA"}

    def sign(self, data: bytes) -> str:
        return _text(self._private.sign(data))


class Signer:
    """Signs with the present key.

    Args:
        kept: Returns where the keys are kept.
        clock: Returns the seconds since 1970.
    """

    def __init__(self, kept: Callable[[], SubscriptionStore], clock: Callable[[], float]) -> None:
        self._kept = kept
        self._clock = clock
        self._pairs: list[_Pair] = []
        self._stored = b""
        self._read_at: float | None = None

    async def kid(self) -> str:
        """Return the name of the key that signs now."""
        return (await self._present()).kid

    async def signature(self, body: bytes) -> str:
        """Return the header ``Webhook-Signature`` of a body."""
        pair = await self._present()
        moment = int(self._clock())
        return f"t={moment},kid={pair.kid},ed25519={pair.sign(b'%d.' % moment + body)}"

    async def jwks(self) -> dict[str, object]:
        """Return the public keys."""
        await self._present()
        return {"keys": [pair.jwk for pair in self._pairs]}

    async def _present(self) -> _Pair:
        now = time.monotonic()
        if self._read_at is None or now - self._read_at > _REFRESH:
            made = [] if self._stored else [_Key(secrets.token_bytes(_SEED_BYTES), 0.0)]
            stored = await self._kept().secret(_NAME, _encode(made) if made else None) or b"[]"
            if stored != self._stored:
                self._pairs = [_Pair(key) for key in _decode(stored)]
                self._stored = stored
            self._read_at = now
        moment = self._clock()
        return max((pair for pair in self._pairs if pair.since <= moment), key=lambda pair: pair.since)


async def rotate(kept: SubscriptionStore, now: float) -> float:
    """Publish a new key; return when it begins to sign, in seconds since 1970.

    Args:
        kept: Where the keys are kept.
        now: The time, in seconds since 1970.
    """
    while True:
        first = _encode([_Key(secrets.token_bytes(_SEED_BYTES), 0.0)])
        stored = await kept.secret(_NAME, first) or b"[]"
        keys = sorted(_decode(stored), key=lambda key: key.since)
        # A key is over when its successor has signed for long enough.
        over = [index for index, following in enumerate(keys[1:]) if following.since + _BEHIND <= now]
        keys = keys[len(over) :]
        since = now + _AHEAD
        keys.append(_Key(secrets.token_bytes(_SEED_BYTES), since))
        if await kept.replace_secret(_NAME, stored, _encode(keys)):
            return since
