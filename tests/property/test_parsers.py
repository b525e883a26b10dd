"""Parsers give the same result whole, byte by byte and at random cuts."""

from __future__ import annotations

import base64
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from durable_streams.errors import StreamParseError
from durable_streams.protocol.eventstream import EventStream
from durable_streams.protocol.lines import MANY, Buffer, LineDecoder
from durable_streams.protocol.sse import SSEDecoder, SSEEvent, encode_control, encode_data

ODD_TEXT = st.text(alphabet=st.sampled_from("ab \t:\r\n\u2028\u0085\x0b\x0c\x1cé€😀data"), max_size=60)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


def ways(data: bytes, cuts: list[int]) -> list[list[bytes]]:
    return [[data], [data[i : i + 1] for i in range(len(data))], pieces(data, cuts)]


CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@given(ODD_TEXT, CUTS, st.booleans())
@example("a\r\nb\r\rc\n\n", [2, 3], True)
@example("a\r\nb", [2], True)
@example("a\r\nb\r\rc\n\n", [2, 3], False)
def test_lines_do_not_depend_on_cuts(text: str, cuts: list[int], bare_cr: bool) -> None:
    data = text.encode()
    results = []
    for way in ways(data, cuts):
        decoder = LineDecoder(bare_cr=bare_cr)
        lines = [line for piece in way for line in decoder.feed(piece)]
        results.append((lines, decoder.pending, decoder.flush()))
    assert results[0] == results[1] == results[2]


@given(ODD_TEXT)
def test_lines_end_at_cr_lf_and_crlf_only(text: str) -> None:
    data = text.encode()
    decoder = LineDecoder(bare_cr=True)
    lines = [*decoder.feed(data + b"\n"), decoder.flush()]
    expected = (data + b"\n").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    assert lines == expected


@given(st.binary(max_size=200), CUTS)
def test_events_do_not_depend_on_cuts(data: bytes, cuts: list[int]) -> None:
    results = []
    for way in ways(data, cuts):
        decoder = SSEDecoder()
        results.append([event for piece in way for event in decoder.feed(piece)])
    assert results[0] == results[1] == results[2]


@given(st.lists(st.tuples(ODD_TEXT, st.booleans()), max_size=5), CUTS, st.sampled_from(["\n", "\r", "\r\n"]))
def test_what_the_encoder_writes_comes_back(
    payloads: list[tuple[str, bool]], cuts: list[int], end: str
) -> None:
    wire, expected = b"", []
    for number, (text, as_text) in enumerate(payloads):
        payload = text.encode()
        wire += (
            encode_data(payload, text=as_text)
            + b": heartbeat\n\n"
            + encode_control(str(number), up_to_date=True)
        )
        lines = (
            payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if as_text else base64.b64encode(payload)
        )
        expected.append(SSEEvent("data", lines))
    wire = wire.replace(b"\n", end.encode())
    for way in ways(wire, cuts):
        decoder = SSEDecoder()
        events = [event for piece in way for event in decoder.feed(piece)]
        assert [event for event in events if event.event == "data"] == expected
        assert sum(event.event == "control" for event in events) == len(payloads)


@given(st.binary(min_size=1, max_size=100), st.integers(0, 300))
def test_a_truncated_event_is_never_given_out(payload: bytes, cut: int) -> None:
    wire = encode_data(payload, text=False)
    decoder = SSEDecoder()
    assert decoder.feed(wire[: min(cut, len(wire) - 1)]) == []


@pytest.mark.no_cover  # it measures, and other tests run the same lines
def test_a_huge_event_costs_linear_time() -> None:
    # Quadratic work on 48 MB in 4 KiB pieces would take hours, not the seconds that the test's timeout allows.
    payload = b"x" * (48 << 20)
    wire = encode_data(payload, text=True)
    decoder = SSEDecoder()
    events = [
        event for start in range(0, len(wire), 4096) for event in decoder.feed(wire[start : start + 4096])
    ]
    assert events == [SSEEvent("data", payload)]
    short_lines = b"data:y\n" * (1 << 20)
    assert len(SSEDecoder().feed(short_lines + b"\n")[0].data) == (2 << 20) - 1


@pytest.mark.no_cover  # the same
@pytest.mark.parametrize(
    ("wire", "limit"),
    [(b"data:xy\n", 1 << 20), (b"event: data\ndata:x\n\n", 1 << 18), (b"event: data\ndata\n\n", 1 << 18)],
)
def test_g2_many_small_pieces_take_memory_by_their_size(wire: bytes, limit: int) -> None:
    events = EventStream({}, limit)
    chunk = wire * 1000

    def feed_on() -> None:
        while True:
            assert list(events.feed(chunk)) == []

    tracemalloc.start()
    try:
        with pytest.raises(StreamParseError, match="limit") as caught:
            feed_on()
        assert caught.value.code == "TOO_LARGE"
        assert tracemalloc.get_traced_memory()[1] < 3 * limit + (1 << 20)
    finally:
        tracemalloc.stop()


def test_g2_the_sum_of_what_waits_is_bounded_and_starts_over_with_each_control() -> None:
    events = EventStream({"stream-sse-data-encoding": "base64"}, 100)
    half = encode_data(b"x" * 50, text=False)
    control = encode_control("1")
    assert [len(found.payloads) for found in events.feed((half + control) * 10)] == [1] * 10
    assert list(events.feed(half)) == []
    with pytest.raises(StreamParseError, match="limit") as caught:
        list(events.feed(half * 2))
    assert caught.value.code == "TOO_LARGE"


@given(st.lists(st.binary(max_size=5), max_size=3000))
def test_pieces_come_back_in_order(parts: list[bytes]) -> None:
    pieces = Buffer()
    for part in parts:
        pieces.add(part)
    assert pieces.size == sum(map(len, parts))
    assert pieces.take() == b"".join(parts)
    assert (pieces.size, pieces.take()) == (0, b"")


@pytest.mark.parametrize("wire", [b"data: " + b"x" * 200, b"data: 12345678\n" * 20, b": " + b"x" * 300])
def test_more_than_the_limit_is_a_clear_error(wire: bytes) -> None:
    decoder = SSEDecoder(limit=100)

    def feed_all() -> None:
        for start in range(len(wire)):
            decoder.feed(wire[start : start + 1])

    with pytest.raises(StreamParseError, match="limit") as caught:
        feed_all()
    assert caught.value.code == "TOO_LARGE"


def test_an_event_of_exactly_the_limit_is_taken() -> None:
    assert SSEDecoder(limit=100).feed(b"data: " + b"x" * 100 + b"\n\n")[0].data == b"x" * 100


def test_an_event_of_another_type_is_nobodys() -> None:
    """A later version of the protocol may have more of them; a comment keeps a connection alive."""
    stream = EventStream({}, 100)
    wire = b"event: ping\ndata: x\n\n: comment\n\n" + encode_data(b"a", text=True) + encode_control("2")
    [control] = stream.feed(wire)
    assert (control.payloads, control.next_offset) == ([b"a"], "2")


@pytest.mark.parametrize("count", [MANY - 1, MANY, 2 * MANY + 1])
def test_an_event_of_many_lines_is_their_text(count: int) -> None:
    lines = [b"%d" % number for number in range(count)]
    [event] = SSEDecoder().feed(b"".join(b"data: " + line + b"\n" for line in lines) + b"\n")
    assert event.data == b"\n".join(lines)
