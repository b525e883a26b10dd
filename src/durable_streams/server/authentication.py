"""Who asks, where the server itself says so (``serve --auth``): the ``authorize`` of its configuration.

Invariants: a token is in the Authorization header and nowhere else, and outranks a signed URL; no message and no log
contains one.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from durable_streams.protocol.grants import Grant, Operation
from durable_streams.server.access import Authorize, unauthorized
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import ServerRequest
from durable_streams.server.keys import Keys, parse_keys
from durable_streams.server.listener import ServerStartError
from durable_streams.server.quotas import QuotaFile, parse_quotas
from durable_streams.server.signing import SIGNED, grant_of_url
from durable_streams.server.toml import Watched

if TYPE_CHECKING:
    from durable_streams.server.tokens import Tokens

__all__ = ["Authentication", "authorize_of", "limits_of"]

_MAX_TOKEN = 16 << 10  # characters
_DOTS = 2  # of a JSON Web Token


def authorize_of(config: ServerConfig, given: Authorize | None) -> Authorize | None:
    """Return what is given, or a configuration says, about who may do what; None where everyone may do everything.

    Raises ServerStartError for a file that cannot be used, and where both say it.
    """
    if not config.has_callers:
        return given
    if given is not None:
        raise ServerStartError("authorize, and auth, jwks and jwt_key of the settings exclude each other")
    try:
        return Authentication(config)
    except ValueError as error:
        raise ServerStartError(str(error)) from None


def limits_of(config: ServerConfig, authorize: Authorize | None) -> Watched[QuotaFile] | None:
    """Return the limits of a configuration, None if it has none; raises ServerStartError if they cannot be used."""
    if config.limits is None:
        return None
    if authorize is None:
        raise ServerStartError("limits are those of callers: say with auth, jwks or jwt_key who they are")
    try:
        return Watched(config.limits, parse_quotas)
    except ValueError as error:
        raise ServerStartError(str(error)) from None


class Authentication:
    """Knows callers by what they send; raises ValueError for a file that cannot be used."""

    def __init__(self, config: ServerConfig) -> None:
        self._keys = None if config.auth is None else Watched(config.auth, parse_keys)
        self._tokens = _tokens_of(config)

    async def __call__(self, operation: Operation, path: str, request: ServerRequest) -> Grant | None:
        """Return what the caller may do; raises the 401 of one that is not known. See `access.Authorize`."""
        header = request.header("authorization")
        keys = self._known_keys()
        if header is None:
            if keys is None or SIGNED not in request.query:
                return None
            return grant_of_url(request.query, path, keys.signing, operation)
        scheme, _, token = header.partition(" ")
        token = token.strip(" ")
        if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN:
            raise unauthorized("this server takes Authorization: Bearer TOKEN, and nothing else there")
        digest = sha256(token.encode()).digest()
        grant = None if keys is None else keys.grant(digest)
        if grant is None and self._tokens is not None:
            grant = self._tokens.known(digest)
            if grant is None and token.count(".") == _DOTS:
                grant = await self._tokens.grant(token, digest)
        if grant is None:
            raise unauthorized(
                "this server does not know this token: it may have been revoked, or be another server's"
            )
        return grant

    def _known_keys(self) -> Keys | None:
        return None if self._keys is None else self._keys.value()


def _tokens_of(config: ServerConfig) -> Tokens | None:
    if config.jwks is None and config.jwt_key is None:
        return None
    try:
        from durable_streams.server.key_sets import FileKeys, KeySource, UrlKeys  # noqa: PLC0415 - needs an extra
        from durable_streams.server.token_keys import key_in_file, key_set  # noqa: PLC0415
        from durable_streams.server.tokens import Tokens  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in {"jwt", "cryptography"}:
            raise
        raise ServerStartError('tokens need PyJWT: pip install "pyjwt[crypto]>=2.10,<3"') from error
    source: KeySource
    if config.jwks is not None and "://" in config.jwks:
        source = UrlKeys(config.jwks)
    elif config.jwks is not None:
        source = FileKeys(Watched(Path(config.jwks), lambda text: key_set(text, secrets=True)))
    else:
        source = FileKeys(Watched(Path(config.jwt_key or ""), key_in_file))
    return Tokens(source, config)
