# Made from client/aio_worker.py by tools/make_sync.py: change that file, then run `make generate`.

"""The sync worker: claims a subscription, reads what is pending, acknowledges what was processed."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from durable_streams.client.base import make_options
from durable_streams.client.renewals import Renewal
from durable_streams.client.side_by_side import Turns, in_threads
from durable_streams.client.sync import stream
from durable_streams.client.sync_performer import run
from durable_streams.client.transports import transport_for
from durable_streams.client.transports.limits import TimeoutLike
from durable_streams.client.worker_base import AckMode, Batch, FailedError, Handler, WorkerBase
from durable_streams.errors import DurableStreamError, RetentionGoneError, StreamNotFoundError
from durable_streams.protocol import headers as h
from durable_streams.protocol import leases, operations
from durable_streams.protocol.dead_letters import DEFAULT_FAILURES, send
from durable_streams.protocol.leases import Lease, LeaseLostError, Pending
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import HeadersLike, ParamsLike

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SyncWorker"]


class SyncWorker(WorkerBase):
    """A worker of a subscription of pull-wake (protocol section 8): an iterator and a context manager.

    ``for batch in worker`` gives batches, for as long as it is iterated. A batch is acknowledged when the loop
    comes back for the next one, so that a batch that was being processed at a crash comes again: at least once.
    The lease is renewed meanwhile. The loop waits where there is nothing to do. `run` calls a function instead,
    which may process several streams at once, and whose failures are counted.

    Args:
        url: The root of the streams, such as ``http://127.0.0.1:4437/v1/stream``.
        subscription: The id of the subscription.
        name: The name of this worker; others see it while it holds the lease.
        decode: What messages of JSON become: a type, or a callable; None for plain values.
        headers: Headers of each request; values may be callables, called for every attempt.
        params: Query parameters of each request, in the same form.
        client: A client of httpx, httpx2, requests or urllib3; None for one that the process shares.
        timeout: Seconds of silence before a request counts as stalled, as for a read.
        trickle_timeout: Seconds that an answer may trickle beyond that; None for 30.
        retry: How failed requests are retried; None for five retries.
        ack: When a batch is acknowledged: "after" it was processed (at least once), "before" it is handed over
            (at most once), or "manual": by `ack` only.
        max_concurrent_streams: From how many streams `run` processes batches at once; those of one stream stay
            in order.
        dead_letter: The path of a stream of JSON, created if needed, that keeps what `run` gives up; None to
            let a handler's failure end `run`.
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
        headers: HeadersLike | None = None,
        params: ParamsLike | None = None,
        client: Any = None,
        timeout: TimeoutLike | None = None,
        trickle_timeout: float | None = None,
        retry: RetryPolicy | None = None,
        ack: AckMode = "after",
        max_concurrent_streams: int = 1,
        dead_letter: str | None = None,
        max_failures: int = DEFAULT_FAILURES,
    ) -> None:
        transport = client and transport_for(client)
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
        self._batches: Generator[Batch, None, None] | None = None
        self._renewal: Renewal | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lease back, if this worker holds it; what was not acknowledged comes again."""
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.close()

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over batches."""
        return self

    def __next__(self) -> Batch:
        """Acknowledge the last batch; return the next one, once there is one.

        Raises:
            LeaseLostError: The lease ended before the last batch was acknowledged; it comes again, perhaps to
                another worker. Iterating again goes on.
            DurableStreamError: The server refuses, or no retry helps.
        """
        if self._batches is None:
            self._batches = self._generate()
        try:
            return next(self._batches)
        except BaseException:
            self._batches = None
            raise

    def ack(self, batch: Batch) -> None:
        """Acknowledge a batch, and all of its stream before it; for ``ack="manual"``.

        Args:
            batch: A batch of the present lease.

        Raises:
            LeaseLostError: Its lease is over; it comes again, perhaps to another worker.
        """
        self._acknowledge(self._lease_of(batch), {batch.path: batch.offset})

    def run(self, handler: Handler) -> None:
        """Call ``handler`` with each batch, until it raises or this call is ended.

        The batch of a handler whose lease is lost is not acknowledged: it comes again. A handler that takes
        long asks ``batch.is_lost``, and returns. With ``dead_letter`` a handler that raises gets the batch
        again, after a pause of 1 second, doubled up to a minute, in which other workers may have it; the last
        failure stores the batch with its origin and the error in that stream, and acknowledges it.

        Args:
            handler: Processes a batch.
        """
        while True:
            try:
                with closing(self._leases()) as found:
                    for lease in found:
                        self._serve(lease, handler)
            except LeaseLostError as lost:
                self._log_lost(lost)
            except FailedError as failed:
                self._pause(self._failures.pause(failed.count))

    def _serve(self, lease: Lease, handler: Handler) -> None:
        """Process what is pending under a lease, and end it: several streams at once, each in order."""
        turns = Turns(one for one in lease.streams if one.has_pending)
        count = min(self._at_once, len(turns))

        def work() -> None:
            while (pending := turns.take()) is not None:
                with closing(self._batches_of(lease, pending)) as batches:
                    for batch in batches:
                        self._attempt(handler, batch)
                        if turns.stopped:
                            return

        with self._held(lease):
            in_threads(work, count, turns)

    def _attempt(self, handler: Handler, batch: Batch) -> None:
        """Process a batch; one that failed too often becomes a dead letter."""
        if self._dead_letter is None:
            self._handle(handler, batch)
            return
        try:
            self._handle(handler, self._decoded(batch))
        except LeaseLostError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises
            self._check_lease()
            letter = self._failed(batch, error)
            run(send(self._url_of(self._dead_letter), letter), self._options)
            if self._ack == "manual":
                self.ack(batch)
        else:
            self._failures.processed(batch.path, batch.since)

    def _handle(self, handler: Handler, batch: Batch) -> None:
        handler(batch)

    # -- one lease after the other

    def _generate(self) -> Generator[Batch, None, None]:
        with closing(self._leases()) as found:
            for lease in found:
                with self._held(lease):
                    for pending in lease.streams:
                        if pending.has_pending:
                            with closing(self._batches_of(lease, pending)) as batches:
                                yield from batches

    def _leases(self) -> Generator[Lease, None, None]:
        """Give one lease after the other; each has ended when the next one is asked for."""
        wakes = run(leases.describe(self._root, self.subscription), self._options)
        more = False
        while True:
            since = None if more else self._tail(wakes)
            lease = run(leases.claim(self._root, self.subscription, self.name), self._options)
            if lease is None:
                more = False
                self._wait(wakes, since)
                continue
            self._moved = False
            yield lease
            more = self._more
            if more and not self._moved:
                self._pause(self._missing)  # the same batches come again

    @contextmanager
    def _held(self, lease: Lease) -> Iterator[None]:
        """Hold a lease while a block runs, and end it with the block."""
        self._lease, self._done = lease, False
        try:
            with Renewal(lease.seconds, self._beat) as self._renewal:
                yield
                self._more = self._acknowledge(lease, {}, done=True)
        finally:
            self._give_back(lease)

    def _batches_of(self, lease: Lease, pending: Pending) -> Generator[Batch, None, None]:
        """Give what is pending of a stream, each batch acknowledged as the worker does it."""
        with closing(self._read(lease, pending)) as batches:
            for batch in batches:
                if self._ack == "before":
                    self._acknowledge(lease, {batch.path: batch.offset})
                yield batch
                self._check_lease()
                if self._ack == "after":
                    self._acknowledge(lease, {batch.path: batch.offset})

    def _read(self, lease: Lease, of: Pending) -> Generator[Batch, None, None]:
        url, since = self._url_of(of.path), of.acked_offset
        options = self._read_options()
        began = since
        # What the stream gave up before it was read cannot be processed any more: a warning says so.
        with stream(url, offset=since, live=False, on_gone="earliest", **options) as res:
            if h.is_json(res.content_type or ""):
                # What may become a dead letter is kept as it is stored.
                decode = self._decode if self._dead_letter is None else msgspec.Raw
                for items in res.iter_json_batches(decode):
                    yield Batch(of.path, url, items, b"", res.offset, self, since, lease.wake_id)
                    since = res.offset
            else:
                for data in res:
                    yield Batch(of.path, url, [], data, res.offset, self, since, lease.wake_id)
                    since = res.offset
            if since == began != res.offset:  # it gave up all that was pending
                self._acknowledge(lease, {of.path: res.offset})

    def _beat(self) -> object:
        return self._acknowledge(self._lease, {})

    def _acknowledge(self, lease: Lease | None, offsets: dict[str, str], *, done: bool = False) -> bool:
        self._check_lease()
        if lease is None:
            return False
        began = time.monotonic()
        op = leases.acknowledge(self._root, self.subscription, lease, offsets, done=done, action=self._action)
        more = run(op, self._options)
        self._done = self._done or done
        self._moved = self._moved or bool(offsets)
        if self._renewal is not None:
            self._renewal.renewed(began)
        return more

    def _give_back(self, lease: Lease) -> None:
        renewal, self._renewal, self._lease = self._renewal, None, None
        if self._done or self._action != "ack" or (renewal is not None and renewal.lost is not None):
            return
        try:
            run(leases.release(self._root, self.subscription, lease), self._options)
        except DurableStreamError as error:
            self._log_release(error)  # it expires

    # -- waiting for the next one

    def _tail(self, wakes: str) -> str | None:
        """Return where the wake stream ends before the claim: what comes after it is news."""
        try:
            return (run(operations.head(self._url_of(wakes)), self._options)).offset
        except (StreamNotFoundError, RetentionGoneError):
            return None

    def _wait(self, wakes: str, since: str | None) -> None:
        """Return when the subscription is woken, or after a while: an event may be missed."""
        if since is None:
            self._pause(self._missing)
            return
        options = self._read_options()
        try:
            with stream(
                self._url_of(wakes), offset=since, live=True, idle_timeout=self._patience, **options
            ) as res:
                for event in res.iter_json():
                    if self._is_own(event):
                        return
        except (StreamNotFoundError, RetentionGoneError):
            self._pause(self._missing)  # it is gone, or was trimmed: claim, and look again
        else:
            if res.stream_closed:
                self._pause(self._missing)

    def _pause(self, seconds: float) -> None:
        self._sleep(seconds)
