"""Waking a task out of what it waits for, and nothing else of it.

Invariant: a task that is cancelled from outside stays cancelled.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from durable_streams.client.forks import Origin

__all__ = ["Wait"]


class Wait:
    """What one task waits for, and others may end: by a cancellation that is taken back."""

    def __init__(self) -> None:
        self._origin = Origin()
        self._renew()

    def _renew(self) -> None:
        # After a fork too: a task of the parent's waits in the parent.
        self._task: asyncio.Task[Any] | None = None
        self._woken = False

    @property
    def busy(self) -> bool:
        """Whether a task waits."""
        self._origin.notice(self._renew)
        return self._task is not None

    def begin(self) -> None:
        """Note that the running task is about to wait."""
        self._origin.notice(self._renew)
        self._task = asyncio.current_task()

    def end(self) -> None:
        """Note that it waits no more."""
        self._task = None

    def wake(self) -> None:
        """End the wait, once."""
        if self._task is not None and not self._woken:
            self._woken = True
            self._task.cancel()

    def take_back(self) -> bool:
        """Whether the cancellation that has come is only that of `wake`, which is taken back."""
        if not self._woken or self._task is None:
            return False
        self._woken = False
        # Python 3.10 cannot tell one cancellation from two.
        return sys.version_info < (3, 11) or self._task.uncancel() == 0
