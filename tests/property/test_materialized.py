"""The rows after any prefix of a stream are those of a plain dictionary, however its reads were cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from durable_streams.protocol.changes import ABSENT, StateMessage
from durable_streams.protocol.materialized import Materializer, MemoryRows

KEYS = st.sampled_from("abcd")
TYPES = st.sampled_from(["one", "two"])
CHANGES = st.builds(
    lambda operation, kind, key, value: StateMessage({"operation": operation}, kind, key, value),
    st.sampled_from(["insert", "update", "upsert", "delete", "strange"]),
    TYPES,
    KEYS,
    st.one_of(st.integers(), st.none(), st.just(ABSENT)),
)


def place(number: int) -> str:
    """Return the offset before the message of a number."""
    return f"{number:04d}"


CONTROLS = st.builds(
    lambda control, offset: StateMessage(
        {"control": control} | ({} if offset is None else {"offset": offset})
    ),
    st.sampled_from(["reset", "snapshot-start", "snapshot-end", "strange"]),
    st.one_of(st.none(), st.integers(0, 40).map(place)),
)
MESSAGES = st.lists(st.one_of(CHANGES, CHANGES, CHANGES, CONTROLS), max_size=40)


def plainly(messages: list[StateMessage]) -> dict[tuple[str, str], Any]:
    """Return the rows as the protocol's text describes them, message by message."""
    rows: dict[tuple[str, str], Any] = {}
    mentioned: set[tuple[str, str]] | None = None
    number = 0
    while number < len(messages):
        message = messages[number]
        number += 1
        name, operation = (message.type, message.key), message.headers.get("operation")
        control = message.headers.get("control")
        if operation == "delete":
            rows.pop(name, None)
        elif operation in {"insert", "update", "upsert"} and message.value is not ABSENT:
            rows[name] = message.value
            if mentioned is not None:
                mentioned.add(name)
        elif control == "reset":
            rows.clear()
            number = max(number, int(message.headers.get("offset", 0)))
        elif control == "snapshot-start":
            mentioned = set()
        elif control == "snapshot-end" and mentioned is not None:
            rows = {name: row for name, row in rows.items() if name in mentioned}
            mentioned = None
    return rows


def read(messages: list[StateMessage], cuts: set[int]) -> dict[tuple[str, str], Any]:
    """Return the rows of a reader whose batches end at the cuts."""
    rows = MemoryRows()
    core = Materializer(rows, None, lambda *_: None)
    ends = [*sorted(cut for cut in cuts if cut < len(messages)), len(messages)]
    at = 0
    while at < len(messages):
        end = next(end for end in ends if end > at)
        restart = core.apply(messages[at:end], place(at)).restart
        at = end if restart is None else int(restart)
    return {(kind, key): row for kind, table in rows.tables.items() for key, row in table.items()}


@given(MESSAGES, st.sets(st.integers(1, 40)), st.integers(0, 40))
def test_how_reads_are_cut_does_not_matter(messages: list[StateMessage], cuts: set[int], end: int) -> None:
    prefix = messages[:end]
    assert read(prefix, cuts) == plainly(prefix)


@given(MESSAGES, st.sets(st.integers(1, 40)))
def test_the_changes_lead_to_the_rows(messages: list[StateMessage], cuts: set[int]) -> None:
    rows = MemoryRows()
    core = Materializer(rows, None, lambda *_: None)
    mirror: dict[tuple[str, str], Any] = {}
    ends = [0, *sorted(cut for cut in cuts if cut < len(messages)), len(messages)]
    for begin, end in pairwise(ends):
        for change in core.apply(messages[begin:end], place(40)).changes:
            name = (change.type, change.key)
            assert change.old == (mirror.get(name) if change.operation != "insert" else None)
            if change.operation == "reset":
                mirror.clear()
            elif change.operation == "delete":
                del mirror[name]
            else:
                assert (change.operation == "update") == (name in mirror)
                mirror[name] = change.new
    assert mirror == {(kind, key): row for kind, table in rows.tables.items() for key, row in table.items()}
