"""The sync idempotent producer: threads around the producer machine.

Invariants: the machine is touched only under the one lock; requests, futures and callbacks run outside it;
whatever goes wrong in a sender ends in the machine's sticky error, so that `flush` and `close` never return
normally after a loss; a producer that nobody closed is flushed at the end of the process (`unclosed.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.base import make_options
from durable_streams.client.forks import Origin
from durable_streams.client.producer_base import ProducerBase, forked
from durable_streams.client.sync_performer import run, send
from durable_streams.client.transports import Interrupt, transport_for
from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol import operations
from durable_streams.protocol.producer import Barrier, Job, Outcome
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import HeadersLike, IdempotentAppendResult, ParamsLike

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SyncIdempotentProducer"]


class SyncIdempotentProducer(ProducerBase):
    """Appends that are written exactly once and in order, in batches, several in flight (protocol section 4).

    Thread-safe. `append` returns at once and waits only when ``max_pending_bytes`` are queued; `submit` gives
    a future; `flush` and `close` wait for everything and raise what was lost. ``epoch`` must grow with every
    start under the same ``producer_id``; with ``auto_claim`` the producer takes the next free one by itself.

    ``linger_ms``: milliseconds that a batch waits for more; ``max_batch_bytes``: its size, unless one record
    is larger; ``retry_timeout``: seconds that a failing server is tried again; ``timeout``: seconds of
    silence before a request counts as failed (default 30); ``trickle_timeout``: seconds that an answer may trickle
    beyond that (default 30); ``content_type``: the stream's, asked for at the
    first append where not given; ``on_error``: called once, from another thread, with the error that ends the
    producer; ``exit_timeout``: seconds that the end of the process waits for what is queued, where nobody closed
    the producer; what is lost then is counted on standard error.
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
        headers: HeadersLike | None = None,
        params: ParamsLike | None = None,
        on_error: Callable[[Exception], None] | None = None,
        timeout: float | None = None,
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
                client and transport_for(client),
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
        self._max_senders = max_in_flight
        self._barrier: Barrier = ()
        self._closing = self._stopping = False
        self._make_threads()

    def _make_threads(self) -> None:
        # One lock with two queues: senders wait for work, callers for what becomes of it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._work = threading.Condition(self._lock)
        self._learning = threading.Lock()
        self._senders: list[threading.Thread] = []
        self._interrupts: list[Interrupt] = []
        self._idle_senders = 0

    # -- appending

    def append(self, data: Any) -> None:
        """Queue data: bytes and text as they are, for a JSON stream any value as one message.

        Waits while ``max_pending_bytes`` are queued. Raises ValueError or TypeError for data that the stream
        cannot take, and the error that ended the producer.
        """
        if self._machine.content_type is None:
            self._learn_content_type()
        record = self._machine.encode(data)
        with self._lock:
            if self._machine.fits(record):
                return
        self._add(record, None)

    put = append
    """The same, by the name that it has in the async producer."""

    def append_nowait(self, data: Any) -> None:
        """Do as `append` does, but raise DurableStreamError with code QUEUE_FULL instead of waiting for room."""
        self._add(self._encoded(data), None, wait=False)

    def submit(self, data: Any) -> Future[IdempotentAppendResult]:
        """Queue data as `append` does; return a future that is done when the data is durable.

        Its result's ``offset`` is the position after the batch that carried the data.
        """
        future: Future[IdempotentAppendResult] = _Receipt(self.url)
        future.set_running_or_notify_cancel()  # from here on it cannot be cancelled: it will be sent
        self._add(self._encoded(data), future)
        return future

    def _encoded(self, data: Any) -> bytes:
        if self._machine.content_type is None:
            self._learn_content_type()
        return self._machine.encode(data)

    def _add(
        self, record: bytes, ticket: Future[IdempotentAppendResult] | None, *, wait: bool = True
    ) -> None:
        machine, changed = self._machine, self._changed
        with changed:
            self._check_usable()
            while machine.error is None and not machine.has_room(len(record)):
                if not wait:
                    raise self._full()
                changed.wait()
                self._check_usable()
            if not self._senders:
                self._start_sender()  # before there is anything to lose: it may be refused
            if machine.add(record, time.monotonic(), ticket):
                self._wake_sender()
            sending = machine.in_flight_count > 0
        if sending:
            # Let go of the interpreter: a sender needs it for a moment after each call into the system, and would wait
            # for the interpreter's own switch, 5 ms, each time.
            time.sleep(0)

    def _learn_content_type(self) -> None:
        self._check_fork()
        with self._learning:
            if self._machine.content_type is None:
                self._machine.content_type = run(operations.content_type_of(self.url), self._options)

    def _check_usable(self) -> None:
        self._check_fork()
        if self._closing and self._machine.error is None:
            raise self._closed()

    # -- waiting

    def flush(self) -> None:
        """Send what is queued and wait until all of it is durable; raises the error that lost any of it."""
        with self._changed:
            barrier = self._machine.flush()
            if barrier:
                self._wake_sender()
            self._changed.wait_for(lambda: self._machine.passed(barrier))
            if self._machine.error is not None:
                raise self._machine.error

    def close_stream(self, final: Any = None) -> IdempotentAppendResult:
        """Close the stream for good behind everything queued, optionally with its last data; idempotent.

        Returns where the stream ends. The producer takes nothing more afterwards.
        """
        record = None if final is None else self._encoded(final)
        future: Future[IdempotentAppendResult] = Future()
        with self._changed:
            self._check_usable()
            self._machine.close_stream(record, future)
            self._wake_sender()
        return future.result()

    def restart(self) -> None:
        """Wait for what is under way, then begin the next epoch and forget the error that ended the producer."""
        with self._changed:
            self._check_usable()
            if self._machine.error is None:
                self._machine.flush()
                self._wake_sender()
            self._changed.wait_for(lambda: not self._machine.in_flight_count and self._settled())
            self._machine.restart()
            self._wake_sender()

    def _settled(self) -> bool:
        return self._machine.idle or self._machine.error is not None

    def close(self) -> None:
        """Flush, and release the threads. The stream stays open. Raises the error that lost any data."""
        with self._changed:
            self._closing = True
        try:
            self.flush()
        except DurableStreamError:
            self.abandon()
            raise
        except BaseException:  # Ctrl-C: its cause says nothing of the records
            self._remains.settle("closing it was interrupted", "was not flushed")
            self.abandon()
            raise
        self.abandon()

    def abandon(self) -> None:
        """Give up what is not acknowledged and release the threads, at once; whoever waits is told what was lost."""
        outcomes = self._give_up()
        for interrupt in self._interrupts:
            interrupt.set()
        self._resolve(outcomes)
        current = threading.current_thread()
        for sender in self._senders:
            if sender is not current:
                sender.join()

    def _give_up(self) -> list[Outcome]:
        with self._changed:
            self._closing = self._stopping = self._remains.settled = True
            self._work.notify_all()
            self._changed.notify_all()
            return [] if self._machine.idle else self._machine.fail(self._abandoned())

    # -- the end of the process, and a child

    def _begin_end(self) -> None:
        with self._changed:
            self._closing = True
            self._barrier = self._machine.flush()
            if self._barrier:
                self._wake_sender()
            self._changed.notify_all()  # who waits for room is told

    def _end(self, deadline: float) -> None:
        left = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        with self._changed:
            self._changed.wait_for(lambda: self._machine.passed(self._barrier), left)
            self._remains.settle(f"not acknowledged within {self._exit_timeout:g} s")
            outcomes = (
                self._give_up()
            )  # the threads end with the process: one that is connecting is not waited for
        self._resolve(outcomes)

    def _disown(self) -> None:
        # The locks may be held, and the threads are gone: both are of the parent's.
        self._make_threads()
        super()._disown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except DurableStreamError:
            if error is None:
                raise
            # The block's own error matters more; what was lost is not kept silent either.
            self._remains.tell("", "could not be flushed")

    # -- senders

    def _wake_sender(self) -> None:
        if self._idle_senders == 0 and len(self._senders) < self._max_senders:
            try:
                self._start_sender()
            except RuntimeError:
                if not self._senders:
                    raise
                # There are no more threads, of the system's or of an interpreter that ends: those that run do the work.
        else:
            self._work.notify()

    def _start_sender(self) -> None:
        interrupt = Interrupt()
        sender = threading.Thread(
            target=self._send_all, args=(interrupt,), name=f"producer-{self.producer_id}", daemon=True
        )
        sender.start()
        self._senders.append(sender)
        self._interrupts.append(interrupt)

    def _send_all(self, interrupt: Interrupt) -> None:
        while (job := self._next_job()) is not None:
            outcomes: list[Outcome]
            try:
                response = send(job.request, self._options, interrupt)
            except FetchError as error:
                with self._changed:
                    outcomes = self._machine.failed(job.token, error, time.monotonic())
            except Exception as error:  # noqa: BLE001 - a header callable, say; nobody else would see it
                wrapped = self._failed_request(error)
                with self._changed:
                    outcomes = self._machine.failed(job.token, wrapped, time.monotonic())
                    outcomes += self._machine.fail(wrapped)
            else:
                with self._changed:
                    outcomes = self._machine.answered(job.token, response, time.monotonic())
            self._resolve(outcomes)
            self._report()
            with self._changed:
                self._changed.notify_all()

    def _next_job(self) -> Job | None:
        machine = self._machine
        with self._work:
            while not self._stopping:
                now = time.monotonic()
                job = machine.next_request(now)
                if job is not None:
                    if machine.wake_at(now) is not None:
                        self._wake_sender()  # another may send, or mind the clock, while this one is busy
                    return job
                wake = machine.wake_at(now)
                self._idle_senders += 1
                self._work.wait(None if wake is None else max(0.0, wake - now))
                self._idle_senders -= 1
        return None

    def _resolve(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            future: Future[IdempotentAppendResult] = outcome.ticket
            if outcome.error is not None:
                future.set_exception(outcome.error)
            elif outcome.result is not None:
                future.set_result(outcome.result)


class _Receipt(Future[IdempotentAppendResult]):
    """What `submit` gives. In a child nobody would ever set it: there it raises instead of waiting for ever."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self._origin = url, Origin()

    def result(self, timeout: float | None = None) -> IdempotentAppendResult:
        """Return the result, or raise the error; see Future."""
        self._check_fork()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error, None where there is none; see Future."""
        self._check_fork()
        return super().exception(timeout)

    def _check_fork(self) -> None:
        if not self._origin.left:
            return
        self._condition = threading.Condition()  # a thread of the parent's may hold the one from before
        if not self.done():
            raise forked(self._url)
