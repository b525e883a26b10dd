"""The server's rules: a stream's state and a command in, the next state or a Rejection out.

Invariants: every function is pure; a rule sees time as an argument; a store calls them inside its serialised step and
commits what they return, whole or not at all.
"""

from __future__ import annotations

from msgspec.structs import replace

from durable_streams.protocol import headers, jsonmode, retention
from durable_streams.protocol.commands import Append, Appended, Create, Created, Rejection
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import ProducerStamp, ProducerState, Segment, StreamState

__all__ = [
    "MILESTONE_RECORDS",
    "MILESTONE_SECONDS",
    "check_fork_source",
    "closed",
    "decide_append",
    "decide_create",
    "decide_release",
    "decide_touch",
    "is_expired",
    "is_milestone",
    "json_payload",
    "not_found",
    "other_content_type",
    "other_tail",
    "prepare_append",
    "require",
    "unknown_offset",
]

MILESTONE_RECORDS = 256
"""Appends between two milestones at most."""
MILESTONE_SECONDS = 5.0
"""Seconds between the first append since one milestone and the next milestone, at most."""

_TOUCH_SHARE = 0.1
_MAX_TOUCH_SLACK = 60.0


def not_found() -> Rejection:
    """Return the 404 of a path without a stream."""
    return Rejection(404, "NOT_FOUND", "there is no stream at this path, or it expired; create it first")


def _bad_request(message: str) -> Rejection:
    return Rejection(400, "BAD_REQUEST", message)


def unknown_offset(position: int) -> Rejection:
    """Return the 400 of an offset that this stream never had."""
    return Rejection(
        400,
        "BAD_REQUEST",
        f"offset {format_offset(position)} is none of this stream's: use one from its answers, -1, or now",
    )


def require(state: StreamState | None) -> StreamState:
    """Return the state of a stream that can be used; raises the 404 or 410 of one that cannot."""
    if state is None:
        raise not_found()
    if state.deleted:
        raise Rejection(410, "GONE", "the stream was deleted; its data is kept only for its forks")
    return state


# -- create (sections 3 and 6)


def decide_create(
    existing: StreamState | None, source: StreamState | None, command: Create, new_id: int, now: float
) -> Created:
    """Return the stream that ``command`` makes, or the equal one that is already there."""
    if existing is not None:
        if existing.deleted:
            raise Rejection(
                409, "CONFLICT_EXISTS", "the path belongs to a deleted stream that still has forks"
            )
        if not _same_configuration(existing, command):
            raise Rejection(
                409, "CONFLICT_EXISTS", "a stream with another configuration already exists at this path"
            )
        return Created(existing, new=False)
    state = _new_state(command, new_id) if command.fork is None else _new_fork(source, command, new_id)
    begin = state.tail
    tail = begin + len(command.payload)
    state = replace(
        _with_deadline(state, now),
        tail=tail,
        closed=command.closed,
        created=now,
        records=1 if command.payload else 0,
        appended=now if command.payload else None,
    )
    policy = command.policy
    if policy is None and command.fork is not None and source is not None and source.retention is not None:
        policy = source.retention.policy
    if policy is not None:
        state = replace(state, retention=retention.retention_of(policy, state, now))
    return Created(state, new=True)


def _same_configuration(existing: StreamState, command: Create) -> bool:
    inherits = command.fork is not None
    if command.fork is not None:
        same_origin = (existing.forked_from, existing.fork_position) == (
            command.fork.path,
            command.fork.position,
        )
    else:
        same_origin = existing.forked_from is None
    content_type = command.content_type or (
        existing.content_type if inherits else headers.DEFAULT_CONTENT_TYPE
    )
    expiry_given = command.ttl is not None or command.expires_at is not None
    same_expiry = existing.ttl == command.ttl and _expiry(existing) == _expiry(command)
    asked = command.policy
    kept = None if existing.retention is None else existing.retention.policy
    return (
        same_origin
        and headers.media_type(existing.content_type) == headers.media_type(content_type)
        and existing.closed == command.closed
        and (same_expiry or (inherits and not expiry_given))
        # Nothing asked for is any policy: an administrator may have changed it since.
        and (asked is None or asked.is_default or asked == kept)
    )


def _expiry(of: StreamState | Create) -> float | None:
    """Return when a stream expires whatever touches it: a moment, however it is spelled."""
    return None if of.expires_at is None else of.deadline


def _new_state(command: Create, new_id: int) -> StreamState:
    return StreamState(
        id=new_id,
        path=command.path,
        content_type=command.content_type or headers.DEFAULT_CONTENT_TYPE,
        ttl=command.ttl,
        expires_at=command.expires_at,
        deadline=command.deadline,
    )


def _new_fork(source: StreamState | None, command: Create, new_id: int) -> StreamState:
    fork = command.fork
    if fork is None or source is None or source.id != fork.source_id:
        raise Rejection(404, "NOT_FOUND", "there is no stream at the path to fork from")
    check_fork_source(source, command.content_type)
    retention.check_retained(source, fork.position)
    own_expiry = command.ttl is not None or command.expires_at is not None
    return StreamState(
        id=new_id,
        path=command.path,
        content_type=command.content_type or source.content_type,
        tail=fork.position,
        ttl=command.ttl if own_expiry else source.ttl,
        expires_at=command.expires_at if own_expiry else source.expires_at,
        deadline=command.deadline if own_expiry or source.ttl is not None else source.deadline,
        forked_from=fork.path,
        fork_position=fork.position,
        lineage=_lineage(source, fork.position),
        earliest=source.earliest,
        floor=source.earliest,
    )


def check_fork_source(source: StreamState | None, content_type: str | None) -> StreamState:
    """Return the source if it can be forked with this content type; raises its 404 or 409."""
    if source is None:
        raise Rejection(404, "NOT_FOUND", "there is no stream at the path to fork from")
    if source.deleted:
        raise Rejection(409, "CONFLICT_DELETED", "the stream to fork from was deleted")
    if content_type is not None and headers.media_type(content_type) != headers.media_type(
        source.content_type
    ):
        raise Rejection(
            409, "CONFLICT_CONTENT_TYPE", f"a fork has its source's content type, {source.content_type[:80]}"
        )
    return source


def _lineage(source: StreamState, position: int) -> tuple[Segment, ...]:
    kept = [segment for segment in source.lineage if segment.end < position]
    cut = [segment for segment in source.lineage if segment.end >= position]
    # A fork point inside inherited bytes leaves the source itself out: those bytes are its ancestor's.
    return (*kept, Segment(cut[0].id if cut else source.id, position))


# -- append and close (section 4)


def prepare_append(state: StreamState | None, content_type: str | None, body: bytes, *, close: bool) -> bytes:
    """Return the payload of an append in stored form (section 4).

    Args:
        state: The stream as it is known now; `decide_append` decides on the one at the commit.
        content_type: What the request says it brings, None if it does not say.
        body: The request's body.
        close: Whether the request closes the stream.

    Raises:
        Rejection: There is no such stream, the body is empty where it must not be, of another type, or not JSON
            where the stream is.
    """
    state = require(state)
    if not body:
        if not close:
            raise _bad_request("the body is empty: send data, or Stream-Closed: true to close the stream")
        return body
    if content_type is None:
        raise _bad_request(f"Content-Type is missing: the stream holds {state.content_type[:80]}")
    if content_type != state.content_type:
        _check_content_type(state, content_type)
    if not state.is_json:
        return body
    try:
        payload = json_payload(body)
    except Rejection:
        if state.closed:
            raise closed(state) from None
        raise
    if not payload:
        raise _bad_request("an empty array appends nothing: send at least one message")
    return payload


def json_payload(body: bytes) -> bytes:
    """Return the stored form of a JSON body; raises the 400 of one that is not JSON."""
    try:
        return jsonmode.payload_from_body(body)
    except jsonmode.InvalidJSONError as error:
        raise _bad_request(f"the body is not valid JSON: {error}") from None


def other_content_type(state: StreamState, content_type: str) -> Rejection:
    """Return the 409 of an append of another content type than the stream's."""
    return Rejection(
        409,
        "CONFLICT_CONTENT_TYPE",
        f"the stream holds {state.content_type[:80]}, the request brings {content_type[:80]}",
    )


def _check_content_type(state: StreamState, content_type: str) -> None:
    if not headers.same_media_type(content_type, state.content_type):
        raise closed(state) if state.closed else other_content_type(state, content_type)


def decide_append(
    state: StreamState, producer: ProducerState | None, command: Append, now: float
) -> Appended:
    """Return the stream and the producer after ``command``; a duplicate returns them unchanged."""
    stamp = command.producer
    if state.closed:
        return _decide_on_closed(state, producer, command)
    if command.content_type is not None and command.content_type != state.content_type:
        _check_content_type(state, command.content_type)
    if stamp is not None and _is_duplicate(producer, stamp):
        return Appended(state, producer, duplicate=True)
    if command.expected is not None and command.expected != state.tail:
        raise other_tail(state, command.expected)
    last_seq = state.last_seq
    if command.seq is not None:
        if last_seq is not None and command.seq.encode() <= last_seq.encode():
            raise Rejection(
                409,
                "CONFLICT_SEQ",
                f"Stream-Seq {command.seq[:80]} is not greater than the last one, {last_seq[:80]}",
            )
        last_seq = command.seq
    tail, records, appended = state.tail + len(command.payload), state.records, state.appended
    if command.payload:
        records, appended = None if records is None else records + 1, now
    if command.close:
        changed = replace(
            state,
            tail=tail,
            last_seq=last_seq,
            closed=True,
            closed_by=stamp,
            records=records,
            appended=appended,
        )
    elif command.seq is not None:
        changed = replace(state, tail=tail, last_seq=last_seq, records=records, appended=appended)
    else:
        changed = replace(state, tail=tail, records=records, appended=appended)
    return Appended(changed, None if stamp is None else ProducerState(stamp.epoch, stamp.seq))


def is_milestone(before: StreamState, after: StreamState) -> bool:
    """Whether an append is one after which a store that writes few states writes this one.

    What was appended since a written state are then less than `MILESTONE_RECORDS`, which can be counted, and the time
    of the last append is known to `MILESTONE_SECONDS`.
    """
    count = after.records
    if count is not None and count % MILESTONE_RECORDS == 0 and count != before.records:
        return True
    now, last = after.appended, before.appended
    if now is None or now is last:
        return False  # nothing was appended, or in the same commit
    return last is None or not now - now % MILESTONE_SECONDS <= last <= now


def closed(state: StreamState) -> Rejection:
    """Return the 409 of an append to a closed stream."""
    explanation = {headers.STREAM_CLOSED: "true", headers.STREAM_NEXT_OFFSET: format_offset(state.tail)}
    return Rejection(409, "STREAM_CLOSED", "the stream is closed, nothing can be appended", explanation)


def other_tail(state: StreamState, expected: int) -> Rejection:
    """Return the 412 of an append that expects another tail than the stream's."""
    tail = format_offset(state.tail)
    explanation = {headers.STREAM_NEXT_OFFSET: tail, headers.ETAG: f'"{tail}"'}
    if state.closed:
        explanation[headers.STREAM_CLOSED] = "true"
    return Rejection(
        412,
        "CONFLICT_OFFSET",
        f"the stream ends at {tail}, not at {format_offset(expected)}, where this append has to begin",
        explanation,
    )


def _decide_on_closed(state: StreamState, producer: ProducerState | None, command: Append) -> Appended:
    stamp = command.producer
    if (
        stamp is not None
        and producer is not None
        and producer.epoch == stamp.epoch
        and stamp.seq <= producer.seq
    ):
        # What was acknowledged once stays acknowledged: a retry must not read as a loss because of a later close.
        return Appended(state, producer, duplicate=True)
    if command.close and not command.payload:
        if command.expected is not None and command.expected != state.tail:
            raise other_tail(state, command.expected)
        return Appended(state, producer, duplicate=True)
    raise closed(state)


def _is_duplicate(producer: ProducerState | None, stamp: ProducerStamp) -> bool:
    """Apply the producer table of section 4; true for a duplicate, false for new data, else a Rejection."""
    if producer is None:
        if stamp.seq != 0:
            raise _gap(0, stamp.seq)
        return False
    if stamp.epoch < producer.epoch:
        raise Rejection(
            403,
            "STALE_EPOCH",
            f"epoch {stamp.epoch} of producer {stamp.id[:80]} was superseded by epoch {producer.epoch}",
            {headers.PRODUCER_EPOCH: str(producer.epoch)},
        )
    if stamp.epoch > producer.epoch:
        if stamp.seq != 0:
            raise _bad_request(f"a new epoch starts with Producer-Seq 0, not {stamp.seq}")
        return False
    if stamp.seq <= producer.seq:
        return True
    if stamp.seq > producer.seq + 1:
        raise _gap(producer.seq + 1, stamp.seq)
    return False


def _gap(expected: int, received: int) -> Rejection:
    explanation = {headers.PRODUCER_EXPECTED_SEQ: str(expected), headers.PRODUCER_RECEIVED_SEQ: str(received)}
    return Rejection(
        409, "SEQUENCE_GAP", f"Producer-Seq {received} skips ahead, {expected} comes next", explanation
    )


# -- expiry and deletion (sections 3 and 6)


def touch_slack(ttl: int) -> float:
    """Return how far a stored deadline may lag behind the last touch, in seconds: what spares a write per read."""
    return min(ttl * _TOUCH_SHARE, _MAX_TOUCH_SLACK)


def _with_deadline(state: StreamState, now: float) -> StreamState:
    if state.ttl is None:
        return state
    # The stored deadline errs on the late side, so that a restart never expires a stream early.
    return replace(state, deadline=now + state.ttl + touch_slack(state.ttl))


def decide_touch(state: StreamState, now: float) -> StreamState | None:
    """Return the state with its sliding window restarted, or None if what is stored is still good enough."""
    if state.ttl is None or state.deadline is None or state.deadline - now > state.ttl:
        return None
    return _with_deadline(state, now)


def is_expired(state: StreamState, touched: float | None, now: float) -> bool:
    """Whether a stream is past its end; ``touched`` is its last touch, where the store remembers one."""
    if state.deleted or state.deadline is None:
        return False
    if state.ttl is not None and touched is not None:
        return now >= touched + state.ttl
    return now >= state.deadline


def decide_release(state: StreamState, ancestors: list[StreamState]) -> list[StreamState | None]:
    """Delete a stream: return what becomes of it and of each ancestor in turn, None for one whose data goes too.

    ``ancestors`` run from the stream it was forked from upwards. A stream with forks is kept, soft-deleted; the
    last fork's end frees it, up the whole chain.
    """
    if state.forks:
        return [replace(state, deleted=True)]
    outcome: list[StreamState | None] = [None]
    for ancestor in ancestors:
        left = replace(ancestor, forks=ancestor.forks - 1)
        if not left.forks:
            left = replace(left, floor=left.earliest)
        if left.forks or not left.deleted:
            outcome.append(left)
            break
        outcome.append(None)
    return outcome
