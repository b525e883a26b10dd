"""Every way out of a read releases its connection at once and wakes whatever is blocked. Pitfall 10."""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import Any

import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams.protocol.sse import encode_control, encode_data

TAIL = {"stream_next_offset": "5", "stream_up_to_date": "true", "content_type": "text/plain"}
LIVE_MODES = [True, "long-poll", "sse"]
JSON_EVENT = encode_data(b"[1]", text=True) + encode_control("1")
FORMS = ["__iter__", "iter_text", "iter_json", "iter_json_batches", "iter_events"]


@pytest.mark.parametrize("live", LIVE_MODES)
@pytest.mark.every_transport
def test_close_from_another_thread_wakes_a_blocked_read(facade: Facade, url: str, live: Any) -> None:
    """Pitfall 10."""
    handle = facade.DurableStream.create(url, content_type="text/plain")
    response = handle.stream(offset="now", live=live)
    threading.Timer(0.2, response.close).start()
    assert list(response) == []
    assert response.closed


@pytest.mark.every_transport
def test_close_wakes_a_read_that_waits_for_the_answers_head(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 10: a long-poll has no response to shut down yet."""
    scripted.replies = [scripted.send(scripted.response(200, b"hello", **TAIL)), scripted.stall()]
    reading = facade.stream(scripted.root + "/s", live="long-poll")
    seen: list[bytes] = []
    thread = threading.Thread(target=lambda: seen.extend(reading))
    thread.start()
    assert scripted.arrived.acquire(timeout=10)
    assert scripted.arrived.acquire(timeout=10)
    reading.close()
    thread.join(10)
    assert not thread.is_alive()
    assert seen == [b"hello"]
    assert scripted.gone.acquire(timeout=10)


def test_close_wakes_a_pause(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 10: a back-off sleep too."""
    scripted.replies = [
        scripted.send(scripted.response(200, b"hello", **TAIL)),
        scripted.send(scripted.response(503, retry_after="3600")),
    ]
    reading = facade.stream(scripted.root + "/s", live="long-poll")
    thread = threading.Thread(target=lambda: list(reading))
    thread.start()
    for _ in range(2):
        assert scripted.arrived.acquire(timeout=10)
    reading.close()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("leave", ["break", "error", "collected", "unused", "with", "close", "body"])
@pytest.mark.every_transport
def test_no_way_out_leaves_a_connection_behind(facade: Facade, scripted: ScriptedServer, leave: str) -> None:
    """Pitfall 10."""
    scripted.replies = [scripted.stall(scripted.events(JSON_EVENT))]
    reading = facade.stream(scripted.root + "/s", live="sse")
    if leave == "break":
        for _ in reading:
            break
    elif leave == "error":
        with contextlib.suppress(KeyError):
            for _ in reading:
                raise KeyError
    elif leave == "collected":
        pieces = iter(reading)
        next(pieces)
        del pieces
    elif leave == "with":
        with reading:
            pass
    elif leave == "close":
        pieces = iter(reading)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    elif leave == "body":
        with contextlib.suppress(KeyError), reading:
            raise KeyError
    del reading
    gc.collect()
    assert scripted.gone.acquire(timeout=10)


@pytest.mark.parametrize("form", FORMS)
def test_breaking_out_of_any_form_releases_the_connection(
    facade: Facade, scripted: ScriptedServer, form: str
) -> None:
    """Pitfall 10."""
    scripted.replies = [scripted.stall(scripted.events(JSON_EVENT))]
    with facade.stream(scripted.root + "/s", live="sse") as reading:
        options = {"mode": "bytes"} if form == "iter_events" else {}
        pieces = iter(getattr(reading, form)(**options))
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        assert scripted.gone.acquire(timeout=10)
        assert reading.closed
        assert reading.offset == "1"


@pytest.mark.every_transport
def test_a_decoder_that_fails_releases_the_connection(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 10: an exception from the inside of a read."""
    scripted.replies = [scripted.stall(scripted.events(JSON_EVENT))]
    reading = facade.stream(scripted.root + "/s", live="sse")

    def decode(item: object) -> object:
        raise KeyError(item)

    with pytest.raises(KeyError):
        list(reading.iter_json(decode=decode))
    assert reading.offset == "-1"
    assert scripted.gone.acquire(timeout=10)


@pytest.mark.every_transport
def test_close_releases_a_connection_that_nobody_reads(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 10."""
    scripted.replies = [scripted.stall(scripted.events(encode_control("1")))]
    reading = facade.stream(scripted.root + "/s", live="sse")
    reading.close()
    assert scripted.gone.acquire(timeout=10)
    assert list(reading) == []
    reading.close()


@pytest.mark.parametrize("live", LIVE_MODES)
def test_a_read_that_stops_at_the_tail_releases_its_connection(
    facade: Facade, scripted: ScriptedServer, live: Any
) -> None:
    """Pitfall 10: the read methods end before the event stream does."""
    if live == "sse":
        scripted.replies = [scripted.stall(scripted.events(encode_control("1", up_to_date=True)))]
    else:
        scripted.replies = [scripted.send(scripted.response(200, b"hello", **TAIL)), scripted.stall()]
    facade.stream(scripted.root + "/s", live=live).read_bytes()
    assert len(scripted.requests) == 1
    if live == "sse":
        assert scripted.gone.acquire(timeout=10)


def test_many_abandoned_reads_leave_no_connection(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 10: thirty in a row, each left in another place."""
    scripted.replies = [scripted.stall(scripted.events(JSON_EVENT))]
    for number in range(30):
        reading = facade.stream(scripted.root + "/s", live="sse")
        if number % 3 == 1:
            next(iter(reading))
        elif number % 3 == 2:
            reading.close()
        del reading
    gc.collect()
    for _ in range(30):
        assert scripted.gone.acquire(timeout=10)
