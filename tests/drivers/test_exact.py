"""Reads that return every byte as it was written, whatever the content type, the mode and the size of an answer."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import pytest
from facade import Facade
from scripted import Received, ScriptedServer

from durable_streams import RetryPolicy, StreamParseError
from durable_streams.protocol import reader
from durable_streams.protocol.lines import DEFAULT_LIMIT
from durable_streams.protocol.sse import encode_control, encode_data

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
LINES = [b"one\r\n", b"two\r", b"\nthree\rfour", b"\xff\xfe\x00 no UTF-8 \xc3", b"\xa9 torn \n\r\n", b" end"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/csv; charset=utf-8", "TEXT/Event-Stream", "application/x-yaml"]
)
@pytest.mark.every_transport
def test_a1_live_true_returns_every_byte_of_any_type(facade: Facade, url: str, content_type: str) -> None:
    handle = facade.DurableStream.create(url, content_type=content_type, body=LINES[0])
    seen = b""
    with handle.stream(live=True) as response:
        for number, piece in enumerate(response):
            seen += piece
            if number + 1 < len(LINES):
                assert handle.append(LINES[number + 1]).next_offset > response.offset
            else:
                handle.close_stream()
        assert response.stream_closed
    assert seen == b"".join(LINES)
    assert response.offset == handle.head().offset


def test_a1_live_sse_on_text_stays_possible_and_loses_what_the_docs_say(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="text/plain", body=b"one\r\ntwo\r\xff")
    handle.close_stream()
    assert facade.stream(url, live="sse").read_bytes() == "one\ntwo\n\ufffd".encode()


@pytest.mark.parametrize(
    ("content_type", "mode"),
    [
        ("application/json", "sse"),
        ("Application/JSON ; charset=utf-8", "sse"),
        ("application/octet-stream", "sse"),
        ("application/vnd.api+json", "sse"),
        ("image/png", "sse"),
        ("text/plain", "long-poll"),
        ("Text/Html; charset=latin-1", "long-poll"),
        ("text/event-stream", "long-poll"),
        (None, "long-poll"),
    ],
)
def test_a1_live_true_follows_over_sse_only_where_it_is_lossless(
    facade: Facade, scripted: ScriptedServer, content_type: str | None, mode: str
) -> None:
    typed = {} if content_type is None else {"content_type": content_type}

    def answer(request: Received) -> bytes:
        if "live" not in request.query:
            return scripted.response(200, b"[1]", stream_next_offset="5", stream_up_to_date="true", **typed)
        if request.query["live"] == "sse":
            binary = (
                {}
                if content_type and "/json" in content_type.lower()
                else {"stream_sse_data_encoding": "base64"}
            )
            wire = encode_data(b"[2]", text=not binary) + encode_control("6", closed=True)
            return scripted.events(wire, **binary)
        return scripted.response(200, b"[2]", stream_next_offset="6", stream_closed="true", **typed)

    scripted.answer = answer
    assert b"".join(facade.stream(scripted.root + "/s", retry=QUICK)) == b"[1][2]"
    assert [request.query.get("live") for request in scripted.requests] == [None, mode]


def test_a1_an_event_stream_that_carries_bytes_as_text_is_not_taken(
    facade: Facade, scripted: ScriptedServer
) -> None:
    def answer(request: Received) -> bytes:
        live = request.query.get("live")
        if live == "sse":
            return scripted.events(encode_data(b"a\r\nb", text=True) + encode_control("6", closed=True))
        end = {"stream_next_offset": "6", "stream_closed": "true"} if live else {"stream_next_offset": "5"}
        body = b"a\r\nb" if live else b"first "
        return scripted.response(200, body, stream_up_to_date="true", content_type="image/x", **end)

    scripted.answer = answer
    assert b"".join(facade.stream(scripted.root + "/s", retry=QUICK)) == b"first a\r\nb"
    assert [request.query.get("live") for request in scripted.requests] == [None, "sse", "long-poll"]


MIB = 1 << 20


def pattern(size: int) -> bytes:
    """Return bytes in which every piece shows where it belongs."""
    return b"".join(b"%015d\n" % number for number in range(size // 16))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bodies of more than 2 MiB be given out in pieces, so that not every test moves gigabytes."""
    monkeypatch.setattr(reader, "_BODY_SLACK", 2 * MIB - DEFAULT_LIMIT)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.usefixtures("small_batches")
@pytest.mark.every_transport
def test_e9_a_giant_body_is_taken_in_pieces_and_goes_on_after_a_cut(
    facade: Facade, scripted: ScriptedServer, chunked: bool
) -> None:
    """It is delivered once, in order; the offset stays where the body began until its last piece."""
    data = pattern(12 * MIB)
    end = {"stream_next_offset": "9", "stream_closed": "true"}
    answer = scripted.chunked(data, **end) if chunked else scripted.response(200, data, **end)
    scripted.replies = [
        scripted.send(answer[:MIB], close=True),
        scripted.send(answer[: 7 * MIB], close=True),
        scripted.send(answer[: 5 * MIB], close=True),
        scripted.send(answer),
    ]
    place, largest = 0, 0
    with facade.stream(scripted.root + "/s", offset="1", live=False, retry=QUICK) as response:
        for piece in response:
            assert piece == data[place : place + len(piece)]
            place += len(piece)
            largest = max(largest, len(piece))
            assert response.offset == ("9" if place == len(data) else "1")
        assert response.stream_closed
    assert place == len(data)
    assert largest < 3 * MIB
    assert [request.query["offset"] for request in scripted.requests] == ["1"] * 4


@pytest.mark.every_transport
def test_e9_messages_of_a_giant_array_come_before_its_end(facade: Facade, scripted: ScriptedServer) -> None:
    """The last part of the body is sent once the first messages were seen."""
    seen = threading.Event()
    body = b"[" + b",".join(b'{"n":%d,"t":"},{%s"}' % (n, b"x" * 1000) for n in range(8000)) + b"]"

    def slow(connection: socket.socket) -> None:
        answer = scripted.response(
            200, body, content_type="application/json", stream_next_offset="9", stream_up_to_date="true"
        )
        connection.sendall(answer[: 3 * MIB])
        assert seen.wait(60)
        connection.sendall(answer[3 * MIB :])

    scripted.replies = [slow]
    with facade.stream(scripted.root + "/s", live=False, retry=QUICK) as response:
        for number, item in enumerate(response.iter_json()):
            assert item["n"] == number
            assert response.offset == ("9" if number == 7999 else "-1")
            seen.set()
        assert number == 7999


def test_e9_a_giant_array_goes_on_after_a_cut_message_by_message(
    facade: Facade, scripted: ScriptedServer
) -> None:
    """Also where another server answers in smaller parts, and puts other white space between the messages."""
    messages = [b'{"n": %d, "t": "},{%s"}' % (number, b"x" * 1000) for number in range(8000)]
    json = {"content_type": "application/json"}
    whole = scripted.response(
        200, b"[" + b",".join(messages) + b"]", stream_next_offset="9", stream_closed="true", **json
    )
    first = b"[ " + b" ,\n".join(messages[:2000]) + b"]\n"
    rest = b"[" + b",".join(messages[2000:]) + b"]"
    scripted.replies = [
        scripted.send(whole[: 4 * MIB], close=True),
        scripted.send(scripted.response(200, first, stream_next_offset="2", **json)),
        scripted.send(scripted.response(200, rest, stream_next_offset="9", stream_closed="true", **json)),
    ]
    with facade.stream(scripted.root + "/s", live=False, retry=QUICK) as response:
        assert [item["n"] for item in response.iter_json()] == list(range(8000))
        assert (response.offset, response.stream_closed) == ("9", True)
    assert [request.query["offset"] for request in scripted.requests] == ["-1", "-1", "2"]


def test_e9_a_body_of_many_appends_may_be_of_any_size(facade: Facade, scripted: ScriptedServer) -> None:
    """The limit is one of messages and events."""
    data = pattern(DEFAULT_LIMIT + 8 * MIB)
    end = {"stream_next_offset": "9", "stream_closed": "true", "content_type": "application/octet-stream"}
    answer = scripted.response(200, data, **end)
    scripted.replies = [scripted.send(answer[:-MIB], close=True), scripted.send(answer)]
    assert facade.stream(scripted.root + "/s", live=False, retry=QUICK).read_bytes() == data


@pytest.mark.usefixtures("small_batches")
def test_e9_text_in_pieces_keeps_its_characters(facade: Facade, scripted: ScriptedServer) -> None:
    text = "é€😀" * MIB
    answer = scripted.response(200, text.encode(), stream_next_offset="9", stream_closed="true")
    scripted.replies = [scripted.send(answer[: 5 * MIB + 1], close=True), scripted.send(answer)]
    with facade.stream(scripted.root + "/s", live=False, retry=QUICK) as response:
        assert "".join(response.iter_text()) == text
        assert response.offset == "9"


@pytest.mark.usefixtures("small_batches")
def test_e9_a_stream_that_is_another_one_after_the_cut_is_reported(
    facade: Facade, scripted: ScriptedServer
) -> None:
    answer = scripted.response(200, pattern(8 * MIB), stream_next_offset="9", stream_up_to_date="true")
    other = scripted.response(200, b"short", stream_next_offset="2", stream_up_to_date="true")
    scripted.replies = [scripted.send(answer[: 5 * MIB], close=True), scripted.send(other)]
    with (
        facade.stream(scripted.root + "/s", live=False, retry=QUICK) as response,
        pytest.raises(StreamParseError, match="another stream has replaced it"),
    ):
        for _ in response:
            pass


def test_e9_our_own_server_is_asked_for_answers_that_are_one_batch(
    facade: Facade, scripted: ScriptedServer
) -> None:
    scripted.replies = [
        scripted.send(scripted.response(200, b"x", stream_next_offset="2", stream_closed="true"))
    ]
    assert list(facade.stream(scripted.root + "/s", live=False)) == [b"x"]
    assert 0 < int(scripted.requests[0].headers["stream-max-bytes"]) <= 8 * MIB


MEMORY = """
import resource, sys, durable_streams
from pathlib import Path
count = 0
with durable_streams.stream(sys.argv[1], live=False) as response:
    for piece in (response.iter_json() if sys.argv[2] == "json" else response):
        count += 1 if sys.argv[2] == "json" else len(piece)
status = Path("/proc/self/status")
if status.exists():  # of this program alone, where the other figure includes what its parent had
    peak = int(status.read_text().partition("VmHWM:")[2].split()[0])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(count, peak)
"""


@pytest.mark.parametrize("kind", ["json", "bytes"])
def test_e9_a_giant_body_takes_bounded_memory(scripted: ScriptedServer, kind: str) -> None:
    """Half a gigabyte in one answer; the process that reads it stays far below that."""
    part = (b'{"n":1,"t":"%s"},' % (b"x" * 1000)) * 1000 if kind == "json" else b"x" * MIB
    times = 512
    length = times * len(part) + (len(b"[0]") if kind == "json" else 0)
    headers = {"stream_next_offset": "9", "stream_up_to_date": "true"}
    if kind == "json":
        headers["content_type"] = "application/json"

    def giant(connection: socket.socket) -> None:
        connection.sendall(scripted.response(200, length=length, **headers))
        connection.sendall(b"[" if kind == "json" else b"")
        for _ in range(times):
            connection.sendall(part)
        connection.sendall(b"0]" if kind == "json" else b"")

    scripted.replies = [giant]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, scripted.root + "/s", kind],
        capture_output=True,
        check=True,
        timeout=120,
    )
    count, kib = map(int, done.stdout.split())
    assert count == (times * 1000 + 1 if kind == "json" else length)
    assert kib < 150 * 1024
