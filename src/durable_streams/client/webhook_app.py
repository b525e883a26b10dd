"""A worker that webhooks wake: an ASGI application that verifies, reads, and acknowledges (protocol section 8).

Invariants: nothing of a request is used before its signature is verified; requests go to the server that the
application was given, whatever a delivery says; a wake is processed once at a time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import msgspec

from durable_streams.client.aio_performer import run
from durable_streams.client.aio_worker import Worker
from durable_streams.client.base import make_options
from durable_streams.client.worker_base import AsyncHandler
from durable_streams.errors import DurableStreamError
from durable_streams.protocol.headers import RESERVED
from durable_streams.protocol.jsonparser import MALFORMED
from durable_streams.protocol.leases import Lease, Pending
from durable_streams.protocol.request import Op, Request, check_url, error_from
from durable_streams.protocol.subscription_operations import read_subscription
from durable_streams.types import AsyncHeadersLike

if TYPE_CHECKING:  # an extra
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["WebhookApp", "webhook_app"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_KEYS = f"/{RESERVED}/jwks.json"
_REPLAY_SECONDS = 300
_KEYS_SECONDS = 300.0
_KEYS_PAUSE = 5.0  # seconds between two requests for keys, whatever signatures name
_MAX_BODY = 4 << 20
_REMEMBERED = 10_000  # wakes
_MOST_TASKS = 256

_log = logging.getLogger("durable_streams.worker")


class _Delivery(msgspec.Struct):
    subscription_id: str
    wake_id: str
    generation: int
    streams: list[Pending]
    callback_token: str


class _Key(msgspec.Struct):
    kid: str
    x: str


class _Keys(msgspec.Struct):
    keys: list[_Key]


def _jwks(url: str) -> Op[_Keys]:
    request = Request("GET", url)
    response = yield request
    if response.status != 200:
        raise error_from(response, request)
    return msgspec.json.decode(response.body, type=_Keys)


class WebhookApp:
    """What `webhook_app` returns: an ASGI application."""

    def __init__(
        self,
        handler: AsyncHandler,
        jwks_url: str,
        *,
        decode: Any,
        headers: AsyncHeadersLike | None,
        client: Any,
    ) -> None:
        if not check_url(jwks_url).endswith(_KEYS):
            raise ValueError(f"jwks_url ends with {_KEYS}, as a subscription shows it, not {jwks_url!r}.")
        try:
            import cryptography  # noqa: F401, PLC0415 - an extra
        except ImportError:
            raise ValueError('Webhooks need the extra: pip install "durable-streams[webhooks]".') from None
        self._handler, self._jwks_url, self._root = handler, jwks_url, jwks_url.removesuffix(_KEYS)
        self._decode, self._headers, self._client = decode, headers, client
        self._options = make_options(None, headers, None, None, None)
        self._public: dict[str, Ed25519PublicKey] = {}
        self._asked_at: float | None = None
        self._known: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI interface."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            status = 405 if scope["method"] != "POST" else await self._take(scope, receive)
            headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                await self.aclose()
                return

    async def aclose(self) -> None:
        """End what is being processed; it is delivered again."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, scope: Scope, receive: Receive) -> int:
        body = await _body(receive)
        if body is None:
            return 413
        signature = dict(scope["headers"]).get(b"webhook-signature", b"").decode("latin-1")
        try:
            if not await self._is_signed(signature, body):
                return 401
            delivery = msgspec.json.decode(body, type=_Delivery)
        except MALFORMED:
            return 400
        except DurableStreamError as error:
            _log.warning("a webhook cannot be verified: %s", error)
            return 503
        if delivery.wake_id in self._known:
            return 202
        if len(self._tasks) >= _MOST_TASKS:
            return 503
        self._known[delivery.wake_id] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        task = asyncio.create_task(self._process(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return 202

    async def _is_signed(self, signature: str, body: bytes) -> bool:
        """Whether a delivery was signed by the server, just now; raises DurableStreamError without its keys."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an extra

        fields = dict(part.partition("=")[::2] for part in signature.split(","))
        moment, kid = fields.get("t", ""), fields.get("kid", "")
        if not (moment.isascii() and moment.isdigit() and len(moment) < 16):
            return False
        if abs(time.time() - int(moment)) > _REPLAY_SECONDS:
            return False
        key = await self._key(kid)
        if key is None:
            return False
        try:
            key.verify(_decoded(fields.get("ed25519", "")), moment.encode() + b"." + body)
        except (InvalidSignature, ValueError, binascii.Error):
            return False
        return True

    async def _key(self, kid: str) -> Ed25519PublicKey | None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

        now = time.monotonic()
        age = None if self._asked_at is None else now - self._asked_at
        if age is None or age > _KEYS_SECONDS or (kid not in self._public and age > _KEYS_PAUSE):
            self._asked_at = now
            found = await run(_jwks(self._jwks_url), self._options)
            self._public = {
                key.kid: Ed25519PublicKey.from_public_bytes(_decoded(key.x)) for key in found.keys
            }
        return self._public.get(kid)

    async def _process(self, delivery: _Delivery) -> None:
        name = delivery.subscription_id
        try:
            shown = await run(read_subscription(self._root, name), self._options)
            lease = Lease(
                delivery.wake_id,
                delivery.generation,
                delivery.callback_token,
                int(shown["lease_ttl_ms"]),
                delivery.streams,
            )
            worker = Worker(
                self._root, name, "webhook", decode=self._decode, headers=self._headers, client=self._client
            )
            await worker.process(lease, self._handler)
        except Exception as error:  # noqa: BLE001 - the wake comes again when its lease is over
            _log.warning("the wake %s of %s was not processed: %r", delivery.wake_id, name, error)
            self._known.pop(delivery.wake_id, None)


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request, None if it is too large or was cut off."""
    said = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        said += message.get("body", b"")
        if len(said) > _MAX_BODY:
            return None
        if not message.get("more_body", False):
            return bytes(said)


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def webhook_app(
    handler: AsyncHandler,
    jwks_url: str,
    *,
    decode: Any = None,
    headers: AsyncHeadersLike | None = None,
    client: Any = None,
) -> WebhookApp:
    """Return an ASGI application that receives the webhooks of subscriptions (protocol section 8).

    It verifies each delivery (signature, time, key), answers 202, and calls ``handler`` with what is pending, one
    batch after the other; each is acknowledged when the handler returns. A delivery of a wake that is known is not
    processed again. A handler that raises leaves its batch to the next wake.

    Args:
        handler: Processes a batch; it may be async. It is cancelled if the lease is lost meanwhile.
        jwks_url: Where the server publishes its keys, as a subscription shows it (``jwks_url``).
        decode: What messages of JSON become: a type, or a callable; None for plain values.
        headers: Headers of each request to the server; values may be callables, called for every attempt.
        client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.

    Returns:
        The application, to run or to mount.

    Raises:
        ValueError: The URL is no such URL, or the extra ``webhooks`` is not installed.
    """
    return WebhookApp(handler, jwks_url, decode=decode, headers=headers, client=client)
