"""Grants: which operations a caller may do on which streams.

Invariants: what no rule allows is denied; a pattern is matched in one pass over the segments of a path, whatever its
stars are.

    read,append:jobs/**     operations, a colon, and a pattern of paths below the root of the streams

In a pattern ``*`` stands for one segment and ``**`` for any number of them, also none; every other segment is literal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Literal, NamedTuple, get_args

import msgspec

from durable_streams.protocol.globs import Automaton, Glob, Part, Wildcard

__all__ = ["EVERYTHING", "OPERATIONS", "Grant", "Operation", "PathPattern", "Reach", "Rule", "operations_of"]

Operation = Literal["read", "append", "create", "delete", "trim", "list", "subscribe", "admin"]
"""What a caller wants to do. ``admin`` is what concerns the server itself, and includes none of the others."""

OPERATIONS: tuple[Operation, ...] = get_args(Operation)

_BITS = {operation: 1 << number for number, operation in enumerate(OPERATIONS)}
_ALL_BITS = (1 << len(OPERATIONS)) - 1
_MAX_PATTERN = 1024  # characters, like a path
_MAX_SEGMENTS = 64
_MAX_RULES = 64
_MAX_STEPS = 20_000  # of a comparison of patterns: some milliseconds


class Reach(NamedTuple):
    """Paths that are next to each other in the order of all paths.

    Attributes:
        text: What they begin with.
        is_whole: Whether it is the text itself only.
    """

    text: str
    is_whole: bool = False

    def within(self, prefix: str) -> Reach | None:
        """Return those that begin with a prefix, None if none can."""
        if self.text.startswith(prefix):
            return self
        return Reach(prefix) if prefix.startswith(self.text) and not self.is_whole else None


class PathPattern(msgspec.Struct, frozen=True):
    """A pattern of paths.

    Most patterns are one path, or everything below one: these are compared as texts, ``prefix`` with its last slash.
    ``parts`` is None where the text is one path, whatever stars are in it.
    """

    text: str
    parts: tuple[Part, ...] | None
    automaton: Automaton | None = None
    prefix: str | None = None

    @classmethod
    def parse(cls, text: str) -> PathPattern:
        """Return the pattern that a text stands for; raises ValueError with one sentence."""
        if not text or len(text) > _MAX_PATTERN:
            raise ValueError(
                f"a pattern of paths has 1 to {_MAX_PATTERN} characters, this one has {len(text)}"
            )
        segments = text.split("/")
        if len(segments) > _MAX_SEGMENTS:
            raise ValueError(
                f"a pattern of paths has at most {_MAX_SEGMENTS} segments, this one has {len(segments)}"
            )
        if not segments[0]:
            raise ValueError(f"a pattern begins with a segment, not with a slash: {text[1:81]!r}")
        parts = tuple(map(_part, segments))
        if "*" not in text:
            return cls.literal(text)
        known = text.removesuffix("**")
        prefix = known if known[-1:] in ("", "/") and "*" not in known else None
        return cls(text, parts, Automaton.of(parts), prefix)

    @classmethod
    def literal(cls, path: str) -> PathPattern:
        """Return the pattern that one path matches, whatever stars are in it."""
        return cls(path, None)

    @property
    def is_everything(self) -> bool:
        """Whether every path matches."""
        return self.parts is not None and set(self.parts) == {Wildcard.ANY}

    @property
    def whole_automaton(self) -> Automaton:
        """An automaton that matches the same paths."""
        return Automaton.of(self.text.split("/")) if self.automaton is None else self.automaton

    def reach(self) -> list[Reach]:
        """Return where the paths are that may match."""
        if self.parts is None:
            return [Reach(self.text, is_whole=True)]
        known = list(takewhile(lambda part: isinstance(part, str), self.parts))
        if not known:
            return [Reach("")]
        head = "/".join(map(str, known))
        below = [Reach(f"{head}/")]
        return [Reach(head, is_whole=True), *below] if self.parts[len(known)] is Wildcard.ANY else below

    def matches(self, path: str) -> bool:
        """Whether a path matches."""
        if self.prefix is not None:
            return path.startswith(self.prefix) or path == self.prefix[:-1]
        if self.automaton is None:
            return path == self.text
        return self.automaton.matches(path.split("/"))


def _part(segment: str) -> Part:
    if segment in ("*", "**"):
        return Wildcard(segment)
    if "*" in segment:
        raise ValueError(f"a * in a pattern stands for a whole segment, which {segment[:80]!r} is not")
    return segment


class Rule(msgspec.Struct, frozen=True):
    """Some operations on the streams of a pattern."""

    bits: int
    pattern: PathPattern

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Return the rule of a text such as ``read,append:jobs/**``; raises ValueError with one sentence."""
        names, colon, pattern = text.partition(":")
        if not colon:
            raise ValueError(
                f"{text[:80]!r} is no grant: write operations, a colon and a pattern, as in read,append:jobs/**"
            )
        bits = 0
        for name in names.split(","):
            bit = _ALL_BITS if name.strip() == "*" else _BITS.get(name.strip())  # type: ignore[call-overload]
            if bit is None:
                raise ValueError(
                    f"{name.strip()[:80]!r} is no operation; those are {', '.join(OPERATIONS)}, and * for all of them"
                )
            bits |= bit
        return cls(bits, PathPattern.parse(pattern.strip()))

    def __str__(self) -> str:
        names = [name for name in OPERATIONS if self.bits & _BITS[name]]
        return f"{'*' if self.bits == _ALL_BITS else ','.join(names)}:{self.pattern.text}"


class Grant(msgspec.Struct, frozen=True):
    """What a caller may do, and until when.

    Args:
        rules: What is allowed; nothing else is.
        subject: Who the caller is: quotas count by it, and a producer may belong to it.
        expires: When it ends, in seconds since 1970; None for no end.
    """

    rules: tuple[Rule, ...] = ()
    subject: str = ""
    expires: float | None = None

    @classmethod
    def of(cls, *texts: str, subject: str = "", expires: float | None = None) -> Grant:
        """Return the grant of texts such as ``read,append:jobs/**``.

        Args:
            *texts: Operations (or ``*`` for all), a colon, and a pattern of paths; at most 64 of them.
            subject: Who the caller is.
            expires: When it ends, in seconds since 1970.

        Raises:
            ValueError: One of them is malformed; the message is one sentence.
        """
        if len(texts) > _MAX_RULES:
            raise ValueError(f"a grant has at most {_MAX_RULES} rules, this one has {len(texts)}")
        return cls(tuple(Rule.parse(text) for text in texts), subject, expires)

    @classmethod
    def on_path(
        cls, path: str, operations: Iterable[Operation], subject: str = "", expires: float | None = None
    ) -> Grant:
        """Return the grant of some operations on one stream.

        Args:
            path: The path of the stream, literally.
            operations: What is allowed.
            subject: Who the caller is.
            expires: When it ends, in seconds since 1970.
        """
        bits = sum({_BITS[operation] for operation in operations})
        return cls((Rule(bits, PathPattern.literal(path)),), subject, expires)

    def allows(self, operation: Operation, path: str) -> bool:
        """Whether an operation on a stream is allowed, given its path below the root of the streams."""
        bit = _BITS[operation]
        for rule in self.rules:  # noqa: SIM110 - any() takes twice as long, for every request
            if rule.bits & bit and rule.pattern.matches(path):
                return True
        return False

    def allows_somewhere(self, operation: Operation) -> bool:
        """Whether an operation is allowed on some streams, whichever they are."""
        return any(rule.bits & _BITS[operation] for rule in self.rules)

    def allows_everywhere(self, operation: Operation) -> bool:
        """Whether an operation is allowed on every stream."""
        return any(rule.bits & _BITS[operation] and rule.pattern.is_everything for rule in self.rules)

    def covers(self, operation: Operation, glob: Glob) -> bool:
        """Whether an operation is allowed on every path without empty segments that a pattern matches.

        Args:
            operation: The operation.
            glob: The pattern. One whose comparison with the rules takes too many steps is not covered.
        """
        bit = _BITS[operation]
        patterns = [rule.pattern.whole_automaton for rule in self.rules if rule.bits & bit]
        # One of them is enough for most, and cheap; all of them together are not.
        return any(_include([one], glob) for one in patterns) or _include(patterns, glob)

    def reach(self, operation: Operation) -> list[Reach]:
        """Return where the paths are on which an operation may be allowed: in order, and none of them twice."""
        bit = _BITS[operation]
        found = {one for rule in self.rules if rule.bits & bit for one in rule.pattern.reach()}
        reach: list[Reach] = []
        for one in sorted(found):
            if not reach or reach[-1].is_whole or not one.text.startswith(reach[-1].text):
                reach.append(one)
        return reach

    def texts(self) -> list[str]:
        """Return the rules as texts."""
        return [str(rule) for rule in self.rules]


def _include(patterns: Sequence[Automaton], glob: Glob) -> bool:
    """Whether each path of a glob matches one of some patterns.

    A search for one that does not: it goes through the glob segment by segment, with the states of all patterns.
    """
    named = [part for part in glob.parts if isinstance(part, str)]
    alphabet = [*dict.fromkeys((*named, *(text for one in patterns for text in one.literals))), None]
    begin = (0, tuple([one.begin for one in patterns]), False)
    seen, waiting, steps = {begin}, [begin], 0
    while waiting:
        at, states, is_path = waiting.pop()
        is_over = at == len(glob.parts)
        if not any(states) or (is_over and is_path and not _is_final(patterns, states)):
            return False
        if is_over:
            continue
        part = glob.parts[at]
        segments = [part] if isinstance(part, str) else alphabet
        steps += len(segments) * len(patterns)
        if steps > _MAX_STEPS:
            return False
        stays = part is Wildcard.ANY
        found = {(at + 1, states, is_path)} if stays else set()
        for segment in segments:
            after = tuple([one.step(now, segment) for one, now in zip(patterns, states, strict=True)])
            found.add((at if stays else at + 1, after, True))
        waiting += found - seen
        seen |= found
    return True


def _is_final(patterns: Sequence[Automaton], states: Sequence[int]) -> bool:
    return any(one.final & now for one, now in zip(patterns, states, strict=True))


def operations_of(names: Iterable[str]) -> list[Operation]:
    """Return operations by their names, in their order; raises ValueError for one that there is not."""
    bits = Rule.parse(f"{','.join(names)}:**").bits
    return [operation for operation in OPERATIONS if bits & _BITS[operation]]


EVERYTHING = Grant.of("*:**")
"""All operations on all streams."""
