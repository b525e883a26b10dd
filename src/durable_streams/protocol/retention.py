"""Retention: what a stream keeps, and which bytes it gives up (``__ds/streams/…/trim``, ``…/retention``).

Invariants:
* ``earliest`` only grows, up to the tail, and is always where an append begins, or the tail;
* a stream with forks keeps its bytes from ``floor`` on: each fork began at that position or behind it;
* what a policy needs to know is in the state, as a few marks: no decision reads the stream.

A mark says when the append at a position came. The appends from one mark to the next are given up together, so that
at most 1/32 of a limit is kept beyond an age, and about as much is given up before a size is reached.
"""

from __future__ import annotations

from msgspec.structs import replace

from durable_streams.protocol import headers
from durable_streams.protocol.commands import Rejection, SetRetention, Trim
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import Policy, Retention, StreamState

__all__ = [
    "after_append",
    "check_retained",
    "decide_due",
    "decide_retention",
    "decide_trim",
    "due_at",
    "gone",
    "retention_of",
]

_PARTS = 32  # of a limit: how finely it is kept


def gone(state: StreamState) -> Rejection:
    """Return the 410 of a read before what is retained."""
    earliest = format_offset(state.earliest)
    return Rejection(
        410,
        "RETENTION_GONE",
        f"the offset is before what is retained: the stream begins at {earliest}",
        {headers.STREAM_EARLIEST_OFFSET: earliest},
    )


def check_retained(state: StreamState, position: int) -> None:
    """Return if a position can be read from; raises the 410 of one before what is retained."""
    if position < state.earliest:
        raise gone(state)


def retention_of(policy: Policy | None, state: StreamState, now: float) -> Retention | None:
    """Return the retention of a stream that gets a policy; all that it holds counts as having come now."""
    if policy is None:
        return None
    return Retention(policy, ((now, state.earliest),) if state.tail > state.earliest else ())


def decide_trim(state: StreamState, command: Trim, now: float) -> StreamState:
    """Return the state that has given up what a command says; unchanged if it has given that up already."""
    if state.id != command.stream_id:
        raise Rejection(
            404, "NOT_FOUND", "the stream was deleted and created again: ask for the new one's offsets"
        )
    position = command.position if command.max_age is None else _older_than(state, command.max_age, now)
    if position <= state.earliest:
        return state
    return _trimmed(state, min(position, state.tail))


def _older_than(state: StreamState, max_age: int, now: float) -> int:
    """Return the end of what is certainly older than ``max_age`` seconds."""
    retention = state.retention
    if retention is None or retention.policy.max_age is None:
        raise Rejection(
            409,
            "CONFLICT",
            "the stream does not know how old its data are: give it a retention with max_age, from then on it does",
        )
    marks, position, part = retention.marks, 0, retention.policy.max_age / _PARTS
    for index, (at, _) in enumerate(marks):
        is_last = index + 1 == len(marks)
        newest = at + part if is_last else min(at + part, marks[index + 1][0])
        if newest + max_age > now:
            break
        position = state.tail if is_last else marks[index + 1][1]
    return position


def decide_retention(state: StreamState, command: SetRetention, now: float) -> StreamState:
    """Return the state with another policy, or none; unchanged if it has that policy."""
    present = state.retention
    if (None if present is None else present.policy) == command.policy:
        return state
    changed = replace(state, retention=retention_of(command.policy, state, now), trims=state.trims + 1)
    return _kept(changed, now)


def after_append(state: StreamState, begin: int, now: float) -> StreamState:
    """Return the state of a stream with a retention after an append that began at ``begin``."""
    retention = state.retention
    if retention is None or begin == state.tail:
        return state
    marks, policy = retention.marks, retention.policy
    last = marks[-1] if marks else None
    if last is None or _is_full(policy, last, begin, now):
        marks = (*marks, (now, begin))
        state = replace(state, retention=Retention(policy, marks), trims=state.trims + 1)
    return _kept(state, now)


def decide_due(state: StreamState, now: float) -> StreamState:
    """Return the state that has given up what is too old."""
    return state if state.retention is None else _kept(state, now)


def due_at(state: StreamState) -> float | None:
    """Return when a stream has to be looked at next: it expires, or its oldest data are too old; None for never."""
    if state.deleted:
        return None
    retention, deadline = state.retention, state.deadline
    if retention is None or retention.policy.max_age is None or not retention.marks:
        return deadline
    too_old = _too_old_at(retention.policy.max_age, retention.marks[0][0])
    return too_old if deadline is None else min(too_old, deadline)


def _is_full(policy: Policy, mark: tuple[float, int], begin: int, now: float) -> bool:
    """Whether the appends since a mark are enough for one part of the limit."""
    at, position = mark
    return (policy.max_age is not None and now - at >= policy.max_age / _PARTS) or (
        policy.max_bytes is not None and begin - position >= policy.max_bytes / _PARTS
    )


def _is_old(policy: Policy, at: float, now: float) -> bool:
    return policy.max_age is not None and now >= _too_old_at(policy.max_age, at)


def _is_large(policy: Policy, position: int, following: int, tail: int) -> bool:
    return policy.max_bytes is not None and tail - position > policy.max_bytes and following < tail


def _too_old_at(max_age: int, marked: float) -> float:
    return marked + max_age + max_age / _PARTS


def _kept(state: StreamState, now: float) -> StreamState:
    """Return the state within its policy; the last append is kept whatever its size."""
    retention = state.retention
    if retention is None:
        return state
    policy, marks, drop = retention.policy, retention.marks, 0
    while drop < len(marks):
        following = marks[drop + 1][1] if drop + 1 < len(marks) else state.tail
        if not (
            _is_old(policy, marks[drop][0], now) or _is_large(policy, marks[drop][1], following, state.tail)
        ):
            break
        drop += 1
    if not drop:
        return state
    return _trimmed(state, marks[drop][1] if drop < len(marks) else state.tail)


def _trimmed(state: StreamState, earliest: int) -> StreamState:
    """Return the state that begins at ``earliest``, which is past the present one."""
    retention = state.retention
    if retention is not None and retention.marks:
        retention = Retention(retention.policy, _marks_from(retention.marks, earliest, state.tail))
    return replace(
        state,
        earliest=earliest,
        floor=state.floor if state.forks else earliest,
        retention=retention,
        trims=state.trims + 1,
    )


def _marks_from(
    marks: tuple[tuple[float, int], ...], earliest: int, tail: int
) -> tuple[tuple[float, int], ...]:
    """Return the marks of what is left: the first one is of the append at ``earliest``, or of one before it."""
    if earliest >= tail:
        return ()
    first = 0
    while first + 1 < len(marks) and marks[first + 1][1] <= earliest:
        first += 1
    return ((marks[first][0], max(earliest, marks[first][1])), *marks[first + 1 :])
