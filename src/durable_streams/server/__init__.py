"""The durable server: ``serve`` runs it in this process, ``asgi_app`` mounts it into another one."""

from __future__ import annotations

from durable_streams.protocol.grants import Grant, Operation
from durable_streams.server.access import Authorize
from durable_streams.server.asgi import AsgiApp
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import ServerRequest
from durable_streams.server.run import ServerStartError, build_store, serve
from durable_streams.server.signing import sign_url

__all__ = [
    "AsgiApp",
    "Authorize",
    "Grant",
    "Operation",
    "ServerConfig",
    "ServerRequest",
    "ServerStartError",
    "asgi_app",
    "serve",
    "sign_url",
]


def asgi_app(config: ServerConfig | None = None, *, authorize: Authorize | None = None) -> AsgiApp:
    """Return the server as an ASGI application, to be served or mounted.

    Args:
        config: The settings, of which ``host``, ``port`` and ``keep_alive`` have no effect; None for the defaults.
        authorize: Says who may do what: an async callable of an `Operation`, the path of a stream below the root of
            the streams (below ``__ds/`` for what is no stream), and the `ServerRequest`, whose ``scope`` is that of the
            framework. It returns the `Grant` of the caller, which is then checked, or None if it does not know the
            caller (401). None leaves it to ``config.auth``.

    Raises:
        ServerStartError: The store that the settings name can never be opened, or their ``auth`` cannot be used.
    """
    from durable_streams.server.app import App  # noqa: PLC0415 - keeps the module's names to what it exports

    config = config or ServerConfig()
    return AsgiApp(App(build_store(config), config, authorize=authorize))
