"""Concurrent appends of one handle share requests: `AppendQueue` between threads, and in `aio_append_turns` tasks.

An append that finds no request in progress leads: it sends one request for itself and all appends that wait. The
others wait until a leader's request has carried them, or until it is their turn to lead.

Invariants: an append that is cancelled or interrupted while it waits is in no request; a request that carries several
appends is not cancelled with one of them; in a child after a fork the parent's appends are left to the parent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from durable_streams.client.forks import Origin
from durable_streams.protocol.append_queue import AppendQueue, Entry
from durable_streams.types import AppendResult

__all__ = ["AppendTurns"]

_Event = threading.Event


class AppendTurns:
    """The appends of one handle, from any thread."""

    def __init__(self) -> None:
        self._origin = Origin()
        self._renew()

    def _renew(self) -> None:
        self._queue: AppendQueue[_Event] = AppendQueue()
        self._lock = threading.Lock()

    def append(self, data: Any, send: Callable[[AppendQueue[Any]], None]) -> AppendResult:
        """Append one message or piece; return the position after the request that carried it.

        ``send`` runs `AppendQueue.send`: one request.
        """
        self._origin.notice(self._renew)
        entry: Entry[_Event] = Entry(data)
        with self._lock:
            waiter = entry.waiter = None if self._queue.add(entry) else _Event()
        if waiter is not None:
            self._wait_for(entry, waiter)
        if not entry.done:
            self._lead(send)
        return entry.outcome()

    def _wait_for(self, entry: Entry[_Event], waiter: _Event) -> None:
        """Wait until the append is done, or has to lead."""
        try:
            waiter.wait()
        except BaseException:  # KeyboardInterrupt
            with self._lock:
                _set(self._queue.take_back(entry))
            raise

    def _lead(self, send: Callable[[AppendQueue[Any]], None]) -> None:
        try:
            send(self._queue)
        except BaseException as error:
            self._end_turn(error)
            raise
        self._end_turn()

    def _end_turn(self, cause: BaseException | None = None) -> None:
        with self._lock:
            for entry in self._queue.finish(cause):
                _set(entry)
            _set(self._queue.hand_over())


def _set(entry: Entry[_Event] | None) -> None:
    if entry is not None and entry.waiter is not None:
        entry.waiter.set()
