"""The sync facade against a real server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import urllib3

from durable_streams import (
    DurableStream,
    DurableStreamError,
    RetryPolicy,
    SeqConflictError,
    StreamClosedError,
    StreamConsumedError,
    StreamExistsError,
    StreamNotFoundError,
    StreamParseError,
    stream,
)

LIVE_MODES = [True, "long-poll", "sse"]


def test_a_streams_life(url: str) -> None:
    handle = DurableStream.create(url, content_type="text/plain; charset=utf-8", ttl_seconds=600)
    assert handle.content_type == "text/plain; charset=utf-8"
    first = handle.append("hé")
    second = handle.append(b"llo")
    assert second.next_offset > first.next_offset
    head = handle.head()
    assert head.exists
    assert (head.offset, head.stream_closed, head.ttl_seconds) == (second.next_offset, False, 600)
    assert handle.close_stream("!").final_offset == handle.head().offset
    assert handle.close_stream().final_offset == handle.head().offset
    with pytest.raises(StreamClosedError) as caught:
        handle.append("more")
    assert caught.value.url == url
    assert caught.value.final_offset == handle.head().offset
    with handle.stream() as response:
        assert response.read_text() == "héllo!"
        assert response.stream_closed
    handle.delete()
    with pytest.raises(StreamNotFoundError):
        handle.head()


def test_create_twice_and_otherwise(url: str) -> None:
    DurableStream.create(url, content_type="application/json")
    DurableStream.create(url, content_type="application/json")
    with pytest.raises(StreamExistsError):
        DurableStream.create(url, content_type="text/plain")
    assert DurableStream.connect(url).content_type == "application/json"
    assert DurableStream.head_static(url).content_type == "application/json"
    DurableStream.delete_static(url)
    with pytest.raises(StreamNotFoundError):
        DurableStream.connect(url)
    with pytest.raises(StreamNotFoundError):
        DurableStream(url).append(b"x")
    with pytest.raises(StreamNotFoundError):
        stream(url)


def test_json_values_and_json_text(url: str) -> None:
    """Pitfall 16: one encoding for every form, and append({...}) works on a handle that knows nothing yet."""
    DurableStream.create(url, content_type="application/json")
    handle = DurableStream(url)
    for value in (
        {"message": "hello"},
        '{"message":"hello"}',
        [1, [2]],
        b"[3]",
        None,
        True,
        12345678901234567890123,
    ):
        handle.append(value)
    expected = [{"message": "hello"}] * 2 + [[1, [2]], [3], None, True, 12345678901234567890123]
    assert handle.stream(live=False).read_json() == expected
    with pytest.raises(ValueError, match="not valid JSON"):
        handle.append("hello")


def test_sequence_conflicts(url: str) -> None:
    handle = DurableStream.create(url)
    handle.append(b"a", seq="2")
    with pytest.raises(SeqConflictError) as caught:
        handle.append(b"b", seq="2")
    assert caught.value.code == "CONFLICT_SEQ"
    handle.append(b"b", seq="3")


def test_another_content_type_is_a_conflict_of_its_own(url: str) -> None:
    handle = DurableStream.create(url, content_type="text/plain")
    with pytest.raises(DurableStreamError) as caught:
        handle.append(b"a", content_type="image/png", seq="1")
    assert type(caught.value) is DurableStreamError
    assert caught.value.status == 409


def test_a_fork_reads_as_its_source_and_then_its_own(url: str) -> None:
    source = DurableStream.create(url, content_type="application/json", body=1)
    middle = source.append(2).next_offset
    source.append(3)
    fork = source.fork(url + "-fork", offset=middle)
    fork.append("4")
    assert fork.stream(live=False).read_json() == [1, 2, 4]
    deeper = source.fork(url + "-deeper", offset=middle, sub_offset=1)
    assert deeper.stream(live=False).read_json() == [1, 2, 3]


def test_catch_up_spans_many_responses(start_server: Callable[..., object]) -> None:
    """Pitfall 2: everything to the tail, not the first chunk."""
    server = start_server(chunk_size=1024)
    handle = DurableStream.create(f"{server.root}/many")  # type: ignore[attr-defined]
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
    assert handle.stream(live=False).read_bytes() == data
    for offset in offsets:
        assert seen.endswith(handle.stream(live=False, offset=offset).read_bytes())
    json_handle = DurableStream.create(f"{server.root}/json", content_type="application/json")  # type: ignore[attr-defined]
    items = [{"number": number, "pad": "x" * 50} for number in range(100)]
    for item in items:
        json_handle.append(item)
    assert json_handle.stream(live=False).read_json() == items
    assert len(json_handle.stream(live=False).read_json_batches()) > 1
    import json

    assert json.loads(json_handle.stream(live=False).read_bytes()) == items


@pytest.mark.parametrize("live", LIVE_MODES)
def test_live_reads_see_what_is_appended_and_the_end(url: str, live: object) -> None:
    """Pitfall 1: a closed stream ends the read, in any mode."""
    handle = DurableStream.create(url, content_type="application/json", body=0)
    seen = []
    with handle.stream(live=live) as response:  # type: ignore[arg-type]
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
def test_live_reads_of_bytes_and_text(url: str, live: object, content_type: str) -> None:
    handle = DurableStream.create(url, content_type=content_type)
    parts = [b"one\n\ntwo", "data: é\u2028😀\n".encode(), b"event: control\ndata: {}\n\n", b"end"]
    response = handle.stream(live=live)  # type: ignore[arg-type]
    writer = threading.Thread(
        target=lambda: [handle.append(part) for part in parts] and handle.close_stream()
    )
    writer.start()
    assert b"".join(response) == b"".join(parts)
    writer.join()


@pytest.mark.parametrize("live", [False, *LIVE_MODES])
def test_text_that_ends_inside_a_character_is_committed_with_its_rest(url: str, live: object) -> None:
    encoded = "aé😀b".encode()
    handle = DurableStream.create(url, content_type="text/x")
    for number in range(len(encoded)):
        handle.append(encoded[number : number + 1])
    handle.close_stream()
    assert "".join(handle.stream(live=live).iter_text()) == "aé😀b"  # type: ignore[arg-type]
    broken = DurableStream.create(url + "-broken", content_type="application/x", body=b"a\xff")
    with pytest.raises(StreamParseError, match="UTF-8"):
        broken.stream(live=False).read_text()


def test_a_checkpoint_inside_a_batch_stays_before_it(url: str) -> None:
    """Pitfall 4: the offset moves with the last item of a batch, so that nothing is skipped after a crash."""
    handle = DurableStream.create(url, content_type="application/json")
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


def test_a_decoder_that_fails_does_not_move_the_offset(url: str) -> None:
    handle = DurableStream.create(url, content_type="application/json", body=7)
    response = handle.stream(live=False)

    def decode(item: object) -> object:
        raise KeyError(item)

    with pytest.raises(KeyError):
        list(response.iter_json(decode=decode))
    assert response.offset == "-1"
    assert response.closed
    assert list(handle.stream(live=False).iter_json(decode=str)) == ["7"]


def test_events_carry_data_positions_and_the_news_of_the_tail(url: str) -> None:
    handle = DurableStream.create(url, content_type="application/json", body=[1])
    for live in [False, *LIVE_MODES]:
        with handle.stream(live=live) as response:
            event = next(response.iter_events())
            assert (event.data, event.next_offset, event.up_to_date) == ([[1]], handle.head().offset, True)
            assert response.offset == event.next_offset
    [event] = handle.stream(live=False).iter_events(mode="bytes")
    assert event.data == b"[[1]]"
    [event] = handle.stream(live=False, offset="now").iter_events(mode="text")
    assert (event.data, event.up_to_date) == ("[]", True)
    with handle.stream(live=False) as response, pytest.raises(ValueError, match="mode"):
        response.iter_events(mode="xml")  # type: ignore[arg-type]


def test_a_response_is_consumed_once(url: str) -> None:
    handle = DurableStream.create(url, content_type="application/json", body=1)
    response = handle.stream(live=False)
    assert response.read_json() == [1]
    for again in (response.read_json, response.read_bytes, response.iter_text, lambda: iter(response)):
        with pytest.raises(StreamConsumedError):
            again()


def test_json_of_a_stream_that_holds_none(url: str) -> None:
    handle = DurableStream.create(url, content_type="text/plain", body="[1]")
    with handle.stream(live=False) as response, pytest.raises(DurableStreamError, match="not JSON") as caught:
        response.iter_json()
    assert caught.value.code == "BAD_CONTENT_TYPE"


def test_what_a_response_knows(url: str) -> None:
    handle = DurableStream.create(url, content_type="text/plain", body="x")
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
def test_read_methods_stop_at_the_tail(url: str, live: object) -> None:
    handle = DurableStream.create(url, content_type="application/json", body=1)
    assert handle.stream(live=live).read_json() == [1]  # type: ignore[arg-type]
    assert handle.stream(live=live, offset="now").read_json() == []  # type: ignore[arg-type]


def test_now_gives_only_what_comes_later(url: str) -> None:
    handle = DurableStream.create(url, content_type="application/json", body='"old"')
    for live in LIVE_MODES:
        with handle.stream(offset="now", live=live) as response:
            items = response.iter_json()
            timer = threading.Timer(0.1, lambda: handle.append('"new"'))
            timer.start()
            assert next(items) == "new"
            timer.join()


@pytest.mark.parametrize("live", LIVE_MODES)
def test_the_end_of_a_wait_is_not_the_end_of_the_read(
    start_server: Callable[..., object], live: object
) -> None:
    """Pitfall 3: servers rotate connections; the reader goes on from where it was."""
    server = start_server(long_poll_timeout=0.2, sse_max_age=0.2)
    handle = DurableStream.create(f"{server.root}/rotated", content_type="application/json", body=0)  # type: ignore[attr-defined]
    with handle.stream(live=live) as response:  # type: ignore[arg-type]
        items = response.iter_json()
        assert next(items) == 0
        timer = threading.Timer(1.0, lambda: handle.append(1))
        timer.start()
        assert next(items) == 1
        timer.join()


@pytest.mark.parametrize("live", LIVE_MODES)
def test_close_from_another_thread_wakes_a_blocked_read(url: str, live: object) -> None:
    """Pitfall 10."""
    handle = DurableStream.create(url, content_type="text/plain")
    response = handle.stream(offset="now", live=live)  # type: ignore[arg-type]
    threading.Timer(0.2, response.close).start()
    assert list(response) == []
    assert response.closed


def test_headers_and_parameters_may_be_callables_called_per_request(url: str) -> None:
    made = iter(range(100))
    handle = DurableStream.create(url, headers={"X-Request": lambda: str(next(made))}, params={"key": "a b"})
    handle.append(b"x")
    handle.stream(live=False, headers={"Y": "z"}).read_bytes()
    assert next(made) == 3
    with pytest.raises(ValueError, match="header"):
        DurableStream(url, headers={"X": "a\r\nb"}).head()
    with pytest.raises(ZeroDivisionError):
        DurableStream(url, headers={"X": lambda: str(1 // 0)}).head()


def test_a_given_client_is_used_and_not_closed(url: str) -> None:
    manager = urllib3.PoolManager(timeout=5.0)
    with DurableStream.create(url, client=manager, body=b"x") as handle:
        assert handle.stream(live=False).read_bytes() == b"x"
        response = handle.stream()
        threading.Timer(0.2, response.close).start()
        assert list(response) == [b"x"]
    assert manager.request("HEAD", url).status == 200
    manager.clear()
    with pytest.raises(TypeError, match="client="):
        DurableStream(url, client=object()).head()


def test_threads_share_one_handle(url: str) -> None:
    handle = DurableStream.create(url, content_type="application/json")
    threads = [
        threading.Thread(target=lambda n=n: [handle.append({"n": n, "i": i}) for i in range(25)])
        for n in range(8)
    ]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
    items = handle.stream(live=False).read_json()
    assert len(items) == 200
    for n in range(8):
        assert [item["i"] for item in items if item["n"] == n] == list(range(25))


def test_a_large_append_comes_back_whole(url: str) -> None:
    data = bytes(range(256)) * (32 << 12)  # 32 MiB, as one event too
    handle = DurableStream.create(url)
    handle.append(data)
    handle.close_stream()
    assert handle.stream(live=False).read_bytes() == data
    assert handle.stream(live="sse").read_bytes() == data


def test_nobody_listening_is_a_fetch_error_of_ours(url: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    nothing = f"http://127.0.0.1:{address[1]}/s"
    with pytest.raises(DurableStreamError, match="refused") as caught:
        DurableStream(nothing, retry=RetryPolicy(max_retries=0)).head()
    assert caught.value.code == "CONNECT"
    assert not caught.value.may_have_been_sent  # type: ignore[attr-defined]
    with pytest.raises(DurableStreamError) as caught:
        stream("http://no-such-host.invalid/s", retry=RetryPolicy(max_retries=0))
    assert caught.value.code == "CONNECT"
