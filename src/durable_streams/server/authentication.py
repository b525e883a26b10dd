"""Who asks, where the server itself says so (``serve --auth``): the ``authorize`` of its configuration.

Invariants: a token is in the Authorization header and nowhere else; no message and no log contains one.
"""

from __future__ import annotations

from durable_streams.protocol.grants import Grant, Operation
from durable_streams.server.access import Authorize, unauthorized
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import ServerRequest
from durable_streams.server.keys import Keys, parse_keys
from durable_streams.server.listener import ServerStartError
from durable_streams.server.toml import Watched

__all__ = ["Authentication", "authorize_of"]

_MAX_TOKEN = 16 << 10  # characters


def authorize_of(config: ServerConfig) -> Authorize | None:
    """Return what a configuration says about who may do what; None where everyone may do everything.

    Raises ServerStartError for a file that cannot be used.
    """
    if config.auth is None:
        return None
    try:
        return Authentication(config)
    except ValueError as error:
        raise ServerStartError(f"--auth: {error}") from None


class Authentication:
    """Knows callers by what they send; raises ValueError for a file that cannot be used."""

    def __init__(self, config: ServerConfig) -> None:
        self._keys = None if config.auth is None else Watched(config.auth, parse_keys)

    async def __call__(self, _operation: Operation, _path: str, request: ServerRequest) -> Grant | None:
        """Return what the caller may do; raises the 401 of one that is not known. See `access.Authorize`."""
        header = request.header("authorization")
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        token = token.strip(" ")
        if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN:
            raise unauthorized("this server takes Authorization: Bearer TOKEN, and nothing else there")
        keys = self._known_keys()
        grant = None if keys is None else keys.grant(token)
        if grant is None:
            raise unauthorized(
                "this server does not know this token: it may have been revoked, or be another server's"
            )
        return grant

    def _known_keys(self) -> Keys | None:
        return None if self._keys is None else self._keys.value()
