"""What programs written for the official client use, on both APIs (docs/coming-from-the-official-client.md)."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate
from typing import Any

import httpx
import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import (
    AsyncStreamResponse,
    DurableStreamError,
    FetchError,
    RetryPolicy,
    SeqConflictError,
    StreamConsumedError,
    StreamParseError,
    StreamResponse,
)
from durable_streams.protocol.request import check_url

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
NONE = RetryPolicy(max_retries=0)
JSON = "application/json"


def test_c1_live_auto_follows_as_true_does(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type=JSON)
    handle.append(1)
    with facade.stream(url, live="auto") as response:
        assert response.live is True
        items = iter(response.iter_json())
        assert next(items) == 1
        handle.append(2)
        assert next(items) == 2


def test_c1_text_in_another_encoding(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type="text/plain", body="äö".encode("latin-1"))
    with facade.stream(url, live=False) as response:
        assert response.read_text("latin-1") == "äö"
    with facade.stream(url, live=False) as response:
        assert "".join(response.iter_text(encoding="latin-1")) == "äö"
    with facade.stream(url, live=False) as response:
        [event] = response.iter_events("text", encoding="latin-1")
        assert event.data == "äö"
    with facade.stream(url, live=False) as response, pytest.raises(StreamParseError, match="UTF-8"):
        response.read_text()
    with facade.stream(url, live=False) as response, pytest.raises(LookupError):
        response.read_text("no such encoding")


def test_c1_a_character_of_another_encoding_that_lies_across_answers(
    facade: Facade, scripted: ScriptedServer
) -> None:
    encoded = "a€b".encode("utf-16-le")
    plain = {"content_type": "text/plain"}
    first = scripted.response(200, encoded[:3], stream_next_offset="1", **plain)
    rest = scripted.response(200, encoded[3:], stream_next_offset="2", stream_up_to_date="true", **plain)
    scripted.replies = [scripted.send(first), scripted.send(rest)]
    with facade.stream(scripted.root + "/s", live=False) as response:
        assert response.read_text("utf-16-le") == "a€b"


def test_c1_events_decode_and_are_batches(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type=JSON, body={"n": 1})
    with facade.stream(url, live=False) as response:
        assert [event.data for event in response.iter_events(mode="json_batches")] == [[{"n": 1}]]
    with facade.stream(url, live=False) as response:
        events = list(response.iter_events(mode="json", decode=lambda value: value["n"]))
        assert [event.data for event in events] == [[1]]


def test_c1_on_error_of_a_handle_serves_its_reads(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(401)), scripted.send(_whole(b"data"))] * 2
    seen: list[Any] = []

    def refresh(error: Exception) -> dict[str, Any]:
        seen.append(error)
        return {"headers": {"authorization": "fresh"}}

    handle = facade.DurableStream(scripted.root + "/s", on_error=refresh)
    with handle.stream(live=False) as response:
        assert response.read_bytes() == b"data"
    assert [error.status for error in seen] == [401]
    with handle.stream(live=False, on_error=lambda _: {}) as response:
        assert response.read_bytes() == b"data"
    assert len(seen) == 1


def test_c1_on_error_of_create_and_connect(facade: Facade, url: str) -> None:
    def on_error(_: Exception) -> None:
        return None

    created = facade.DurableStream.create(url, content_type="text/plain", on_error=on_error)
    connected = facade.DurableStream.connect(url, content_type="text/csv", on_error=on_error)
    assert created.content_type == connected.content_type == "text/plain"


def test_c1_close_stream_with_a_sequence(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="text/plain")
    handle.append("a", seq="5")
    with pytest.raises(SeqConflictError):
        handle.close_stream(data="b", seq="4")
    handle.close_stream(data="b", seq="6")
    assert facade.stream(url, live=False).read_text() == "ab"


def test_c1_producers_take_body_and_data(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type=JSON)
    with facade.Producer(url, "p") as producer:
        producer.append(body=None)
        producer.append_nowait(body=1)
        producer.put(body=2)
        with pytest.raises(TypeError):
            producer.append()
        with pytest.raises(TypeError):
            producer.append(1, body=2)
        producer.close_stream(data=3)
    assert facade.stream(url, live=False).read_json() == [None, 1, 2, 3]


def test_c1_responses_are_generic() -> None:
    assert StreamResponse[int].__origin__ is StreamResponse  # type: ignore[attr-defined]
    assert AsyncStreamResponse[int].__origin__ is AsyncStreamResponse  # type: ignore[attr-defined]


def test_c2_a_consumed_response_names_both_methods(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type=JSON, body=1)
    response = facade.stream(url, live=False)
    response.read_json()
    with pytest.raises(StreamConsumedError) as caught:
        response.read_text()
    assert (caught.value.attempted_method, caught.value.consumed_by) == ("read_text", "read_json")


@pytest.mark.parametrize(("status", "sent"), [(400, False), (429, False), (500, True), (504, True)])
def test_c2_every_error_of_a_write_says_whether_it_may_be_stored(
    facade: Facade, scripted: ScriptedServer, status: int, sent: bool
) -> None:
    scripted.replies = [scripted.send(scripted.response(status))]
    handle = facade.DurableStream(scripted.root + "/s", content_type="text/plain", retry=NONE)
    for write in (lambda: handle.append("x"), lambda: handle.close_stream("x")):
        with pytest.raises(DurableStreamError) as caught:
            write()
        assert caught.value.may_have_been_sent is sent
    with pytest.raises(DurableStreamError) as caught:
        handle.head()
    assert caught.value.may_have_been_sent is None


@pytest.mark.parametrize("batching", [False, True])
def test_c3_appends_are_repeated_where_that_is_asked_for(
    facade: Facade, scripted: ScriptedServer, batching: bool
) -> None:
    stored = scripted.send(scripted.response(204, stream_next_offset="1"))
    scripted.replies = [scripted.reset, scripted.send(scripted.response(500)), stored]
    handle = facade.DurableStream(
        scripted.root + "/s", content_type="text/plain", retry=QUICK, retry_appends=True, batching=batching
    )
    assert handle.append("x").next_offset == "1"
    assert [request.body for request in scripted.requests] == ["x"] * 3


def test_c3_an_append_with_a_sequence_is_repeated(facade: Facade, scripted: ScriptedServer) -> None:
    stored = scripted.send(scripted.response(204, stream_next_offset="1"))
    scripted.replies = [scripted.reset, stored]
    handle = facade.DurableStream(scripted.root + "/s", content_type="text/plain", retry=QUICK)
    assert handle.append("x", seq="1").next_offset == "1"


def test_c3_a_repetition_that_the_server_refuses_may_be_stored(
    facade: Facade, scripted: ScriptedServer
) -> None:
    scripted.replies = [scripted.reset, scripted.send(scripted.response(409))]
    handle = facade.DurableStream(scripted.root + "/s", content_type="text/plain", retry=QUICK)
    with pytest.raises(SeqConflictError, match="may have been written") as caught:
        handle.append("x", seq="1")
    assert caught.value.may_have_been_sent is True
    scripted.replies = [scripted.send(scripted.response(409))]
    with pytest.raises(SeqConflictError) as caught:
        handle.append("x", seq="1")
    assert caught.value.may_have_been_sent is False


@pytest.mark.parametrize("content_type", ["application/ld+json", "text/plain", "text/x; charset=utf-8"])
@pytest.mark.parametrize(
    ("pieces", "items"),
    [(['[{"a": 1},', " 2]\n"], [{"a": 1}, 2]), (['{"a":', "1}"], [{"a": 1}]), ([], []), (["7"], [7])],
)
def test_c4_json_of_other_types_is_read_as_one_text(
    facade: Facade, url: str, content_type: str, pieces: list[str], items: list[Any]
) -> None:
    handle = facade.DurableStream.create(url, content_type=content_type)
    for piece in pieces:
        handle.append(piece)
    assert facade.stream(url, live=False).read_json() == items
    assert facade.stream(url, live=False).read_json_batches() == ([items] if items else [])


def test_c4_what_is_no_json_moves_nothing(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="text/plain", body="not JSON")
    with facade.stream(url, live=False) as response:
        with pytest.raises(StreamParseError):
            response.read_json()
        assert response.offset == "-1"
    with facade.stream(url, live=False) as response, pytest.raises(DurableStreamError) as caught:
        response.iter_json()
    assert caught.value.code == "BAD_CONTENT_TYPE"
    handle.delete()


@pytest.mark.every_transport
@pytest.mark.parametrize("live", [True, "long-poll", "sse"])
def test_c6_a_live_read_ends_after_silence(facade: Facade, url: str, live: Any) -> None:
    handle = facade.DurableStream.create(url, content_type=JSON, body=1)
    later = threading.Timer(0.3, handle.append, [2])
    later.start()
    began = time.monotonic()
    with facade.stream(url, live=live, idle_timeout=0.8) as response:
        assert list(response.iter_json()) == [1, 2]
        assert response.timed_out
        assert not response.stream_closed
    assert 1.0 < time.monotonic() - began < 10
    later.join()


def test_c6_the_time_of_the_consumer_does_not_count(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type=JSON, body=1)
    taken = []
    with handle.stream(live=True, idle_timeout=0.4) as response:
        for item in response.iter_json():
            taken.append(item)
            time.sleep(0.6)
            if item < 3:
                handle.append(item + 1)
    assert taken == [1, 2, 3]


def test_c6_a_whole_result_is_not_cut_short(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.stall(scripted.response(200, b"x" * 10, length=100, stream_next_offset="1"))]
    with facade.stream(scripted.root + "/s", live=False, idle_timeout=0.3) as response:
        with pytest.raises(FetchError, match=r"0\.3 seconds") as caught:
            response.read_bytes()
        assert caught.value.code == "TIMEOUT"
        assert response.offset == "-1"


def test_c6_a_closed_stream_ends_by_itself(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type=JSON, body=1, closed=True)
    with facade.stream(url, idle_timeout=30) as response:
        assert list(response.iter_json()) == [1]
        assert (response.timed_out, response.stream_closed) == (False, True)


@pytest.mark.parametrize("seconds", [0, -1])
def test_c6_a_time_that_is_none_is_refused(facade: Facade, url: str, seconds: float) -> None:
    with pytest.raises(ValueError, match="idle_timeout"):
        facade.stream(url, idle_timeout=seconds)


def test_b4_closing_the_stream_again_gives_the_first_result(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type="text/plain")
    with facade.Producer(url, "p") as producer:
        producer.append("a")
        first = producer.close_stream("b")
        again = producer.close_stream("c")
        assert (first.duplicate, again.duplicate, again.offset) == (False, True, first.offset)
    assert producer.close_stream().offset == first.offset
    assert facade.stream(url, live=False).read_text() == "ab"


def test_b4_a_second_caller_waits_for_the_first(facade: Facade, scripted: ScriptedServer) -> None:
    def slow(connection: Any) -> None:
        time.sleep(0.5)
        scripted.send(scripted.response(200, stream_next_offset="7"))(connection)

    scripted.replies = [slow]
    producer = facade.Producer(scripted.root + "/s", "p", content_type="text/plain")
    results: list[Any] = []
    callers = [threading.Thread(target=lambda: results.append(producer.close_stream())) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(20)
    assert sorted(result.duplicate for result in results) == [False, True, True]
    assert {result.offset for result in results} == {"7"}
    assert len(scripted.requests) == 1
    producer.close()


def _refused(when: float, **headers: str) -> bytes:
    return ScriptedServer.response(429, retry_after=formatdate(when, usegmt=True), **headers)


@pytest.mark.every_transport
def test_b5_a_date_to_come_back_needs_no_date_of_the_answer(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(_refused(time.time() + 3)), scripted.send(_whole(b"data"))]
    began = time.monotonic()
    assert facade.stream(scripted.root + "/s", live=False, retry=QUICK).read_bytes() == b"data"
    assert 1.5 < time.monotonic() - began < 10


def test_b5_a_date_that_is_none_is_not_taken_for_one(facade: Facade, scripted: ScriptedServer) -> None:
    refused = _refused(time.time() + 3, date="a while ago")
    scripted.replies = [scripted.send(refused), scripted.send(_whole(b"data"))]
    began = time.monotonic()
    assert facade.stream(scripted.root + "/s", live=False, retry=QUICK).read_bytes() == b"data"
    assert 1.5 < time.monotonic() - began < 10


@pytest.mark.every_transport
def test_c2_a_failure_within_an_answer_has_what_came_of_it(facade: Facade, scripted: ScriptedServer) -> None:
    wire = ScriptedServer.response(200, b"half of i", length=12, stream_next_offset="1", x_marked="yes")
    scripted.replies = [scripted.send(wire, close=True)]
    with pytest.raises(FetchError) as caught:
        facade.stream(scripted.root + "/s", live=False, retry=NONE).read_bytes()
    error = caught.value
    assert (error.status, error.headers["x-marked"]) == (200, "yes")
    # aiohttp may raise for the cut before it gives out what came before it.
    assert error.body == b"half of i" or (facade.transport == "aiohttp" and error.body == b"")
    with pytest.raises(FetchError) as caught:
        facade.stream("http://127.0.0.1:1/s", live=False, retry=NONE)
    assert (caught.value.status, caught.value.body, caught.value.headers) == (None, None, {})


def test_b5_the_clock_of_the_server_counts_where_it_is_known(
    facade: Facade, scripted: ScriptedServer
) -> None:
    behind = time.time() - 3000
    refused = _refused(behind + 2, date=formatdate(behind, usegmt=True))
    scripted.replies = [scripted.send(refused), scripted.send(_whole(b"data"))]
    began = time.monotonic()
    assert facade.stream(scripted.root + "/s", live=False, retry=QUICK).read_bytes() == b"data"
    assert 1.5 < time.monotonic() - began < 10


@pytest.mark.every_transport
@pytest.mark.parametrize("host", ["a..example", ".example", "a" * 64 + ".example", "ä..example"])
def test_b7_a_host_that_is_no_name_is_refused_at_once(facade: Facade, host: str) -> None:
    url = f"http://{host}/s"
    for call in (
        lambda: facade.stream(url),
        lambda: facade.DurableStream(url),
        lambda: facade.Producer(url, "p"),
    ):
        with pytest.raises(ValueError, match="no valid name"):
            call()


@pytest.mark.parametrize(
    "host", ["localhost.", "127.0.0.1", "[::1]", "münchen.example", "under_score.example"]
)
def test_b7_names_and_addresses_are_hosts(host: str) -> None:
    assert check_url(f"http://{host}/s")


@pytest.mark.every_transport
def test_b8_none_is_left_out_and_numbers_are_written(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(_whole(b"data"))]
    values = {"a": None, "b": 7, "c": 1.5, "d": True, "e": lambda: 8, "f": lambda: None}
    headers = {f"x-{name}": value for name, value in values.items()}
    facade.stream(scripted.root + "/s", live=False, params=values, headers=headers).read_bytes()
    [request] = scripted.requests
    expected = {"b": "7", "c": "1.5", "d": "true", "e": "8"}
    assert {name: value for name, value in request.query.items() if name in values} == expected
    sent = {name: value for name, value in request.headers.items() if name[2:] in values and name[1] == "-"}
    assert sent == {f"x-{name}": value for name, value in expected.items()}


@pytest.mark.every_transport
@pytest.mark.parametrize("timeout", [(3, 0.3), httpx.Timeout(0.3, connect=3), (None, 0.3)])
def test_b8_both_forms_of_a_time_limit(facade: Facade, scripted: ScriptedServer, timeout: Any) -> None:
    scripted.replies = [scripted.stall()]
    with pytest.raises(FetchError) as caught:
        facade.stream(scripted.root + "/s", live=False, timeout=timeout, retry=NONE)
    assert caught.value.code == "TIMEOUT"


def test_b8_no_limit_on_silence(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type="text/plain", body="a", timeout=(3, None))
    assert facade.stream(url, live=False, timeout=httpx.Timeout(None)).read_text() == "a"


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        ((0, 3), ValueError),
        ((3, -1), ValueError),
        ((1, 2, 3), TypeError),
        ("3", TypeError),
        (True, TypeError),
    ],
)
def test_b8_a_time_limit_that_is_none_is_refused(
    facade: Facade, url: str, timeout: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="timeout"):
        facade.stream(url, timeout=timeout)


def _whole(body: bytes) -> bytes:
    return ScriptedServer.response(200, body, stream_next_offset="1", stream_up_to_date="true")
