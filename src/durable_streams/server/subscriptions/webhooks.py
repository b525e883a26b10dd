"""Deliveries of webhooks (protocol section 8): a signed POST, and what its answer means.

Invariants: nothing goes to an address that the rules refuse, and no redirect or proxy is followed; a delivery is
bounded in time and in what is read of its answer; what is acknowledged by ``done`` is what was sent.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import aiohttp
import msgspec

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.jsonparser import MALFORMED
from durable_streams.protocol.subscription import Subscription
from durable_streams.server.subscriptions.engine import Engine
from durable_streams.server.subscriptions.keys import Signer
from durable_streams.server.subscriptions.urls import CheckedResolver, WebhookRules

__all__ = ["Webhooks"]

_SECONDS = 30.0  # for a delivery, or the lease if that is shorter
_ANSWER_BYTES = 64 << 10
_AT_ONCE = 64

_log = logging.getLogger("durable_streams.server")


class _Answer(msgspec.Struct):
    done: object = None


_decode = msgspec.json.Decoder(_Answer).decode


class Webhooks:
    """Delivers the wakes of webhooks.

    Attributes:
        rules: Where webhooks may go.

    Args:
        engine: The subscriptions.
        signer: Signs.
        rules: Where webhooks may go.
        body: Returns the body of a delivery for a subscription with a wake.
    """

    def __init__(
        self,
        engine: Engine,
        signer: Signer,
        rules: WebhookRules,
        body: Callable[[Subscription], Awaitable[bytes]],
    ) -> None:
        self._engine = engine
        self._signer = signer
        self.rules = rules
        self._body = body
        self._session: aiohttp.ClientSession | None = None
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def stop(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def deliver(self, name: str) -> None:
        """Make one attempt to deliver the wake in flight; what comes of it is stored.

        Args:
            name: The id of the subscription.
        """
        async with self._at_once:
            # What was appended since the last attempt goes with this one.
            sent = await self._engine.change(name, lambda one, tails: one.attempted(tails), everything=True)
            wake_id = sent.wake_id
            if wake_id is None or sent.next_attempt_at is None or sent.next_attempt_at > self._engine.clock():
                return
            try:
                done = await self._post(sent)
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, Rejection) as error:
                _log.info("subscription %r: a delivery failed: %s", name, type(error).__name__)
                jitter = random.uniform(-1, 1)  # noqa: S311 - not a secret
                await self._engine.change(
                    name, lambda one, _: one.failed(wake_id, self._engine.clock(), jitter)
                )
                return
        await self._engine.change(
            name,
            lambda one, _: one.delivered(wake_id, done=done, now=self._engine.clock()),
            tuple(sent.snapshot),
        )

    async def _post(self, sent: Subscription) -> bool:
        """Return whether the answer to a delivery is done; raises what makes it a failed one."""
        url = self.rules.parse(sent.config.url or "")
        body = await self._body(sent)
        headers = {
            "content-type": "application/json",
            "webhook-signature": await self._signer.signature(body),
        }
        timeout = aiohttp.ClientTimeout(total=min(_SECONDS, sent.config.lease))
        async with self._opened().post(
            url, data=body, headers=headers, allow_redirects=False, timeout=timeout
        ) as response:
            if not 200 <= response.status < 300:
                raise ValueError(f"status {response.status}")
            return await _is_done(response)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=CheckedResolver(), use_dns_cache=False, limit=_AT_ONCE, limit_per_host=_AT_ONCE
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,  # an answer of some kilobytes must not become one of gigabytes
            )
        return self._session


async def _is_done(response: aiohttp.ClientResponse) -> bool:
    said = bytearray()
    async for part in response.content.iter_any():
        said += part
        if len(said) > _ANSWER_BYTES:
            return False
    try:
        return _decode(bytes(said)).done is True
    except MALFORMED:
        return False
