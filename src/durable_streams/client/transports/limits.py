"""How long a transport waits, in seconds, where neither the call nor the caller's client says so."""

from __future__ import annotations

from typing import Any, Protocol

from durable_streams.protocol.request import SLOWEST, Request

__all__ = [
    "CONNECT_TIMEOUT",
    "LIVE_READ_TIMEOUT",
    "READ_TIMEOUT",
    "Timeout",
    "TimeoutLike",
    "TrickledError",
    "as_timeout",
    "connect_limit",
    "head_limit",
    "silence_of",
]

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
LIVE_READ_TIMEOUT = 90.0
"""Of silence on a live read: longer than the minute after which servers end a connection (section 5)."""


class Limits(Protocol):
    """The time limits of an HTTP library, such as ``httpx.Timeout``."""

    @property
    def connect(self) -> float | None: ...

    @property
    def read(self) -> float | None: ...


TimeoutLike = float | tuple[float | None, float | None] | Limits
"""Seconds of silence of a read; or a pair of seconds, for connecting and reading; or an ``httpx.Timeout``."""


class Timeout(float):
    """Seconds of silence of a read (infinity for no limit), and in ``connect`` the seconds that connecting may take."""

    connect: float | None = CONNECT_TIMEOUT


def as_timeout(given: Any) -> float | None:
    """Return a ``timeout=`` argument as seconds of silence of a read, with its limit for connecting (see `Timeout`).

    Args:
        given: Seconds; or a pair of seconds, for connecting and reading; or an object with attributes ``connect`` and
            ``read``, such as ``httpx.Timeout``. Of a pair or an object None is no limit; None itself is the default.

    Raises:
        ValueError: A time is not positive.
        TypeError: It has none of these forms.
    """
    if given is None or _is_seconds(given):
        seconds: float | None = _positive(given)
        return seconds
    if isinstance(given, tuple) and len(given) == 2:
        connect, read = given
    elif hasattr(given, "connect") and hasattr(given, "read"):
        connect, read = given.connect, given.read
    else:
        connect, read = given, given
    if not all(part is None or _is_seconds(part) for part in (connect, read)):
        raise TypeError(
            "timeout must be seconds, a pair of seconds for connecting and reading, or an httpx.Timeout, "
            f"not {given!r}."
        )
    timeout = Timeout(float("inf") if read is None else _positive(read))
    timeout.connect = _positive(connect)
    return timeout


def _is_seconds(given: Any) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool)


def _positive(seconds: Any) -> Any:
    if seconds is not None and not seconds > 0:
        raise ValueError(
            f"timeout must be a positive number of seconds, or None for the default, not {seconds!r}."
        )
    return seconds


def connect_limit(timeout: float | None) -> float | None:
    """Return the seconds that connecting may take; None for no limit."""
    return getattr(timeout, "connect", CONNECT_TIMEOUT)


def silence_of(request: Request, timeout: float | None) -> float | None:
    """Return the seconds of silence after which an answer is given up; None for never."""
    if timeout is None:
        return LIVE_READ_TIMEOUT if request.streaming else READ_TIMEOUT
    return None if timeout == float("inf") else timeout


def head_limit(request: Request, silence: float | None) -> float | None:
    """Return the seconds within which a request must be sent and its answer's head be complete; None for no limit.

    ``silence``: the seconds of silence that are allowed. Without a limit on those there is none on the whole.
    """
    if silence is None:
        return None
    limit = silence + request.trickle + len(request.body or b"") / SLOWEST
    return None if limit == float("inf") else limit


class TrickledError(OSError):
    """The head of an answer took too long."""
