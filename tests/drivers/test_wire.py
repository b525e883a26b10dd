"""Payloads that are hard on parsers, through the whole client: any cut, any character, any size."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from facade import Facade, SyncFacade
from scripted import ScriptedServer

from durable_streams import RetryPolicy, StreamParseError
from durable_streams.protocol.sse import encode_control, encode_data

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
TEXT = "a\u2028b\u0085c\x0bd é😀\ne"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.every_transport
def test_line_ends_and_torn_characters_at_any_cut(
    facade: Facade, scripted: ScriptedServer, newline: str
) -> None:
    """Pitfall 7: CR, LF and CRLF split between packets, characters torn, other separators left alone."""
    events = encode_data(TEXT.encode(), text=True) + encode_control("1", closed=True)
    body = events.replace(b"\n", newline.encode())
    wire = scripted.events(body)
    start = len(wire) - len(body)
    # Inside the first line's end, inside é, inside the emoji, inside the empty line.
    cuts = sorted(
        {
            start + body.index(b"\x0b"),
            start + body.index("é".encode()) + 1,
            start + body.index("😀".encode()) + 2,
            *(
                start + place + 1
                for place in range(len(body) - 1)
                if body[place : place + 2] == newline.encode()
            ),
            start + body.index(newline.encode() * 2) + 1,
        }
    )
    scripted.replies = [scripted.pieces(wire, *cuts)]
    assert facade.stream(scripted.root + "/s", live="sse", retry=QUICK).read_text() == TEXT


@pytest.mark.every_transport
def test_one_byte_at_a_time(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 7."""
    events = encode_data("é\u2028".encode(), text=True) + encode_control("1", closed=True)
    wire = scripted.events(events)
    scripted.replies = [scripted.pieces(wire, *range(len(wire) - len(events), len(wire)))]
    assert facade.stream(scripted.root + "/s", live="sse", retry=QUICK).read_text() == "é\u2028"


def test_a_truncated_last_event_is_never_handed_over(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 5: wherever the connection dies, the event it tore is read again, whole, and only once."""
    first, second = encode_data(b"one", text=True), encode_data(b"two", text=True)
    body = first + encode_control("1") + second + encode_control("2", closed=True)
    whole = scripted.send(scripted.events(second + encode_control("2", closed=True)), close=True)
    behind = len(first + encode_control("1"))
    for cut in range(behind, len(body), 7):
        scripted.requests.clear()
        scripted.replies = [scripted.send(scripted.events(body[:cut]), close=True), whole]
        assert list(facade.stream(scripted.root + "/s", live="sse", retry=QUICK)) == [b"one", b"two"]


def work_of(read: Callable[[], object]) -> int:
    """Return how many calls of Python functions a read makes: what it costs, on any machine."""
    calls = 0

    def count(frame: Any, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call"

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        read()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


@pytest.mark.parametrize("live", [False, "sse"])
def test_an_event_of_50_mb(facade: Facade, url: str, live: Any) -> None:
    """Pitfall 6: it comes in one piece, as JSON too, and within seconds."""
    text = "é\u2028" * 10_000_000
    facade.DurableStream.create(url, content_type="application/json", body=f'"{text}"', closed=True)
    assert facade.stream(url, live=live).read_json() == [text]


def test_a_long_event_costs_linear_work(url: str) -> None:
    """Pitfall 6: eight times the size costs about eight times the calls, not sixty-four."""
    facade = SyncFacade("urllib3")
    costs = []
    for size in (2 << 20, 16 << 20):
        handle = facade.DurableStream.create(f"{url}-{size}", content_type="text/plain")
        handle.append("line\n" * (size // 50) + "x" * (size - size // 10))
        handle.close_stream()
        costs.append(work_of(lambda handle=handle: handle.stream(live="sse").read_bytes()))
    assert costs[1] < 16 * costs[0]


@pytest.mark.parametrize("live", [False, "sse"])
def test_more_than_the_limit_is_a_clear_error(facade: Facade, scripted: ScriptedServer, live: Any) -> None:
    """Pitfall 6: a server that never ends an event or a message does not eat the memory."""
    piece = b"x" * (1 << 20)
    json = {"content_type": "application/json", "stream_next_offset": "1"}

    def endless(connection: Any) -> None:
        head = scripted.events(b"data: ") if live else scripted.response(200, b'["', length=10**12, **json)
        connection.sendall(head)
        while True:
            connection.sendall(piece)

    scripted.replies = [endless]
    with pytest.raises(StreamParseError, match="limit") as caught:
        facade.stream(scripted.root + "/s", live=live, retry=QUICK).read_bytes()
    assert (caught.value.code, caught.value.offset) == ("TOO_LARGE", "-1")
