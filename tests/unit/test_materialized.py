"""Rows out of messages: operations, snapshots, resets, what is left out."""

from __future__ import annotations

from typing import Any

import pytest

from durable_streams.errors import RetentionGoneError, StreamParseError
from durable_streams.protocol.changes import ABSENT, StateMessage
from durable_streams.protocol.materialized import Applied, Materializer, MemoryRows

FIRST = "0000000000000000_0000000000000000"
LATER = "0000000000000000_0000000000000100"


class State:
    """Rows in memory, and what was left out."""

    def __init__(self, makers: Any = None) -> None:
        self.rows = MemoryRows()
        self.errors: list[StreamParseError] = []
        self.core = Materializer(self.rows, makers, lambda _, error: self.errors.append(error))

    def apply(self, *messages: StateMessage, before: str = FIRST) -> Applied:
        return self.core.apply(messages, before)


def change(operation: str, key: str, value: Any = ABSENT, *, kind: str = "u", **headers: Any) -> StateMessage:
    return StateMessage({"operation": operation, **headers}, kind, key, value)


def control(name: Any, **headers: Any) -> StateMessage:
    return StateMessage({"control": name, **headers})


def test_the_last_message_counts_whatever_it_is_called() -> None:
    state = State()
    done = state.apply(
        change("update", "1", "a"),
        change("insert", "1", "b"),
        change("upsert", "2", None),
        change("delete", "3"),
        change("delete", "1"),
    )
    assert state.rows.tables == {"u": {"2": None}}
    assert [(c.operation, c.key, c.old, c.new) for c in done.changes] == [
        ("insert", "1", None, "a"),
        ("update", "1", "a", "b"),
        ("insert", "2", None, None),
        ("delete", "1", "b", None),
    ]
    state.apply(change("delete", "2"))
    assert state.rows.tables == {}
    assert state.rows.get("u", "2") is ABSENT


def test_types_without_a_maker_are_not_kept_but_their_transactions_are_seen() -> None:
    state = State({"u": int})
    done = state.apply(change("insert", "1", "7"), change("insert", "x", 1, kind="other", txid="t"))
    assert state.rows.tables == {"u": {"1": 7}}
    assert done.txids == ["t"]
    assert len(done.changes) == 1


def test_a_key_is_any_text_and_what_a_delete_brings_does_not_matter() -> None:
    for makers in (None, {"u": int}):
        state = State(makers)
        state.apply(change("insert", "日本", 1), change("insert", "2", 2), change("insert", "3", 3))
        state.apply(change("delete", "日本", None), change("delete", "2", "no number"), change("delete", "3"))
        assert state.rows.tables == {}
        assert state.errors == []


def test_a_value_that_is_not_of_its_type_is_left_out_and_the_row_stays() -> None:
    state = State({"u": int})
    state.apply(change("insert", "1", "7"), change("update", "1", "seven"))
    assert state.rows.tables == {"u": {"1": 7}}
    [error] = state.errors
    assert "is not a valid u" in error.message
    assert error.offset == FIRST
    assert isinstance(error.__cause__, ValueError)


@pytest.mark.parametrize(
    "message",
    [
        StateMessage({}),
        StateMessage({"operation": None, "controls": 1}),
        change("merge", "1", 1),
        change("insert", "", 1),
        change("insert", "\ud800", 1),
        change("insert", "1"),
        control("rewind"),
        control(["reset"]),
        StateMessage({"operation": {}, "control": "reset"}),
    ],
)
def test_what_is_no_message_changes_nothing(message: StateMessage) -> None:
    state = State()
    state.apply(change("insert", "1", 1))
    assert state.apply(message) == Applied([], [], None)
    assert state.rows.tables == {"u": {"1": 1}}
    [error] = state.errors
    assert "is not a message of the State Protocol" in error.message


def test_changes_that_are_not_asked_for_are_made_all_the_same() -> None:
    state = State()
    messages = [change("insert", "1", 1, txid="t"), change("update", "1", 2), change("delete", "2")]
    assert state.core.apply(messages, FIRST, wanted=False) == Applied([], ["t"], None)
    assert state.core.apply([change("delete", "1")], FIRST, wanted=False) == Applied([], [], None)
    assert state.rows.tables == {}


def test_a_transaction_that_is_no_text_is_none() -> None:
    assert State().apply(change("insert", "1", 1, txid=7)).txids == []


def test_a_snapshot_is_all_that_there_is() -> None:
    state = State()
    done = state.apply(
        change("insert", "1", "a"),
        change("insert", "2", "b"),
        change("insert", "x", "c", kind="other"),
        control("snapshot-start"),
        change("insert", "2", "b"),
        change("insert", "3", "d"),
        control("snapshot-end"),
        change("insert", "4", "e"),
    )
    assert state.rows.tables == {"u": {"2": "b", "3": "d", "4": "e"}}
    assert [(c.type, c.key) for c in done.changes if c.operation == "delete"] == [("u", "1"), ("other", "x")]


def test_an_end_without_a_begin_says_nothing_and_a_second_begin_counts() -> None:
    state = State()
    state.apply(change("insert", "1", 1), control("snapshot-end"))
    assert state.rows.tables == {"u": {"1": 1}}
    state.apply(
        control("snapshot-start"),
        change("insert", "1", 1),
        control("snapshot-start"),
        control("snapshot-end"),
    )
    assert state.rows.tables == {}


def test_a_reset_forgets_everything_and_goes_on() -> None:
    state = State()
    done = state.apply(change("insert", "1", 1), control("reset"), change("insert", "2", 2))
    assert state.rows.tables == {"u": {"2": 2}}
    assert [c.operation for c in done.changes] == ["insert", "reset", "insert"]
    assert done.restart is None


@pytest.mark.parametrize("offset", [FIRST, "-1", "now", "", 7, None])
def test_a_reset_to_what_is_behind_goes_on(offset: Any) -> None:
    done = State().apply(control("reset", offset=offset), change("insert", "2", 2))
    assert done.restart is None
    assert len(done.changes) == 2


def test_a_reset_to_a_later_offset_skips_what_is_before_it() -> None:
    state = State()
    done = state.apply(change("insert", "1", 1), control("reset", offset=LATER), change("insert", "2", 2))
    assert done.restart == LATER
    assert state.rows.tables == {}
    # It was before the reset: the reset comes again.
    assert state.apply(control("reset", offset=LATER), change("insert", "3", 3), before=LATER).restart is None
    assert state.rows.tables == {"u": {"3": 3}}


GONE = RetentionGoneError(earliest=LATER)


@pytest.mark.parametrize("message", [change("insert", "1", 1), control("snapshot-end"), StateMessage({})])
def test_what_is_missing_is_made_up_for_by_a_snapshot_only(message: StateMessage) -> None:
    state = State()
    state.core.check_complete()
    state.core.expect_snapshot(GONE)
    with pytest.raises(RetentionGoneError):
        state.core.check_complete()
    with pytest.raises(RetentionGoneError):
        state.apply(message)
    assert state.rows.tables == {}


@pytest.mark.parametrize("first", [control("snapshot-start"), control("reset")])
def test_after_a_snapshot_nothing_is_missing(first: StateMessage) -> None:
    state = State()
    state.apply(change("insert", "old", 1))
    state.core.expect_snapshot(GONE)
    state.apply(first, change("insert", "1", 1), control("snapshot-end"))
    state.core.check_complete()
    assert state.rows.tables == {"u": {"1": 1}}
