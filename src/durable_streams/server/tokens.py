"""JSON Web Tokens (RFC 7519) as credentials, by the rules of RFC 8725.

Invariants: nothing of a token is believed before its signature is verified; one without an end is refused; a token that
was verified is so until it ends or the keys change, and costs a look into a table then.
"""

from __future__ import annotations

import json
import math
import time
from hashlib import sha256
from typing import Any

import jwt
from jwt.exceptions import (
    DecodeError,
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAudienceError,
    InvalidIssuerError,
    InvalidSignatureError,
    MissingRequiredClaimError,
    PyJWTError,
)
from jwt.utils import base64url_decode

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.grants import Grant
from durable_streams.server.access import unauthorized
from durable_streams.server.config import ServerConfig
from durable_streams.server.key_sets import KeySource
from durable_streams.server.token_keys import TokenKeys

__all__ = ["Tokens", "subject_of"]

_MAX_VERIFIED = 10_000  # tokens that are known to be good
_MAX_TRIES = 8  # keys that one token is tried with
_LATEST = 1 << 53  # seconds since 1970: ends later than that are none
_MAX_SUBJECT = 256  # characters
_TIMES = ("exp", "nbf", "iat")
_MEANING: tuple[tuple[type[PyJWTError], str], ...] = (
    (ExpiredSignatureError, "this token has expired: get another one"),
    (ImmatureSignatureError, "this token is not valid yet"),
    (InvalidAudienceError, "this token is for another audience"),
    (InvalidIssuerError, "this token is of another issuer"),
    (
        MissingRequiredClaimError,
        "this token lacks a claim: exp, or the aud or iss that are asked for",
    ),
    (InvalidSignatureError, "the signature of this token is not of a key that is trusted here"),
)


class _Strict(jwt.PyJWT):
    """Refuses payloads with a claim that occurs twice: which one counts is up to who reads it. Times are numbers."""

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        claims = _object(decoded["payload"])
        for name in _TIMES:
            value = claims.get(name, 0)
            if type(value) not in (int, float) or not abs(value) < math.inf:
                raise DecodeError
        return claims


class Tokens:
    """Verifies tokens.

    Args:
        source: The keys.
        config: What tokens have to say: ``jwt_issuer``, ``jwt_audience``, ``jwt_leeway``, ``jwt_claim``.
    """

    def __init__(self, source: KeySource, config: ServerConfig) -> None:
        self._source = source
        self._claim = config.jwt_claim
        self._leeway = config.jwt_leeway
        self._checks: dict[str, Any] = {
            "audience": config.jwt_audience,
            "issuer": config.jwt_issuer,
            "leeway": config.jwt_leeway,
            "options": {
                "require": [
                    "exp",
                    *(["aud"] if config.jwt_audience is not None else []),
                    *(["iss"] if config.jwt_issuer is not None else []),
                ]
            },
        }
        self._decoder = _Strict()
        self._keys: TokenKeys | None = None
        self._verified: dict[bytes, Grant] = {}

    def known(self, digest: bytes) -> Grant | None:
        """Return what a token allows that was verified before, given its SHA-256; None for any other."""
        return self._verified.get(digest) if self._source.current() is self._keys else None

    async def grant(self, token: str, digest: bytes) -> Grant:
        """Return what a token allows, given it and its SHA-256; raises the 401 of one that is not valid."""
        keys = await self._source.keys()
        if keys is not self._keys:
            self._keys = keys
            self._verified.clear()
        grant = await self._verify(token, keys)
        if len(self._verified) >= _MAX_VERIFIED:
            self._forget(time.time())
        self._verified[digest] = grant
        return grant

    def _forget(self, now: float) -> None:
        self._verified = {
            name: grant for name, grant in self._verified.items() if grant.expires and grant.expires > now
        }
        if len(self._verified) >= _MAX_VERIFIED:
            self._verified.clear()

    async def _verify(self, token: str, keys: TokenKeys) -> Grant:
        try:
            algorithm, key_id = _head(token)
            if not keys.candidates(algorithm, key_id):
                keys = await self._source.others()
            return self._grant_of(self._claims(token, keys, algorithm, key_id))
        except PyJWTError as error:
            raise _refusal(error) from None

    def _claims(self, token: str, keys: TokenKeys, algorithm: str, key_id: str | None) -> dict[str, Any]:
        for candidate in keys.candidates(algorithm, key_id)[:_MAX_TRIES]:
            try:
                # The algorithms are the key's own: the head of the token chooses among them only.
                return self._decoder.decode(
                    token, candidate.key, algorithms=list(candidate.algorithms), **self._checks
                )
            except InvalidSignatureError:
                continue
        raise InvalidSignatureError

    def _grant_of(self, claims: dict[str, Any]) -> Grant:
        expires = min(int(claims["exp"]), _LATEST) + self._leeway
        try:
            return Grant.of(*self._rules(claims), subject=subject_of(claims), expires=expires)
        except ValueError as error:
            raise unauthorized(f"the claim {self._claim} of this token cannot be used: {error}") from None

    def _rules(self, claims: dict[str, Any]) -> list[str]:
        """Return the grants of the claim, or of the words of the scope that begin with its name and a colon."""
        given = claims.get(self._claim)
        if isinstance(given, str):
            return given.split()
        if isinstance(given, list) and all(isinstance(one, str) for one in given):
            return given
        if given is not None:
            raise ValueError("it is a text, or a list of texts")
        scope = claims.get("scope")
        prefix = f"{self._claim}:"
        words = scope.split() if isinstance(scope, str) else []
        return [word[len(prefix) :] for word in words if word.startswith(prefix)]


def subject_of(claims: dict[str, Any]) -> str:
    """Return the name of a caller, which no other issuer and subject have."""
    issuer, subject = claims.get("iss", ""), claims.get("sub", "")
    if not isinstance(issuer, str) or not isinstance(subject, str):
        raise unauthorized("the claims iss and sub of this token have to be texts")
    # The last colon ends the issuer, which may be a URL.
    name = f"jwt:{issuer}:{subject.replace('%', '%25').replace(':', '%3A')}"
    if not _is_text(name):
        raise DecodeError
    return name if len(name) <= _MAX_SUBJECT else f"jwt-sha256:{sha256(name.encode()).hexdigest()}"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can name half of a character
        return False
    return True


def _head(token: str) -> tuple[str, str | None]:
    """Return the algorithm and the key that a token names."""
    try:
        content = base64url_decode(token.partition(".")[0])
    except ValueError:
        raise DecodeError from None
    head = _object(content)
    algorithm, key_id = head.get("alg"), head.get("kid")
    # What is critical to understand (RFC 7515, 4.1.11) is nothing that is understood here.
    if (
        not isinstance(algorithm, str)
        or not isinstance(key_id, (str, type(None)))
        or "crit" in head
        or "b64" in head
    ):
        raise DecodeError
    return algorithm, key_id


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DecodeError from error
    if not isinstance(value, dict):
        raise DecodeError
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice")
    return value


def _refusal(error: PyJWTError) -> Rejection:
    for kind, message in _MEANING:
        if isinstance(error, kind):
            return unauthorized(message)
    return unauthorized("this token is no well-formed JSON Web Token")
