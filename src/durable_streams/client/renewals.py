"""Keeps a lease while its worker works: a task or a thread that sends heartbeats.

Invariant: a lease that could not be renewed for as long as it lasts counts as lost, whatever the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

from durable_streams.errors import DurableStreamError
from durable_streams.protocol.leases import LeaseLostError

__all__ = ["AsyncRenewal", "Renewal"]

_SHARE = 3  # heartbeats in the time of a lease


class _Renewed:
    """What both sides know of a lease: when it was renewed, and whether it is lost."""

    def __init__(self, seconds: float) -> None:
        self.lost: LeaseLostError | None = None
        self._seconds = seconds
        self._renewed_at = time.monotonic()

    @property
    def _pause(self) -> float:
        return self._seconds / _SHARE

    def renewed(self, began: float) -> None:
        """Note that a request which began at a time (monotonic, in seconds) has extended the lease."""
        self._renewed_at = max(self._renewed_at, began)

    def failed(self, error: DurableStreamError) -> bool:
        """Note a heartbeat that failed; return whether the lease is lost."""
        if isinstance(error, LeaseLostError):
            self.lost = error
        elif time.monotonic() - self._renewed_at >= self._seconds:
            self.lost = LeaseLostError(f"The lease could not be renewed in time: {error}")
        return self.lost is not None


class AsyncRenewal(_Renewed):
    """A task that renews a lease until the block ends.

    Args:
        seconds: How long the lease lasts.
        beat: Sends a heartbeat.
    """

    def __init__(self, seconds: float, beat: Callable[[], Awaitable[object]]) -> None:
        super().__init__(seconds)
        self._beat = beat
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncRenewal:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self.lost is None:
            await asyncio.sleep(self._pause)
            began = time.monotonic()
            try:
                await asyncio.wait_for(self._beat(), self._seconds)
            except asyncio.TimeoutError:
                self.failed(
                    LeaseLostError("The lease could not be renewed in time: the server does not answer.")
                )
            except DurableStreamError as failure:
                self.failed(failure)
            else:
                self.renewed(began)
        self._lost.set()

    async def wait_lost(self) -> None:
        """Return once the lease is lost."""
        await self._lost.wait()


class Renewal(_Renewed):
    """A thread that renews a lease until the block ends.

    Args:
        seconds: How long the lease lasts.
        beat: Sends a heartbeat.
    """

    def __init__(self, seconds: float, beat: Callable[[], object]) -> None:
        super().__init__(seconds)
        self._beat = beat
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="durable-streams-lease", daemon=True)

    def __enter__(self) -> Renewal:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(self._seconds)

    def _run(self) -> None:
        while self.lost is None and not self._ended.wait(self._pause):
            began = time.monotonic()
            with contextlib.suppress(DurableStreamError):
                try:
                    self._beat()
                except DurableStreamError as failure:
                    self.failed(failure)
                else:
                    self.renewed(began)
