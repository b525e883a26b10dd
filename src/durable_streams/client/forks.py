"""Noticing, at the first use of an object, that the process was forked after the object was made.

An object with locks, queues or connections keeps an `Origin`, and asks it before it uses them. In a child, locks may be
held by threads that do not exist there, and connections are the parent's.

Invariants: asking costs one comparison; a renewal runs once for each object and process, in whichever thread; the
parent's objects are neither written to nor shut down, and the parent's event loop gets no calls (its selector is
shared).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from durable_streams.errors import FetchError

__all__ = ["Origin", "answer_left_behind", "leave_alone", "origin_of"]


class _Process:
    """The present process: how many forks lie between it and the first one."""

    def __init__(self) -> None:
        self.forks = 0
        self.renewing = threading.RLock()

    def forked(self) -> None:
        self.forks += 1
        self.renewing = threading.RLock()


_process = _Process()
_kept: list[object] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forked)


class Origin:
    """The process that an object belongs to: at first the one in which this was made."""

    __slots__ = ("_forks",)

    def __init__(self) -> None:
        self._forks = _process.forks

    @property
    def left(self) -> bool:
        """Whether this process is another one, forked off since."""
        return self._forks != _process.forks

    def notice(self, renew: Callable[[], None]) -> None:
        """Call ``renew`` if this process is another one: once, and before any caller returns."""
        if self._forks != _process.forks:
            with _process.renewing:
                if self._forks != _process.forks:
                    renew()
                    self._forks = _process.forks


_origins: weakref.WeakKeyDictionary[Any, Origin] = weakref.WeakKeyDictionary()


def origin_of(client: Any) -> Origin:
    """Return the process in which a caller's client was seen first: the same Origin for all that use the client."""
    try:
        return _origins.setdefault(client, Origin())
    except TypeError:  # it has no hash, or takes no weak reference
        return Origin()


def leave_alone(*objects: object) -> None:
    """Keep objects of the parent for as long as this process lives: collecting one might close it for both."""
    _kept.append(objects)


def answer_left_behind(url: str) -> FetchError:
    """Return the error for an answer whose connection is the parent's: it is asked for again on another one."""
    return FetchError(
        f"The answer of {url} that was being read belongs to the process that this one was forked off.",
        may_have_been_sent=True,
        code="FORKED",
        url=url,
    )
