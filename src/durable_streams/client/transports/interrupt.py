"""How a thread that is blocked in a call of an HTTP library is woken by another one, or by a signal handler."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType

from durable_streams.client.forks import Origin

__all__ = ["Gate", "Interrupt"]


class Gate:
    """An event that a signal handler may set, too, while its own thread waits for it; set once and for all.

    The `threading.Event` of the standard library holds a lock for a moment, which a handler that runs in that moment
    would wait for without end.
    """

    def __init__(self) -> None:
        self._open = False
        self._lock = threading.Lock()
        self._lock.acquire()  # noqa: SIM115, RUF100 - held until `set`

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._open

    def set(self) -> None:
        """Let all that wait, now or later, go on."""
        self._open = True
        with contextlib.suppress(RuntimeError):  # it is released already
            self._lock.release()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for `set`, for this many seconds at most; return whether it was called."""
        limit = -1 if seconds is None else min(max(seconds, 0.0), threading.TIMEOUT_MAX)
        if not self._open and self._lock.acquire(timeout=limit):
            with contextlib.suppress(RuntimeError):
                self._lock.release()  # for the next one that waits
        return self._open


class Interrupt:
    """Ends the call that a thread of the performer is blocked in: a connect, a read or a pause. Cannot be taken back.

    A signal handler may call `set`: nothing here waits for a lock that its own thread may hold.

    ``with interrupt:`` is around everything that may block, so that `busy` says whether a thread is in it. In a child
    after a fork an interrupt knows no exchange: to break one there would end the parent's connection.
    """

    def __init__(self) -> None:
        self._origin = Origin()
        self._event = Gate()
        self._lock = threading.RLock()
        self._break: Callable[[], object] | None = None
        self._busy = False

    def _renew(self) -> None:
        was_set, self._event = self._event.is_set(), Gate()
        if was_set:
            self._event.set()
        self._lock, self._break, self._busy = threading.RLock(), None, False

    @property
    def busy(self) -> bool:
        """Whether a thread is in the block."""
        self._origin.notice(self._renew)
        return self._busy

    def __enter__(self) -> None:
        self._origin.notice(self._renew)
        self._busy = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._busy = False

    def set(self) -> None:
        """Break the exchange in progress, if any, and every later one at once."""
        self._origin.notice(self._renew)
        with self._lock:
            self._event.set()
            if self._break is not None:
                self._break()

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._event.is_set()

    def pause(self, seconds: float) -> bool:
        """Sleep, unless interrupted; return whether it was interrupted."""
        self._origin.notice(self._renew)
        return self._event.wait(seconds) if seconds > 0 else self._event.is_set()

    def attach(self, action: Callable[[], object]) -> None:
        """Take the function that breaks the present exchange; it is called at once if `set` was called already."""
        self._origin.notice(self._renew)
        with self._lock:
            self._break = action
            if self._event.is_set():
                action()

    def detach(self) -> None:
        """Drop the function of `attach`: the exchange is over, its connection may serve others."""
        self._origin.notice(self._renew)
        with self._lock:
            self._break = None
