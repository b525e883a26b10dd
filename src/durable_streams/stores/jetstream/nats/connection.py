"""A connection to a NATS cluster that reconnects forever: requests, answers, subscriptions.

Invariants:
* a message that cannot be sent now is refused: none waits for a reconnect;
* a request ends with its answer, TimeoutError, or ConnectionError as soon as the connection is lost;
* messages reach their handler at once, headers unparsed, without a task or a queue for each subscription.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import nats.errors

from durable_streams.stores.base import StoreError, StoreUnavailableError
from durable_streams.stores.jetstream.config import JetStreamConfig, without_secrets
from durable_streams.stores.jetstream.nats.client import MessageHandler, NatsClient
from durable_streams.stores.jetstream.nats.messages import NatsSubscription

__all__ = ["NatsAnswer", "NatsConnection"]

_CONNECT_SECONDS = 5.0
_RECONNECT_SECONDS = 1.5  # a reconnect to another server takes milliseconds
_REFUSALS = ("authorization violation", "credentials", "certificate", "secure connection")

_log = logging.getLogger("durable_streams.stores")


class NatsAnswer(NamedTuple):
    """The answer to a request: ``head`` is the unparsed header block, b"" without one."""

    head: bytes
    data: bytes

    @property
    def status(self) -> int:
        """The status of NATS itself (404, 503 …), 0 for a message."""
        return int(self.head[9:12]) if self.head[8:9] == b" " else 0


class NatsConnection:
    """A connection to any server of the cluster.

    Args:
        config: The cluster and the bucket.
        restored: Called after every reconnect.
    """

    def __init__(self, config: JetStreamConfig, restored: Callable[[], None]) -> None:
        self._config = config
        self._where = without_secrets(config.servers)
        self._restored = restored
        self._secure = config.servers[0].startswith("tls:") or config.tls_ca is not None
        self._client = NatsClient(self._lost, secure=self._secure)
        self._up = asyncio.Event()
        self._closed = False
        self._trouble: Exception | None = None
        self._waiting: dict[bytes, _Waiting] = {}
        self._inbox = b""
        self._asked = 0
        self._lost_at = 0.0  # time of the event loop

    # from open to close

    async def open(self) -> None:
        """Connect; raise StoreError with one sentence if that is not possible."""
        try:
            await asyncio.wait_for(self._connect(), _CONNECT_SECONDS)
        except asyncio.TimeoutError:
            await self._client.leave()
            said = f": {self.trouble}" if self.trouble else ""
            raise StoreError(f"NATS cannot be reached at {self._where}{said}") from None
        except ImportError as error:
            await self._client.leave()
            raise StoreError('credentials of NATS need nkeys: pip install "nats-py[nkeys]"') from error
        except (nats.errors.Error, OSError, ValueError) as error:
            await self._client.leave()
            raise StoreError(f"NATS at {self._where} refuses the connection: {_said(error)}") from error
        except BaseException:
            await self._client.leave()
            raise

    async def _connect(self) -> None:
        config, first = self._config, urlsplit(self._config.servers[0])
        user, password = unquote(first.username or ""), unquote(first.password or "")
        await self._client.connect(
            [f"{first.scheme}://{server.rpartition('@')[2].rpartition('/')[2]}" for server in config.servers],
            name=f"durable-streams {config.name}",
            user=user if password else None,
            password=password or None,
            token=user if user and not password else None,
            user_credentials=None if config.credentials is None else str(config.credentials),
            tls=_tls(config.tls_ca) if self._secure else None,
            connect_timeout=1,
            reconnect_time_wait=0.1,  # type: ignore[arg-type]  # seconds, given to asyncio.sleep
            max_reconnect_attempts=-1,
            ping_interval=1,
            max_outstanding_pings=2,
            pending_size=-1,
            error_cb=self._on_error,
            disconnected_cb=self._on_lost,
            reconnected_cb=self._on_restored,
        )
        inbox = self._client.new_inbox()
        self._inbox = inbox.encode()
        await self._client.listen(f"{inbox}.*", self._take)
        self._up.set()
        await self.barrier(_CONNECT_SECONDS)

    async def close(self) -> None:
        """Close the connection, at once even if NATS is down; waiting requests raise ConnectionError."""
        self._up.clear()
        await self._client.leave()
        self._lost()
        self._closed = True
        self._up.set()  # no wait for a reconnect is needed

    async def _on_error(self, error: Exception) -> None:
        self._trouble = error
        if not self._inbox and any(word in str(error).lower() for word in _REFUSALS):
            raise error  # out of ``connect``, which would retry forever
        _log.debug("NATS: %s", error)

    async def _on_lost(self) -> None:
        self._lost()

    def _lost(self) -> None:
        if self._up.is_set() and not self._closed:
            _log.warning("the connection to NATS at %s is lost", self._where)
            self._up.clear()
            self._lost_at = asyncio.get_running_loop().time()
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            one.fail(ConnectionError("the connection to NATS was lost"))

    async def _on_restored(self) -> None:
        _log.info("the connection to NATS at %s is back", self._where)
        self._up.set()
        asyncio.get_running_loop().call_soon(self._restored)  # its exceptions must not end the reconnect

    @property
    def connected(self) -> bool:
        """Whether a message can be sent now."""
        return self._up.is_set() and self._client.ready

    async def wait_connected(self, timeout: float) -> bool:
        """Wait until a message can be sent; False after ``timeout`` seconds, or if the connection is closed."""
        if self.connected or self._closed:
            return not self._closed
        self._lost()
        left = self._lost_at + _RECONNECT_SECONDS - asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(self._up.wait(), min(timeout, left))
        except asyncio.TimeoutError:
            return False
        return not self._closed

    @property
    def max_payload(self) -> int:
        """The largest message that the server takes, in bytes, headers included."""
        return self._client.max_payload

    @property
    def version(self) -> tuple[int, int, int]:
        """The version of the NATS server."""
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    @property
    def trouble(self) -> str:
        """The last error, "" if there was none."""
        return "" if self._trouble is None else _said(self._trouble)

    # messages

    def write(self, wire: bytes) -> None:
        """Send encoded messages; raise StoreUnavailableError if they cannot be sent now."""
        self._demand()
        self._client.write(wire)

    def _demand(self) -> None:
        if not self.connected:
            self._lost()
            raise StoreUnavailableError(f"NATS cannot be reached at {self._where}")

    def encode(self, subject: str, reply: bytes, headers: Mapping[str, str] | None, data: bytes) -> bytes:
        """Return the wire form of a message; header names and values must not contain line breaks.

        Raises StoreError for a message that NATS would not take, since it would end the connection.
        """
        if headers is None:
            head, size = b"", len(data)
            line = b"PUB %b %b %d\r\n" % (subject.encode(), reply, size)
        else:
            lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
            head = f"NATS/1.0\r\n{lines}\r\n".encode()
            size = len(head) + len(data)
            line = b"HPUB %b %b %d %d\r\n" % (subject.encode(), reply, len(head), size)
        if size > self.max_payload:
            raise StoreError(
                f"a message of {size} bytes is more than NATS takes: max_payload is {self.max_payload}"
            )
        return b"%b%b%b\r\n" % (line, head, data)

    def new_reply(self) -> bytes:
        """Return a subject for one answer."""
        self._asked += 1
        return b"%b.%x" % (self._inbox, self._asked)

    async def answer(
        self, reply: bytes, wire: bytes, timeout: float, parts: list[NatsAnswer] | None = None
    ) -> NatsAnswer:
        """Send, and return the message to ``reply``.

        With ``parts``, messages are collected there until NATS reports the last one. Raises StoreUnavailableError if
        nothing was sent, ConnectionError, and TimeoutError after ``timeout`` seconds without a message.
        """
        self._demand()
        waiting = self._waiting[reply] = _Waiting(timeout, parts)
        try:
            self._client.write(wire)
            return await waiting.future
        finally:
            waiting.timer.cancel()
            self._waiting.pop(reply, None)

    def _take(self, subject: bytes, head: bytes, data: bytes) -> None:
        waiting = self._waiting.get(subject)
        if waiting is not None:
            waiting.take(NatsAnswer(head, data))

    async def request(
        self,
        subject: str,
        data: bytes,
        timeout: float,
        parts: list[NatsAnswer] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> NatsAnswer:
        """Send a request, and return the answer; raises as ``answer`` does."""
        reply = self.new_reply()
        return await self.answer(reply, self.encode(subject, reply, headers, data), timeout, parts)

    async def barrier(self, timeout: float) -> None:
        """Wait until the server has taken everything that was sent before; raises as ``answer`` does."""
        reply = self.new_reply()
        await self.answer(reply, self.encode(reply.decode(), b"", None, b""), timeout)

    async def subscribe(self, subject: str, handler: MessageHandler, timeout: float) -> NatsSubscription:
        """Deliver messages on a subject, from the end of this call on; raises as ``answer`` does."""
        self._demand()
        subscription = NatsSubscription(
            partial(self._client.drop, await self._client.listen(subject, handler))
        )
        try:
            await self.barrier(timeout)
        except BaseException:
            subscription.cancel()
            raise
        return subscription


class _Waiting:
    """A wait for an answer, of ``timeout`` seconds after its last part."""

    __slots__ = ("future", "parts", "seen", "timeout", "timer")

    def __init__(self, timeout: float, parts: list[NatsAnswer] | None) -> None:
        loop = asyncio.get_running_loop()
        self.future: asyncio.Future[NatsAnswer] = loop.create_future()
        self.parts = parts
        self.seen = 0
        self.timeout = timeout
        self.timer = loop.call_later(timeout, self._give_up)

    def take(self, answer: NatsAnswer) -> None:
        if self.parts is not None and not answer.status:
            self.parts.append(answer)
        elif not self.future.done():
            self.future.set_result(answer)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def _give_up(self) -> None:
        if self.parts is not None and len(self.parts) > self.seen:
            self.seen = len(self.parts)
            self.timer = asyncio.get_running_loop().call_later(self.timeout, self._give_up)
        else:
            self.fail(TimeoutError("NATS does not answer"))


def _said(error: Exception) -> str:
    return str(error).removeprefix("nats: ").strip("'\" .") or type(error).__name__


def _tls(authorities: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise StoreError(f"{authorities} holds no certificates to trust: {error}") from error
