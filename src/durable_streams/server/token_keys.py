"""The keys that verify tokens: from a JWK set (RFC 7517), or one key in a file.

Invariants: what a key is decides which algorithms it verifies, and nothing that a token says does (RFC 8725, 2.1): a
public key is never taken for the secret of an HMAC, in whatever form it comes, and ``none`` is no algorithm. Raises
ValueError with one sentence.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWK
from jwt.exceptions import PyJWTError

__all__ = ["TokenKey", "TokenKeys", "key_in_file", "key_set"]

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_HMAC = {"HS256": 32, "HS384": 48, "HS512": 64}  # and the least bytes of a secret (RFC 7518, 3.2)
_MIN_RSA = 2048  # bits
_MAX_KEYS = 100
_PEM = "-----BEGIN "
_SSH = re.compile(rb"(?:sk-)?(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-)")
_SSH_NAME = 4  # where the name of the kind begins in a key in the form of SSH, behind its length
_SEQUENCE = 0x30  # of DER: keys and certificates are one,
_FIRST = (b"\x30", b"\x02")  # which begins with another one, or with a number
_LONG = 0x80  # of DER: a length that takes more bytes than one


class TokenKey(NamedTuple):
    """A key, and what it verifies. ``id``: its ``kid``, None if it has none."""

    id: str | None
    key: Any
    algorithms: tuple[str, ...]


class TokenKeys:
    """Some keys, to be found by what the head of a token says."""

    def __init__(self, keys: list[TokenKey]) -> None:
        self._keys = keys

    def candidates(self, algorithm: str, key_id: str | None) -> list[TokenKey]:
        """Return the keys that may have signed a token: the one that it names, or all for its algorithm."""
        found = [key for key in self._keys if algorithm in key.algorithms]
        return found if key_id is None else [key for key in found if key.id in (None, key_id)]


def key_in_file(text: str) -> TokenKeys:
    """Return the key of a file: a public key or certificate (PEM), a JWK, or else the text is the secret of an HMAC."""
    text = text.removeprefix("\ufeff").strip()
    if (begin := text.find(_PEM)) >= 0:
        key = _public_key(text[begin:])
        return TokenKeys([TokenKey(None, key, _algorithms_of(key))])
    if text.startswith("{"):
        return key_set(text, secrets=True)
    if "\n" in text or "\r" in text:
        raise ValueError(
            "a secret is one line, and a public key has the lines -----BEGIN and -----END around it"
        )
    secret = text.encode()
    algorithms = _algorithms_of(secret)
    if not algorithms:
        raise ValueError(f"a secret has at least {_HMAC['HS256']} bytes, this one has {len(secret)}")
    return TokenKeys([TokenKey(None, secret, algorithms)])


def _public_key(text: str) -> Any:
    head = text.partition("\n")[0]
    if "PRIVATE KEY" in head:
        raise ValueError("it is a private key, which stays with those who make tokens: give the public key")
    try:
        if head.startswith("-----BEGIN CERTIFICATE-----"):
            return x509.load_pem_x509_certificate(text.encode()).public_key()
        return load_pem_public_key(text.encode())
    except UnsupportedAlgorithm:
        raise ValueError("it is a key of an unknown kind") from None
    except ValueError:
        raise ValueError(
            "it begins like a public key or certificate in PEM, and cannot be read as one"
        ) from None


def key_set(text: str, *, secrets: bool) -> TokenKeys:
    """Return the keys of a JWK set, or of one JWK; those of unknown kinds, and those for encryption, are left out.

    Args:
        text: The set, as JSON.
        secrets: Whether it may hold secrets of HMACs: one that comes from a URL is known to everybody.
    """
    try:
        value = json.loads(text)
        entries = [value] if "kty" in value else list(value["keys"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('it is no JWK set, {"keys": [...]}') from None
    if len(entries) > _MAX_KEYS:
        raise ValueError(f"it has more than {_MAX_KEYS} keys")
    keys = [key for entry in entries if (key := _of_set(entry, secrets=secrets)) is not None]
    if not keys:
        raise ValueError("it has no key that verifies tokens: RSA, EC and Ed25519 keys do")
    return TokenKeys(keys)


def _of_set(entry: Any, *, secrets: bool) -> TokenKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    if entry.get("kty") == "oct" and not secrets:
        return None
    try:
        key = PyJWK(entry).key
        if hasattr(key, "public_key"):  # a set on this machine may hold the private ones
            key = key.public_key()
        algorithms = _algorithms_of(key)
    except (PyJWTError, ValueError, TypeError):
        return None
    if (only := entry.get("alg")) is not None:
        algorithms = tuple(name for name in algorithms if name == only)
    key_id = entry.get("kid")
    return TokenKey(key_id if isinstance(key_id, str) else None, key, algorithms) if algorithms else None


def _algorithms_of(key: Any) -> tuple[str, ...]:
    if isinstance(key, RSAPublicKey):
        if key.key_size < _MIN_RSA:
            raise ValueError(f"an RSA key has at least {_MIN_RSA} bits, this one has {key.key_size}")
        return _RSA
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return (_CURVES[key.curve.name],)
    if isinstance(key, Ed25519PublicKey):
        return ("EdDSA",)
    if isinstance(key, bytes):
        if _is_known_to_others(key):
            raise ValueError(
                "it is a key in another form than PEM, which is no secret of an HMAC: give it as PEM, with the lines "
                "-----BEGIN and -----END"
            )
        return tuple(name for name, least in _HMAC.items() if len(key) >= least)
    raise ValueError("keys that verify tokens are RSA, EC (P-256, P-384, P-521) and Ed25519 keys")


def _is_known_to_others(secret: bytes) -> bool:
    """Whether what is given as a secret is a public key, a certificate or a token in some form."""
    if _PEM.encode() in secret or _SSH.search(secret):
        return True
    return any(
        _is_der(form) or _SSH.match(form, _SSH_NAME) is not None or form.lstrip().startswith(b'{"')
        for form in _decoded(secret)
    )


def _decoded(secret: bytes) -> Iterator[bytes]:
    """Yield what a text may stand for: itself, and its words as base64 and as hexadecimal digits."""
    yield secret
    words = [word.strip(b"\"',;:") for word in re.split(rb"[\s.]+", secret)]
    for word in (*words, b"".join(words)):
        standard = word.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
        for decode, digits in ((_base64, standard), (binascii.unhexlify, word)):
            try:
                yield decode(digits)
            except ValueError:
                continue


def _base64(digits: bytes) -> bytes:
    return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)


def _is_der(content: bytes) -> bool:
    if len(content) < _HMAC["HS256"] or content[0] != _SEQUENCE:
        return False
    size, begin = content[1], 2
    if size >= _LONG:
        begin += size - _LONG
        size = int.from_bytes(content[2:begin], "big")
    return begin + size == len(content) and content[begin : begin + 1] in _FIRST
