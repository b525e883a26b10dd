"""Patterns of paths: ``*`` is one segment, ``**`` any number of them, the rest is literal.

Invariants: a match is one pass over the segments of a path, whatever the stars of the pattern are; there are no partial
wildcards. `Automaton` is the match; `Glob` is a pattern of stream paths as the protocol has them (section 8), and
`grants.PathPattern` one of those that say who may do what. In a `Glob` a segment ``a*`` matches ``a*`` only, and
``%2A`` is a literal ``*``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

import msgspec

__all__ = ["MAX_WILDCARDS", "Automaton", "Glob", "Part", "Wildcard", "is_regular", "segments"]

MAX_WILDCARDS = 16
"""The most ``**`` of a pattern."""


class Wildcard(Enum):
    """What stands for segments that are not known."""

    ONE = "*"
    ANY = "**"


Part = str | Wildcard
"""A segment of a pattern."""


class Automaton(msgspec.Struct, frozen=True):
    """A pattern, ready to be matched: its parts are the states, one bit each.

    Bit n is set where the first n parts have matched what came so far.
    """

    literals: dict[str, int]
    ones: int
    anys: int
    final: int

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Automaton:
        """Return the automaton of a pattern's parts."""
        literals: dict[str, int] = {}
        ones = anys = 0
        bit = 1
        for part in parts:
            if part is Wildcard.ANY:
                if anys & (bit >> 1):
                    continue  # of several in a row one is enough
                anys |= bit
            elif part is Wildcard.ONE:
                ones |= bit
            else:
                literals[part] = literals.get(part, 0) | bit
            bit <<= 1
        return cls(literals, ones, anys, bit)

    def matches(self, path: Iterable[str]) -> bool:
        """Whether a path, given as its segments, matches."""
        states = self.begin
        for segment in path:
            states = self.step(states, segment)
            if not states:
                return False
        return bool(states & self.final)

    @property
    def begin(self) -> int:
        """The states before the first segment: a ``**`` is passed without one."""
        return 1 | ((1 & self.anys) << 1)

    def step(self, states: int, segment: str | None) -> int:
        """Return the states after one more segment; None is one that no pattern names."""
        literal = 0 if segment is None else self.literals.get(segment, 0)
        states = ((states & (self.ones | literal)) << 1) | (states & self.anys)
        return states | (states & self.anys) << 1


def segments(path: str) -> list[str]:
    """Return the segments of a path; empty ones do not count."""
    return [segment for segment in path.split("/") if segment]


def is_regular(path: str) -> bool:
    """Whether no segment of a path is empty."""
    return "//" not in path and path[:1] != "/" and path[-1:] != "/"


class Glob:
    """A pattern of stream paths.

    Attributes:
        parts: Its segments.
        prefix: The first segment, None where that is a wildcard.

    Args:
        pattern: The pattern as text.

    Raises:
        ValueError: It has no segment, or more than `MAX_WILDCARDS` times ``**``.
    """

    __slots__ = ("_automaton", "parts", "prefix")

    def __init__(self, pattern: str) -> None:
        self.parts = parts = [_part(segment) for segment in segments(pattern)]
        if not parts:
            raise ValueError("a pattern has at least one segment")
        self._automaton = Automaton.of(parts)
        if self._automaton.anys.bit_count() > MAX_WILDCARDS:
            raise ValueError(f"a pattern has at most {MAX_WILDCARDS} times **")
        first = parts[0]
        self.prefix = first if isinstance(first, str) else None

    def matches(self, path: Sequence[str]) -> bool:
        """Whether a path, given as its segments, matches."""
        if self.prefix is not None and (not path or path[0] != self.prefix):
            return False
        return self._automaton.matches(path)


def _part(segment: str) -> Part:
    if segment in ("*", "**"):
        return Wildcard(segment)
    return segment.replace("%2A", "*").replace("%2a", "*")
