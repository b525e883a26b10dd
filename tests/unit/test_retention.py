"""What streams keep: the rules alone, and how people write them down."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from durable_streams.cli.retention import RetentionRuleType
from durable_streams.protocol import retention
from durable_streams.protocol.commands import Rejection, SetRetention, Trim
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import Policy, Retention, StreamState
from durable_streams.server.config import RetentionRule, ServerConfig

NOW = 1_800_000_000.0


@given(
    max_age=st.one_of(st.none(), st.integers(1, 500)),
    max_bytes=st.one_of(st.none(), st.integers(1, 2000)),
    appends=st.lists(st.tuples(st.integers(1, 300), st.floats(0, 50)), max_size=80),
)
def test_a_policy_is_kept_whatever_comes(
    max_age: int | None, max_bytes: int | None, appends: list[tuple[int, float]]
) -> None:
    state = StreamState(1, "s", "a/b", retention=Retention(Policy(max_age, max_bytes)))
    now, begins = NOW, {0: NOW}
    for size, pause in appends:
        now += pause
        begin, before = state.tail, state
        begins[begin] = now
        state = retention.after_append(replace(state, tail=begin + size), begin, now)
        assert before.earliest <= state.earliest <= begin
        assert state.earliest in begins
        assert state.floor == state.earliest
        assert state.retention is not None
        assert len(state.retention.marks) <= 70
        if max_bytes is not None:
            assert state.tail - state.earliest <= max(max_bytes, size + max_bytes / 32)
        if max_age is not None:
            assert begins[state.earliest] >= now - max_age - max_age / 32 - 1e-3
        if max_bytes is None and max_age is None:
            assert state.earliest == 0
    for begin, came in begins.items():
        if max_bytes is None and max_age is not None and came > now - max_age:
            assert begin >= state.earliest
    due = retention.due_at(state)
    if due is not None and state.tail:
        assert retention.decide_due(state, due).earliest > state.earliest


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("jobs/**=7d,1GiB", RetentionRule("jobs/**", 7 * 86400, 1 << 30)),
        ("jobs/*=1GiB , 7d", RetentionRule("jobs/*", 7 * 86400, 1 << 30)),
        ("a=b=90s", RetentionRule("a=b", 90, None)),
        ("**=5m", RetentionRule("**", 300, None)),
        ("**=500", RetentionRule("**", None, 500)),
        ("x=10MB", RetentionRule("x", None, 10_000_000)),
    ],
)
def test_rules_as_people_write_them(text: str, rule: RetentionRule) -> None:
    assert RetentionRuleType().convert(text, None, None) == rule


@pytest.mark.parametrize(
    "text", ["", "jobs", "=7d", "jobs=", "jobs=7d,8d", "jobs=1k,2k", "a=x", "a=0s", "a=7d,", "a=1.5s"]
)
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no rule"):
        RetentionRuleType().convert(text, None, None)


@pytest.mark.parametrize(
    "rule", [("", 5, None), ("/", 5, None), ("a", None, None), ("a", 0, None), ("a", None, 0)]
)
def test_rules_that_make_no_sense(rule: tuple[str, int | None, int | None]) -> None:
    with pytest.raises(ValueError, match="retention of"):
        ServerConfig(retention=[RetentionRule(*rule)])


# -- one decision at a time

SMALL = Policy(max_bytes=32)
# At most 1/32 of an age is kept beyond it: 100 seconds here.
AGED = Policy(max_age=3200)


def stream(
    tail: int, *marks: tuple[float, int], policy: Policy | None = AGED, **changes: object
) -> StreamState:
    kept = None if policy is None else Retention(policy, marks)
    return replace(StreamState(1, "s", "a/b", tail=tail, retention=kept), **changes)


def test_a_read_before_what_is_retained_is_shown_where_the_stream_begins() -> None:
    state = stream(30, policy=None, earliest=10)
    retention.check_retained(state, 10)
    with pytest.raises(Rejection, match="the stream begins at") as caught:
        retention.check_retained(state, 9)
    earliest = format_offset(10)
    assert (caught.value.status, caught.value.code) == (410, "RETENTION_GONE")
    assert caught.value.message.endswith(earliest)
    assert caught.value.headers == {"stream-earliest-offset": earliest}


def test_what_is_there_already_counts_as_having_come_with_the_policy() -> None:
    assert retention.retention_of(None, stream(30), NOW) is None
    assert retention.retention_of(AGED, stream(0), NOW) == Retention(AGED)
    assert retention.retention_of(AGED, stream(30, earliest=10), NOW) == Retention(AGED, ((NOW, 10),))


def test_a_trim_gives_up_what_is_before_a_position_and_no_more_than_there_is() -> None:
    state = stream(30, policy=None)
    trimmed = retention.decide_trim(state, Trim(1, 10), NOW)
    assert trimmed == replace(state, earliest=10, floor=10, trims=1)
    for repeated in (Trim(1, 10), Trim(1, 9)):
        assert retention.decide_trim(trimmed, repeated, NOW) is trimmed
    assert retention.decide_trim(trimmed, Trim(1, 99), NOW) == replace(state, earliest=30, floor=30, trims=2)


def test_a_stream_with_forks_keeps_the_bytes_that_it_gives_up() -> None:
    trimmed = retention.decide_trim(stream(30, policy=None, forks=1), Trim(1, 10), NOW)
    assert (trimmed.earliest, trimmed.floor) == (10, 0)


def test_a_trim_of_the_stream_that_was_at_the_path_before_is_refused() -> None:
    with pytest.raises(Rejection, match="deleted and created again") as caught:
        retention.decide_trim(stream(30), Trim(2, 10), NOW)
    assert (caught.value.status, caught.value.code) == (404, "NOT_FOUND")


def test_a_trim_leaves_the_marks_of_what_is_left() -> None:
    state = stream(30, (NOW, 0), (NOW + 100, 10), (NOW + 200, 20))
    for position, marks in [
        (5, ((NOW, 5), (NOW + 100, 10), (NOW + 200, 20))),
        (10, ((NOW + 100, 10), (NOW + 200, 20))),
        (25, ((NOW + 200, 25),)),
        (30, ()),
    ]:
        trimmed = retention.decide_trim(state, Trim(1, position), NOW + 300)
        assert trimmed.retention == Retention(AGED, marks)


@pytest.mark.parametrize(
    ("now", "earliest"),
    [
        # The appends after a mark come until the next one, or for 100 seconds.
        (1099.0, 0),
        (1100.0, 10),
        (2099.0, 10),
        (2100.0, 20),
        (5099.0, 20),
        (5100.0, 30),
    ],
)
def test_a_trim_by_age_gives_up_what_is_certainly_older(now: float, earliest: int) -> None:
    state = stream(30, (NOW, 0), (NOW + 1000, 10), (NOW + 4000, 20))
    assert retention.decide_trim(state, Trim(1, 0, max_age=1000), NOW + now).earliest == earliest


def test_what_came_before_a_mark_is_older_than_the_mark() -> None:
    state = stream(30, (NOW, 0), (NOW + 10, 10))
    for now, earliest in ((1009.0, 0), (1010.0, 10), (1109.0, 10), (1110.0, 30)):
        assert retention.decide_trim(state, Trim(1, 0, max_age=1000), NOW + now).earliest == earliest


def test_a_trim_by_age_of_an_empty_stream_changes_nothing() -> None:
    state = stream(0)
    assert retention.decide_trim(state, Trim(1, 0, max_age=1), NOW) is state


@pytest.mark.parametrize("policy", [None, Policy(max_bytes=5)])
def test_a_stream_without_an_age_to_keep_does_not_know_how_old_its_data_are(policy: Policy | None) -> None:
    with pytest.raises(Rejection, match="give it a retention with max_age") as caught:
        retention.decide_trim(stream(30, policy=policy), Trim(1, 0, max_age=1), NOW)
    assert (caught.value.status, caught.value.code) == (409, "CONFLICT")


def test_another_policy_begins_with_what_is_there() -> None:
    state = stream(100, (NOW - 100, 0))
    changed = retention.decide_retention(state, SetRetention(SMALL), NOW)
    # All of it is one mark: as the last append it is kept, whatever its size, until another one comes.
    assert changed == replace(state, retention=Retention(SMALL, ((NOW, 0),)), trims=1)
    assert retention.decide_retention(changed, SetRetention(SMALL), NOW + 1) is changed
    after = retention.after_append(replace(changed, tail=110), 100, NOW + 2)
    assert (after.earliest, after.retention) == (100, Retention(SMALL, ((NOW + 2, 100),)))


def test_without_a_policy_a_stream_keeps_everything() -> None:
    state = stream(100, (NOW - 9999, 0))
    changed = retention.decide_retention(state, SetRetention(None), NOW)
    assert changed == replace(state, retention=None, trims=1)
    assert retention.decide_retention(changed, SetRetention(None), NOW) is changed
    assert retention.after_append(changed, 90, NOW) is changed
    assert retention.decide_due(changed, NOW) is changed


def test_a_mark_is_made_of_an_append_that_comes_a_part_of_the_age_later() -> None:
    state = stream(30, (NOW, 0))
    assert retention.after_append(state, 30, NOW + 200) is state
    assert retention.after_append(state, 20, NOW + 99) is state
    later = retention.after_append(state, 20, NOW + 100)
    assert later == stream(30, (NOW, 0), (NOW + 100, 20), trims=1)


def test_when_a_stream_has_to_be_looked_at() -> None:
    # 3200 seconds of age, and 100 for what came after the mark.
    state = stream(30, (NOW, 0))
    assert retention.due_at(state) == NOW + 3300
    assert retention.due_at(replace(state, deadline=NOW + 1)) == NOW + 1
    assert retention.due_at(replace(state, deadline=NOW + 9999)) == NOW + 3300
    assert retention.due_at(replace(state, deadline=NOW + 1, deleted=True)) is None
    for other in (stream(30, policy=None), stream(0), stream(30, (NOW, 0), policy=Policy(max_bytes=5))):
        assert retention.due_at(other) is None
        assert retention.due_at(replace(other, deadline=NOW)) == NOW
    assert retention.decide_due(state, NOW + 3299) is state
    given_up = retention.decide_due(state, NOW + 3300)
    assert (given_up.earliest, given_up.retention, given_up.trims) == (30, Retention(AGED), 1)
