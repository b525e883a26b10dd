"""The async worker: claims a subscription, reads what is pending, acknowledges what was processed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from durable_streams.client.aio import astream
from durable_streams.client.aio_performer import run
from durable_streams.client.base import make_options
from durable_streams.client.renewals import AsyncRenewal
from durable_streams.client.side_by_side import Turns, in_tasks, in_threads
from durable_streams.client.sides import ASYNC
from durable_streams.client.transports import async_transport_for
from durable_streams.client.transports.limits import TimeoutLike
from durable_streams.client.worker_base import AckMode, AsyncHandler, Batch, FailedError, WorkerBase
from durable_streams.errors import DurableStreamError, RetentionGoneError, StreamNotFoundError
from durable_streams.protocol import headers as h
from durable_streams.protocol import leases, operations
from durable_streams.protocol.dead_letters import DEFAULT_FAILURES, send
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
    lease is renewed meanwhile. The loop waits where there is nothing to do. `run` calls a function instead, which may
    process several streams at once, and whose failures are counted.

    Args:
        url: The root of the streams, such as ``http://127.0.0.1:4437/v1/stream``.
        subscription: The id of the subscription.
        name: The name of this worker; others see it while it holds the lease.
        decode: What messages of JSON become: a type, or a callable; None for plain values.
        headers: Headers of each request; values may be callables, async ones too, called for every attempt.
        params: Query parameters of each request, in the same form.
        client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.
        timeout: Seconds of silence before a request counts as stalled, as for a read.
        trickle_timeout: Seconds that an answer may trickle beyond that; None for 30.
        retry: How failed requests are retried; None for five retries.
        ack: When a batch is acknowledged: "after" it was processed (at least once), "before" it is handed over (at
            most once), or "manual": by `ack` only.
        max_concurrent_streams: From how many streams `run` processes batches at once; those of one stream stay in
            order.
        dead_letter: The path of a stream of JSON, created if needed, that keeps what `run` gives up; None to let a
            handler's failure end `run`.
        max_failures: How many failures of a batch, in this process, make a dead letter of it.

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
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
        ack: AckMode = "after",
        max_concurrent_streams: int = 1,
        dead_letter: str | None = None,
        max_failures: int = DEFAULT_FAILURES,
    ) -> None:
        transport = client and async_transport_for(client)
        options = make_options(transport, headers, params, timeout, retry, trickle_timeout=trickle_timeout)
        super().__init__(
            url,
            subscription,
            name,
            decode,
            options,
            ack=ack,
            max_concurrent_streams=max_concurrent_streams,
            dead_letter=dead_letter,
            max_failures=max_failures,
        )
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

    async def ack(self, batch: Batch) -> None:
        """Acknowledge a batch, and all of its stream before it; for ``ack="manual"``.

        Args:
            batch: A batch of the present lease.

        Raises:
            LeaseLostError: Its lease is over; it comes again, perhaps to another worker.
        """
        await self._acknowledge(self._lease_of(batch), {batch.path: batch.offset})

    async def run(self, handler: AsyncHandler) -> None:
        """Call ``handler`` with each batch, until it raises or this call is ended.

        A handler whose lease is lost is cancelled, and its batch is not acknowledged: it comes again.
        With ``dead_letter`` a handler that raises gets the batch again, after a pause of 1 second, doubled up to a
        minute, in which other workers may have it; the last failure stores the batch with its origin and the error in
        that stream, and acknowledges it.

        Args:
            handler: Processes a batch; it may be async.
        """
        while True:
            try:
                async with aclosing(self._leases()) as found:
                    async for lease in found:
                        await self._serve(lease, handler)
            except LeaseLostError as lost:
                self._log_lost(lost)
            except FailedError as failed:
                await self._pause(self._failures.pause(failed.count))

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
            await self._serve(lease, handler)

    async def _serve(self, lease: Lease, handler: AsyncHandler) -> None:
        """Process what is pending under a lease, and end it: several streams at once, each in order."""
        turns = Turns(one for one in lease.streams if one.has_pending)
        count = min(self._at_once, len(turns))

        async def work() -> None:
            while (pending := turns.take()) is not None:
                async with aclosing(self._batches_of(lease, pending)) as batches:
                    async for batch in batches:
                        await self._attempt(handler, batch)
                        if turns.stopped:
                            return

        async with self._held(lease):
            if ASYNC:
                await in_tasks(work, count)
            else:
                in_threads(work, count, turns)

    async def _attempt(self, handler: AsyncHandler, batch: Batch) -> None:
        """Process a batch; one that failed too often becomes a dead letter."""
        if self._dead_letter is None:
            await self._handle(handler, batch)
            return
        try:
            await self._handle(handler, self._decoded(batch))
        except LeaseLostError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises
            self._check_lease()
            letter = self._failed(batch, error)
            await run(send(self._url_of(self._dead_letter), letter), self._options)
            if self._ack == "manual":
                await self.ack(batch)
        else:
            self._failures.processed(batch.path, batch.since)

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
        async with aclosing(self._leases()) as found:
            async for lease in found:
                async with self._held(lease):
                    for pending in lease.streams:
                        if pending.has_pending:
                            async with aclosing(self._batches_of(lease, pending)) as batches:
                                async for batch in batches:
                                    yield batch

    async def _leases(self) -> AsyncGenerator[Lease, None]:
        """Give one lease after the other; each has ended when the next one is asked for."""
        wakes = await run(leases.describe(self._root, self.subscription), self._options)
        more = False
        while True:
            since = None if more else await self._tail(wakes)
            lease = await run(leases.claim(self._root, self.subscription, self.name), self._options)
            if lease is None:
                more = False
                await self._wait(wakes, since)
                continue
            self._moved = False
            yield lease
            more = self._more
            if more and not self._moved:
                await self._pause(self._missing)  # the same batches come again

    @asynccontextmanager
    async def _held(self, lease: Lease) -> AsyncIterator[None]:
        """Hold a lease while a block runs, and end it with the block."""
        self._lease, self._done = lease, False
        try:
            async with AsyncRenewal(lease.seconds, self._beat) as self._renewal:
                yield
                self._more = await self._acknowledge(lease, {}, done=True)
        finally:
            await self._give_back(lease)

    async def _batches_of(self, lease: Lease, pending: Pending) -> AsyncGenerator[Batch, None]:
        """Give what is pending of a stream, each batch acknowledged as the worker does it."""
        async with aclosing(self._read(lease, pending)) as batches:
            async for batch in batches:
                if self._ack == "before":
                    await self._acknowledge(lease, {batch.path: batch.offset})
                yield batch
                self._check_lease()
                if self._ack == "after":
                    await self._acknowledge(lease, {batch.path: batch.offset})

    async def _read(self, lease: Lease, of: Pending) -> AsyncGenerator[Batch, None]:
        url, since = self._url_of(of.path), of.acked_offset
        options = self._read_options()
        began = since
        # What the stream gave up before it was read cannot be processed any more: a warning says so.
        async with astream(url, offset=since, live=False, on_gone="earliest", **options) as res:
            if h.is_json(res.content_type or ""):
                # What may become a dead letter is kept as it is stored.
                decode = self._decode if self._dead_letter is None else msgspec.Raw
                async for items in res.iter_json_batches(decode):
                    yield Batch(of.path, url, items, b"", res.offset, self, since, lease.wake_id)
                    since = res.offset
            else:
                async for data in res:
                    yield Batch(of.path, url, [], data, res.offset, self, since, lease.wake_id)
                    since = res.offset
            if since == began != res.offset:  # it gave up all that was pending
                await self._acknowledge(lease, {of.path: res.offset})

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
        self._moved = self._moved or bool(offsets)
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
            await self._pause(self._missing)
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
            await self._pause(self._missing)  # it is gone, or was trimmed: claim, and look again
        else:
            if res.stream_closed:
                await self._pause(self._missing)

    async def _pause(self, seconds: float) -> None:
        if ASYNC:
            await asyncio.sleep(seconds)
        else:
            self._sleep(seconds)
