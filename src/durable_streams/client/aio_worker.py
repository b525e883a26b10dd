"""The async worker: claims a subscription, reads what is pending, acknowledges what was processed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.aio import astream
from durable_streams.client.aio_performer import run
from durable_streams.client.base import make_options
from durable_streams.client.renewals import AsyncRenewal
from durable_streams.client.sides import ASYNC
from durable_streams.client.transports import async_transport_for
from durable_streams.client.transports.limits import TimeoutLike
from durable_streams.client.worker_base import AsyncHandler, Batch, WorkerBase
from durable_streams.errors import DurableStreamError, RetentionGoneError, StreamNotFoundError
from durable_streams.protocol import headers as h
from durable_streams.protocol import leases, operations
from durable_streams.protocol.leases import Lease, LeaseLostError, Pending
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import AsyncHeadersLike, AsyncParamsLike

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Worker"]


class Worker(WorkerBase):
    """A worker of a subscription of pull-wake (protocol section 8): an async iterator and context manager.

    ``async for batch in worker`` gives batches, for as long as it is iterated. A batch is acknowledged when the loop
    comes back for the next one, so that a batch that was being processed at a crash comes again: at least once. The
    lease is renewed meanwhile. The loop waits where there is nothing to do.

    Args:
        url: The root of the streams, such as ``http://127.0.0.1:4437/v1/stream``.
        subscription: The id of the subscription.
        name: The name of this worker; others see it while it holds the lease.
        decode: What messages of JSON become: a type, or a callable; None for plain values.
        headers: Headers of each request; values may be callables, async ones too, called for every attempt.
        params: Query parameters of each request, in the same form.
        client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.
        timeout: Seconds of silence before a request counts as stalled, as for a read.
        retry: How failed requests are retried; None for five retries.

    Raises:
        ValueError: An argument makes no sense.
    """

    def __init__(
        self,
        url: str,
        subscription: str,
        name: str,
        *,
        decode: Any = None,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        client: Any = None,
        timeout: TimeoutLike | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        transport = client and async_transport_for(client)
        options = make_options(transport, headers, params, timeout, retry)
        super().__init__(url, subscription, name, decode, options)
        self._batches: AsyncGenerator[Batch, None] | None = None
        self._renewal: AsyncRenewal | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give the lease back, if this worker holds it; what was not acknowledged comes again."""
        batches, self._batches = self._batches, None
        if batches is not None:
            await batches.aclose()

    def __aiter__(self) -> AsyncIterator[Batch]:
        """Iterate over batches."""
        return self

    async def __anext__(self) -> Batch:
        """Acknowledge the last batch; return the next one, once there is one.

        Raises:
            LeaseLostError: The lease ended before the last batch was acknowledged; it comes again, perhaps to another
                worker. Iterating again goes on.
            DurableStreamError: The server refuses, or no retry helps.
        """
        if self._batches is None:
            self._batches = self._generate()
        try:
            return await anext(self._batches)
        except BaseException:
            self._batches = None
            raise

    async def run(self, handler: AsyncHandler) -> None:
        """Call ``handler`` with each batch, until it raises or this call is ended.

        A handler whose lease is lost is cancelled, and its batch is not acknowledged: it comes again.

        Args:
            handler: Processes a batch; it may be async.
        """
        while True:
            try:
                async for batch in self:
                    await self._handle(handler, batch)
            except LeaseLostError as lost:
                self._log_lost(lost)

    if ASYNC:

        async def process(self, lease: Lease, handler: AsyncHandler) -> None:
            """Call ``handler`` with each batch of a wake that a webhook brought, and end it.

            Args:
                lease: The wake.
                handler: Processes a batch; it may be async.

            Raises:
                LeaseLostError: The lease ended before the last batch was acknowledged.
            """
            self._action = "callback"
            async with aclosing(self._hold(lease)) as batches:
                async for batch in batches:
                    await self._handle(handler, batch)

    async def _handle(self, handler: AsyncHandler, batch: Batch) -> None:
        if ASYNC:
            result = handler(batch)
            if result is None:
                return
            working = asyncio.ensure_future(result)
            renewal = self._renewal
            losing = asyncio.ensure_future(renewal.wait_lost() if renewal else asyncio.sleep(0))
            try:
                await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    working.result()
            finally:
                for task in (working, losing):
                    task.cancel()
                await asyncio.gather(working, losing, return_exceptions=True)
        else:
            handler(batch)

    # -- one lease after the other

    async def _generate(self) -> AsyncGenerator[Batch, None]:
        wakes = await run(leases.describe(self._root, self.subscription), self._options)
        more = False
        while True:
            since = None if more else await self._tail(wakes)
            lease = await run(leases.claim(self._root, self.subscription, self.name), self._options)
            if lease is None:
                more = False
                await self._wait(wakes, since)
                continue
            async with aclosing(self._hold(lease)) as batches:
                async for batch in batches:
                    yield batch
            more = self._more

    async def _hold(self, lease: Lease) -> AsyncGenerator[Batch, None]:
        """Give what is pending under a lease, and end it."""
        self._lease, self._done = lease, False
        try:
            async with AsyncRenewal(lease.seconds, self._beat) as self._renewal:
                for pending in lease.streams:
                    if not pending.has_pending:
                        continue
                    async with aclosing(self._read(pending)) as batches:
                        async for batch in batches:
                            yield batch
                            await self._acknowledge(lease, {pending.path: batch.offset})
                self._more = await self._acknowledge(lease, {}, done=True)
        finally:
            await self._give_back(lease)

    async def _read(self, of: Pending) -> AsyncGenerator[Batch, None]:
        url = self._url_of(of.path)
        options = self._read_options()
        async with astream(url, offset=of.acked_offset, live=False, **options) as res:
            if h.is_json(res.content_type or ""):
                async for items in res.iter_json_batches(self._decode):
                    yield Batch(of.path, url, items, b"", res.offset, self)
            else:
                async for data in res:
                    yield Batch(of.path, url, [], data, res.offset, self)

    async def _beat(self) -> object:
        return await self._acknowledge(self._lease, {})

    async def _acknowledge(self, lease: Lease | None, offsets: dict[str, str], *, done: bool = False) -> bool:
        self._check_lease()
        if lease is None:
            return False
        began = time.monotonic()
        op = leases.acknowledge(self._root, self.subscription, lease, offsets, done=done, action=self._action)
        more = await run(op, self._options)
        self._done = self._done or done
        if self._renewal is not None:
            self._renewal.renewed(began)
        return more

    async def _give_back(self, lease: Lease) -> None:
        renewal, self._renewal, self._lease = self._renewal, None, None
        if self._done or self._action != "ack" or (renewal is not None and renewal.lost is not None):
            return
        try:
            await run(leases.release(self._root, self.subscription, lease), self._options)
        except DurableStreamError as error:
            self._log_release(error)  # it expires

    # -- waiting for the next one

    async def _tail(self, wakes: str) -> str | None:
        """Return where the wake stream ends before the claim: what comes after it is news."""
        try:
            return (await run(operations.head(self._url_of(wakes)), self._options)).offset
        except (StreamNotFoundError, RetentionGoneError):
            return None

    async def _wait(self, wakes: str, since: str | None) -> None:
        """Return when the subscription is woken, or after a while: an event may be missed."""
        if since is None:
            await self._pause()
            return
        options = self._read_options()
        try:
            async with astream(
                self._url_of(wakes), offset=since, live=True, idle_timeout=self._patience, **options
            ) as res:
                async for event in res.iter_json():
                    if self._is_own(event):
                        return
        except (StreamNotFoundError, RetentionGoneError):
            await self._pause()  # it is gone, or was trimmed: claim, and look again
        else:
            if res.stream_closed:
                await self._pause()

    async def _pause(self) -> None:
        if ASYNC:
            await asyncio.sleep(self._missing)
        else:
            self._sleep()
