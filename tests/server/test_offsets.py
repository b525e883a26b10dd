"""Offsets inside an append: they stand for its start, in every kind of read, on every kind of stream."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import base64
import json
import re
from itertools import pairwise

import pytest

from durable_streams.protocol.offsets import format_offset, parse_offset

JSON = "application/json"
BODIES = {
    JSON: [b'{"a": 1}', b"[[1], [22], 333]", b'"three"', b"4"],
    # The second append ends inside a character, so that an offset in the third is text only from the second on.
    "text/plain": ["один".encode(), "два".encode()[:3], "два".encode()[3:], b"five"],
    "application/octet-stream": [b"\x00\x01\x02", b"\xff" * 300, b"\r\n"],
}


def filled(server, stream: str, content_type: str) -> list[int]:
    """Make a stream; return where its appends begin, and its tail."""
    answers = [server.create(stream, content_type)]
    answers += [server.append(stream, body, content_type) for body in BODIES[content_type]]
    return [parse_offset(answer.next_offset) for answer in answers]


def data_of(answer) -> bytes:
    """Return what an event stream carries; of JSON, one array of all messages."""
    encoded = answer.headers.get("stream-sse-data-encoding") == "base64"
    parts = []
    for block in answer.body.split(b"\n\n"):
        if block.startswith(b"event: data"):
            data = b"\n".join(re.findall(rb"^data: ?(.*)$", block, re.MULTILINE))
            parts.append(base64.b64decode(data) if encoded else data)
    return b"".join(parts)


def is_read_from_the_starts_of_appends(server, stream: str, content_type: str) -> None:
    bounds = filled(server, stream, content_type)
    server.request("POST", stream, stream_closed="true")  # so that event streams end
    for begin, end in pairwise(bounds):
        first = {}
        for position in sorted({begin, begin + 1, (begin + end) // 2, end - 1}):
            offset = format_offset(position)
            for live in ("", "&live=long-poll", "&live=sse"):
                answer = server.request("GET", f"{stream}?offset={offset}{live}")
                assert answer.status == 200, (position, live, answer)
                found = data_of(answer) if live == "&live=sse" else answer.body
                assert found == first.setdefault(live, found), (position, live)
                assert found == first[""], (position, live)
        assert json.loads(first[""]) if content_type == JSON else first[""]
    for live in ("", "&live=long-poll", "&live=sse"):
        beyond = format_offset(bounds[-1] + 1)
        assert server.request("GET", f"{stream}?offset={beyond}{live}").status == 400


@pytest.mark.parametrize("content_type", BODIES)
def test_a11_an_offset_inside_an_append(either_server, stream: str, content_type: str) -> None:
    is_read_from_the_starts_of_appends(either_server, stream, content_type)


@pytest.mark.parametrize("content_type", BODIES)
def test_a11_an_offset_inside_an_append_in_memory(
    shared_memory_server, stream: str, content_type: str
) -> None:
    is_read_from_the_starts_of_appends(shared_memory_server, stream, content_type)


@pytest.mark.parametrize("content_type", BODIES)
def test_a11_an_offset_inside_an_append_of_an_open_stream(
    either_server, stream: str, content_type: str
) -> None:
    """Live reads begin there at once, too, and go on behind it."""
    bounds = filled(either_server, stream, content_type)
    expected = either_server.request("GET", f"{stream}?offset={format_offset(bounds[-2])}")
    inside = format_offset(bounds[-1] - 1)
    polled = either_server.request("GET", f"{stream}?offset={inside}&live=long-poll")
    assert (polled.status, polled.body) == (200, expected.body)
    assert polled.next_offset == expected.next_offset == format_offset(bounds[-1])
    assert polled.headers["etag"] == expected.headers["etag"]  # it is the same data


@pytest.mark.parametrize("content_type", BODIES)
def test_a11_a_fork_at_an_offset_inside_an_append(either_server, stream: str, content_type: str) -> None:
    """A fork has what a reader at its offset does not read any more: the append that holds it is not torn."""
    bounds = filled(either_server, stream, content_type)
    source = f"/v1/stream/{stream}"
    for begin, end in pairwise(bounds):
        whole = either_server.request(
            "PUT", f"{stream}/{begin}", stream_forked_from=source, stream_fork_offset=format_offset(begin)
        )
        assert (whole.status, whole.next_offset) == (201, format_offset(begin))
        for position in {begin + 1, end - 1} - {begin, end}:
            fork = {"stream_forked_from": source, "stream_fork_offset": format_offset(position)}
            made = either_server.request("PUT", f"{stream}/{begin}", **fork)
            assert (made.status, made.next_offset) == (200, format_offset(begin)), "the same fork"
        body = either_server.request("GET", f"{stream}/{begin}").body
        assert content_type != JSON or isinstance(json.loads(body), list)
    beyond = {"stream_forked_from": source, "stream_fork_offset": format_offset(bounds[-1] + 1)}
    assert either_server.request("PUT", f"{stream}/beyond", **beyond).status == 400


def test_a11_a_fork_of_some_messages_of_an_append(either_server, stream: str) -> None:
    bounds = filled(either_server, stream, JSON)
    fork = {
        "stream_forked_from": f"/v1/stream/{stream}",
        "stream_fork_offset": format_offset(bounds[1] + 3),
        "stream_fork_sub_offset": "2",
    }
    assert either_server.request("PUT", f"{stream}/fork", **fork).status == 201
    assert either_server.append(f"{stream}/fork", b'"own"', JSON).status == 204
    assert either_server.request("GET", f"{stream}/fork").json == [{"a": 1}, [1], [22], "own"]
    inside = format_offset(bounds[1] + 1)
    assert either_server.request("GET", f"{stream}/fork?offset={inside}").json == [[1], [22], "own"]
