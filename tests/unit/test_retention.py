"""What streams keep: the rules alone, and how people write them down."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from durable_streams.cli.retention import RetentionRuleType
from durable_streams.protocol import retention
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
