"""Producers that nobody closed: what becomes of their records when the process ends, and in a process forked off.

Invariants: at the end of the process all of them get their last chance at the same time, each for a bounded one; what
is lost then, or with a producer that is garbage, is counted in one line on standard error; a process forked off sends
nothing of its parent's and waits for no lock of it.
"""

from __future__ import annotations

import atexit
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

__all__ = ["Remains", "Unclosed", "busy", "idle", "keep_in_mind", "settle_stranded"]

_JOINED_LAST = -50  # after everything of multiprocessing's own that threads may still use


class Remains:
    """What a producer holds that is not acknowledged, and whether that has been settled: closed, or told.

    It outlives the producer. ``early``: what is queued beside the machine's records.
    """

    def __init__(self, kind: str, machine: Producer) -> None:
        self._kind = kind
        self._machine = machine
        self.early: Collection[Any] = ()
        self.settled = False

    @property
    def count(self) -> int:
        """How many records are lost, or would be if everything ended now."""
        return self._machine.lost_count + self._machine.pending_count + len(self.early)

    def settle(self, why: str, what: str = "was not closed") -> None:
        """Write one line about the lost records, if there are any and nobody closed the producer; only once."""
        settled, self.settled = self.settled, True
        if not settled:
            self.tell(why, what)

    def settle_late(self, count: int) -> None:
        """Write one line about records that were stored, at the last moment."""
        self.settled = True
        self._write(
            f"was not closed: {_records(count)} went out only when its event loop ended, and were stored."
        )

    def tell(self, why: str, what: str) -> None:
        """Write one line about the lost records, if there are any. ``why``: where the producer had no error."""
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
    """What the end of a process, and a fork, need of a producer."""

    _remains: Remains
    _exit_timeout: float

    def _begin_end(self) -> None:
        """Take nothing more, and let what is queued go out, without waiting for it."""

    def _end(self, deadline: float) -> None:
        """Wait for that until then, at most, and settle what remains."""

    def _is_stranded(self) -> bool:
        """Whether it holds records that nothing will ever send."""

    def _disown(self) -> None:
        """Become unusable: this is a child, and all that is queued is its parent's."""


_known: dict[int, weakref.ref[Unclosed]] = {}
_hooked_in = 0  # the process whose end calls here


def keep_in_mind(producer: Unclosed) -> None:
    """Have a new producer end with the process, be disowned by a fork, and be told of when it is garbage."""
    _hook_in()
    key, remains = id(producer), producer._remains  # noqa: SLF001 - this module is a part of producers

    def collected(_: object) -> None:
        _known.pop(key, None)
        remains.settle("it is garbage")

    _known[key] = weakref.ref(producer, collected)


_busy: set[Unclosed] = set()
"""Producers of event loops that hold records. Kept here, for a loop that ends lets go of them before it shuts down."""


busy = _busy.add
"""Keep a producer for as long as it holds records."""

idle = _busy.discard
"""Let go of a producer that holds none any more."""

_loop = 0


def settle_stranded(loop: object) -> None:
    """Tell of the producers whose loop was closed with records of theirs, once another loop has begun."""
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


def _hook_in() -> None:
    global _hooked_in  # noqa: PLW0603 - there is one process
    if _hooked_in == os.getpid():
        return
    _hooked_in = os.getpid()
    atexit.unregister(_end_all)
    atexit.register(_end_all)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        # A child of multiprocessing ends without Python's own exit functions.
        from multiprocessing.util import Finalize  # noqa: PLC0415

        Finalize(None, _end_child, exitpriority=_JOINED_LAST)


def _end_all() -> None:
    began = time.monotonic()
    producers = [producer for producer in _living() if not producer._remains.settled]  # noqa: SLF001
    for producer in producers:
        producer._begin_end()  # noqa: SLF001
    for producer in producers:
        try:
            producer._end(began + producer._exit_timeout)  # noqa: SLF001
        except KeyboardInterrupt:
            began = float("-inf")  # nobody wants to wait any more
            producer._end(began)  # noqa: SLF001


def _end_child() -> None:
    """End the producers of a child of multiprocessing; its threads may still use them."""
    if _other_threads():
        threading.Thread(target=_end_after_threads, name="durable-streams-end").start()
    else:
        _end_all()


def _end_after_threads() -> None:
    while others := _other_threads():
        for thread in others:
            thread.join()
    _end_all()


def _other_threads() -> list[threading.Thread]:
    mine = (threading.current_thread(), threading.main_thread())
    return [thread for thread in threading.enumerate() if thread not in mine and not thread.daemon]


# -- a fork


def _disown_all() -> None:
    for producer in _living():
        producer._disown()  # noqa: SLF001
    _known.clear()
    _busy.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
