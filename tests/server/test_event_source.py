"""A browser's own EventSource: it comes back to the URL it began with, and says the last id it was given."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import json
import re

import pytest

BODIES = {"application/json": [b"1", b"[2,3]", b"4"], "text/plain": [b"one\n", b"two\n", b"three\n"]}


def control_events(body: bytes) -> list[tuple[str, dict[str, object]]]:
    """Return the control events with their ids."""
    events = []
    for block in body.decode().split("\n\n"):
        if block.startswith("event: control"):
            (given,) = re.findall(r"^id: ?(.*)$", block, re.MULTILINE)
            (data,) = re.findall(r"^data: ?(.*)$", block, re.MULTILINE)
            events.append((given, json.loads(data)))
        elif block.startswith("event: data"):
            assert "\nid" not in block  # an id without its control event would skip what is cut off
    return events


@pytest.mark.parametrize("content_type", BODIES)
def test_e11_every_control_event_has_its_offset_as_id(either_server, stream: str, content_type: str) -> None:
    either_server.create(stream, content_type)
    ends = [either_server.append(stream, body, content_type).next_offset for body in BODIES[content_type]]
    either_server.request("POST", stream, stream_closed="true")
    first = either_server.request("GET", f"{stream}?offset=-1&live=sse")
    events = control_events(first.body)
    assert all(given == control["streamNextOffset"] for given, control in events)
    assert events[-1][0] == ends[-1]
    # It comes back from wherever it was cut: the rest, once.
    for number, end in enumerate(ends[:-1]):
        for query in ("offset=-1", "offset=now", f"offset={ends[0]}"):
            again = either_server.request("GET", f"{stream}?{query}&live=sse", last_event_id=end)
            expected = either_server.request("GET", f"{stream}?offset={ends[number]}&live=sse")
            assert (again.status, again.body) == (200, expected.body)


def test_e11_nothing_more_makes_it_stop(either_server, stream: str) -> None:
    end = either_server.create(stream, "application/json").next_offset
    for body in (b"", b"[1,2]"):
        if body:
            target = f"{stream}/filled"
            either_server.create(target, "application/json")
            end = either_server.append(target, body, "application/json", stream_closed="true").next_offset
        else:
            target = f"{stream}/empty"
            assert either_server.request("PUT", target, stream_closed="true").status == 201
        stopped = either_server.request("GET", f"{target}?offset=-1&live=sse", last_event_id=end)
        assert (stopped.status, stopped.body, stopped.next_offset) == (204, b"", end)
        assert stopped.headers["stream-closed"] == "true"
        assert stopped.headers["cache-control"] == "no-store"
        # Without the id it is a first request: it gets the event that says so (section 5).
        first = either_server.request("GET", f"{target}?offset={end}&live=sse")
        assert (first.status, control_events(first.body)[0][1]["streamClosed"]) == (200, True)


def test_e11_ids_that_are_no_offsets(either_server, stream: str) -> None:
    end = either_server.create(stream).next_offset
    either_server.request("POST", stream, stream_closed="true")
    for given in ("nonsense", "0000000000000000_0000000000000009"):
        assert either_server.request("GET", f"{stream}?offset=-1&live=sse", last_event_id=given).status == 400
    for query in ("?offset=-1", "?offset=-1&live=long-poll"):  # no event stream: not its header
        assert either_server.request("GET", f"{stream}{query}", last_event_id="nonsense").status in {200, 204}
    assert either_server.request("GET", f"{stream}?live=sse", last_event_id=end).status == 204
    assert either_server.request("GET", f"{stream}?offset=-1&live=sse", last_event_id="").status == 200
