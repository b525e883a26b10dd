"""The effects of machines: the one vocabulary of readers, operations and feeds.

A machine is a generator. It yields effects, is sent their results, and returns its own; it has no socket, no
clock and no thread of its own, so that a test can play any course of events. The driver performs each effect:

    Send       send the request, keep its answer open; give the answer's head (`Head`)
    READ       give the next bytes of the open answer's body as soon as there are some, b"" at its end
    RELEASE    close the open answer; without one, do nothing
    Pause      sleep
    Call       call the function of this name, if the caller has set it; give its result
    Give       hand the value over, then come back for the next effect

Invariants: a machine sends only when no answer is open, so that each `Send` that gave a head is followed by a RELEASE
before the next one. A driver that meets a FetchError in `Send` or READ throws it into the machine at that place; any
other error ends the machine, and the driver releases the open answer. A driver may also stop at any effect and never
come back: nothing in a machine depends on its end.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, Protocol, TypeVar

from durable_streams.protocol.request import Request

__all__ = ["READ", "RELEASE", "Call", "Effect", "Give", "Head", "Machine", "Move", "Pause", "Send"]

T = TypeVar("T")


class Head(Protocol):
    """The head of an answer, header names in lower case."""

    @property
    def status(self) -> int: ...  # noqa: D102

    @property
    def headers(self) -> Mapping[str, str]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Send:
    """Send this request and give the head of its answer, which stays open until RELEASE."""

    request: Request


class Move(Enum):
    """An effect on the open answer."""

    READ = "read"
    RELEASE = "release"


READ: Final[Literal[Move.READ]] = Move.READ
"""Give the next bytes of the open answer's body, b"" at its end."""

RELEASE: Final[Literal[Move.RELEASE]] = Move.RELEASE
"""Close the open answer, if there is one."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Sleep for this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Call:
    """Call the function of this name with these arguments, and give its result; None where it is not set."""

    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(
    slots=True
)  # not frozen: one is made for each piece of data, and a frozen one takes three times as long
class Give:
    """Hand this value over to the consumer, and come back for the next effect when it asks for more."""

    value: Any


Effect = Send | Literal[Move.READ, Move.RELEASE] | Pause | Call | Give

Machine = Generator[Effect, Any, T]
"""Yields effects, is sent their results, returns its own. A part of a machine is one too."""
