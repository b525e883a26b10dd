"""What the sync and the async worker share: their settings, and the state of a lease. No I/O here."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import quote

from durable_streams.client.base import CallOptions
from durable_streams.protocol.leases import Lease, LeaseLostError
from durable_streams.protocol.request import check_url

__all__ = ["AsyncHandler", "Batch", "Handler", "WorkerBase"]

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
    """

    path: str
    url: str
    items: list[Any]
    data: bytes
    offset: str
    worker: WorkerBase

    @property
    def is_lost(self) -> bool:
        """Whether the lease is over: another worker may have the same batch, and this one should stop."""
        return self.worker.is_lost


AsyncHandler = Callable[[Batch], "Awaitable[object] | None"]
Handler = Callable[[Batch], object]


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
    ) -> None:
        if not subscription or not name:
            raise ValueError("A worker needs the id of a subscription and a name, and both have characters.")
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

    def _sleep(self) -> None:
        time.sleep(self._missing)

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
        }

    def _is_own(self, event: Any) -> bool:
        return isinstance(event, dict) and event.get("subscription_id") == self.subscription

    def _log_lost(self, error: LeaseLostError) -> None:
        _log.warning("worker %s of %s lost its lease: %s", self.name, self.subscription, error)

    def _log_release(self, error: Exception) -> None:
        _log.warning("worker %s could not give back the lease of %s: %s", self.name, self.subscription, error)
