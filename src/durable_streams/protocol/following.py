"""Following a stream: the loop around the reader, with every input and output left to a driver.

The driver performs each effect and sends back what it gave, or throws the FetchError that it met:

    Request    pause for its ``delay``, send it; give the answer's head (``status`` and ``headers``)
    READ       give the next bytes of the answer's body, b"" at its end
    RELEASE    close the answer; closing one that is closed already does nothing
    Failure    give whether the caller mended the cause of its error; if not, the error is raised
    LongWait   tell the caller; give whether it removed the cause of its error; if not, the wait is as asked for
    Batch      hand it over, then come back for the next effect

Invariants: there is a Request before any READ, and a RELEASE after each; the loop ends only when no request is
left to send, or by raising an error that no retry mends.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol.effects import READ, RELEASE, Head, Move
from durable_streams.protocol.reader import Batch, Reader
from durable_streams.protocol.request import ERROR_BODY_LIMIT, Request

__all__ = ["Effect", "Failure", "Flow", "LongWait", "follow"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that no retry mends; perhaps the caller does (``on_error``)."""

    error: DurableStreamError


@dataclass(frozen=True, slots=True)
class LongWait:
    """A refusal that asks for a long pause, and the seconds until the next request."""

    error: DurableStreamError
    seconds: float


Effect = Request | Literal[Move.READ, Move.RELEASE] | Failure | LongWait | Batch
Flow = Generator[Effect, Any, None]
"""What `follow` is: yields effects, is sent what they gave."""


def follow(reader: Reader, clock: Callable[[], float]) -> Flow:
    """Return the loop that reads until ``reader`` is finished. ``clock`` gives seconds of any steady clock."""
    while (request := reader.next_request()) is not None:
        try:
            yield from _round(reader, clock, request)
        except DurableStreamError as error:
            yield RELEASE
            if not (yield Failure(error)):
                raise
            reader.resume()
        if reader.long_wait is not None and (yield LongWait(reader.long_wait, reader.delay)):
            reader.hurry()


def _round(reader: Reader, clock: Callable[[], float], request: Request) -> Flow:
    try:
        head: Head = yield request
    except FetchError as error:
        yield from reader.response_ended(error, clock())
        return
    reader.response_started(head.status, head.headers, clock())
    failure = yield from (_body(reader, clock) if reader.accepted else _refusal(reader, clock))
    yield RELEASE
    yield from reader.response_ended(failure, clock())


def _body(reader: Reader, clock: Callable[[], float]) -> Generator[Effect, Any, FetchError | None]:
    slow: FetchError | None = None
    while not reader.finished and slow is None:
        asked = clock()  # what is done with the data in between is no time of the server's
        try:
            chunk: bytes = yield READ
        except FetchError as error:
            return error
        if not chunk:
            return None
        seconds = clock() - asked
        yield from reader.receive(chunk)
        slow = reader.too_slow(seconds)
    return slow


def _refusal(reader: Reader, clock: Callable[[], float]) -> Generator[Effect, Any, None]:
    if reader.status is not None and reader.status < 300:
        return  # no error: data in a form that is not taken, perhaps without an end
    size, asked = 0, clock()
    while size < ERROR_BODY_LIMIT and clock() - asked <= reader.trickle:
        try:
            chunk: bytes = yield READ
        except FetchError:
            return  # the status has decided already
        if not chunk:
            return
        size += len(chunk)
        reader.receive(chunk)
