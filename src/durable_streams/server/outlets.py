"""Streamed answers on their way to clients that may not read: bounded in each, and in all.

An HTTP server takes whatever it is given; Granian's RSGI side never waits for the socket. So each streamed answer goes
through an outlet, which hands over as much as the client may still have to prove that it reads, then waits.

Invariants:
* what one answer has handed over without proof is below its window; the windows together are below ``limit``;
* an answer whose client takes nothing for ``stall`` seconds ends with its connection; so does the one that has stalled
  longest, and for a moment at least, while others wait for memory;
* an answer that keeps up costs an addition for each part.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from durable_streams.protocol.commands import Rejection
from durable_streams.server.budget import MemoryBudget
from durable_streams.server.http import AnswerBody
from durable_streams.server.peers import PeerGoneError, Peers
from durable_streams.stores.base import StoreError

__all__ = ["AwaitedOutlet", "ClientGoneError", "Outlet", "Outlets", "WatchedOutlet", "send_parts", "sending"]

_SMALLEST_SHARE = 1 << 10  # bytes
_LARGEST_SHARE = 64 << 10
_LARGEST_WINDOW = 1 << 20
_FRAME = 12  # bytes that chunked coding adds to a part, at most
_COUNTS: bool = hasattr(socket, "TCP_INFO")  # whether the kernel says what it has taken: Linux
_TICK = 1.0  # seconds between looks at what has stalled
_PRESSED_STALL = 2.0  # seconds without progress that are enough to end an answer while others wait for memory
_FIRST_PAUSE = 0.0005  # seconds between two questions to the kernel,
_LONGEST_PAUSE = 0.25  # doubled while nothing moves
_log = logging.getLogger("durable_streams.server")


class ClientGoneError(Exception):
    """The client left, or its connection was ended because it did not read."""


@asynccontextmanager
async def sending(body: AnswerBody, outlet: Outlet) -> AsyncIterator[None]:
    """Close a body and its outlet at the end of the block, which sends the parts of the one through the other.

    A client that leaves before the end, and a store that fails, end the block early without an error. The block is the
    caller's own: a coroutine in between would be resumed for each event of each reader.
    """
    try:
        yield
    except ClientGoneError:
        pass
    except (StoreError, Rejection) as error:
        _log.info("an answer was cut short: %s", error)
    finally:
        outlet.close()
        await body.aclose()


async def send_parts(body: AnswerBody, outlet: Outlet) -> bool:
    """Send a whole body and close it; false if the client left before its end, or the store failed."""
    is_whole = False
    async with sending(body, outlet):
        async for part in body:
            await outlet.send(part)
            del part  # it counts no more, so that it must not stay while the next one is waited for
        is_whole = True
    return is_whole  # noqa: RET504 - the block may end early


class Outlet:
    """One answer's way out. ``progress_at``: when the client last took something, None while nothing waits for it."""

    __slots__ = ("_is_ended", "_outlets", "_peer", "progress_at")

    def __init__(self, outlets: Outlets, peer: str) -> None:
        self._outlets = outlets
        self._peer = peer
        self._is_ended = False
        self.progress_at: float | None = None

    def send(self, data: bytes) -> Awaitable[Any]:
        """Send a part, as fast as the client takes it; raises ClientGoneError."""
        raise NotImplementedError

    def end(self) -> None:
        """Give the client up: its connection ends, and a `send` under way fails."""
        self._is_ended = True
        self._outlets.peers.reset(self._peer)

    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._is_ended

    def close(self) -> None:
        """Forget an answer that is complete or has failed."""
        self._outlets.closed(self)

    def _begin_wait(self) -> None:
        if self.progress_at is None:
            self.progress_at = time.monotonic()
            self._outlets.waits(self)


class WatchedOutlet(Outlet):
    """For a ``write`` that never waits for the socket: the kernel is asked how much the socket took."""

    __slots__ = ("_asked_at", "_base", "_charged", "_handed", "_taken", "_unproven", "_write")

    def __init__(self, outlets: Outlets, peer: str, write: Callable[[bytes], Awaitable[Any]]) -> None:
        super().__init__(outlets, peer)
        self._write = write
        self._unproven = 0  # bytes handed over that may still be in the process
        self._charged = 0  # of them, those that all answers share a limit for
        self._handed = 0  # bytes in all
        self._base: int | None = (
            None  # what the kernel had taken for the connection when it had taken all of those
        )
        self._taken = -1  # what the kernel had taken when it was asked last
        self._asked_at = 0.0

    def send(self, data: bytes) -> Awaitable[Any]:
        """Send a part as `Outlet.send` does; one that keeps up costs an addition."""
        size = len(data) + _FRAME
        if self._unproven + size > self._outlets.share:
            return self._send_slowly(data)
        self._unproven += size
        self._handed += size
        return self._write(data)

    async def _send_slowly(self, data: bytes) -> None:
        rest = memoryview(data)
        if not self._asked_at:
            self._asked_at = time.monotonic()
        if self._base is None and not self._handed:
            self._ask()
        while rest:
            room = self._outlets.window(self._charged) - self._unproven
            if room <= min(len(rest), self._outlets.share):
                room = await self._drained()
            part = data if len(rest) == len(data) <= room else bytes(rest[: max(1, room)])
            rest = rest[len(part) :]
            self._charge(self._unproven + len(part) + _FRAME)
            self._handed += len(part) + _FRAME
            await self._write(part)

    async def _drained(self) -> int:
        """Wait until the client has taken enough for another part; return how large that may be."""
        pause = _FIRST_PAUSE
        try:
            while not self.ended():
                if self._ask():
                    pause = _FIRST_PAUSE
                    if self.progress_at is not None:
                        self.progress_at = time.monotonic()
                window = self._outlets.window(self._charged)
                if self._unproven * 2 <= window:
                    return window - self._unproven
                self._begin_wait()
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            self.progress_at = None
        raise ClientGoneError

    def _ask(self) -> bool:
        """Ask the kernel what left the process; true if that is more than before."""
        try:
            taken = self._outlets.taken(self._peer, self._asked_at, self._handed)
        except PeerGoneError:
            raise ClientGoneError from None
        if taken is None:
            return False
        before, self._taken = self._taken, taken
        if self._base is None:
            # A socket that has room and took nothing since the last question has nothing waiting in front of it.
            if self._handed and not (taken == before and self._outlets.has_room(self._peer, self._asked_at)):
                return taken > before
            self._base = taken - self._handed
        left = max(0, self._handed - (taken - self._base))
        moved = left < self._unproven
        self._charge(left)
        return moved

    def _charge(self, unproven: int) -> None:
        """Set what is unproven; all of it counts as soon as it is more than a share."""
        self._unproven = unproven
        charged = unproven if unproven > self._outlets.share else 0
        self._outlets.handed += charged - self._charged
        self._charged = charged

    def close(self) -> None:
        """Forget the answer; see Outlet."""
        self._charge(0)
        super().close()


class AwaitedOutlet(Outlet):
    """For a ``write`` that waits for the socket, as ASGI's does: only the time of each wait is watched."""

    __slots__ = ("_is_limited", "_task", "_write")

    def __init__(self, outlets: Outlets, peer: str, write: Callable[[bytes], Awaitable[Any]]) -> None:
        super().__init__(outlets, peer)
        self._write = write
        self._task: asyncio.Task[Any] | None = None
        self._is_limited = False

    async def send(self, data: bytes) -> None:
        """Send a part; see Outlet."""
        if len(data) <= self._outlets.share:
            await self._send(data)
            return
        if not self._is_limited:
            self._is_limited = True
            self._outlets.peers.limit(self._peer)
        rest = memoryview(data)
        while rest:
            part = bytes(rest[: self._outlets.share])
            await self._send(part)
            rest = rest[len(part) :]

    async def _send(self, data: bytes) -> None:
        if self.ended():
            raise ClientGoneError
        self._task = asyncio.current_task()
        self._begin_wait()
        try:
            await self._write(data)
        except asyncio.CancelledError:
            if not self.ended():
                raise
            _uncancel(self._task)
            raise ClientGoneError from None
        finally:
            self._task = self.progress_at = None

    def end(self) -> None:
        """Give the client up; see Outlet."""
        task = self._task
        super().end()
        if task is not None:
            task.cancel()


def _uncancel(task: asyncio.Task[Any] | None) -> None:
    if sys.version_info >= (3, 11) and task is not None:
        task.uncancel()


class Outlets:
    """All streamed answers of a server.

    ``limit``: bytes that all of them may have handed over without proof; ``stall``: seconds that a client may take
    nothing, fewer while others wait for room in ``budget``.
    """

    def __init__(self, limit: int, budget: MemoryBudget, stall: float) -> None:
        self.peers = Peers()
        self.handed = 0
        """Bytes that answers have handed over without proof, beyond their shares."""
        self._limit = limit
        self.budget = budget
        self.share = _LARGEST_SHARE
        """Bytes that each answer may have handed over without proof, whatever else is held."""
        self._stall = stall
        self._open = 0
        self._waiting: set[Outlet] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._stopped = False

    @property
    def open(self) -> int:
        """How many answers are on their way."""
        return self._open

    def start(self) -> None:
        """Begin, also after a `stop`."""
        self._stopped = False

    def stop(self) -> None:
        """Give up all clients that do not read."""
        self._stopped = True
        for outlet in list(self._waiting):
            if outlet.progress_at is not None:
                outlet.end()

    def watched(self, peer: str, write: Callable[[bytes], Awaitable[Any]]) -> WatchedOutlet:
        """Return the outlet of an answer whose ``write`` never waits for the socket."""
        self._opened()
        return WatchedOutlet(self, peer, write)

    def awaited(self, peer: str, write: Callable[[bytes], Awaitable[Any]]) -> AwaitedOutlet:
        """Return the outlet of an answer whose ``write`` waits for the socket."""
        self._opened()
        return AwaitedOutlet(self, peer, write)

    def window(self, charged: int) -> int:
        """Return how many bytes an answer may have handed over now; ``charged``: of its own, what counts already."""
        free = self._limit // 2 - self.handed + charged
        return max(self.share, min(_LARGEST_WINDOW, free // 8))

    def taken(self, peer: str, asked_at: float, handed: int) -> int | None:
        """Return how many bytes the kernel has taken for a connection; None if that is not known yet.

        Where the kernel does not count, a socket that has room for more has taken all that was handed over.
        """
        if _COUNTS:
            return self.peers.accepted(peer, asked_at)
        return handed if self.peers.is_writable(peer, asked_at) else None

    def has_room(self, peer: str, asked_at: float) -> bool:
        """Whether the kernel would take more for a connection now."""
        return self.peers.is_writable(peer, asked_at)

    def waits(self, outlet: Outlet) -> None:
        """Watch an outlet that waits for its client."""
        if self._stopped:
            outlet.end()
        self._waiting.add(outlet)
        if self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(_TICK, self._look)

    def closed(self, outlet: Outlet) -> None:
        """Forget an outlet."""
        self._waiting.discard(outlet)
        self._open -= 1
        self._set_share()

    def _opened(self) -> None:
        self._open += 1
        self._set_share()

    def _set_share(self) -> None:
        # Half of the limit is for what answers hand over without being asked for proof.
        fair = self._limit // 2 // max(1, self._open)
        self.share = max(_SMALLEST_SHARE, min(_LARGEST_SHARE, fair))

    def _look(self) -> None:
        """Give up the clients that have taken nothing for too long."""
        now = time.monotonic()
        waiting = [
            (now - outlet.progress_at, outlet) for outlet in self._waiting if outlet.progress_at is not None
        ]
        self._waiting = {outlet for _, outlet in waiting}
        for stalled, outlet in waiting:
            if stalled >= self._stall:
                outlet.end()
        if self.budget.is_short and waiting:
            waiting.sort(key=lambda one: one[0], reverse=True)
            for stalled, outlet in waiting[: len(waiting) // 4 + 1]:
                if stalled >= _PRESSED_STALL:
                    outlet.end()
        self._tick = None
        if self._waiting:
            self._tick = asyncio.get_running_loop().call_later(_TICK, self._look)
