"""How fast a stream grows, from a few samples."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from durable_streams.protocol.state import StreamState
from durable_streams.stores.pace import MINUTE, Pace

NOW = 1_800_000_000.0
STREAM = StreamState(id=1, path="s", content_type="a/b", records=0)


def grown(state: StreamState, moment: float, count: int = 1) -> StreamState:
    assert state.records is not None
    return replace(state, records=state.records + count, appended=moment)


@pytest.mark.parametrize("per_second", [0.1, 1, 20])
def test_a_steady_pace_is_what_it_is(per_second: float) -> None:
    pace, state = Pace(), STREAM
    for number in range(int(300 * per_second)):
        before, state = state, grown(state, NOW + number / per_second)
        pace.note(before, state)
    for later in (0.0, 3.0, 7.0):
        assert pace.per_second(state.records or 0, NOW + 300 + later) == pytest.approx(per_second, rel=0.25)
    assert pace.per_second(state.records or 0, NOW + 300 + 2 * MINUTE) == 0, "a minute of silence"


def test_a_beginning_counts_as_a_minute() -> None:
    pace, after = Pace(), grown(STREAM, NOW, 30)
    assert pace.per_second(0, NOW) == 0
    pace.note(STREAM, after)
    assert pace.per_second(30, NOW) == 0.5


def test_what_is_no_growth_of_one_counted_stream_is_not_noted() -> None:
    pace = Pace()
    pace.note(replace(STREAM, records=None), grown(STREAM, NOW))
    pace.note(replace(STREAM, id=2), grown(STREAM, NOW))
    pace.note(STREAM, STREAM)
    assert pace.per_second(1, NOW) == 0


def test_a_clock_that_was_set_back_begins_again() -> None:
    pace = Pace()
    one = grown(STREAM, NOW)
    two = grown(one, NOW - 1000)
    pace.note(STREAM, one)
    pace.note(one, two)
    assert pace.per_second(2, NOW - 1000) == 1 / MINUTE
