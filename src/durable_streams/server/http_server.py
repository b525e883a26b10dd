"""Granian in our own process: on a socket that is open already, and with another certificate without a pause.

Granian reads its certificate once. So another one is taken by another instance on the same socket. The one before takes
no connections any more, and serves those that it has until they end: a graceful stop would close connections on which a
request may be on its way.

Invariants: at most `_KEPT` instances serve old connections, beyond which the oldest one is stopped gracefully; a
certificate that cannot be used changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.net import SocketHolder  # type: ignore[attr-defined]  # re-exported, but not in an __all__
from granian.server.embed import Server

from durable_streams.server.config import ServerConfig
from durable_streams.server.listener import BACKLOG, ServerStartError
from durable_streams.server.peers import OPEN_FILES
from durable_streams.server.rsgi import RsgiAdapter
from durable_streams.server.toml import signature

__all__ = ["HttpServer", "check_certificate", "renew_when_changed"]

# Live reads are requests under way for minutes: Granian would stop to accept at the size of the backlog.
_CONNECTIONS = 1_000_000
_HTTP_BUFFER = 64 << 10  # bytes of each connection's head, and of what is written to it at once
_KEPT = 8  # instances with an older certificate
_LOOK_EVERY = 2.0  # seconds
_FAILS_WITHIN = 0.1  # seconds: an instance that cannot use its certificate ends at once

_log = logging.getLogger("durable_streams.server")


class HttpServer:
    """Serves HTTP, or HTTPS where the configuration has a certificate.

    Raises ServerStartError for a certificate that cannot be used.
    """

    def __init__(self, adapter: RsgiAdapter, listener: socket.socket, config: ServerConfig) -> None:
        self._adapter = adapter
        self._listener = listener
        self._config = config
        self._instances: dict[asyncio.Future[Any], _Granian] = {}  # the oldest first
        self._retired: set[asyncio.Future[Any]] = set()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        check_certificate(config)

    def start(self) -> None:
        """Begin to serve; ``ended`` is done when that ends by itself."""
        self._keep(*self._begun())

    async def renew(self) -> None:
        """Take new connections with the certificate that the files hold now; raises ServerStartError."""
        check_certificate(self._config)
        taking = self._sockets()
        serving, instance = self._begun()
        await asyncio.wait({serving}, timeout=_FAILS_WITHIN)
        if serving.done():
            raise ServerStartError(f"the HTTP server does not take the certificate {self._config.tls_cert}")
        self._keep(serving, instance)
        with _silent_listener() as nothing:
            for number in set(taking) & set(self._sockets()):
                os.dup2(nothing.fileno(), number)
        while len(self._instances) > _KEPT + 1:
            self._retire(next(iter(self._instances)))

    async def stop(self, grace: float) -> None:
        """Finish the requests that were accepted, for ``grace`` seconds at most."""
        for serving in list(self._instances):
            self._retire(serving)
        if self._retired:
            await asyncio.wait(self._retired, timeout=grace)
        for serving in self._retired:
            serving.cancel()
        self.ended.cancel()
        await asyncio.gather(*self._retired, self.ended, return_exceptions=True)

    def _begun(self) -> tuple[asyncio.Future[Any], _Granian]:
        instance = _Granian(self._adapter, self._listener, self._config)
        return asyncio.ensure_future(instance.serve()), instance

    def _keep(self, serving: asyncio.Future[Any], instance: _Granian) -> None:
        self._instances[serving] = instance
        serving.add_done_callback(self._has_ended)

    def _retire(self, serving: asyncio.Future[Any]) -> None:
        """Let an instance finish its requests, and close its connections."""
        self._retired.add(serving)
        self._instances.pop(serving).stop()  # type: ignore[no-untyped-call]

    def _has_ended(self, serving: asyncio.Future[Any]) -> None:
        if self._instances.pop(serving, None) is None or self.ended.done():
            return
        if not serving.cancelled() and (error := serving.exception()) is not None:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def _sockets(self) -> list[int]:
        """Return the open files through which instances accept connections: duplicates of the listener."""
        own = os.fstat(self._listener.fileno())
        found = []
        for name in os.listdir(OPEN_FILES):  # noqa: PTH208 - numbers, no paths
            number = int(name)
            with contextlib.suppress(OSError):  # the one of the listing itself is closed
                seen = os.fstat(number)
                if (seen.st_dev, seen.st_ino) == (
                    own.st_dev,
                    own.st_ino,
                ) and number != self._listener.fileno():
                    found.append(number)
        return found


async def renew_when_changed(server: HttpServer, config: ServerConfig, asked: asyncio.Event) -> None:
    """Renew the certificate whenever its files have changed, for as long as the server runs.

    ``asked``: set to look now, and not at the end of two seconds.
    """
    files = [path for path in (config.tls_cert, config.tls_key, config.tls_client_ca) if path is not None]
    seen = [signature(path) for path in files]
    while True:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asked.wait(), _LOOK_EVERY)
        asked.clear()
        now = [signature(path) for path in files]
        if now == seen:
            continue
        seen = now
        try:
            await server.renew()
        except ServerStartError as error:
            _log.error("%s; the certificate that was read before is still used", error)
        else:
            _log.info("new connections get the certificate that %s has now", config.tls_cert)


@contextlib.contextmanager
def _silent_listener() -> Any:
    """Give a socket that listens where nobody can connect: an instance that accepts from it waits."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as silent:
        silent.setblocking(False)
        silent.bind(str(Path(folder) / "s"))
        silent.listen(1)
        yield silent


def check_certificate(config: ServerConfig) -> None:
    """Raise ServerStartError if the certificate of a configuration cannot be used."""
    if config.tls_cert is None or config.tls_key is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=lambda: "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "not PEM"
        raise ServerStartError(
            f"the certificate {config.tls_cert} with the key {config.tls_key} cannot be used: {reason}"
        ) from error
    if config.tls_client_ca is not None:
        try:
            context.load_verify_locations(config.tls_client_ca)
        except (OSError, ValueError) as error:
            raise ServerStartError(
                f"the certificates {config.tls_client_ca} cannot be used: {error}"
            ) from error


class _Granian(Server):
    """Granian on a socket that is open already: it would share a taken port in silence, and sets no options."""

    def __init__(self, adapter: RsgiAdapter, listener: socket.socket, config: ServerConfig) -> None:
        super().__init__(
            adapter,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=_CONNECTIONS,
            http1_settings=HTTP1Settings(
                header_read_timeout=max(1, round(config.keep_alive * 1000)), max_buffer_size=_HTTP_BUFFER
            ),
            log_enabled=False,
            ssl_cert=config.tls_cert,
            ssl_key=config.tls_key,
            ssl_protocol_min=SSLProtocols.tls12,
            ssl_ca=config.tls_client_ca,
            ssl_client_verify=config.tls_client_ca is not None,
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        holder = SocketHolder(os.dup(self._listener.fileno()), False, BACKLOG)  # type: ignore[call-arg]
        self._shd = holder  # type: ignore[assignment]
        self._sfd = holder.get_fd()
