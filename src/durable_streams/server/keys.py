"""The file of keys (``--auth keys.toml``): bearer keys, and the keys that sign URLs.

Invariants: of a bearer key only its SHA-256 is stored, which is enough for 256 random bits; a key is found by the hash
of what was sent, so that no comparison of secrets takes a time that says something about them.

    [[key]]
    name = "worker"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    allow = ["read,append:jobs/**"]
    expires = 2030-01-31T12:00:00Z
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import datetime

import msgspec

from durable_streams.protocol.grants import Grant
from durable_streams.server.toml import toml_as

__all__ = [
    "KeyEntry",
    "KeyFile",
    "Keys",
    "SigningEntry",
    "SigningKey",
    "new_key",
    "new_signing_key",
    "parse_keys",
    "signing_key_id",
]

_PREFIX = "ds_"
_HASH = re.compile(r"[0-9a-f]{64}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43,}")
_MAX_KEYS = 10_000
_ID = 12  # characters of a hash that name a key


class _Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What all keys have.

    Args:
        name: Who it belongs to: quotas count by it, and keys of one name are the same caller.
        allow: What it allows, as in ``read,append:jobs/**``.
        created: When it was made.
        expires: When it ends.
    """

    name: str = ""
    allow: list[str]
    created: datetime | None = None
    expires: datetime | None = None

    @property
    def id(self) -> str:
        """What names this key, and is no secret."""
        raise NotImplementedError

    def grant(self) -> Grant:
        """Return what it allows; raises ValueError with one sentence."""
        if self.expires is not None and self.expires.tzinfo is None:
            raise ValueError(f"key {self.id}: expires is a time with a zone, such as 2030-01-31T12:00:00Z")
        expires = None if self.expires is None else self.expires.timestamp()
        try:
            return Grant.of(*self.allow, subject=self.name or self.id, expires=expires)
        except ValueError as error:
            raise ValueError(f"key {self.id}: {error}") from None


class KeyEntry(_Entry):
    """A bearer key: ``sha256`` is that of the whole key, in hexadecimal digits."""

    sha256: str

    @property
    def id(self) -> str:
        """The beginning of its hash."""
        return self.sha256[:_ID]

    def check(self) -> None:
        """Raise ValueError if its hash is none."""
        if not _HASH.fullmatch(self.sha256):
            raise ValueError(
                "sha256 of a key has 64 hexadecimal digits in lower case: `key create` makes one"
            )


class SigningEntry(_Entry):
    """A key that signs URLs: they allow no more than it does."""

    secret: str

    @property
    def id(self) -> str:
        """The beginning of the hash of its secret."""
        return signing_key_id(self.secret)

    def check(self) -> None:
        """Raise ValueError if its secret is short."""
        if not _SECRET.fullmatch(self.secret):
            raise ValueError(
                "the secret of a signing key has 43 or more of the characters A-Z a-z 0-9 - _: "
                "`key create --signing` makes one"
            )


class KeyFile(msgspec.Struct, forbid_unknown_fields=True):
    """What a file of keys holds."""

    key: list[KeyEntry] = []
    signing_key: list[SigningEntry] = []


class SigningKey(msgspec.Struct, frozen=True):
    """A key that signs URLs, ready to be used."""

    secret: bytes
    grant: Grant


class Keys:
    """The keys of a file, by what a request brings. Raises ValueError with one sentence."""

    def __init__(self, file: KeyFile) -> None:
        if len(file.key) + len(file.signing_key) > _MAX_KEYS:
            raise ValueError(f"it has more than {_MAX_KEYS} keys: use JWTs for that many callers")
        self._grants: dict[bytes, Grant] = {}
        self.signing: dict[str, SigningKey] = {}
        for entry in file.key:
            entry.check()
            self._grants[bytes.fromhex(entry.sha256)] = entry.grant()
        for signer in file.signing_key:
            signer.check()
            self.signing[signer.id] = SigningKey(signer.secret.encode(), signer.grant())

    def grant(self, digest: bytes) -> Grant | None:
        """Return what a bearer key allows, given its SHA-256; None if it is none of these."""
        return self._grants.get(digest)


def parse_keys(text: str) -> Keys:
    """Return the keys of a file's text; raises ValueError with one sentence."""
    return Keys(toml_as(text, KeyFile))


def new_key(
    allow: Sequence[str], *, name: str = "", created: datetime, expires: datetime | None = None
) -> tuple[str, KeyEntry]:
    """Return a random bearer key, which is stored nowhere, and its entry."""
    token = _PREFIX + secrets.token_urlsafe(32)
    entry = KeyEntry(
        name=name, allow=list(allow), created=created, expires=expires, sha256=_digest(token).hex()
    )
    entry.grant()
    return token, entry


def new_signing_key(
    allow: Sequence[str], *, name: str = "", created: datetime, expires: datetime | None = None
) -> SigningEntry:
    """Return a random key that signs URLs."""
    entry = SigningEntry(
        name=name, allow=list(allow), created=created, expires=expires, secret=secrets.token_urlsafe(32)
    )
    entry.grant()
    return entry


def signing_key_id(secret: str) -> str:
    """Return the id of a signing key."""
    return _digest(secret).hex()[:_ID]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
