"""Serving in our own process: Granian over RSGI, signals, a port that is really ours."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from durable_streams.server import hosts
from durable_streams.server.admin import METRICS, AdminApp
from durable_streams.server.app import App
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import STREAM_ROOT
from durable_streams.server.http_server import HttpServer, check_certificate, renew_when_changed
from durable_streams.server.listener import ServerStartError, listen
from durable_streams.server.metrics import INSTALL, is_available
from durable_streams.server.notify import READY, STOPPING, notify, watchdog
from durable_streams.server.rsgi import RsgiAdapter
from durable_streams.server.toml import look_at_all
from durable_streams.server.unix_socket import Front
from durable_streams.stores.base import Store, StoreError
from durable_streams.stores.commit_log import LogLimits
from durable_streams.stores.local import StoreLimits
from durable_streams.stores.memory import MemoryStore
from durable_streams.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from durable_streams.stores.jetstream import JetStreamConfig

__all__ = [
    "ServerFailedError",
    "ServerStartError",
    "build_store",
    "jetstream_config",
    "run_server",
    "run_to_end",
    "serve",
]

_GRACE = 3.0  # seconds for open connections to end
_RELEASE_TRIES = 200  # it takes two of them, under load up to a hundred
_RELEASE_PAUSE = 0.001  # seconds
# A full collection walks every stream in memory (100 ms for 100,000), and finds nothing: old cycles are rare.
_GC_THRESHOLDS = (10_000, 10, 100)
_SWITCH_INTERVAL = 0.0005  # seconds: the thread that waits for the disk must not wait for the interpreter


class ServerFailedError(ServerStartError):
    """The server ended, but its store is not in order. The message is one sentence for the operator."""


def serve(
    config: ServerConfig, on_ready: Callable[[str], None], on_admin: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests that were accepted and return.

    Args:
        config: The settings.
        on_ready: Called with the full URL of the stream root once requests are answered.
        on_admin: Called before that with the full URL of the metrics, where there is an address for operators.

    Raises:
        ServerStartError: The address is not of this machine only, and the settings have neither ``auth`` nor
            ``no_auth``; the port is taken, or the folder cannot be written to or is open in another server.
        ServerFailedError: At the end the data folder is not where it was, or the disk does not answer.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    gc.set_threshold(*_GC_THRESHOLDS)
    _raise_file_limit()
    run_to_end(_serve_until_signalled(config, on_ready, on_admin))


def _raise_file_limit() -> None:
    """Take as many open files as the system allows: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve_until_signalled(
    config: ServerConfig, on_ready: Callable[[str], None], on_admin: Callable[[str], None] | None
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        notify(STOPPING)
        stop.set()

    def ready(root: str) -> None:
        on_ready(root)
        notify(READY)

    def look_now() -> None:
        look_at_all()
        look.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    look = asyncio.Event()
    if config.has_callers or config.tls_cert is not None:
        # Files are looked at every other second anyway; without this, the signal would end the process.
        loop.add_signal_handler(signal.SIGHUP, look_now)
    async with watchdog():
        await run_server(config, stop, ready, on_admin, look)


async def run_server(
    config: ServerConfig,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
    on_admin: Callable[[str], None] | None = None,
    look: asyncio.Event | None = None,
) -> None:
    """Serve on the running event loop until ``stop`` is set; otherwise like ``serve``.

    ``look``: set when the files of the configuration have changed.
    """
    check_certificate(config)
    front = None
    if config.uds is not None:
        front = Front(config.uds, config.uds_mode, config.send_timeout)
        # Who opens the file is on this machine: a proxy there says which address its clients see.
        trusted = (*config.trusted_proxies, "127.0.0.1")
        config = replace(config, host="127.0.0.1", port=0, trusted_proxies=trusted)
    with listen(config) as listener, front.listening() if front else contextlib.nullcontext():
        local = _is_loopback(listener)
        if not (local or config.no_auth or config.has_callers):
            raise ServerStartError(
                f"{config.host} can be reached from other machines: say who may do what with --auth keys.toml "
                "(durable-streams key create makes the first key), or --no-auth to let everyone do everything"
            )
        if config.ui is None:
            config = replace(config, ui=local or config.has_callers)
        app = App(build_store(config), config, local=local)
        if not await _started(app, stop):
            return
        try:
            async with _admin(app, on_admin):
                adapter = await _serve_http(
                    app, listener, stop, look or asyncio.Event(), on_ready=on_ready, front=front
                )
            await _released(adapter)
        finally:
            try:
                await app.shutdown()
            except StoreError as error:
                raise ServerFailedError(str(error)) from error


async def _started(app: App, stop: asyncio.Event) -> bool:
    """Start the application; False if a stop came before its disk answered."""
    starting = asyncio.ensure_future(app.startup())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return False
        await starting
    except StoreError as error:
        raise ServerStartError(str(error)) from error
    finally:
        for waiting in (starting, stopping):
            waiting.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
    return True


def _is_loopback(listener: socket.socket) -> bool:
    address = hosts.address_of(listener.getsockname()[0])
    return address is not None and address.is_loopback


@contextlib.asynccontextmanager
async def _admin(app: App, on_admin: Callable[[str], None] | None) -> AsyncIterator[None]:
    """Serve metrics and health at an address of their own, if one is configured."""
    config = app.config
    if config.admin_port is None:
        yield
        return
    if not is_available():
        raise ServerStartError(f"metrics need prometheus-client: {INSTALL}")
    plain = replace(
        config,
        host=config.admin_host,
        port=config.admin_port,
        tls_cert=None,
        tls_key=None,
        tls_client_ca=None,
    )
    with listen(plain) as listener:
        server = HttpServer(RsgiAdapter(AdminApp(app, local=_is_loopback(listener))), listener, plain)
        server.start()
        try:
            host, port = listener.getsockname()[:2]
            await _answering(host, port, server.ended)
            if on_admin is not None:
                on_admin(f"http://{_shown(host)}:{port}{METRICS}")
            yield
        finally:
            await server.stop(_GRACE)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _serve_http(
    app: App,
    listener: socket.socket,
    stop: asyncio.Event,
    look: asyncio.Event,
    *,
    on_ready: Callable[[str], None],
    front: Front | None,
) -> weakref.ref[RsgiAdapter]:
    """Answer requests until ``stop`` is set; the adapter that is returned lives for as long as Granian needs it."""
    adapter = RsgiAdapter(app, None if front is None else front.peers)
    server = HttpServer(adapter, listener, app.config)
    server.start()
    renewing = None
    if app.config.tls_cert is not None:
        renewing = asyncio.ensure_future(renew_when_changed(server, app.config, look))
    host, port = listener.getsockname()[:2]
    shown = _shown(host)
    scheme = "http" if app.config.tls_cert is None else "https"
    if app.subscriptions is not None and app.local and front is None:
        app.subscriptions.own_url = f"{scheme}://{shown}:{port}"
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await _answering(host, port, server.ended)
        if front is not None:
            await front.start((host, port))
        at = f"{scheme}://{shown}:{port}" if front is None else "http://localhost"
        on_ready(f"{at}{STREAM_ROOT.rstrip('/')}")
        ends: set[asyncio.Future[Any]] = {server.ended, stopping}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            await _drain(app, stop)
    finally:
        stopping.cancel()
        if renewing is not None:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        app.stop_reads()
        await server.stop(_GRACE)
        if front is not None:
            await front.stop()
    return weakref.ref(adapter)


async def _drain(app: App, stop: asyncio.Event) -> None:
    """Say for a while that the server is not ready, so that it is sent no more; another signal ends that."""
    app.draining = True
    if app.config.drain:
        stop.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), app.config.drain)


async def _released(adapter: weakref.ref[RsgiAdapter]) -> None:
    """Wait until Granian's threads have handed over the last request of a client that left: to an open loop."""
    for _ in range(_RELEASE_TRIES):
        if adapter() is None:
            return
        await asyncio.sleep(_RELEASE_PAUSE)


def build_store(config: ServerConfig) -> Store:
    """Return the store that a configuration asks for; raises ServerStartError if it can never be opened."""
    if config.store is not None:
        try:
            settings = jetstream_config(config)
        except ValueError as error:
            raise ServerStartError(str(error)) from error
        from durable_streams.stores.jetstream.store import JetStreamStore  # noqa: PLC0415 - needs an extra

        return JetStreamStore(
            settings,
            max_streams=config.max_streams_in_memory,
            max_queued_bytes=config.max_queued_bytes,
            max_queued_commands=config.max_queued_appends,
        )
    limits = StoreLimits(config.disk_timeout, config.max_queued_bytes, config.max_queued_appends)
    if config.data_dir is None:
        return MemoryStore(max_streams=config.max_streams_in_memory, limits=limits)
    return SqliteStore(
        config.data_dir,
        max_streams=config.max_streams_in_memory,
        limits=limits,
        disk_reserve=config.disk_reserve,
        log=LogLimits(max_bytes=config.max_unsorted_bytes),
    )


def jetstream_config(config: ServerConfig) -> JetStreamConfig:
    """Return the part of a configuration that is about NATS, with the servers of ``store``.

    Raises ValueError for what cannot be, ServerStartError where the NATS client is not installed.
    """
    try:
        from durable_streams.stores.jetstream.config import JetStreamConfig, parse_servers  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "nats":
            raise
        raise ServerStartError('streams on NATS need nats-py: pip install "nats-py>=2.15,<3"') from error
    return JetStreamConfig(
        servers=parse_servers(config.store or ""),
        name=config.nats_name,
        replicas=config.nats_replicas,
        storage=config.nats_storage,
        max_bytes=config.nats_max_bytes,
        credentials=config.nats_credentials,
        tls_ca=config.nats_tls_ca,
    )


async def _answering(host: str, port: int, serving: asyncio.Future[Any]) -> None:
    """Wait until connections are accepted."""
    while True:
        if serving.done():
            await serving
            raise ServerStartError("the HTTP server ended before it was ready")
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(0.002)
            continue
        writer.close()
        return


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return the fastest event loop this platform has."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def run_to_end(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on an event loop of its own."""
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
