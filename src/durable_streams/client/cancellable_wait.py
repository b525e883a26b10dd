"""A wait of a task that other tasks may end, and only that wait: the async counterpart of `transports.Interrupt`.

Invariant: a task that is cancelled from outside stays cancelled.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

from durable_streams.client.forks import Origin

__all__ = ["AsyncInterrupt", "running_loop"]


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop of asyncio; raises RuntimeError where there is none, as under trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "The async API runs in an event loop of asyncio, and none runs here. Under trio use the sync API in a "
            "thread: trio.to_thread.run_sync."
        ) from None


class AsyncInterrupt:
    """Ends the wait of a task: ``with interrupt: await ...``. Cannot be taken back, as `Interrupt`.

    `set` cancels the task that is in the block, and the block takes that cancellation back: it ends quietly.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop of the last wait, None before."""
        self._origin = Origin()
        self._set = False
        self._renew()

    def _renew(self) -> None:
        # After a fork too: a task of the parent's waits in the parent.
        self._task: asyncio.Task[Any] | None = None
        self._woken = False

    @property
    def busy(self) -> bool:
        """Whether a task is in the block."""
        self._origin.notice(self._renew)
        return self._task is not None

    def is_set(self) -> bool:
        """Whether `set` or `announce` was called."""
        return self._set

    def announce(self) -> None:
        """From any thread: let no further wait begin. `set`, in the loop's thread, ends the present one."""
        self._set = True

    def set(self) -> None:
        """End the present wait, if any; the owner asks `is_set` before it begins another one."""
        self._set = True
        self._origin.notice(self._renew)
        if self._task is not None and not self._woken:
            self._woken = True
            self._task.cancel()

    async def pause(self, seconds: float) -> None:
        """Sleep for this many seconds, unless interrupted."""
        await asyncio.sleep(seconds)

    def later(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have the loop of the last wait close what was dropped in the middle of it, if the loop still runs."""
        loop = self.loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(lambda: loop.create_task(close()))

    def __enter__(self) -> None:
        self._origin.notice(self._renew)
        self.loop = running_loop()
        self._task = asyncio.current_task(self.loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        ours = (
            self._woken
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
            and self._take_back()
        )
        self._task = None
        return ours

    def _take_back(self) -> bool:
        """Take the cancellation of `set` back; return whether it was the only one."""
        if self._task is None:
            return False
        self._woken = False
        # Python 3.10 does not count cancellations.
        return sys.version_info < (3, 11) or self._task.uncancel() == 0
