"""Streams in the process of an application: its own handles to them, and the server for everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

from durable_streams.client.aio import AsyncDurableStream
from durable_streams.client.aio_follow import AsyncFollowing, afollow
from durable_streams.client.aio_producer import IdempotentProducer
from durable_streams.client.sync import DurableStream
from durable_streams.client.sync_follow import Following, follow
from durable_streams.client.sync_producer import SyncIdempotentProducer
from durable_streams.embedded.transport import AUTHORITY, InProcess, InProcessFromThread
from durable_streams.errors import DurableStreamError
from durable_streams.protocol.headers import OFFSET_START
from durable_streams.server.access import Authorize
from durable_streams.server.app import App
from durable_streams.server.asgi import AsgiApp, Receive, Scope, Send
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import STREAM_ROOT
from durable_streams.server.run import build_store
from durable_streams.stores.base import Store, StoreError

__all__ = ["DurableStreams", "with_store"]

AsgiCallable = Callable[[Scope, Receive, Send], Awaitable[None]]


class DurableStreams:
    """The streams of an application, in its own process: no socket and no HTTP between it and them.

    Mount `asgi` for browsers and other clients, and open the streams with `lifespan`. Handles are the client's own
    classes, with its names, results and errors; they work on the event loop of the application (`stream`, `producer`)
    and in its worker threads (`sync_stream`, `sync_producer`).

    Args:
        store: Where the streams are: None for memory; the path of a folder for SQLite; ``nats://a:4222,b:4222`` for
            NATS; or a store of your own (`durable_streams.stores.base.Store`).
        config: The settings of the server; None for the defaults. ``host``, ``port`` and ``keep_alive`` have no
            effect.
        authorize: Who may do what over HTTP, as for `asgi_app`; None for what ``config`` says. Handles in the process
            may do everything.

    Raises:
        ServerStartError: The store that the settings name can never be opened.
        ValueError: ``store`` and ``config`` name two stores.
    """

    def __init__(
        self,
        store: Store | str | PathLike[str] | None = None,
        *,
        config: ServerConfig | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        config = config or ServerConfig()
        if isinstance(store, (str, PathLike)):
            config, store = with_store(config, store), None
        self._app = App(build_store(config) if store is None else store, config, authorize=authorize)
        self._asgi = AsgiApp(self._app)
        self._client = InProcess(self)
        self._sync_client = InProcessFromThread(self)

    # -- the application

    @property
    def asgi(self) -> AsgiApp:
        """The server as an ASGI application, to be mounted: ``app.mount("/streams", streams.asgi)``."""
        return self._asgi

    def beside(self, application: AsgiCallable, prefix: str = "/streams") -> AsgiCallable:
        """Return an ASGI application that serves the streams under a prefix, and another application elsewhere.

        Its lifespan opens the streams. For Django, whose ASGI application has neither mounts nor a lifespan:
        ``application = streams.beside(get_asgi_application())``.

        Args:
            application: The other application; it is not passed the lifespan.
            prefix: Where the streams are.

        Raises:
            ValueError: The prefix does not begin with a slash, or ends with one.
        """
        if not prefix.startswith("/") or prefix.endswith("/"):
            raise ValueError(f"prefix is a path such as '/streams', not {prefix!r}.")

        async def both(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await self._asgi(scope, receive, send)
                return
            root = scope.get("root_path", "") + prefix
            if scope["path"].startswith(root + "/"):
                await self._asgi({**scope, "root_path": root}, receive, send)
            else:
                await application(scope, receive, send)

        return both

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Open the streams for as long as an application runs: ``FastAPI(lifespan=streams.lifespan)``.

        Starlette and FastAPI take it as it is, Litestar in a list (``lifespan=[streams.lifespan]``), and a lifespan of
        your own enters it with ``async with streams.lifespan():``.

        Args:
            app: The application, which frameworks pass; it is not used.

        Raises:
            StoreError: The store cannot be opened, or is not in order at its end; one sentence says why.
        """
        del app
        await self.startup()
        try:
            yield
        finally:
            await self.shutdown()

    async def startup(self) -> None:
        """Open the streams on the running event loop; nothing if they are open.

        Without it they open at the first use; only sync handles need it before them.

        Raises:
            StoreError: The store cannot be opened; one sentence says why.
        """
        await self._asgi.startup()

    async def shutdown(self) -> None:
        """End the live reads, commit what was accepted, close the store.

        Raises:
            StoreError: The store is not in order at its end.
        """
        await self._asgi.shutdown()

    def before_shutdown(self, end: Callable[[], Awaitable[None]]) -> None:
        """Have what uses the streams end before they close.

        Args:
            end: An async function that is called without arguments at each `shutdown`, after those given before it.
        """
        self._asgi.before_shutdown.append(end)

    # -- handles

    def url(self, path: str) -> str:
        """Return the URL by which `client` and `sync_client` know a stream: for `AsyncDurableStream.fork`, and logs.

        Args:
            path: The stream's path, as text that is not percent-encoded.

        Raises:
            ValueError: It is no path of a stream.
        """
        name = path.lstrip("/")
        if not name or "://" in name:
            raise ValueError(
                f"A stream in this process is named by its path, such as 'jobs/42', not {path!r}."
            )
        return f"http://{AUTHORITY}{STREAM_ROOT}{quote(name)}"

    @property
    def client(self) -> InProcess:
        """What to pass as ``client=`` to the async client's classes and functions, together with a `url`."""
        return self._client

    @property
    def sync_client(self) -> InProcessFromThread:
        """What to pass as ``client=`` to the sync client's classes and functions, in worker threads."""
        return self._sync_client

    def stream(self, path: str, *, content_type: str | None = None) -> AsyncDurableStream:
        """Return a handle of a stream; making it does nothing yet.

        Args:
            path: The stream's path, such as ``jobs/42``.
            content_type: The stream's content type; None asks for it at the first append.

        Raises:
            ValueError: It is no path of a stream.
        """
        return AsyncDurableStream(self.url(path), content_type=content_type, client=self._client)

    async def create(
        self,
        path: str,
        *,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: str | None = None,
        body: Any = None,
        closed: bool = False,
    ) -> AsyncDurableStream:
        """Create a stream, or find it with the same configuration, and return its handle (protocol section 3).

        Args:
            path: The stream's path, such as ``jobs/42``.
            content_type: The stream's content type; None for ``application/octet-stream``.
            ttl_seconds: The stream's lifetime in seconds after its last read or write; None for no limit.
            expires_at: When the stream expires, as RFC 3339 text, instead of ``ttl_seconds``.
            body: The first data, and with ``closed`` all of it, as for `AsyncDurableStream.create`.
            closed: Whether the stream is closed from the beginning.

        Returns:
            The handle, whose ``created`` says whether the stream is new.

        Raises:
            StreamExistsError: The stream exists with another configuration.
            DurableStreamError: Another refusal, or a failure of the store.
        """
        return await AsyncDurableStream.create(
            self.url(path),
            content_type=content_type,
            ttl_seconds=ttl_seconds,
            expires_at=expires_at,
            body=body,
            closed=closed,
            client=self._client,
        )

    def sync_stream(self, path: str, *, content_type: str | None = None) -> DurableStream:
        """Return a handle of a stream for worker threads; making it does nothing yet.

        Args:
            path: The stream's path, such as ``jobs/42``.
            content_type: The stream's content type; None asks for it at the first append.

        Raises:
            ValueError: It is no path of a stream.
        """
        return DurableStream(self.url(path), content_type=content_type, client=self._sync_client)

    def producer(
        self,
        path: str,
        producer_id: str,
        *,
        epoch: int = 0,
        auto_claim: bool = False,
        linger_ms: float = 5,
        content_type: str | None = None,
    ) -> IdempotentProducer:
        """Return a producer whose appends are written exactly once and in order (protocol section 4).

        Args:
            path: The stream's path, such as ``jobs/42``.
            producer_id: The producer's stable identifier, the same in every start.
            epoch: The number of this start. It must grow with every start under the same ``producer_id``.
            auto_claim: Whether the producer takes the next free epoch by itself when another one has the present one.
            linger_ms: Milliseconds that a batch waits for more records.
            content_type: The stream's content type; None asks for it at the first append.

        Raises:
            ValueError: An argument is out of its range.
        """
        return IdempotentProducer(
            self.url(path),
            producer_id,
            client=self._client,
            epoch=epoch,
            auto_claim=auto_claim,
            linger_ms=linger_ms,
            content_type=content_type,
        )

    def sync_producer(
        self,
        path: str,
        producer_id: str,
        *,
        epoch: int = 0,
        auto_claim: bool = False,
        linger_ms: float = 5,
        content_type: str | None = None,
    ) -> SyncIdempotentProducer:
        """Return a producer as `producer` does, for worker threads.

        Args:
            path: The stream's path, such as ``jobs/42``.
            producer_id: The producer's stable identifier, the same in every start.
            epoch: The number of this start. It must grow with every start under the same ``producer_id``.
            auto_claim: Whether the producer takes the next free epoch by itself when another one has the present one.
            linger_ms: Milliseconds that a batch waits for more records.
            content_type: The stream's content type; None asks for it at the first append.

        Raises:
            ValueError: An argument is out of its range.
        """
        return SyncIdempotentProducer(
            self.url(path),
            producer_id,
            client=self._sync_client,
            epoch=epoch,
            auto_claim=auto_claim,
            linger_ms=linger_ms,
            content_type=content_type,
        )

    def follow(
        self, streams: Sequence[str], *, offsets: str | Mapping[str, str] = OFFSET_START
    ) -> AsyncFollowing:
        """Follow many streams, as `durable_streams.afollow` does.

        Args:
            streams: The paths of 1 to 100 streams, each once.
            offsets: Where each stream begins: an offset, ``"-1"`` or ``"now"`` for all, or one for each by its path.

        Raises:
            ValueError: ``streams`` or ``offsets`` makes no sense.
        """
        return afollow(self.url("root").removesuffix("/root"), streams, offsets=offsets, client=self._client)

    def sync_follow(
        self, streams: Sequence[str], *, offsets: str | Mapping[str, str] = OFFSET_START
    ) -> Following:
        """Follow many streams, as `durable_streams.follow` does, in a worker thread.

        Args:
            streams: The paths of 1 to 100 streams, each once.
            offsets: Where each stream begins: an offset, ``"-1"`` or ``"now"`` for all, or one for each by its path.

        Raises:
            ValueError: ``streams`` or ``offsets`` makes no sense.
        """
        root = self.url("root").removesuffix("/root")
        return follow(root, streams, offsets=offsets, client=self._sync_client)

    # -- what the transports need

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the streams are open on, None while they are not."""
        return self._asgi.loop

    async def opened(self) -> App:
        """Return the application, opened on the running event loop.

        Raises:
            DurableStreamError: The streams are closed, open on another event loop, or cannot be opened.
        """
        running = asyncio.get_running_loop()
        if self._asgi.loop is running:
            return self._app
        if self._asgi.is_ended:
            raise DurableStreamError(
                "The streams are closed: the application's lifespan has ended.", code="CLIENT_CLOSED"
            )
        if self._asgi.loop is not None and not self._asgi.loop.is_closed():
            raise DurableStreamError(
                "The streams are open on another event loop of this process: use them there, or sync_stream() in a "
                "thread.",
                code="CLIENT_CLOSED",
            )
        try:
            await self._asgi.startup()
        except StoreError as error:
            raise DurableStreamError(str(error), code="UNAVAILABLE") from error
        return self._app


def with_store(config: ServerConfig, store: str | PathLike[str]) -> ServerConfig:
    """Return the settings with a store: the path of a folder, or ``nats://…``; raises ValueError for a second one."""
    if config.store is not None or config.data_dir is not None:
        raise ValueError("The store is named twice: name it as store=, or in the config.")
    if isinstance(store, str) and "://" in store:
        return replace(config, store=store)
    return replace(config, data_dir=Path(store))
