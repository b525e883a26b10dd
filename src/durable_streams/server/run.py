"""Serving in our own process: Granian over RSGI, signals, a port that is really ours."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.net import SocketHolder  # type: ignore[attr-defined]  # re-exported, but not in an __all__
from granian.server.embed import Server

from durable_streams.server import hosts
from durable_streams.server.admin import METRICS, AdminApp
from durable_streams.server.app import App
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import STREAM_ROOT
from durable_streams.server.listener import BACKLOG, ServerStartError, listen
from durable_streams.server.metrics import is_available
from durable_streams.server.notify import READY, STOPPING, notify, watchdog
from durable_streams.server.rsgi import RsgiAdapter
from durable_streams.stores.base import Store, StoreError
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

# Live reads are requests under way for minutes: Granian would stop to accept at the size of the backlog.
_CONNECTIONS = 1_000_000
_HTTP_BUFFER = 64 << 10  # bytes of each connection's head, and of what is written to it at once
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

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    async with watchdog():
        await run_server(config, stop, ready, on_admin)


async def run_server(
    config: ServerConfig,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
    on_admin: Callable[[str], None] | None = None,
) -> None:
    """Serve on the running event loop until ``stop`` is set; otherwise like ``serve``."""
    with listen(config) as listener:
        local = _is_loopback(listener)
        if not (local or config.no_auth or config.has_callers):
            raise ServerStartError(
                f"{config.host} can be reached from other machines: say who may do what with --auth keys.toml "
                "(durable-streams key create makes the first key), or --no-auth to let everyone do everything"
            )
        app = App(build_store(config), config, local=local)
        if not await _started(app, stop):
            return
        try:
            async with _admin(app, on_admin):
                adapter = await _serve_http(app, listener, stop, on_ready)
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
        raise ServerStartError('metrics need prometheus-client: pip install "prometheus-client>=0.20"')
    with listen(replace(config, host=config.admin_host, port=config.admin_port)) as listener:
        adapter = RsgiAdapter(AdminApp(app, local=_is_loopback(listener)))
        server = _Granian(adapter, listener, config.keep_alive)
        serving = asyncio.ensure_future(server.serve())
        try:
            host, port = listener.getsockname()[:2]
            await _answering(host, port, serving)
            if on_admin is not None:
                on_admin(f"http://{_shown(host)}:{port}{METRICS}")
            yield
        finally:
            server.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait({serving}, timeout=_GRACE)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _serve_http(
    app: App, listener: socket.socket, stop: asyncio.Event, on_ready: Callable[[str], None]
) -> weakref.ref[RsgiAdapter]:
    """Answer requests until ``stop`` is set; the adapter that is returned lives for as long as Granian needs it."""
    adapter = RsgiAdapter(app)
    server = _Granian(adapter, listener, app.config.keep_alive)
    serving = asyncio.ensure_future(server.serve())
    host, port = listener.getsockname()[:2]
    shown = _shown(host)
    if app.subscriptions is not None and app.local:
        app.subscriptions.own_url = f"http://{shown}:{port}"
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await _answering(host, port, serving)
        on_ready(f"http://{shown}:{port}{STREAM_ROOT.rstrip('/')}")
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            await _drain(app, stop)
    finally:
        stopping.cancel()
        app.stop_reads()
        server.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait({serving}, timeout=_GRACE)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
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


class _Granian(Server):
    """Granian on a socket that is open already: it would share a taken port in silence, and sets no options."""

    def __init__(self, adapter: RsgiAdapter, listener: socket.socket, keep_alive: float) -> None:
        super().__init__(
            adapter,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=_CONNECTIONS,
            http1_settings=HTTP1Settings(
                header_read_timeout=max(1, round(keep_alive * 1000)), max_buffer_size=_HTTP_BUFFER
            ),
            log_enabled=False,
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        holder = SocketHolder(os.dup(self._listener.fileno()), False, BACKLOG)  # type: ignore[call-arg]
        self._shd = holder  # type: ignore[assignment]
        self._sfd = holder.get_fd()


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
