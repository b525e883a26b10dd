"""Sixty-four connections append to one stream while others read it: every append whole, in one place of its own."""
# ruff: noqa: ANN001, ANN002, C901, PLR0915 - fixtures; writers and readers of one story, in one place

from __future__ import annotations

import base64
import contextlib
import json
import random
import threading

import pytest

from durable_streams.protocol.offsets import parse_offset

WRITERS = 64
APPENDS = 12
UNIT = b"<%03d:%03d:%s>"


def payload(writer: int, number: int) -> bytes:
    size = random.Random(writer * 1000 + number).choice([0, 10, 500, 20_000])
    return UNIT % (writer, number, b"-" * size)


def whole(content: bytes) -> list[tuple[int, int]]:
    """Return who wrote what, in order; fails for a part of an append."""
    units, position = [], 0
    while position < len(content):
        assert content[position : position + 1] == b"<", "a part of an append"
        writer, number = int(content[position + 1 : position + 4]), int(content[position + 5 : position + 8])
        expected = payload(writer, number)
        assert content[position : position + len(expected)] == expected, "a part of an append"
        units.append((writer, number))
        position += len(expected)
    return units


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_appends_from_many_connections(start_server, tmp_path, interface: str) -> None:
    server = start_server(tmp_path / "data", interface=interface, long_poll_timeout=2.0, chunk_size=30_000)
    server.create("s")
    offsets: dict[tuple[int, int], str] = {}
    errors: list[BaseException] = []
    done = threading.Event()
    start = threading.Barrier(WRITERS)

    def guarded(work, *arguments) -> threading.Thread:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:  # noqa: BLE001 - shown below
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def write(writer: int) -> None:
        with contextlib.closing(server.connection()) as connection:
            start.wait(30)
            last = ""
            for number in range(APPENDS):
                headers = {"Content-Type": "application/octet-stream"}
                connection.request("POST", "/v1/stream/s", payload(writer, number), headers)
                response = connection.getresponse()
                response.read()
                assert response.status == 204
                offset = response.headers["stream-next-offset"]
                assert offset > last, "not increasing"
                last = offsets[writer, number] = offset

    def poll(mode: str) -> None:
        offset, seen = "-1", b""
        with contextlib.closing(server.connection()) as connection:
            while True:
                finished = done.is_set()
                connection.request("GET", f"/v1/stream/s?{mode}offset={offset}")
                response = connection.getresponse()
                body = response.read()
                assert response.status in {200, 204}
                whole(body)
                seen += body
                offset = response.headers["stream-next-offset"]
                assert parse_offset(offset) == len(seen)
                if finished and "stream-up-to-date" in response.headers:
                    contents.append(seen)
                    return
                done.wait(0.01)  # the machine is the writers' too

    def listen() -> None:
        seen, offset = b"", "-1"
        while True:
            with contextlib.closing(server.connection()) as connection:
                connection.request("GET", f"/v1/stream/s?live=sse&offset={offset}")
                kind, data = b"", b""
                for line in connection.getresponse():
                    field, _, value = line.strip().partition(b":")
                    if field == b"event":
                        kind = value.strip()
                    elif field == b"data" and kind == b"data":
                        data = base64.b64decode(value)
                        whole(data)
                    elif field == b"data":
                        control = json.loads(value)
                        seen, data, offset = seen + data, b"", control["streamNextOffset"]
                        assert parse_offset(offset) == len(seen)
                        if control.get("streamClosed"):
                            contents.append(seen)
                            return

    contents: list[bytes] = []
    readers = [
        guarded(poll, ""),
        guarded(poll, ""),
        guarded(poll, "live=long-poll&"),
        guarded(listen),
        guarded(listen),
    ]
    writers = [guarded(write, writer) for writer in range(WRITERS)]
    for thread in writers:
        thread.join(60)
    done.set()
    assert server.request("POST", "s", stream_closed="true").status == 204
    for thread in readers:
        thread.join(60)
    assert not errors, errors[0]
    assert len(offsets) == WRITERS * APPENDS
    assert len(set(offsets.values())) == len(offsets), "two appends share an offset"
    content = server.read_all("s")
    assert len(contents) == len(readers)
    assert all(seen == content for seen in contents)
    units = whole(content)
    assert len(units) == len(set(units)) == WRITERS * APPENDS
    # In the order of their offsets, and each right before the offset that it was given.
    assert units == [unit for unit, _ in sorted(offsets.items(), key=lambda item: item[1])]
    for (writer, number), offset in offsets.items():
        end = parse_offset(offset)
        assert content[:end].endswith(payload(writer, number))
