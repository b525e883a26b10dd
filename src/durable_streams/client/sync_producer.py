"""The sync idempotent producer: threads around the producer machine.

Invariants: the machine is touched only under the one lock; requests, futures and callbacks run outside it;
any failure of a sender ends in the machine's sticky error, so that `flush` and `close` never return
normally after a loss; a producer that was not closed is flushed at the end of the process (`unclosed.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.base import make_options
from durable_streams.client.forks import Origin
from durable_streams.client.producer_base import MISSING, ProducerBase, forked, one_of
from durable_streams.client.sync_performer import run, send
from durable_streams.client.transports import Interrupt, transport_for
from durable_streams.client.transports.limits import TimeoutLike
from durable_streams.client.unclosed import is_over
from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol import operations
from durable_streams.protocol.producer import Barrier, Outcome, ProducerJob
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import HeadersLike, IdempotentAppendResult, ParamsLike

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SyncIdempotentProducer"]


class SyncIdempotentProducer(ProducerBase):
    """Appends that are written exactly once and in order, in batches, several in flight (protocol section 4).

    Thread-safe. `append` returns at once, and waits only while ``max_pending_bytes`` are queued; `submit` gives a
    future; `flush` and `close` wait for everything and raise the error that lost any of it.

    Args:
        url: The stream's absolute URL.
        producer_id: The producer's stable identifier, the same in every start.
        client: A client of httpx, httpx2, requests or urllib3; None for one that the process shares.
        epoch: The number of this start. It must grow with every start under the same ``producer_id``.
        auto_claim: Whether the producer takes the next free epoch by itself when another one has the present one.
        max_batch_bytes: The size of a request in bytes, unless one record is larger.
        linger_ms: Milliseconds that a batch waits for more records; while requests are in flight, 2 at least.
        max_in_flight: How many requests may be in flight at once.
        content_type: The stream's content type; None asks for it at the first append.
        headers: Headers of each request; values may be callables, called for every attempt.
        params: Query parameters of each request, in the same form.
        on_error: A callable that is given the error that ends the producer, once, from another thread.
        timeout: Seconds of silence before a request counts as failed; None for 30. Or a pair of seconds, for
            connecting and reading, or an ``httpx.Timeout``.
        trickle_timeout: Seconds that an answer may trickle beyond that; None for 30.
        retry: The pauses between retries; None for pauses from 0.05 to 2 seconds, without an end of their own.
        retry_timeout: Seconds that a failing server is retried.
        max_pending_bytes: The most bytes of records that are not acknowledged.
        exit_timeout: Seconds that the end of the process waits for queued records, if the producer was not closed. The
            records that are lost then are counted on standard error.

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
        headers: HeadersLike | None = None,
        params: ParamsLike | None = None,
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
        self._ending: Future[IdempotentAppendResult] | None = None
        self._make_threads()

    def _make_threads(self) -> None:
        # One lock with two queues: senders wait for work, callers for its outcome.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._work = threading.Condition(self._lock)
        self._learning = threading.Lock()
        self._senders: list[threading.Thread] = []
        self._interrupts: list[Interrupt] = []
        self._idle_senders = 0

    # -- appending

    def append(self, data: Any = MISSING, *, body: Any = MISSING) -> None:
        """Queue data; wait while ``max_pending_bytes`` are queued.

        Args:
            data: Bytes or text; for a JSON stream any JSON value as one message, where text and bytes are JSON
                already.
            body: Another name of ``data``.

        Raises:
            ValueError: The data is empty, or is not valid JSON.
            TypeError: The stream cannot hold this type of data.
            DurableStreamError: The producer is closed, or the error that ended it.
        """
        if data is MISSING or body is not MISSING:
            data = one_of(data, body)
        if self._machine.content_type is None:
            self._learn_content_type()
        record = self._machine.encode(data)
        with self._lock:
            if self._machine.fits(record):
                return
        self._add(record, None)

    put = append
    """`append`, by the name of the method that waits in the async producer."""

    def append_nowait(self, data: Any = MISSING, *, body: Any = MISSING) -> None:
        """Queue data as `append` does, but do not wait for room.

        Args:
            data: As for `append`.
            body: Another name of ``data``.

        Raises:
            DurableStreamError: With code ``QUEUE_FULL`` where ``max_pending_bytes`` are queued; else as for `append`.
        """
        if data is MISSING or body is not MISSING:
            data = one_of(data, body)
        self._add(self._encoded(data), None, wait=False)

    def submit(self, data: Any) -> Future[IdempotentAppendResult]:
        """Queue data as `append` does.

        Args:
            data: As for `append`.

        Returns:
            A future that is done when the data is durable; its result's ``offset`` is the position after the batch.
        """
        future = self._receipt()
        self._add(self._encoded(data), future)
        return future

    def _receipt(self) -> Future[IdempotentAppendResult]:
        future: Future[IdempotentAppendResult] = _Receipt(self.url)
        future.set_running_or_notify_cancel()  # from here on it cannot be cancelled: it will be sent
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
        if is_over():
            self.flush()
        elif sending:
            # Release the interpreter's lock: a sender needs it for a moment after each system call, and would otherwise
            # wait for the interpreter's own switch, 5 ms, each time.
            time.sleep(0)

    def _learn_content_type(self) -> None:
        self._check_fork()
        with self._learning:
            if self._machine.content_type is None:
                self._machine.content_type = run(operations.content_type_of(self._machine.url), self._options)

    def _check_usable(self) -> None:
        self._check_fork()
        if self._closing and self._machine.error is None:
            raise self._closed()

    # -- waiting

    def flush(self) -> None:
        """Send everything that is queued, and wait until it is durable.

        Raises:
            DurableStreamError: Some of it was lost; it is the error that ended the producer.
        """
        with self._changed:
            barrier = self._machine.flush()
            if barrier:
                self._wake_sender()
            self._changed.wait_for(lambda: self._machine.passed(barrier))
            if self._machine.error is not None:
                raise self._machine.error

    def close_stream(self, final: Any = None, *, data: Any = None) -> IdempotentAppendResult:
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
        record = None if final is None or self._ending is not None else self._encoded(final)
        with self._changed:
            earlier = self._ending
            if earlier is None:
                self._check_usable()
                ending: Future[IdempotentAppendResult] = Future()
                self._machine.close_stream(record, ending)
                self._ending = ending
                self._wake_sender()
        return ending.result() if earlier is None else replace(earlier.result(), duplicate=True)

    def restart(self) -> None:
        """Wait for the requests in flight, then begin the next epoch and forget the error that ended the producer."""
        with self._changed:
            self._check_usable()
            if self._machine.error is None:
                self._machine.flush()
                self._wake_sender()
            self._changed.wait_for(lambda: not self._machine.in_flight_count and self._settled())
            self._machine.restart()
            if self._ending is not None and self._ending.exception() is not None:
                self._ending = None
            self._wake_sender()

    def _settled(self) -> bool:
        return self._machine.idle or self._machine.error is not None

    def close(self) -> None:
        """Flush, and release the threads. The stream stays open.

        Raises:
            DurableStreamError: Some data was lost; it is the error that ended the producer.
        """
        with self._changed:
            self._closing = True
        try:
            self.flush()
        except DurableStreamError:
            self.abandon()
            raise
        except BaseException:  # Ctrl-C: the error does not mention the records
            self._remains.settle("closing it was interrupted", "was not flushed")
            self.abandon()
            raise
        self.abandon()

    def abandon(self) -> None:
        """Give up all records that are not acknowledged, and release the threads at once; waiting calls raise."""
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
            self._changed.notify_all()  # calls that wait for room raise

    def _end(self, deadline: float) -> None:
        left = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        with self._changed:
            self._changed.wait_for(lambda: self._machine.passed(self._barrier), left)
            self._remains.settle(f"not acknowledged within {self._exit_timeout:g} s")
            # The threads end with the process: one that is connecting is not waited for.
            outcomes = self._give_up()
        self._resolve(outcomes)

    def _disown(self) -> None:
        # The locks may be held, and the threads do not exist here: both are the parent's.
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
            # The block's own error is raised; the loss is still reported.
            self._remains.report("", "could not be flushed")

    # -- senders

    def _wake_sender(self) -> None:
        if self._idle_senders == 0 and len(self._senders) < self._max_senders:
            try:
                self._start_sender()
            except RuntimeError:
                if not self._senders:
                    raise
                # No more threads can be started, or the interpreter ends: the running ones do the work.
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
            except Exception as error:  # noqa: BLE001 - a header callable, say; it is seen nowhere else
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

    def _next_job(self) -> ProducerJob | None:
        machine = self._machine
        with self._work:
            while not self._stopping:
                now = time.monotonic()
                job = machine.next_request(now)
                if job is not None:
                    if machine.wake_at(now) is not None:
                        self._wake_sender()  # another may send, or watch the clock, while this one is busy
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
    """The future of `submit`. In a child after a fork nothing would ever set it: there it raises instead of waiting."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self._origin = url, Origin()

    def result(self, timeout: float | None = None) -> IdempotentAppendResult:
        """Return the result, or raise the error, as `Future.result`. ``timeout`` is in seconds."""
        self._check_fork()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error, None where there is none, as `Future.exception`. ``timeout`` is in seconds."""
        self._check_fork()
        return super().exception(timeout)

    def _check_fork(self) -> None:
        if not self._origin.left:
            return
        self._condition = threading.Condition()  # a thread of the parent may hold the old one
        if not self.done():
            raise forked(self._url)
