"""The parts that the sync and the async producer share: the machine, its settings and its state. No I/O here.

Invariant: a producer belongs to the process that made it; in a child every use of it is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from durable_streams.client.base import CallOptions, random
from durable_streams.client.unclosed import Remains, register
from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol.producer import PRODUCER_POLICY, Producer, ProducerSettings
from durable_streams.protocol.request import check_url, shown_url

__all__ = ["MISSING", "ProducerBase", "forked", "one_of"]

MISSING: Any = object()
"""The default of a parameter that has a second name, where None is data."""

logger = logging.getLogger("durable_streams")


def forked(url: str) -> DurableStreamError:
    """Return the error for the use of a parent's producer in its child."""
    message = "A producer cannot be used after a fork; make one in each process."
    return DurableStreamError(message, code="FORKED", url=url)


def one_of(data: Any, body: Any) -> Any:
    """Return what was given under one of two names; raises TypeError unless it was exactly one."""
    if (data is MISSING) == (body is MISSING):
        raise TypeError("A producer takes data, by position or by one of the names data and body.")
    return body if data is MISSING else data


class ProducerBase:
    """The public state of a producer."""

    def __init__(
        self,
        url: str,
        producer_id: str,
        options: CallOptions,
        *,
        on_error: Callable[[Exception], None] | None,
        content_type: str | None,
        epoch: int,
        auto_claim: bool,
        linger_ms: float,
        exit_timeout: float,
        **settings: Any,
    ) -> None:
        if not exit_timeout >= 0:
            raise ValueError(f"exit_timeout must not be negative, but is {exit_timeout!r}.")
        self._options = options
        self._on_error = on_error
        self._machine = Producer(
            check_url(url),
            producer_id,
            random=random,
            content_type=content_type,
            epoch=epoch,
            auto_claim=auto_claim,
            settings=ProducerSettings(
                linger=linger_ms / 1000, policy=options.retry or PRODUCER_POLICY, **settings
            ),
        )
        self._exit_timeout = exit_timeout
        self._remains = Remains(type(self).__name__, self._machine)
        self._forked = False
        register(self)

    @property
    def url(self) -> str:
        """The stream's URL, as a handle shows it."""
        return shown_url(self._machine.url)

    @property
    def producer_id(self) -> str:
        """The producer's stable identifier."""
        return self._machine.producer_id

    @property
    def epoch(self) -> int:
        """The present epoch; it grows with `restart` and, with ``auto_claim``, when another producer claims it."""
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
        """How many requests are in flight."""
        return self._machine.in_flight_count

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, {self.producer_id!r}, epoch={self.epoch})"

    def _report(self) -> None:
        """Call ``on_error`` with the error that ended the producer, once."""
        error, report = self._machine.error, self._on_error
        if error is None or report is None:
            return
        self._on_error = None
        try:
            report(error)
        except Exception:
            logger.exception("on_error of producer %s failed", self.producer_id)

    # -- for the end of the process, and a child: see `Unclosed`

    def _begin_end(self) -> None:
        raise NotImplementedError

    def _end(self, deadline: float) -> None:
        raise NotImplementedError

    def _is_stranded(self) -> bool:
        return False

    def _disown(self) -> None:
        """Refuse everything from now on: this is a child, and its parent goes on with the same numbers."""
        self._forked = True
        self._on_error = None
        self._remains.settled = True
        self._machine.disown(forked(self.url))

    def _check_fork(self) -> None:
        if self._forked and self._machine.error is not None:
            raise self._machine.error

    def _closed(self) -> DurableStreamError:
        return DurableStreamError("This producer is closed.", code="PRODUCER_CLOSED", url=self.url)

    def _full(self) -> DurableStreamError:
        return DurableStreamError(
            f"The producer's queue is full: {self.pending_count} records are not acknowledged yet; "
            "use put() to wait for room, or raise max_pending_bytes.",
            code="QUEUE_FULL",
            url=self.url,
        )

    def _abandoned(self) -> DurableStreamError:
        return DurableStreamError(
            f"The producer was closed before {self.pending_count} records were acknowledged.",
            code="PRODUCER_CLOSED",
            url=self.url,
        )

    def _failed_request(self, error: Exception) -> FetchError:
        """Return the error for a request that could not be made at all: a header callable failed, say."""
        return FetchError(
            f"A request of producer {self.producer_id!r} could not be made: {error}.",
            original=error,
            may_have_been_sent=False,
            code="REQUEST_FAILED",
            url=self.url,
        )
