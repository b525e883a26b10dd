"""Live reads: heartbeats, readers that are slow, gone or too many, streams that end while they are read."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

BYTES = "application/octet-stream"


def listen(server, stream: str, query: str = "offset=-1", timeout: float = 30.0):  # noqa: ANN201
    """Open an event stream; returns the raw connection."""
    connection = server.connect(timeout)
    connection.sendall(f"GET /v1/stream/{stream}?live=sse&{query} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    return connection


def received_until(connection, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        part = connection.recv(65536)
        assert part, f"ended without {mark!r}: {received[-300:]!r}"
        received += part
    return received


def wait_for(condition, within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def open_files(server) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def test_idle_readers_get_heartbeats(start_server) -> None:
    server = start_server(None, sse_heartbeat=0.2)
    server.create("s")
    with listen(server, "s") as connection:
        received = received_until(connection, b"event: control")
        for _ in range(3):
            received = received_until(connection, b": keep-alive\n\n")
        server.append("s", b"abc")
        received = received_until(connection, b"YWJj")
        assert b"event: data" in received


def test_an_event_stream_ends_with_its_age(start_server) -> None:
    server = start_server(None, sse_max_age=0.5)
    server.create("s", "text/plain")
    server.append("s", b"abc", "text/plain")
    read = server.request("GET", "s?live=sse&offset=-1")
    assert read.status == 200
    assert read.body.count(b"event: data") == read.body.count(b"event: control") == 1
    assert b"streamClosed" not in read.body


def test_a_reader_that_never_reads_takes_no_memory(start_server) -> None:
    server = start_server(None, sse_heartbeat=15.0)
    server.create("s")
    piece = b"x" * (1 << 20)
    for _ in range(10):
        server.append("s", piece)
    assert len(server.read_all("s")) == 10 << 20
    before = server.resident()
    lazy = [listen(server, "s") for _ in range(4)]
    time.sleep(0.5)
    for _ in range(60):
        server.append("s", piece)
    stored = 60 << 20
    grown = server.resident() - before - stored
    # 8 MB of events (4/3 of that in base64) for each of them and what is shared, whatever comes in.
    assert grown < 110 << 20, f"{grown >> 20} MB for {len(lazy)} readers that do not read"
    for connection in lazy:
        connection.close()
    assert server.append("s", b"goes on").status == 204


def test_readers_that_catch_up_leave_nothing_behind(start_server, tmp_path: Path) -> None:
    server = start_server(tmp_path / "data")
    server.create("s")
    for _ in range(20):
        server.append("s", b"x" * (1 << 20))
    with listen(server, "s", "offset=now") as idle:
        received_until(idle, b"event: control")
        server.request("GET", "s?offset=-1")
        before = server.resident()
        for number in range(30):  # each with a cursor of its own, while somebody keeps the stream in view
            with listen(server, "s", f"offset=-1&cursor={number}") as reader:
                received_until(reader, b"event: control")
        wait_for(lambda: server.resident() - before < 80 << 20)


def test_readers_that_go_away_are_released(start_server) -> None:
    server = start_server(None)
    server.create("s", ttl="100")
    server.append("s", b"abc")
    before = open_files(server)
    readers = [listen(server, "s", "offset=now") for _ in range(30)]
    for connection in readers:
        received_until(connection, b"event: control")
    for _ in range(30):
        connection = server.connect()
        connection.sendall(b"GET /v1/stream/s?live=long-poll&offset=now HTTP/1.1\r\nHost: test\r\n\r\n")
        readers.append(connection)
    # What the requests above connected may still have counted in `before`.
    wait_for(lambda: open_files(server) >= before + 57)
    for connection in readers:
        connection.close()
    server.append("s", b"wakes them up")
    wait_for(lambda: open_files(server) <= before + 3)
    assert server.read_all("s") == b"abcwakes them up"
    server.terminate()
    assert b"Traceback" not in server.error_output


def test_a_stream_that_is_closed_ends_its_readers(shared_server, stream: str) -> None:
    shared_server.create(stream, "text/plain")
    with listen(shared_server, stream) as connection:
        received_until(connection, b"event: control")
        shared_server.request("POST", stream, b"last words", content_type="text/plain", stream_closed="true")
        received = received_until(connection, b"0\r\n\r\n")
        assert b"data:last words" in received
        assert b"streamClosed" in received


def test_a_stream_that_is_deleted_ends_its_readers(shared_server, stream: str) -> None:
    shared_server.create(stream)
    answers = []
    polling = threading.Thread(
        target=lambda: answers.append(shared_server.request("GET", f"{stream}?live=long-poll&offset=now"))
    )
    with listen(shared_server, stream) as connection:
        received_until(connection, b"event: control")
        polling.start()
        time.sleep(0.2)
        shared_server.request("DELETE", stream)
        received_until(connection, b"0\r\n\r\n")
        polling.join(20)
        assert answers[0].status == 404
    assert shared_server.request("GET", f"{stream}?live=sse&offset=-1").status == 404


def test_a_stream_that_is_made_again_is_not_mixed_with_the_old_one(start_server) -> None:
    server = start_server(None, long_poll_timeout=20.0)
    server.create("s", "application/json")
    server.append("s", b"[1,2,3]", "application/json")
    answers = []
    polling = threading.Thread(
        target=lambda: answers.append(server.request("GET", "s?live=long-poll&offset=now"))
    )
    with listen(server, "s", "offset=now") as connection:
        received_until(connection, b"event: control")
        polling.start()
        time.sleep(0.3)
        with server.connect() as writer:  # in one go, so that the reader hears of it all at once
            length = b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
            writer.sendall(
                b"DELETE /v1/stream/s HTTP/1.1\r\nHost: x\r\n\r\n"
                b"PUT /v1/stream/s HTTP/1.1\r\nHost: x\r\n" + length + b"[[11,22]]"
            )
            received_until(writer, b"201 Created")
        received = received_until(connection, b"0\r\n\r\n")
        assert b"11" not in received
        polling.join(30)
    assert answers[0].status == 404, answers


def test_long_poll_answers_and_times_out(shared_server, stream: str) -> None:
    shared_server.create(stream)
    waited = shared_server.request("GET", f"{stream}?live=long-poll&offset=-1")
    assert (waited.status, waited.body) == (204, b"")
    assert waited.headers["stream-up-to-date"] == "true"
    cursor = waited.headers["stream-cursor"]
    shared_server.append(stream, b"abc")
    read = shared_server.request("GET", f"{stream}?live=long-poll&offset=-1&cursor={cursor}")
    assert (read.status, read.body) == (200, b"abc")
    assert int(read.headers["stream-cursor"]) > int(cursor)


def test_many_readers_of_one_stream_see_the_same(shared_server, stream: str) -> None:
    shared_server.create(stream, "application/json")
    count, appends = 25, 20
    seen: list[bytes] = [b""] * count

    def follow(number: int) -> None:
        with contextlib.closing(shared_server.connection()) as connection:
            connection.request("GET", f"/v1/stream/{stream}?live=sse&offset=-1")
            seen[number] = connection.getresponse().read()

    readers = [threading.Thread(target=follow, args=(number,)) for number in range(count)]
    for reader in readers:
        reader.start()
    for number in range(appends):
        shared_server.append(stream, b"[%d]" % number, "application/json")
    shared_server.request("POST", stream, stream_closed="true")
    for reader in readers:
        reader.join(30)
    expected = list(range(appends))
    for content in seen:
        data = [line[5:] for line in content.splitlines() if line.startswith(b"data:[")]
        assert [int(number) for line in data for number in line.strip(b"[] ").split(b",")] == expected
        assert content.count(b"streamClosed") == 1
