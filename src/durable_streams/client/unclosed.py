"""Producers that were not closed: their records at the end of the process, and in a child after a fork.

Invariants: at the end of the process all of them are flushed at the same time, each within its time limit; records
that are lost then, or with a producer that is garbage collected, are counted in one line on standard error; a child
after a fork sends none of its parent's records and waits for none of its locks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Collection
from typing import Any, Protocol

from durable_streams.protocol.producer import Producer
from durable_streams.protocol.request import without_query

__all__ = ["Remains", "Unclosed", "busy", "end_all", "idle", "is_over", "register", "settle_stranded"]

_JOINED_LAST = -50  # after everything of multiprocessing's own that threads may still use


class Remains:
    """The records of a producer that are not acknowledged, and whether that is settled: closed, or reported.

    It outlives the producer. ``early``: records that are queued outside the machine.
    """

    def __init__(self, kind: str, machine: Producer) -> None:
        self._kind = kind
        self._machine = machine
        self.early: Collection[Any] = ()
        self.settled = False

    @property
    def count(self) -> int:
        """How many records are lost, or would be if the process ended now."""
        return self._machine.lost_count + self._machine.pending_count + len(self.early)

    def settle(self, why: str, what: str = "was not closed") -> None:
        """Write one line about the lost records, if there are any and the producer was not closed; only once."""
        settled, self.settled = self.settled, True
        if not settled:
            self.report(why, what)

    def settle_late(self, count: int) -> None:
        """Write one line about records that were stored, at the last moment."""
        self.settled = True
        self._write(
            f"was not closed: {_records(count)} went out only when its event loop ended, and were stored."
        )

    def report(self, why: str, what: str) -> None:
        """Write one line about the lost records, if any. ``why``: the reason, if the producer has no error."""
        count, machine = self.count, self._machine
        if not count:
            return
        lost = "may be lost" if machine.error is None else "is lost" if count == 1 else "are lost"
        error = str(machine.error or machine.trouble or "").rstrip(".")
        reasons = "; ".join(reason for reason in (why if machine.error is None else None, error) if reason)
        self._write(f"{what}: {_records(count)} {lost}{reasons and f' ({reasons})'}.")

    def _write(self, sentence: str) -> None:
        machine = self._machine
        _write_line(
            f"ResourceWarning: {self._kind} {machine.producer_id!r} of {without_query(machine.url)} {sentence} "
            "Close it, or use it in a with block."
        )


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"


def _write_line(line: str) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there may be no standard error
        sys.stderr.write(" ".join(line.split()) + "\n")
        sys.stderr.flush()


class Unclosed(Protocol):
    """The methods of a producer for the end of the process, and for a fork."""

    _remains: Remains
    _exit_timeout: float

    def _begin_end(self) -> None:
        """Take no more records, and send the queued ones, without waiting for them."""

    def _end(self, deadline: float) -> None:
        """Wait for them, at most until ``deadline`` of the monotonic clock, and settle the rest."""

    def _is_stranded(self) -> bool:
        """Whether it holds records that nothing will ever send."""

    def _disown(self) -> None:
        """Become unusable: this is a child, and all queued records are its parent's."""


_known: dict[int, weakref.ref[Unclosed]] = {}
_hooked_in = 0  # the child of multiprocessing whose end calls here
_over = False


def register(producer: Unclosed) -> None:
    """Register a new producer: it ends with the process, is disowned by a fork, and reported when it is garbage."""
    _hook_in()
    key, remains = id(producer), producer._remains  # noqa: SLF001 - this module is a part of producers

    def collected(_: object) -> None:
        _known.pop(key, None)
        remains.settle("it was garbage collected")

    _known[key] = weakref.ref(producer, collected)


_busy: set[Unclosed] = set()
"""Producers of event loops that hold records. Kept here, because a loop that ends drops them before it shuts down."""


busy = _busy.add
"""Keep a producer for as long as it holds records."""

idle = _busy.discard
"""Drop a producer that holds no more records."""

_loop = 0


def settle_stranded(loop: object) -> None:
    """Report the producers whose loop was closed while they held records, once another loop has begun."""
    global _loop  # noqa: PLW0603 - there is one process
    if _loop == id(loop):
        return
    _loop = id(loop)
    for producer in [producer for producer in list(_busy) if producer._is_stranded()]:  # noqa: SLF001
        idle(producer)
        producer._end(0.0)  # noqa: SLF001


def _living() -> list[Unclosed]:
    return [producer for ref in list(_known.values()) if (producer := ref()) is not None]


# -- the end of a process


def is_over() -> bool:
    """Whether the end of the process is past the producers' turn: what is only queued from now on is lost."""
    return _over


def _hook_in() -> None:
    """Have the end of a child of multiprocessing, which runs no exit functions, end its producers."""
    global _hooked_in  # noqa: PLW0603 - there is one process
    process = sys.modules.get("multiprocessing.process")
    if _hooked_in == os.getpid() or process is None or process.parent_process() is None:
        return
    _hooked_in = os.getpid()
    from multiprocessing.util import Finalize  # noqa: PLC0415

    Finalize(None, _end_child, exitpriority=_JOINED_LAST)


def end_all() -> None:
    """Give all producers that are not closed their last chance."""
    global _over  # noqa: PLW0603 - there is one process
    _over = True
    began = time.monotonic()
    producers = [producer for producer in _living() if not producer._remains.settled]  # noqa: SLF001
    for producer in producers:
        producer._begin_end()  # noqa: SLF001
    for producer in producers:
        try:
            producer._end(began + producer._exit_timeout)  # noqa: SLF001
        except KeyboardInterrupt:
            began = float("-inf")  # a second Ctrl-C: wait no longer
            producer._end(began)  # noqa: SLF001


def _end_child() -> None:
    """End the producers of a child of multiprocessing; its threads may still use them."""
    if _other_threads():
        threading.Thread(target=_end_after_threads, name="durable-streams-end").start()
    else:
        end_all()


def _end_after_threads() -> None:
    while others := _other_threads():
        for thread in others:
            thread.join()
    end_all()


def _other_threads() -> list[threading.Thread]:
    mine = (threading.current_thread(), threading.main_thread())
    return [thread for thread in threading.enumerate() if thread not in mine and not thread.daemon]


# -- a fork


def _disown_all() -> None:
    global _over  # noqa: PLW0603 - there is one process
    _over = False
    for producer in _living():
        producer._disown()  # noqa: SLF001
    _known.clear()
    _busy.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)

if not threading.main_thread().is_alive():
    _over = True  # imported by an exit function: nothing runs after those
