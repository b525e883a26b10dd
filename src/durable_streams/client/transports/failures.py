"""The kinds of failed exchanges: one sentence, code and verdict for each, the same for all libraries.

Invariants: nothing here knows an HTTP library; ``may_have_been_sent`` is false only where no byte of the
request can have reached the server; what the handler of a signal raises is no failure, but the caller's own.
"""

from __future__ import annotations

import os
import signal
import threading
from enum import Enum
from functools import partial
from traceback import walk_tb
from types import CodeType
from typing import Any
from urllib.parse import urlsplit

from durable_streams.errors import DurableStreamError, FetchError

__all__ = ["Failure", "client_closed", "fetch_error"]


class Failure(Enum):
    """A kind of failure: its code, whether the request may have been sent, its sentence."""

    INTERRUPTED = ("CLOSED", True, "The read from {host} was closed.")
    REFUSED = ("CONNECT", False, "No connection to {host}: {cause}; is the server running?")
    CONNECT_TIMEOUT = ("TIMEOUT", False, "No connection to {host} within {limit}; is the address right?")
    POOL_TIMEOUT = (
        "TIMEOUT",
        False,
        "No connection to {host} was free within {limit}; the client allows too few connections.",
    )
    SILENCE = ("TIMEOUT", True, "{host} was silent for longer than the read timeout.")
    TRICKLE = (
        "TOO_SLOW",
        True,
        "{host} sends its answer too slowly: its head was not complete within {limit}.",
    )
    TLS = ("TLS", False, "TLS with {host} failed: {cause}.")
    BROKEN = ("NETWORK", True, "The connection to {host} broke: {cause}.")
    DECODING = ("NETWORK", True, "The body from {host} does not match its content-encoding: {cause}.")
    NOT_SENT = ("NETWORK", False, "The request to {host} could not be sent: {cause}.")


def fetch_error(
    failure: Failure,
    url: str,
    original: BaseException,
    *,
    status: int | None = None,
    limit: float | None = None,
) -> FetchError:
    """Return the error for a failure of an exchange with ``url``.

    ``status``: of the answer, once there is one; then the request was sent in any case. ``limit``: the seconds
    of the wait, None where only the caller's client knows. Raises what the handler of a signal raised, which libraries
    take for a failure of theirs: a TimeoutError, say.
    """
    if (raised := _of_signal_handler(original)) is not None:
        raise raised
    code, sent, sentence = failure.value
    message = sentence.format(
        host=urlsplit(url).netloc.rpartition("@")[2],
        cause=_cause(failure, original),
        limit="its time limit" if limit is None else f"{limit:g} seconds",
    )
    return FetchError(
        message,
        original=original,
        may_have_been_sent=sent or status is not None,
        url=url,
        status=status,
        code=code,
    )


def _of_signal_handler(error: BaseException | None) -> BaseException | None:
    """Return the exception within this one that a handler of a signal raised; None where there is none."""
    if threading.current_thread() is not threading.main_thread():
        return None
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    while error is not None and handlers:
        if any(frame.f_code in handlers for frame, _ in walk_tb(error.__traceback__)):
            return error
        error = error.__cause__ or error.__context__
    return None


def _code_of(handler: Any) -> CodeType | None:
    if isinstance(handler, partial):
        handler = handler.func
    function = handler if hasattr(handler, "__code__") else type(handler).__dict__.get("__call__")
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def client_closed(url: str) -> DurableStreamError:
    """Return the error for a client that its owner closed: not a FetchError, for no retry can fix it."""
    return DurableStreamError(
        "The client passed as client= is closed; pass one that is open for as long as it is used.",
        code="CLIENT_CLOSED",
        url=url,
    )


def _cause(failure: Failure, error: BaseException) -> str:
    """Return the innermost exception's message: the system's own words, without the library's wrapping."""
    inner = error
    while (below := inner.__cause__ or inner.__context__) is not None:
        inner = below
    if failure is Failure.BROKEN and isinstance(inner, ValueError) and not isinstance(inner, OSError):
        return "the answer is malformed, or was cut"  # a parser's own words say less
    if type(inner).__module__ == "builtins" and isinstance(inner, OSError) and inner.errno:
        text = os.strerror(inner.errno)  # asyncio replaces it with another text
    else:
        text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    printable = "".join(character if character.isprintable() else " " for character in text[:500])
    return " ".join(printable.split())[:200].rstrip(". ")
