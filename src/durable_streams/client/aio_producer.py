"""The async idempotent producer: tasks around the producer machine.

Invariants: the machine is asked for work after every event that may give it some (`_turn`), so that no task waits in
the background; any failure of a request ends in the machine's sticky error, so that `flush` and `close` never return
normally after a loss; a producer that was not closed is flushed when its event loop shuts down, and a loss is reported
at the latest when the process ends (`unclosed.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.aio_performer import run, send
from durable_streams.client.base import make_options
from durable_streams.client.cancellable_wait import running_loop
from durable_streams.client.forks import leave_alone
from durable_streams.client.producer_base import MISSING, ProducerBase, one_of
from durable_streams.client.transports import async_transport_for
from durable_streams.client.transports.limits import TimeoutLike
from durable_streams.client.unclosed import busy, idle, settle_stranded
from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol import operations
from durable_streams.protocol.producer import Outcome, ProducerJob
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import AsyncHeadersLike, AsyncParamsLike, IdempotentAppendResult

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["IdempotentProducer"]

_Ticket = asyncio.Future[IdempotentAppendResult]
_LONGEST = 1e6  # seconds: event loops overflow at infinity
_MARGIN = 1.0  # seconds that a loop in another thread has to report a loss
_UNKNOWN_SIZE = 256  # bytes that a value counts for until it is encoded


class IdempotentProducer(ProducerBase):
    """Appends that are written exactly once and in order, in batches, several in flight (protocol section 4).

    Used within one event loop. `append` returns at once, and raises once ``max_pending_bytes`` are queued; `put` waits
    for room; `submit` gives a future; `flush` and `close` wait for everything and raise the error that lost any of it.

    Args:
        url: The stream's absolute URL.
        producer_id: The producer's stable identifier, the same in every start.
        client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.
        epoch: The number of this start. It must grow with every start under the same ``producer_id``.
        auto_claim: Whether the producer takes the next free epoch by itself when another one has the present one.
        max_batch_bytes: The size of a request in bytes, unless one record is larger.
        linger_ms: Milliseconds that a batch waits for more records; while requests are in flight, 2 at least.
        max_in_flight: How many requests may be in flight at once.
        content_type: The stream's content type; None asks for it at the first append.
        headers: Headers of each request; values may be callables, async ones too, called for every attempt.
        params: Query parameters of each request, in the same form.
        on_error: A callable that is given the error that ends the producer, once.
        timeout: Seconds of silence before a request counts as failed; None for 30. Or a pair of seconds, for
            connecting and reading, or an ``httpx.Timeout``.
        trickle_timeout: Seconds that an answer may trickle beyond that; None for 30.
        retry: The pauses between retries; None for pauses from 0.05 to 2 seconds, without an end of their own.
        retry_timeout: Seconds that a failing server is retried.
        max_pending_bytes: The most bytes of records that are not acknowledged.
        exit_timeout: Seconds that the end of the event loop waits for queued records, if the producer was not closed.
            The records that are lost then are counted on standard error.

    Raises:
        ValueError: An argument is out of its range, or a header is not for the caller to set.
    """

    def __init__(
        self,
        url: str,
        producer_id: str,
        *,
        client: Any = None,
        epoch: int = 0,
        auto_claim: bool = False,
        max_batch_bytes: int = 1024 * 1024,
        linger_ms: float = 5,
        max_in_flight: int = 5,
        content_type: str | None = None,
        headers: AsyncHeadersLike | None = None,
        params: AsyncParamsLike | None = None,
        on_error: Callable[[Exception], None] | None = None,
        timeout: TimeoutLike | None = None,
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
        retry_timeout: float = 120.0,
        max_pending_bytes: int = 64 * 1024 * 1024,
        exit_timeout: float = 5.0,
    ) -> None:
        super().__init__(
            url,
            producer_id,
            make_options(
                client and async_transport_for(client),
                headers,
                params,
                timeout,
                retry,
                trickle_timeout=trickle_timeout,
            ),
            on_error=on_error,
            content_type=content_type,
            epoch=epoch,
            auto_claim=auto_claim,
            linger_ms=linger_ms,
            max_batch_bytes=max_batch_bytes,
            max_in_flight=max_in_flight,
            max_pending_bytes=max_pending_bytes,
            retry_timeout=retry_timeout,
            exit_timeout=exit_timeout,
        )
        self._max_early_bytes = max_pending_bytes
        # The data appended before the stream's content type is known, which decides how it is encoded.
        self._early: deque[tuple[Any, _Ticket | None]] = deque()
        self._remains.early = self._early
        self._early_bytes = 0
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: AsyncGenerator[None, None] | None = None
        self._last: Future[None] | None = None
        self._learner: asyncio.Task[None] | None = None
        self._closing = self._finishing = False
        self._ending: _Ticket | None = None

    @property
    def pending_count(self) -> int:
        """How many records are not acknowledged yet."""
        return self._machine.pending_count + len(self._early)

    # -- appending

    def append(self, data: Any = MISSING, *, body: Any = MISSING) -> None:
        """Queue data, without waiting.

        Args:
            data: Bytes or text; for a JSON stream any JSON value as one message, where text and bytes are JSON
                already.
            body: Another name of ``data``.

        Raises:
            ValueError: The data is empty, or is not valid JSON.
            TypeError: The stream cannot hold this type of data.
            DurableStreamError: With code ``QUEUE_FULL`` where ``max_pending_bytes`` are queued; the producer is
                closed; or the error that ended it.
        """
        if data is MISSING or body is not MISSING:
            data = one_of(data, body)
        if self._machine.content_type is None:
            self._add_early(data, None)
            return
        record = self._machine.encode(data)
        if not self._machine.fits(record):
            self._add(record, None)

    append_nowait = append
    """`append`, by the name of the method that does not wait in the sync producer."""

    async def put(self, data: Any = MISSING, *, body: Any = MISSING) -> None:
        """Queue data as `append` does, but wait while ``max_pending_bytes`` are queued.

        Args:
            data: As for `append`.
            body: Another name of ``data``.

        Raises:
            ValueError: The data is empty, or is not valid JSON.
            TypeError: The stream cannot hold this type of data.
            DurableStreamError: The producer is closed, or the error that ended it.
        """
        if data is MISSING or body is not MISSING:
            data = one_of(data, body)
        machine = self._machine
        if machine.content_type is None:
            await self._learned()
        record = machine.encode(data)
        if machine.fits(record):
            return
        while machine.error is None and not machine.has_room(len(record)):
            await self._change()
        self._add(record, None)
        # A batch has begun: a tight loop of `put` lets the one before it go out.
        await asyncio.sleep(0)

    def submit(self, data: Any) -> asyncio.Future[IdempotentAppendResult]:
        """Queue data as `append` does.

        Args:
            data: As for `append`.

        Returns:
            A future that is done when the data is durable; its result's ``offset`` is the position after the batch.
        """
        ticket: _Ticket = running_loop().create_future()
        if self._machine.content_type is None:
            self._add_early(data, ticket)
        else:
            self._add(self._machine.encode(data), ticket)
        return ticket

    def _add(self, record: bytes, ticket: _Ticket | None) -> bool:
        """Queue an encoded record; return whether a batch has begun or ended with it."""
        machine = self._machine
        self._check_usable()
        self._begin()
        if machine.error is None and not machine.has_room(len(record)):
            raise self._full()
        woken = machine.add(record, time.monotonic(), ticket)
        if woken:
            self._turn()
        return woken

    def _check_usable(self) -> None:
        self._check_fork()
        if self._closing and self._machine.error is None:
            raise self._closed()

    # -- before the content type is known

    def _add_early(self, data: Any, ticket: _Ticket | None) -> None:
        self._check_usable()
        if self._machine.error is not None:
            raise self._machine.error
        self._begin()
        size = len(data) if isinstance(data, (bytes, bytearray, str)) else _UNKNOWN_SIZE
        if self._early_bytes and self._early_bytes + size > self._max_early_bytes:
            raise self._full()
        self._early.append((data, ticket))
        self._early_bytes += size
        self._learn()

    async def _learned(self) -> None:
        """Wait until the content type is known and the early data is queued; raises where it cannot be found out."""
        self._check_usable()
        self._learn()
        while self._machine.content_type is None:
            if self._machine.error is not None:
                raise self._machine.error
            await self._change()

    def _learn(self) -> None:
        if self._learner is None or self._learner.done():
            self._learner = self._start(self._ask_content_type())

    async def _ask_content_type(self) -> None:
        try:
            known = await run(operations.content_type_of(self._machine.url), self._options)
        except DurableStreamError as error:
            self._settle(self._fail(error))
        except Exception as error:  # noqa: BLE001 - a header callable, say; it is seen nowhere else
            self._settle(self._fail(self._failed_request(error)))
        else:
            self._machine.content_type = known
            self._settle(self._queue_early())

    def _queue_early(self) -> list[Outcome]:
        while self._early:
            data, ticket = self._early.popleft()
            try:
                self._machine.add(self._machine.encode(data), time.monotonic(), ticket)
            except Exception as error:  # noqa: BLE001 - its caller has gone on: as lost as by any other failure
                self._early.appendleft((data, ticket))
                return self._fail(self._unfit(error))
        self._early_bytes = 0
        return []

    def _unfit(self, error: Exception) -> DurableStreamError:
        if isinstance(error, DurableStreamError):
            return error
        return DurableStreamError(
            f"A record cannot be appended to {self.url}: {error} "
            "With content_type= given, append itself raises for such records.",
            code="BAD_RECORD",
            url=self.url,
        )

    def _fail(self, error: DurableStreamError) -> list[Outcome]:
        """End the producer: everything unacknowledged fails with this error."""
        tickets = [Outcome(ticket, error=error) for _, ticket in self._early if ticket is not None]
        self._machine.lost_count += len(self._early)
        self._early.clear()
        self._early_bytes = 0
        return self._machine.fail(error) + tickets

    # -- waiting

    @property
    def _settled(self) -> bool:
        return self._machine.error is not None or (self._machine.idle and not self._early)

    async def _change(self) -> None:
        await self._changed.wait()

    async def flush(self) -> None:
        """Send everything that is queued, and wait until it is durable.

        Raises:
            DurableStreamError: Some of it was lost; it is the error that ended the producer.
        """
        while self._early:
            self._learn()  # again, where the call that asked was cancelled
            await self._change()
        barrier = self._machine.flush()
        self._turn()
        while not self._machine.passed(barrier):
            await self._change()
        if self._machine.error is not None:
            raise self._machine.error

    async def close_stream(self, final: Any = None, *, data: Any = None) -> IdempotentAppendResult:
        """Close the stream for good behind everything queued, optionally with its last data (protocol section 4).

        Args:
            final: The last data, as for `append`; None for none.
            data: Another name of ``final``.

        Returns:
            Where the stream ends. The producer takes nothing more afterwards. A later call stores nothing: it waits
            for the result of the first one, and returns it with ``duplicate`` True.

        Raises:
            DurableStreamError: The error that ended the producer, or the first call.
        """
        final = data if final is None else final
        if self._ending is None:
            self._check_usable()
            if self._early or (final is not None and self._machine.content_type is None):
                await self._learned()
        if self._ending is not None:
            return replace(await asyncio.shield(self._ending), duplicate=True)
        record = None if final is None else self._machine.encode(final)
        self._begin()
        ending: _Ticket = running_loop().create_future()
        self._machine.close_stream(record, ending)
        self._ending = ending
        self._turn()
        return await asyncio.shield(ending)  # others may wait for it

    async def restart(self) -> None:
        """Wait for the requests in flight, then begin the next epoch and forget the error that ended the producer."""
        self._check_usable()
        while self._machine.in_flight_count or not self._settled:
            self._machine.flush()
            self._turn()
            await self._change()
        self._machine.restart()
        if self._ending is not None and self._ending.done() and self._ending.exception() is not None:
            self._ending = None
        self._turn()

    async def close(self) -> None:
        """Flush, and release everything. The stream stays open.

        Raises:
            DurableStreamError: Some data was lost; it is the error that ended the producer.
        """
        self._closing = True
        try:
            await self.flush()
        except asyncio.CancelledError:
            self._remains.settle("closing it was cancelled", "was not flushed")
            raise
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Give up all records that are not acknowledged, and release everything at once; waiting calls raise."""
        self._closing = self._remains.settled = True
        if not self._settled:
            self._settle(self._fail(self._abandoned()))
        self._cancel_timer()
        keeper, self._keeper = self._keeper, None
        if keeper is not None and not self._finishing:
            await keeper.aclose()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._remains.settle("its block was cancelled", "was not flushed")
            await self.abandon()  # a cancelled task must not wait for a server
            return
        try:
            await self.close()
        except DurableStreamError:
            if error is None:
                raise
            # The block's own error is raised; the loss is still reported.
            self._remains.report("", "could not be flushed")

    # -- the end of the loop, of the process, and a child

    def _begin(self) -> None:
        """Note that there is something to send, and tie the producer to the running loop.

        A loop that shuts down closes every generator that has begun.
        """
        busy(self)
        if self._keeper is None and not self._closing:
            self._loop = running_loop()
            settle_stranded(self._loop)
            self._keeper = _until_the_end(weakref.ref(self))
            with contextlib.suppress(StopIteration):
                self._keeper.__anext__().send(None)  # it begins, and waits for nothing

    async def _finish(self) -> None:
        """Flush once more, within the time limit; the requests in flight are cancelled already."""
        if self._remains.settled:
            return
        self._finishing = self._closing = True
        count = self._remains.count
        if count:
            async with self._last_requests():
                with contextlib.suppress(DurableStreamError, asyncio.TimeoutError):
                    await asyncio.wait_for(self.flush(), min(self._exit_timeout, _LONGEST))
        if count and not self._remains.count:
            self._remains.settle_late(count)
        self._remains.settle(f"not acknowledged within {self._exit_timeout:g} s")
        await self.abandon()

    def _last_requests(self) -> contextlib.AbstractAsyncContextManager[None]:
        transport = self._options.transport or async_transport_for(None)
        last_requests = getattr(transport, "last_requests", contextlib.nullcontext)
        found: contextlib.AbstractAsyncContextManager[None] = last_requests()
        return found

    def _begin_end(self) -> None:
        # A loop that runs in another thread ends with the process.
        if self._loop is not None and self._loop.is_running():
            self._last = asyncio.run_coroutine_threadsafe(self._finish(), self._loop)

    def _end(self, deadline: float) -> None:
        if self._last is not None:
            with contextlib.suppress(Exception):  # it reports its own loss
                self._last.result(min(max(0.0, deadline + _MARGIN - time.monotonic()), _LONGEST))
        self._remains.settle("its event loop ended before they were acknowledged")

    def _is_stranded(self) -> bool:
        return self._loop is not None and self._loop.is_closed()

    def _disown(self) -> None:
        # All of it belongs to the parent's event loop, which would be called when it is collected.
        leave_alone(self._tasks, self._timer, self._keeper, self._loop, [*self._early])
        self._early.clear()
        self._early_bytes = 0
        self._tasks, self._timer, self._keeper, self._loop = set(), None, None, None
        super()._disown()

    # -- sending

    def _turn(self) -> None:
        """Start every request that the machine has, and set the timer for the next one."""
        now = time.monotonic()
        while (job := self._machine.next_request(now)) is not None:
            # Not in the task itself: one that is cancelled before it runs does nothing.
            self._start(self._send(job)).add_done_callback(partial(self._sent, job.token))
        wake = self._machine.wake_at(now)
        self._cancel_timer()
        if wake is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, wake - now), self._turn)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _sent(self, token: int, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._machine.broken_off(token)

    async def _send(self, job: ProducerJob) -> None:
        machine = self._machine
        try:
            response = await send(job.request, self._options)
        except FetchError as error:
            self._settle(machine.failed(job.token, error, time.monotonic()))
        except Exception as error:  # noqa: BLE001 - a header callable, say; it is seen nowhere else
            wrapped = self._failed_request(error)
            self._settle(machine.failed(job.token, wrapped, time.monotonic()) + self._fail(wrapped))
        else:
            self._settle(machine.answered(job.token, response, time.monotonic()))

    def _settle(self, outcomes: list[Outcome]) -> None:
        """Resolve the tickets, wake the waiting calls, and go on."""
        for outcome in outcomes:
            _resolve(outcome.ticket, outcome)
        self._report()
        if self._settled:
            idle(self)
        # Wakes the calls that wait now; later ones wait for the next change.
        self._changed.set()
        self._changed.clear()
        self._turn()


async def _until_the_end(producer: weakref.ref[IdempotentProducer]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        if (left := producer()) is not None:
            await left._finish()  # noqa: SLF001


def _resolve(ticket: _Ticket, outcome: Outcome) -> None:
    if ticket.done():
        return  # cancelled
    if outcome.result is not None:
        ticket.set_result(outcome.result)
    elif outcome.error is not None:
        ticket.set_exception(outcome.error)
        ticket.exception()  # `flush` and `close` raise it too: no warning of the loop if the future is dropped
