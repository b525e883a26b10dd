"""Reads of streams that give up their first data, and what makes them do so."""

from __future__ import annotations

import logging

import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import RetentionGoneError, RetryPolicy, StreamNotFoundError

QUICK = RetryPolicy(max_retries=3, initial_delay=0.001, max_delay=0.01)


@pytest.mark.every_store
@pytest.mark.every_transport
def test_a_stream_is_trimmed(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="text/plain")
    places = [handle.head().offset, *(handle.append(part).next_offset for part in (b"abc", b"def", b"ghi"))]
    result = handle.trim(before=places[1])
    assert (result.earliest_offset, result.next_offset) == (places[1], places[3])
    assert handle.head().earliest_offset == places[1]
    assert handle.stream(live=False).read_bytes() == b"defghi"
    with pytest.raises(RetentionGoneError) as caught:
        handle.stream(offset=places[0], live=False)
    assert caught.value.earliest == places[1]
    assert handle.trim(max_bytes=5).earliest_offset == places[2]
    assert handle.trim(before="now").earliest_offset == places[3]
    assert handle.stream(live=False).read_bytes() == b""
    handle.delete()
    with pytest.raises(StreamNotFoundError):
        handle.trim(max_bytes=5)


def test_what_a_stream_keeps(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(
        url, content_type="text/plain", retention_max_age=3600, retention_max_bytes=20
    )
    for _ in range(10):
        handle.append(b"0123456789")
    assert handle.stream(live=False).read_bytes() == b"0123456789" * 2
    head = handle.head()
    assert (head.retention_max_age, head.retention_max_bytes) == (3600, 20)
    result = handle.set_retention(max_age=60)
    assert (result.max_age, result.max_bytes) == (60, None)
    assert handle.trim(max_age=60).earliest_offset == head.earliest_offset
    assert handle.set_retention().max_age is None


def test_what_makes_no_sense(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="text/plain")
    for wrong in ({}, {"before": "-1", "max_age": 5}, {"max_bytes": -1}, {"max_age": 0}, {"max_bytes": 1.5}):
        with pytest.raises(ValueError, match=r"max_bytes|max_age"):
            handle.trim(**wrong)
    for name in ("max_age", "max_bytes"):
        with pytest.raises(ValueError, match=name):
            handle.set_retention(**{name: 0})
        with pytest.raises(ValueError, match=name):
            facade.DurableStream.create(url, **{f"retention_{name}": True})
    with pytest.raises(ValueError, match="not below /v1/stream/"):
        facade.DurableStream("http://127.0.0.1:1/elsewhere/s").trim(max_bytes=5)
    with pytest.raises(ValueError, match="on_gone"):
        handle.stream(on_gone="skip")


@pytest.mark.parametrize("live", [False, True, "long-poll", "sse"])
def test_a_read_goes_on_from_the_earliest(
    facade: Facade, url: str, live: bool | str, caplog: pytest.LogCaptureFixture
) -> None:
    handle = facade.DurableStream.create(url, content_type="application/octet-stream")
    begin = handle.head().offset
    kept = handle.append(b"abc").next_offset
    handle.append(b"def")
    handle.close_stream(b"ghi")
    handle.trim(before=kept)
    gone: list[RetentionGoneError] = []
    with (
        caplog.at_level(logging.WARNING, "durable_streams"),
        handle.stream(offset=begin, live=live, on_gone=gone.append) as response,
    ):
        assert b"".join(response) == b"defghi"
    assert [error.earliest for error in gone] == [kept]
    assert caplog.text.count("is lost to it") == 1
    with handle.stream(offset=begin, live=live, on_gone="earliest") as response:
        assert response.read_bytes() == b"defghi"


def test_the_stream_is_trimmed_under_a_reader(facade: Facade, url: str) -> None:
    """The place that a checkpoint has is gone; data is never handed over twice."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    for number in range(3):
        handle.append({"n": number})
    place = handle.stream(live=False)
    assert len(place.read_json()) == 3
    for number in range(3, 6):
        last = handle.append({"n": number})
        if number == 4:
            handle.trim(before="now")
    with handle.stream(offset=place.offset, live=False, on_gone="earliest") as response:
        assert response.read_json() == [{"n": 5}]
        assert response.offset == last.next_offset


def test_a_callable_may_end_the_read(facade: Facade, url: str) -> None:
    def refuse(error: RetentionGoneError) -> None:
        raise LookupError(error.earliest)

    handle = facade.DurableStream.create(url, content_type="text/plain")
    begin = handle.head().offset
    kept = handle.append(b"abc").next_offset
    handle.trim(before="now")
    with pytest.raises(LookupError, match=kept):
        handle.stream(offset=begin, live=False, on_gone=refuse)


def test_it_goes_on_once_until_there_is_data(facade: Facade, scripted: ScriptedServer) -> None:
    def gone(earliest: str) -> bytes:
        return scripted.response(410, stream_earliest_offset=earliest)

    def data(offset: str, body: bytes, **headers: str) -> bytes:
        return scripted.response(200, body, content_type="text/plain", stream_next_offset=offset, **headers)

    def stream() -> bytes:
        with facade.stream(
            scripted.root + "/s", offset="1", live=False, on_gone="earliest", retry=QUICK
        ) as response:
            return response.read_bytes()

    scripted.replies = [scripted.send(gone("3")), scripted.send(gone("5"))]
    with pytest.raises(RetentionGoneError) as caught:
        stream()
    assert caught.value.earliest == "5"
    scripted.requests.clear()
    scripted.replies = [
        scripted.send(gone("3")),
        scripted.send(data("4", b"ab")),
        scripted.send(gone("6")),
        scripted.send(data("7", b"cd", stream_up_to_date="true")),
    ]
    assert stream() == b"abcd"
    scripted.requests.clear()
    scripted.replies = [scripted.send(scripted.response(410))]  # the stream was deleted
    with pytest.raises(RetentionGoneError) as caught:
        stream()
    assert caught.value.earliest is None
