"""Patterns of stream paths (protocol section 8): ``*`` is one segment, ``**`` any number of them, the rest is literal.

Invariants: a match costs at most a comparison for each pair of segments, one of the pattern and one of the path;
there are no partial wildcards: ``a*`` matches a segment ``a*`` only. ``%2A`` in a segment is a literal ``*``.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MAX_WILDCARDS", "Glob", "segments"]

MAX_WILDCARDS = 16
"""The most ``**`` of a pattern."""

_ONE, _ANY = object(), object()


def segments(path: str) -> list[str]:
    """Return the segments of a path; empty ones do not count."""
    return [segment for segment in path.split("/") if segment]


class Glob:
    """A pattern.

    Args:
        pattern: The pattern as text.

    Raises:
        ValueError: It has no segment, or more than `MAX_WILDCARDS` times ``**``.
    """

    __slots__ = ("_parts", "prefix")

    def __init__(self, pattern: str) -> None:
        parts: list[object] = []
        for segment in segments(pattern):
            if segment == "**":
                if parts[-1:] != [_ANY]:  # two in a row say no more than one
                    parts.append(_ANY)
            else:
                parts.append(_ONE if segment == "*" else _literal(segment))
        if not parts:
            raise ValueError("a pattern has at least one segment")
        if parts.count(_ANY) > MAX_WILDCARDS:
            raise ValueError(f"a pattern has at most {MAX_WILDCARDS} times **")
        self._parts = parts
        first = parts[0]
        self.prefix = first if isinstance(first, str) else None

    def matches(self, path: Sequence[str]) -> bool:
        """Whether a path, given as its segments, matches."""
        if self.prefix is not None and (not path or path[0] != self.prefix):
            return False
        # reached[i]: the parts so far match the first i segments.
        reached = [True] + [False] * len(path)
        for part in self._parts:
            if part is _ANY:
                begun = False
                for at, so_far in enumerate(reached):
                    begun = begun or so_far
                    reached[at] = begun
            else:
                for at in range(len(path), 0, -1):
                    reached[at] = reached[at - 1] and (part is _ONE or part == path[at - 1])
                reached[0] = False
        return reached[-1]


def _literal(segment: str) -> str:
    return segment.replace("%2A", "*").replace("%2a", "*")
