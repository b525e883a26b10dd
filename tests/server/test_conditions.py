"""Appends on condition: If-Match names the offset at which the stream has to end."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import pytest

from durable_streams.protocol.offsets import format_offset

PRODUCER = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}


def test_the_tag_of_an_append_is_the_condition_of_the_next(either_server, stream: str) -> None:
    either_server.create(stream)
    tag = f'"{format_offset(0)}"'
    for number in range(3):
        answer = either_server.append(stream, b"abc", if_match=tag)
        assert answer.status == 204
        tag = answer.headers["etag"]
        assert tag == f'"{answer.next_offset}"' == f'"{format_offset(3 * number + 3)}"'
    produced = either_server.append(stream, b"d", **PRODUCER)
    assert (produced.status, produced.headers["etag"]) == (200, f'"{format_offset(10)}"')
    closed = either_server.request("POST", stream, stream_closed="true", if_match=f'"{format_offset(10)}"')
    assert (closed.status, closed.headers["stream-closed"]) == (204, "true")


def test_an_append_behind_other_data_is_refused(either_server, stream: str) -> None:
    either_server.create(stream)
    first = either_server.append(stream, b"abc")
    for position in (0, 2, 4, 10**15):
        for closed in ("false", "true"):
            answer = either_server.append(
                stream, b"x", if_match=f'"{format_offset(position)}"', stream_closed=closed
            )
            assert answer.status == 412
            assert answer.json["error"]["code"] == "CONFLICT_OFFSET"
            assert answer.headers["stream-next-offset"] == first.next_offset
            assert answer.headers["etag"] == first.headers["etag"]
    assert either_server.read_all(stream) == b"abc"


@pytest.mark.parametrize(
    "value",
    [
        "*",
        '"*"',
        format_offset(0),
        f'W/"{format_offset(0)}"',
        f'"{format_offset(0)}", "{format_offset(0)}"',
        f'"{format_offset(0)}x"',
        '"-1"',
        '"now"',
        '""',
        '"',
        "",
        '"0"',
    ],
)
def test_a_condition_is_one_offset_in_quotes(either_server, stream: str, value: str) -> None:
    either_server.create(stream)
    assert either_server.append(stream, b"x", if_match=value).status == 400
    assert either_server.read_all(stream) == b""


def test_a_producer_needs_no_condition(either_server, stream: str) -> None:
    either_server.create(stream)
    answer = either_server.append(stream, b"x", if_match=f'"{format_offset(0)}"', **PRODUCER)
    assert (answer.status, answer.json["error"]["code"]) == (400, "BAD_REQUEST")


def test_pages_of_other_origins_may_ask_for_a_condition(either_server, stream: str) -> None:
    asked = {"origin": "http://localhost:3000", "access_control_request_method": "POST"}
    answer = either_server.request("OPTIONS", stream, access_control_request_headers="if-match", **asked)
    assert "if-match" in answer.headers["access-control-allow-headers"]
