"""Many streams over one connection: ids, lists and events, from the server's side to the client's."""

from __future__ import annotations

import pytest

from durable_streams.errors import StreamParseError
from durable_streams.protocol.following import (
    FollowEvent,
    PartError,
    PartPlace,
    data_event,
    data_head,
    decoded_event,
    event_id,
    joined,
    parse_event_id,
    plain_event,
    split,
)
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.sse import SSEDecoder

PATHS = ["a", "b/ü,c", "d%2Ce"]
PLACES = [PartPlace(0), PartPlace(12, ended=True), PartPlace(0, ended=True, failed=True)]


def test_an_id_says_where_each_stream_is() -> None:
    assert parse_event_id(event_id(PATHS, PLACES), PATHS) == PLACES


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        "{0}",
        "{0}.1.2",
        "{0}.1.2.3.4",
        "{0}.1.2.x",
        "{0}.1.2.-1",
        "{0}.1.2.c",
        "{0}.1.2.²",
        "00000000.1.2.3",
        "{0}.1.2." + "9" * 17,
    ],
)
def test_an_id_of_other_streams_is_none(given: str) -> None:
    checksum = event_id(PATHS, PLACES).partition(".")[0]
    assert parse_event_id(given.format(checksum), PATHS) is None


def test_a_list_keeps_commas_and_percent_signs() -> None:
    assert split(joined(PATHS)) == PATHS


@pytest.mark.parametrize(
    ("content_type", "stored", "data", "form"),
    [
        ("application/json", b'{"a":\r\n1},[2],', b'[{"a":\n1},[2]]', "messages"),
        ("text/plain", "h\u00e9\r\n \u2028".encode(), "h\u00e9\r\n \u2028".encode(), "text"),
        ("text/plain", b"\xc3", b"\xc3", "base64"),
        ("image/png", b"abc", b"abc", "base64"),
    ],
)
def test_an_event_gives_the_bytes_that_are_stored(
    content_type: str, stored: bytes, data: bytes, form: str
) -> None:
    sent = data_event(data_head("a/b", 77, exact=True), stored, "1.2", content_type)
    (event,) = SSEDecoder().feed(sent)
    assert (event.event, event.id) == ("data", "1.2")
    said = decoded_event(event.data)
    assert (said.stream, said.offset, said.data) == ("a/b", format_offset(77, exact=True), data)
    assert getattr(said, form)


def test_events_without_data() -> None:
    error = PartError("NOT_FOUND", "it is not there", 404)
    sent = plain_event("tail", "a", 1, "x") + plain_event("end", "a", 1, "x", closed=True)
    sent += plain_event("end", "a", None, "x", error=error)
    sent += plain_event("end", "a", 3, "x", error=PartError("RETENTION_GONE", "gone", 410, "9"))
    events = SSEDecoder().feed(sent)
    assert [event.event for event in events] == ["tail", "end", "end", "end"]
    assert [decoded_event(event.data) for event in events] == [
        FollowEvent("a", format_offset(1)),
        FollowEvent("a", format_offset(1), closed=True),
        FollowEvent("a", error=error),
        FollowEvent("a", format_offset(3, exact=True), error=PartError("RETENTION_GONE", "gone", 410, "9")),
    ]
    assert decoded_event(events[0].data).data == b""


@pytest.mark.parametrize("data", [b"", b"[]", b'{"offset":"1"}', b'{"stream":1}', b"\xff"])
def test_what_is_no_event(data: bytes) -> None:
    with pytest.raises(StreamParseError, match="several streams"):
        decoded_event(data)


@pytest.mark.parametrize("text", ["ü", "A", "AA=A"])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(StreamParseError, match="base64"):
        _ = FollowEvent("a", base64=text).data
