"""Reading, in every form and every mode, against a real server."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from facade import Facade

from durable_streams import (
    DurableStreamError,
    RetentionGoneError,
    StreamConsumedError,
    StreamEvent,
    StreamNotFoundError,
    StreamParseError,
)

LIVE_MODES = [True, "long-poll", "sse"]
MODES = [False, *LIVE_MODES]
ITEMS = [{"n": 0, "text": "é\u2028\u0085😀"}, "two\r\nlines\n\n", [3, [4.5, None]], 12345678901234567890]
TEXT = ["one\n\ntwo", "data: é\u2028\u0085😀\n", "event: control\ndata: {}\n\n", " end"]


@pytest.mark.parametrize("live", MODES)
@pytest.mark.every_transport
def test_json_in_every_form(facade: Facade, url: str, live: Any) -> None:
    """Pitfalls 1 and 7: the end of a closed stream ends a read in any mode; only CR and LF end lines."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    for item in ITEMS:
        handle.append(json.dumps(item, ensure_ascii=False))
    end = handle.close_stream().final_offset

    def read() -> Any:
        return facade.stream(url, live=live)

    with read() as response:
        assert list(response.iter_json()) == ITEMS
        assert (response.offset, response.stream_closed, response.closed) == (end, True, True)
    assert [item for batch in read().iter_json_batches() for item in batch] == ITEMS
    assert [item for batch in read().read_json_batches() for item in batch] == ITEMS
    assert read().read_json() == ITEMS
    assert json.loads(read().read_bytes()) == ITEMS
    assert json.loads(read().read_text()) == ITEMS
    assert [item for piece in read() for item in json.loads(piece)] == ITEMS
    assert [item for text in read().iter_text() for item in json.loads(text)] == ITEMS
    events = list(read().iter_events())
    assert [item for event in events for item in event.data] == ITEMS
    assert events[-1].next_offset == end


@pytest.mark.parametrize("live", MODES)
@pytest.mark.every_transport
def test_text_in_every_form(facade: Facade, url: str, live: Any) -> None:
    """Pitfall 7."""
    handle = facade.DurableStream.create(url, content_type="text/plain")
    for piece in TEXT:
        handle.append(piece)
    handle.close_stream()
    whole = "".join(TEXT)

    def read() -> Any:
        return facade.stream(url, live=live)

    assert read().read_text() == whole
    assert read().read_bytes() == whole.encode()
    assert "".join(read().iter_text()) == whole
    assert b"".join(read()) == whole.encode()
    assert "".join(event.data for event in read().iter_events()) == whole
    assert b"".join(event.data for event in read().iter_events(mode="bytes")) == whole.encode()


@pytest.mark.parametrize("live", MODES)
@pytest.mark.every_transport
def test_bytes_in_every_form(facade: Facade, url: str, live: Any) -> None:
    """Every byte, over event streams too, where they travel as base64."""
    data = bytes(range(256)) * 300
    handle = facade.DurableStream.create(url)
    for start in range(0, len(data), 10_001):
        handle.append(data[start : start + 10_001])
    handle.close_stream()

    def read() -> Any:
        return facade.stream(url, live=live)

    assert read().read_bytes() == data
    assert b"".join(read()) == data
    assert b"".join(event.data for event in read().iter_events()) == data
    assert handle.stream(live=live).read_bytes() == data
    with pytest.raises(StreamParseError, match="UTF-8") as caught:
        read().read_text()
    assert caught.value.offset == "-1"


@pytest.mark.parametrize("live", LIVE_MODES)
@pytest.mark.every_store
@pytest.mark.every_transport
def test_live_reads_see_what_is_appended_and_the_end(facade: Facade, url: str, live: Any) -> None:
    """Pitfall 1: a closed stream ends the read, in any mode."""
    handle = facade.DurableStream.create(url, content_type="application/json", body=0)
    seen = []
    with handle.stream(live=live) as response:
        for item in response.iter_json():
            seen.append((item, response.offset))
            if item == 5:
                handle.close_stream('"last"')
            elif item != "last":
                assert handle.append(item + 1).next_offset > response.offset
        assert response.stream_closed
        assert response.closed
    assert [item for item, _ in seen] == [0, 1, 2, 3, 4, 5, "last"]
    assert response.offset == handle.head().offset


@pytest.mark.parametrize("live", LIVE_MODES)
@pytest.mark.parametrize("content_type", ["application/octet-stream", "text/plain"])
def test_live_reads_of_bytes_and_text(facade: Facade, url: str, live: Any, content_type: str) -> None:
    handle = facade.DurableStream.create(url, content_type=content_type)
    parts = [part.encode() for part in TEXT]
    response = handle.stream(live=live)
    writer = threading.Thread(
        target=lambda: [handle.append(part) for part in parts] and handle.close_stream()
    )
    writer.start()
    assert b"".join(response) == b"".join(parts)
    writer.join()


@pytest.mark.every_transport
def test_catch_up_spans_many_responses(facade: Facade, small_server: Any, stream: str) -> None:
    """Pitfall 2: everything to the tail, not the first chunk."""
    handle = facade.DurableStream.create(f"{small_server.root}/{stream}")
    data = bytes(range(256)) * 40
    for start in range(0, len(data), 512):
        handle.append(data[start : start + 512])
    response = handle.stream(live=False)
    seen, offsets = b"", []
    for piece in response:
        seen += piece
        offsets.append(response.offset)
    assert seen == data
    assert len(offsets) > 3
    assert response.up_to_date
    assert not response.stream_closed
    for live in MODES:
        assert handle.stream(live=live).read_bytes() == data
    for offset in offsets:
        assert seen.endswith(handle.stream(live=False, offset=offset).read_bytes())


def test_catch_up_of_json_spans_many_responses(facade: Facade, small_server: Any, stream: str) -> None:
    """Pitfall 2."""
    url = f"{small_server.root}/{stream}"
    handle = facade.DurableStream.create(url, content_type="application/json")
    items = [{"number": number, "pad": "x" * 50} for number in range(100)]
    for item in items:
        handle.append(item)
    assert list(handle.stream(live=False).iter_json()) == items
    for live in MODES:
        assert handle.stream(live=live).read_json() == items
        assert len(handle.stream(live=live).read_json_batches()) > 1
        assert json.loads(handle.stream(live=live).read_bytes()) == items
        assert json.loads(handle.stream(live=live).read_text()) == items


@pytest.mark.parametrize("live", MODES)
def test_text_that_ends_inside_a_character_is_committed_with_its_rest(
    facade: Facade, url: str, live: Any
) -> None:
    """Pitfall 7: a torn character is neither lost nor replaced, and no checkpoint lies inside it."""
    encoded = "aé😀b".encode()
    handle = facade.DurableStream.create(url, content_type="text/x")
    offsets = {handle.append(encoded[number : number + 1]).next_offset for number in range(len(encoded))}
    handle.close_stream()
    assert "".join(handle.stream(live=live).iter_text()) == "aé😀b"
    response = handle.stream(live=live)
    texts = [(text, response.offset) for text in response.iter_text()]
    for number, (_, offset) in enumerate(texts):
        assert offset in offsets
        rest = "".join(text for text, _ in texts[number + 1 :])
        assert handle.stream(live=False, offset=offset).read_text() == rest


@pytest.mark.parametrize("live", MODES)
def test_a_checkpoint_never_lies_inside_a_character(facade: Facade, url: str, live: Any) -> None:
    """Pitfalls 4 and 7: the tail ends in half of one."""
    handle = facade.DurableStream.create(url, content_type="text/plain", body=b"a")
    handle.append("é".encode()[:1])
    response = facade.stream(url, live=live)
    assert response.read_text() == "a"
    handle.append("é".encode()[1:])
    handle.close_stream()
    assert facade.stream(url, live=live, offset=response.offset).read_text() in {"é", "aé"}


def test_text_that_is_none_is_reported(facade: Facade, url: str) -> None:
    broken = facade.DurableStream.create(url, content_type="application/x", body=b"a\xff")
    for read in ("read_text", "iter_text"):
        with pytest.raises(StreamParseError, match="UTF-8") as caught:
            list(getattr(broken.stream(live=False), read)())
        assert caught.value.offset == "-1"


def test_a_checkpoint_inside_a_batch_stays_before_it(facade: Facade, url: str) -> None:
    """Pitfall 4: the offset moves with the last item of a batch, so that nothing is skipped after a crash."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    for number in range(3):
        handle.append(number)
    response = handle.stream(live=False)
    items = response.iter_json()
    positions = [response.offset]
    for _ in range(3):
        next(items)
        positions.append(response.offset)
    assert positions[:3] == ["-1"] * 3
    assert positions[3] == handle.head().offset


@pytest.mark.parametrize("live", MODES)
def test_a_read_resumes_from_any_offset_it_showed(facade: Facade, url: str, live: Any) -> None:
    """Pitfall 4."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    for number in range(10):
        handle.append(number)
    handle.close_stream()
    response = handle.stream(live=live)
    for handed, item in enumerate(response.iter_json(), 1):
        assert item == handed - 1
        rest = facade.stream(url, live=False, offset=response.offset).read_json()
        # What is handed over but not yet covered may come again; nothing may be missing.
        assert rest == list(range(10 - len(rest), 10))
        assert len(rest) >= 10 - handed
    assert facade.stream(url, live=live, offset=response.offset).read_json() == []


def test_events_carry_data_positions_and_the_news_of_the_tail(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json", body=[1])
    for live in MODES:
        with handle.stream(live=live) as response:
            event = next(response.iter_events())
            assert isinstance(event, StreamEvent)
            assert (event.data, event.next_offset, event.up_to_date) == ([[1]], handle.head().offset, True)
            assert response.offset == event.next_offset
    [event] = handle.stream(live=False).iter_events(mode="bytes")
    assert event.data == b"[[1]]"
    [event] = handle.stream(live=False, offset="now").iter_events(mode="text")
    assert (event.data, event.up_to_date) == ("[]", True)
    with handle.stream(live=False) as response, pytest.raises(ValueError, match="mode"):
        next(iter(response.iter_events(mode="xml")))


def test_a_response_is_consumed_once(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json", body=1)
    response = handle.stream(live=False)
    assert response.read_json() == [1]
    for again in (response.read_json, response.read_bytes, response.iter_text, lambda: iter(response)):
        with pytest.raises(StreamConsumedError):
            again()


def test_json_of_a_stream_that_holds_none(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="application/octet-stream", body=b"[1]")
    for read in ("iter_json", "read_json"):
        with (
            handle.stream(live=False) as response,
            pytest.raises(DurableStreamError, match="not JSON") as caught,
        ):
            list(getattr(response, read)())
        assert caught.value.code == "BAD_CONTENT_TYPE"


def test_what_a_response_knows(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="text/plain", body="x")
    with handle.stream(live=False) as response:
        assert (response.url, response.content_type, response.live) == (url, "text/plain", False)
        assert (response.offset, response.start_offset, response.cursor) == ("-1", "-1", None)
        assert (response.status, response.status_text, response.ok) == (200, "OK", True)
        assert "stream-next-offset" in response.headers
        assert not response.closed
        assert not response.up_to_date
        list(response)
        assert response.up_to_date
    assert response.closed


@pytest.mark.parametrize("live", LIVE_MODES)
def test_read_methods_stop_at_the_tail(facade: Facade, url: str, live: Any) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json", body=1)
    assert handle.stream(live=live).read_json() == [1]
    assert handle.stream(live=live, offset="now").read_json() == []


@pytest.mark.parametrize("live", LIVE_MODES)
def test_now_gives_only_what_comes_later(facade: Facade, url: str, live: Any) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json", body='"old"')
    with handle.stream(offset="now", live=live) as response:
        items = response.iter_json()
        timer = threading.Timer(0.1, lambda: handle.append('"new"'))
        timer.start()
        assert next(items) == "new"
        timer.join()


@pytest.mark.parametrize("live", LIVE_MODES)
@pytest.mark.every_transport
def test_the_end_of_a_wait_is_not_the_end_of_the_read(
    facade: Facade, small_server: Any, stream: str, live: Any
) -> None:
    """Pitfall 3: servers rotate connections; the reader goes on from where it was."""
    url = f"{small_server.root}/{stream}"
    handle = facade.DurableStream.create(url, content_type="application/json", body=0)
    with handle.stream(live=live) as response:
        items = response.iter_json()
        assert next(items) == 0
        timer = threading.Timer(0.7, lambda: handle.append(1))
        timer.start()
        assert next(items) == 1
        timer.join()


@pytest.mark.parametrize("live", LIVE_MODES)
@pytest.mark.every_store
def test_a_stream_deleted_under_a_reader_is_reported(facade: Facade, url: str, live: Any) -> None:
    """Neither a silent end nor an endless wait."""
    handle = facade.DurableStream.create(url, content_type="application/json", body="1")
    with facade.stream(url, live=live) as response:
        items = response.iter_json()
        assert next(items) == 1
        threading.Timer(0.1, handle.delete).start()
        with pytest.raises((StreamNotFoundError, RetentionGoneError)):
            next(items)
    assert response.closed


def test_many_readers_at_once(facade: Facade, url: str) -> None:
    """More open event streams than a pool has places: none starves the others, nor a write."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    readers = [facade.stream(url, live="sse", offset="now") for _ in range(80)]
    handle.append("1")
    try:
        assert [next(reader.iter_json()) for reader in readers] == [1] * 80
    finally:
        for reader in readers:
            reader.close()


@pytest.mark.every_transport
def test_a_large_append_comes_back_whole(facade: Facade, url: str) -> None:
    data = bytes(range(256)) * (16 << 12)  # 16 MiB, as one event too
    handle = facade.DurableStream.create(url)
    handle.append(data)
    handle.close_stream()
    assert handle.stream(live=False).read_bytes() == data
    assert handle.stream(live="sse").read_bytes() == data
