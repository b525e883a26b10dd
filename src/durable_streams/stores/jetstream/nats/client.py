"""nats-py's client, adapted to the store. The only module that uses its internals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import nats.aio.client
import nats.errors

__all__ = ["MessageHandler", "NatsClient"]

_CLOSE_SECONDS = 1.0

_log = logging.getLogger("durable_streams.stores")

MessageHandler = Callable[[bytes, bytes, bytes], None]
"""Takes a message: subject, unparsed header block (b"" without one), data."""


class NatsClient(nats.aio.client.Client):
    """nats-py's client with changes that it has no options for; it calls the overridden methods itself.

    Messages reach their handler at once. A lost connection is reported at once, and unsent data are dropped. An error
    from the server leads to a reconnect, not to the end. A connection that must use TLS uses it or fails.

    Args:
        lost: Called when the connection is lost.
        secure: Whether TLS is required.
    """

    def __init__(self, lost: Callable[[], None], *, secure: bool) -> None:
        super().__init__()
        self._handlers: dict[int, MessageHandler] = {}
        self._lost = lost
        self._secure = secure

    async def listen(self, subject: str, handler: MessageHandler) -> int:
        """Deliver messages on a subject to a handler; return the id for ``drop``."""
        sid: int = (await self.subscribe(subject))._id  # noqa: SLF001 - the only name by which messages come
        self._handlers[sid] = handler
        return sid

    def drop(self, sid: int) -> None:
        """End a delivery."""
        if self._handlers.pop(sid, None) is not None:
            self._remove_sub(sid)
            if self.ready:
                self.write(b"UNSUB %d\r\n" % sid)

    @property
    def ready(self) -> bool:
        """Whether data can be written: the client is connected, and no write has failed."""
        return self.is_connected and self._writer is not None and not self._writer.is_closing()

    @property
    def _writer(self) -> asyncio.StreamWriter | None:
        writer: asyncio.StreamWriter | None = getattr(self._transport, "_io_writer", None)
        return writer

    def write(self, wire: bytes) -> None:
        """Write to the connection, which is ready, after pending data."""
        if self._writer is not None:
            self._writer.write(b"".join([*self._pending, wire]) if self._pending else wire)
            self._forget()

    def _forget(self) -> None:
        self._pending.clear()
        self._pending_data_size = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            return await super()._process_msg(sid, subject, reply, data, headers)
        try:
            handler(subject, headers or b"", data)
        except Exception:  # noqa: BLE001 - or the client would stop reading
            _log.exception("a message on %s could not be handled", subject.decode(errors="replace"))

    async def _process_pong(self) -> None:
        if (
            self._pongs and self._pongs[0].done()
        ):  # nothing waits for it any more, which would end the reading
            self._pongs.pop(0)
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    async def _connect_to_server(self, s: nats.aio.client.Srv) -> None:
        self._abort()  # the previous connection, which was accepted and then silent, would stay open
        await super()._connect_to_server(s)

    async def _process_op_err(self, e: Exception) -> None:
        if not (self.is_closed or self.is_reconnecting):
            self._forget()
            self._abort()  # or data that NATS does not take any more delay the reconnect
            self._lost()
        await super()._process_op_err(e)

    def _abort(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    async def _process_err(self, err_msg: str) -> None:
        error = nats.errors.Error(f"nats: {err_msg}")
        await self._error_cb(error)
        if "permissions violation" not in err_msg:
            await self._process_op_err(error)

    def _connect_command(self) -> bytes:
        if self._secure and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return super()._connect_command()

    async def leave(self) -> None:
        """Close soon, whatever the state of NATS."""
        if self._transport is None:
            return
        while self._reconnection_task is not None and not self._reconnection_task.done():
            self._reconnection_task.cancel()  # a cancellation may be swallowed, and then it would connect again
            await asyncio.wait([self._reconnection_task], timeout=0.05)
        closing = asyncio.ensure_future(self.close())
        await asyncio.wait([closing], timeout=_CLOSE_SECONDS)
        self._abort()
        if not closing.done():
            closing.cancel()
            await asyncio.wait([closing])
        if not closing.cancelled() and closing.exception() is not None:
            _log.debug("NATS: %s", closing.exception())
