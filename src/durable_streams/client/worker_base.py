"""What the sync and the async worker share: their settings, and the state of a lease. No I/O here."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote

from durable_streams.client.base import CallOptions
from durable_streams.client.decoding import item_decoder
from durable_streams.protocol.dead_letters import Failures, Letter
from durable_streams.protocol.leases import Lease, LeaseLostError
from durable_streams.protocol.request import check_url

__all__ = ["AckMode", "AsyncHandler", "Batch", "FailedError", "Handler", "WorkerBase"]

_PATIENCE = 30.0
_MISSING = 1.0

_log = logging.getLogger("durable_streams.worker")


class Batch(NamedTuple):
    """What a worker processes at once.

    Attributes:
        path: The path of the stream.
        url: The URL of the stream.
        items: The messages of a JSON stream, none of any other.
        data: The bytes of a stream of another type, ``b""`` of JSON.
        offset: The offset behind the batch, which is acknowledged.
        worker: The worker that it came from.
        since: The offset before the batch.
        wake_id: The wake that it came with.
    """

    path: str
    url: str
    items: list[Any]
    data: bytes
    offset: str
    worker: WorkerBase
    since: str = ""
    wake_id: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether the lease is over: another worker may have the same batch, and this one should stop."""
        return self.worker.is_lost


AsyncHandler = Callable[[Batch], "Awaitable[object] | None"]
Handler = Callable[[Batch], object]

AckMode = Literal["after", "before", "manual"]
"""When a batch is acknowledged: once it is processed, before it is handed over, or by `ack` only."""


class FailedError(Exception):
    """A batch failed, and is tried again after a pause. Does not leave this package.

    Args:
        count: How often it has failed in a row.
    """

    def __init__(self, count: int) -> None:
        super().__init__(f"a batch failed for the {count}. time")
        self.count = count


class WorkerBase:
    """The state of a worker.

    Attributes:
        subscription: The id of the subscription.
        name: The name of the worker.
    """

    _renewal: Any = None

    def __init__(
        self,
        url: str,
        subscription: str,
        name: str,
        decode: Any,
        options: CallOptions,
        *,
        ack: AckMode,
        max_concurrent_streams: int,
        dead_letter: str | None,
        max_failures: int,
    ) -> None:
        if not subscription or not name:
            raise ValueError("A worker needs the id of a subscription and a name, and both have characters.")
        if ack not in get_args(AckMode):
            raise ValueError(f'ack is "after", "before" or "manual", not {ack!r}.')
        if max_concurrent_streams < 1 or max_failures < 1:
            raise ValueError("max_concurrent_streams and max_failures are at least 1.")
        self._ack = ack
        self._at_once = max_concurrent_streams
        self._dead_letter = dead_letter and dead_letter.strip("/")
        # What was acknowledged before it failed never comes again.
        self._failures = Failures(1 if ack == "before" else max_failures)
        self._moved = False
        self._root = check_url(url).rstrip("/")
        self.subscription = subscription
        self.name = name
        self._decode = decode
        self._options = options
        self._lease: Lease | None = None
        self._done = False
        self._more = False
        self._action = "ack"
        self._patience = _PATIENCE
        self._missing = _MISSING

    @property
    def is_lost(self) -> bool:
        """Whether the present lease is over before its work is done."""
        return self._renewal is not None and self._renewal.lost is not None

    def _check_lease(self) -> None:
        lost: LeaseLostError | None = None if self._renewal is None else self._renewal.lost
        if lost is not None:
            raise lost

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _lease_of(self, batch: Batch) -> Lease:
        """Return the lease that a batch came with; raises LeaseLostError if it is over."""
        lease = self._lease
        if lease is None or lease.wake_id != batch.wake_id:
            raise LeaseLostError("The lease that the batch came with is over: the batch comes again.")
        return lease

    def _decoded(self, batch: Batch) -> Batch:
        """Return a batch of messages that are not decoded yet with what they become."""
        if not batch.items:
            return batch
        body = b"[" + b",".join(map(bytes, batch.items)) + b"]"
        items = item_decoder(self._decode)(body, batch.since, batch.url)
        return batch._replace(items=list(items))

    def _failed(self, batch: Batch, error: Exception) -> Letter:
        """Count a failure; return what becomes of the batch if it was the last one, else raise FailedError."""
        count, is_last = self._failures.failed(batch.path, batch.since)
        _log.warning(
            "worker %s of %s: a batch of %s from %s failed %d times: %r",
            self.name,
            self.subscription,
            batch.path,
            batch.since,
            count,
            error,
        )
        if not is_last:
            raise FailedError(count) from error
        return Letter.of(
            batch.items,
            batch.data,
            error=error,
            failures=count,
            subscription=self.subscription,
            path=batch.path,
            since=batch.since,
            offset=batch.offset,
            worker=self.name,
        )

    def _url_of(self, path: str) -> str:
        return f"{self._root}/{quote(path)}"

    def _read_options(self) -> dict[str, Any]:
        options = self._options
        return {
            "headers": options.headers,
            "params": options.params,
            "client": options.transport,
            "timeout": options.timeout,
            "retry": options.policy,
            "trickle_timeout": options.trickle,
        }

    def _is_own(self, event: Any) -> bool:
        return isinstance(event, dict) and event.get("subscription_id") == self.subscription

    def _log_lost(self, error: LeaseLostError) -> None:
        _log.warning("worker %s of %s lost its lease: %s", self.name, self.subscription, error)

    def _log_release(self, error: Exception) -> None:
        _log.warning("worker %s could not give back the lease of %s: %s", self.name, self.subscription, error)
