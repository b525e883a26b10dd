"""Whether a bucket is still the one that was opened: not deleted, nor deleted and made again under the same name.

Invariants: a bucket is given up for good, and only for what NATS says of it: that another one was made since, that it
was deleted, or a sequence that was given out before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from durable_streams.stores.base import StoreError, StoreLostError
from durable_streams.stores.jetstream.nats.messages import Info

__all__ = ["Guard"]

_INTERVAL = 5.0  # seconds between looks
_TRIES = 5  # a server that has just started may not know of the bucket yet
_PAUSE = 0.3  # seconds
_NO_STREAM = 10059

_log = logging.getLogger("durable_streams.stores")


class Guard:
    """Looks at the bucket ``name`` from time to time. ``ask`` returns what NATS says of it, or raises StoreError."""

    def __init__(self, name: str, ask: Callable[[], Awaitable[Info]]) -> None:
        self._name = name
        self._ask = ask
        self.lost: StoreLostError | None = None
        self.on_lost: Callable[[StoreLostError], None] = lambda _: None
        self._is_open = False
        self._created = ""  # when the bucket was made: which of several of one name it is
        self._said_deleted = False
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    def start(self, created: str) -> None:
        """Begin to look; ``created`` is what NATS says of the bucket that was opened."""
        self.lost, self._said_deleted, self._created, self._is_open = None, False, created, True
        self._look_later()

    async def stop(self) -> None:
        """Look no more."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def look(self) -> None:
        """Look now: the connection was lost, or NATS has something to say."""
        if not self._is_open or self.lost is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._compare())
            self._looking.add_done_callback(self._look_later)

    def note_deletion(self) -> None:
        """Take a word of NATS that the bucket was deleted."""
        self._said_deleted = True
        self.look()

    def lose(self) -> None:
        """Give the bucket up."""
        if self.lost is None:
            _log.error(
                "the bucket %s in NATS was deleted, or made again: start this server again", self._name
            )
            self.lost = StoreLostError(
                f"the bucket {self._name} in NATS was deleted, or made again; "
                "nothing of this request was stored or read"
            )
            self.on_lost(self.lost)

    def _look_later(self, *_: object) -> None:
        if self._is_open and self.lost is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self.look)

    async def _compare(self) -> None:
        with contextlib.suppress(StoreError):  # it cannot be seen now
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
