"""Offsets, cursors and the events that carry them."""

from __future__ import annotations

import json
import re

from hypothesis import example, given
from hypothesis import strategies as st

from durable_streams.protocol.cursors import next_cursor
from durable_streams.protocol.offsets import format_offset, is_exact, parse_offset
from durable_streams.protocol.sse import encode_control, encode_data

POSITIONS = st.integers(0, 10**16 - 1)
NOW = st.floats(1_728_432_000, 4e9)
CHANCE = st.floats(0, 1, exclude_max=True)


@given(POSITIONS, POSITIONS)
def test_text_order_is_position_order(one: int, other: int) -> None:
    assert (format_offset(one) < format_offset(other)) == (one < other)


@given(POSITIONS)
def test_offsets_are_what_the_protocol_asks(position: int) -> None:
    offset = format_offset(position)
    assert parse_offset(offset) == position
    assert len(offset) < 256
    assert re.fullmatch(r"[A-Za-z0-9_.~-]+", offset)
    assert offset not in {"-1", "now"}


@given(POSITIONS, POSITIONS)
def test_a11_an_exact_offset_is_between_its_neighbours(one: int, other: int) -> None:
    inside = format_offset(one, exact=True)
    assert parse_offset(inside) == one
    assert (inside > format_offset(other)) == (one >= other)


@given(st.text(alphabet="0123456789_-now٣ +", max_size=40))
@example("0" * 16 + "_" + "0" * 15 + "٣")
@example("0" * 16 + "_" + "-" + "0" * 15)
@example("0" * 16 + "_" + "+" + "0" * 15)
@example("0" * 16 + "_" + "0" * 14 + "_0")
def test_only_what_was_minted_is_an_offset(text: str) -> None:
    position = parse_offset(text)
    assert position is None or format_offset(position) == text


@given(NOW, st.integers(0, 10**1000 - 1), CHANCE)
def test_a_cursor_is_greater_than_the_clients(now: float, seen: int, chance: float) -> None:
    answer = int(next_cursor(now, str(seen), lambda: chance))
    assert answer > seen
    current = int(next_cursor(now, None, lambda: chance))
    assert answer == current if seen < current else answer - seen <= 3600 // 20 + 1


@given(NOW, st.one_of(st.none(), st.text(max_size=30), st.integers(0).map(str)), CHANCE)
def test_any_cursor_is_answered_with_a_number(now: float, seen: str | None, chance: float) -> None:
    answer = next_cursor(now, seen, lambda: chance)
    assert answer.isascii()
    assert answer.isdigit()


def parsed(stream: bytes) -> list[tuple[str, str]]:
    """Read events as a browser does: CR, LF and CRLF end a line, one space after the colon goes."""
    events, kind, data = [], "message", []
    for line in re.split("\r\n|\r|\n", stream.decode()):
        if not line:
            if data:
                events.append((kind, "\n".join(data)))
            kind, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
    return events


@given(
    st.text(
        alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("\r\n :\u2028\u0085")), min_size=1
    )
)
@example("\n\nevent: control\ndata: {}\n\n")
@example("\r\revent: control\rdata: {}\r\r")
@example(" leading\n  two\n\n\r\n")
@example("id: 7\nretry: 1\n: comment\n")
def test_a_payload_cannot_inject_an_event(text: str) -> None:
    lines = re.sub("\r\n|\r", "\n", text)
    assert parsed(encode_data(text.encode(), text=True) + encode_control("x")) == [
        ("data", lines),
        ("control", '{"streamNextOffset":"x"}'),
    ]


@given(st.binary())
def test_bytes_travel_on_one_line(payload: bytes) -> None:
    event = encode_data(payload, text=False)
    assert event.count(b"\n") == 3
    assert len(parsed(event)) == 1


@given(st.text(), st.one_of(st.none(), st.text()), st.booleans(), st.booleans())
def test_a_control_event_is_one_line_of_json(
    offset: str, cursor: str | None, up_to_date: bool, closed: bool
) -> None:
    event = encode_control(offset, cursor=cursor, up_to_date=up_to_date, closed=closed)
    ((kind, data),) = parsed(event)
    expected = {
        "streamNextOffset": offset,
        "streamCursor": cursor,
        "upToDate": up_to_date,
        "streamClosed": closed,
    }
    assert kind == "control"
    assert json.loads(data) == {name: value for name, value in expected.items() if value not in {None, False}}


def test_a_cursor_that_is_longer_than_any_of_a_server_is_no_cursor() -> None:
    assert next_cursor(2e9, "9" * 1001, lambda: 0.5) == next_cursor(2e9, None, lambda: 0.5)


def test_an_exact_offset_says_so() -> None:
    assert is_exact(format_offset(5, exact=True))
    assert not is_exact(format_offset(5))
