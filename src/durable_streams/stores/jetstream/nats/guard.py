"""Whether a bucket is still the one that was opened: not deleted, and not created again under the same name.

Invariants: a bucket is given up forever, and only on evidence from NATS: a new creation time, a deletion, or a sequence
that was assigned before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from durable_streams.stores.base import StoreError, StoreLostError
from durable_streams.stores.jetstream.nats.messages import Info

__all__ = ["Guard"]

_INTERVAL = 5.0  # seconds between checks
_TRIES = 5  # a server that has just started may not know the bucket yet
_PAUSE = 0.3  # seconds
_NO_STREAM = 10059

_log = logging.getLogger("durable_streams.stores")


class Guard:
    """Checks a bucket periodically.

    Attributes:
        lost: The error of a bucket that was given up, else None.
        on_lost: Called when the bucket is given up.

    Args:
        name: The name of the bucket.
        ask: Returns the information of NATS on the bucket, or raises StoreError.
    """

    def __init__(self, name: str, ask: Callable[[], Awaitable[Info]]) -> None:
        self._name = name
        self._ask = ask
        self.lost: StoreLostError | None = None
        self.on_lost: Callable[[StoreLostError], None] = lambda _: None
        self._is_open = False
        self._created = ""  # the creation time, which distinguishes buckets of one name
        self._said_deleted = False
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    def start(self, created: str) -> None:
        """Start to check; ``created`` is the creation time of the opened bucket."""
        self.lost, self._said_deleted, self._created, self._is_open = None, False, created, True
        self._look_later()

    async def stop(self) -> None:
        """Stop checking."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def look(self) -> None:
        """Check now: the connection was lost, or NATS reported a change."""
        if not self._is_open or self.lost is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._compare())
            self._looking.add_done_callback(self._look_later)

    def note_deletion(self) -> None:
        """Take the report of NATS that the bucket was deleted."""
        self._said_deleted = True
        self.look()

    def lose(self) -> None:
        """Give the bucket up."""
        if self.lost is None:
            _log.error("the bucket %s in NATS was deleted, or created again: restart this server", self._name)
            self.lost = StoreLostError(
                f"the bucket {self._name} in NATS was deleted, or created again; "
                "none of this request was stored or read"
            )
            self.on_lost(self.lost)

    def _look_later(self, *_: object) -> None:
        if self._is_open and self.lost is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self.look)

    async def _compare(self) -> None:
        with contextlib.suppress(StoreError):  # it cannot be checked now
            for _ in range(_TRIES):
                info = await self._ask()
                if info.error is None:
                    self._said_deleted = False
                    if info.created != self._created:
                        self.lose()
                    return
                if info.error.err_code != _NO_STREAM:
                    return
                await asyncio.sleep(_PAUSE)
            if self._said_deleted:
                self.lose()
