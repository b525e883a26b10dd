"""The sync idempotent producer: threads around the producer machine.

Invariants: the machine is touched only under the one lock; requests, futures and callbacks run outside it;
whatever goes wrong in a sender ends in the machine's sticky error, so that `flush` and `close` never return
normally after a loss.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.base import make_call, random
from durable_streams.client.sync_call import run, send
from durable_streams.client.transports import Interrupt
from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol import headers as h
from durable_streams.protocol import operations
from durable_streams.protocol.producer import PRODUCER_POLICY, Outcome, Producer, Send, Settings
from durable_streams.protocol.request import check_url
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import HeadersLike, IdempotentAppendResult, ParamsLike

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SyncIdempotentProducer"]

logger = logging.getLogger("durable_streams")


class SyncIdempotentProducer:
    """Appends that are written exactly once and in order, in batches, several in flight (protocol section 4).

    Thread-safe. `append` returns at once and waits only when ``max_pending_bytes`` are queued; `submit` gives
    a future; `flush` and `close` wait for everything and raise what was lost. ``epoch`` must grow with every
    start under the same ``producer_id``; with ``auto_claim`` the producer takes the next free one by itself.

    ``linger_ms``: milliseconds that a batch waits for more; ``max_batch_bytes``: its size, unless one record
    is larger; ``retry_timeout``: seconds that a failing server is tried again; ``timeout``: seconds of
    silence before a request counts as failed (default 30); ``content_type``: the stream's, asked for at the
    first append where not given; ``on_error``: called once, from another thread, with the error that ends the
    producer.
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
        retry: RetryPolicy | None = None,
        retry_timeout: float = 120.0,
        max_pending_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        settings = Settings(
            max_batch_bytes=max_batch_bytes,
            linger=linger_ms / 1000,
            max_in_flight=max_in_flight,
            max_pending_bytes=max_pending_bytes,
            retry_timeout=retry_timeout,
            policy=retry or PRODUCER_POLICY,
        )
        self._call = make_call(client, headers, params, timeout, retry)
        self._machine = Producer(
            check_url(url),
            producer_id,
            random=random,
            content_type=content_type,
            epoch=epoch,
            auto_claim=auto_claim,
            settings=settings,
        )
        self._max_senders = max_in_flight
        self._on_error = on_error
        # One lock with two queues: senders wait for work, callers for what becomes of it.
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._work = threading.Condition(lock)
        self._learning = threading.Lock()
        self._senders: list[threading.Thread] = []
        self._interrupts: list[Interrupt] = []
        self._idle_senders = 0
        self._stopping = False
        self._process = os.getpid()

    # -- what is known

    @property
    def url(self) -> str:
        """The stream's URL."""
        return self._machine.url

    @property
    def producer_id(self) -> str:
        """The producer's stable identifier."""
        return self._machine.producer_id

    @property
    def epoch(self) -> int:
        """The present epoch; it grows with `restart` and, under ``auto_claim``, when another producer claimed it."""
        return self._machine.epoch

    @property
    def next_seq(self) -> int:
        """The sequence number of the next batch."""
        return self._machine.next_seq

    @property
    def pending_count(self) -> int:
        """How many records are not acknowledged yet."""
        return self._machine.pending_count

    @property
    def in_flight_count(self) -> int:
        """How many requests are under way."""
        return self._machine.in_flight_count

    # -- appending

    def append(self, data: Any) -> None:
        """Queue data; bytes and text as they are, for a JSON stream any value as one message.

        Raises ValueError or TypeError for data that the stream cannot take, and the error that ended the
        producer.
        """
        self._add(data, None)

    def append_nowait(self, data: Any) -> None:
        """Do as `append` does."""
        self._add(data, None)

    def submit(self, data: Any) -> Future[IdempotentAppendResult]:
        """Queue data as `append` does; return a future that is done when the data is durable.

        Its result's ``offset`` is the position after the batch that carried the data.
        """
        future: Future[IdempotentAppendResult] = Future()
        future.set_running_or_notify_cancel()  # from here on it cannot be cancelled: it will be sent
        self._add(data, future)
        return future

    def _add(self, data: Any, ticket: Future[IdempotentAppendResult] | None) -> None:
        machine, changed = self._machine, self._changed
        if machine.content_type is None:
            self._learn_content_type()
        record = machine.encode(data)
        with changed:
            self._check_usable()
            while machine.error is None and not machine.has_room(len(record)):
                changed.wait()
                self._check_usable()
            if machine.add(record, time.monotonic(), ticket):
                self._wake_sender()

    def _learn_content_type(self) -> None:
        with self._learning:
            if self._machine.content_type is None:
                known = run(operations.head(self.url), self._call).content_type
                self._machine.content_type = known or h.DEFAULT_CONTENT_TYPE

    def _check_usable(self) -> None:
        if os.getpid() != self._process:
            raise DurableStreamError(
                "A producer cannot be used after a fork; make one in each process.",
                code="FORKED",
                url=self.url,
            )
        if self._stopping and self._machine.error is None:
            raise DurableStreamError("This producer is closed.", code="PRODUCER_CLOSED", url=self.url)

    # -- waiting

    def flush(self) -> None:
        """Send what is queued and wait until all of it is durable; raises the error that lost any of it."""
        with self._changed:
            self._machine.flush()
            self._wake_sender()
            self._changed.wait_for(lambda: self._machine.idle or self._machine.error is not None)
            if self._machine.error is not None:
                raise self._machine.error

    def close_stream(self, final: Any = None) -> IdempotentAppendResult:
        """Close the stream for good behind everything queued, optionally with its last data; idempotent.

        Returns where the stream ends. The producer takes nothing more afterwards.
        """
        record = None
        if final is not None:
            if self._machine.content_type is None:
                self._learn_content_type()
            record = self._machine.encode(final)
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
        try:
            if not self._stopping or self._machine.error is not None:
                self.flush()
        finally:
            self._stop()

    def _stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._work.notify_all()
            self._changed.notify_all()
            outcomes = [] if self._machine.idle else self._machine.fail(self._abandoned())
        for interrupt in self._interrupts:
            interrupt.set()
        self._resolve(outcomes)
        current = threading.current_thread()
        for sender in self._senders:
            if sender is not current:
                sender.join()

    def _abandoned(self) -> DurableStreamError:
        return DurableStreamError(
            f"The producer was closed before {self.pending_count} records were acknowledged.",
            code="PRODUCER_CLOSED",
            url=self.url,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except DurableStreamError:
            if error is None:
                raise  # else the block's own error matters more

    # -- senders

    def _wake_sender(self) -> None:
        if self._idle_senders == 0 and len(self._senders) < self._max_senders:
            interrupt = Interrupt()
            sender = threading.Thread(
                target=self._send_all, args=(interrupt,), name=f"producer-{self.producer_id}", daemon=True
            )
            self._senders.append(sender)
            self._interrupts.append(interrupt)
            sender.start()
        else:
            self._work.notify()

    def _send_all(self, interrupt: Interrupt) -> None:
        while (job := self._next_job()) is not None:
            outcomes: list[Outcome]
            try:
                response = send(job.request, self._call, interrupt)
            except FetchError as error:
                with self._changed:
                    outcomes = self._machine.failed(job.token, error, time.monotonic())
            except Exception as error:  # noqa: BLE001 - a header callable, say; nobody else would see it
                wrapped = self._wrapped(error)
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

    def _next_job(self) -> Send | None:
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

    def _wrapped(self, error: Exception) -> FetchError:
        return FetchError(
            f"A request of producer {self.producer_id!r} could not be made: {error}.",
            original=error,
            may_have_been_sent=False,
            code="REQUEST_FAILED",
            url=self.url,
        )

    def _resolve(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            future: Future[IdempotentAppendResult] = outcome.ticket
            if outcome.error is not None:
                future.set_exception(outcome.error)
            elif outcome.result is not None:
                future.set_result(outcome.result)

    def _report(self) -> None:
        with self._changed:
            error, report = self._machine.error, self._on_error
            if error is None or report is None:
                return
            self._on_error = None
        try:
            report(error)
        except Exception:
            logger.exception("on_error of producer %s failed", self.producer_id)
