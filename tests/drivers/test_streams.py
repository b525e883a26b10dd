"""What a handle does, against a real server."""

from __future__ import annotations

import threading

import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import (
    DurableStreamError,
    OffsetConflictError,
    RetryPolicy,
    SeqConflictError,
    StreamClosedError,
    StreamExistsError,
    StreamNotFoundError,
)

AT_ONCE = RetryPolicy(max_retries=0)


@pytest.mark.every_store
@pytest.mark.every_transport
def test_a_streams_life(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="text/plain; charset=utf-8", ttl_seconds=600)
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


@pytest.mark.every_store
def test_create_twice_and_otherwise(facade: Facade, url: str) -> None:
    stream = facade.DurableStream
    stream.create(url, content_type="application/json")
    stream.create(url, content_type="application/json")
    with pytest.raises(StreamExistsError) as caught:
        stream.create(url, content_type="text/plain")
    assert caught.value.code == "CONFLICT_EXISTS"
    assert stream.connect(url).content_type == "application/json"
    assert stream.head_static(url).content_type == "application/json"
    stream.delete_static(url)
    with pytest.raises(StreamNotFoundError):
        stream.connect(url)
    with pytest.raises(StreamNotFoundError):
        stream(url).append(b"x")
    with pytest.raises(StreamNotFoundError):
        facade.stream(url)


def test_a_stream_may_be_created_with_its_whole_content(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json", body=[1, 2], closed=True)
    assert handle.head().stream_closed
    assert handle.stream().read_json() == [[1, 2]]
    later = facade.DurableStream(url + "-later")
    later.create_stream(content_type="text/plain", expires_at="2099-01-01T00:00:00Z")
    assert later.head().expires_at == "2099-01-01T00:00:00Z"


@pytest.mark.every_store
@pytest.mark.every_transport
def test_json_values_and_json_text(facade: Facade, url: str) -> None:
    """Pitfall 16: one encoding for every form, and append({...}) works on a handle that knows nothing yet."""
    facade.DurableStream.create(url, content_type="application/json")
    handle = facade.DurableStream(url)
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


def test_every_write_encodes_json_alike(facade: Facade, url: str) -> None:
    """Pitfall 16: as the first data, appended, as a producer's record, as the last data."""
    for value in ({"a": ["é", 1.5]}, '{"a": ["é", 1.5]}', b'{"a": ["\xc3\xa9", 1.5]}'):
        facade.DurableStream.create(url, content_type="application/json", body=value)
        handle = facade.DurableStream(url)
        handle.append(value)
        with facade.Producer(url, "p") as producer:
            producer.append(value)
        handle.close_stream(value)
        assert handle.stream().read_json() == [{"a": ["é", 1.5]}] * 4
        handle.delete()


def test_sequence_conflicts(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url)
    handle.append(b"a", seq="2")
    with pytest.raises(SeqConflictError) as caught:
        handle.append(b"b", seq="2")
    assert caught.value.code == "CONFLICT_SEQ"
    handle.append(b"b", seq="3")
    assert handle.stream(live=False).read_bytes() == b"ab"


@pytest.mark.every_store
@pytest.mark.every_transport
def test_an_append_expects_the_end_of_the_stream(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json")
    empty = handle.head().offset
    first = handle.append([1], expected_offset=empty).next_offset
    with pytest.raises(OffsetConflictError) as caught:
        handle.append([2], expected_offset=empty)
    assert (caught.value.expected_offset, caught.value.current_offset) == (empty, first)
    assert (caught.value.code, caught.value.status) == ("CONFLICT_OFFSET", 412)
    assert caught.value.may_have_been_sent is False
    second = handle.append([3], expected_offset=first).next_offset
    with pytest.raises(OffsetConflictError):
        handle.close_stream(expected_offset=first)
    assert handle.close_stream([4], expected_offset=second).final_offset > second
    assert handle.stream(live=False).read_json() == [[1], [3], [4]]
    for wrong in ("-1", "now", "", 'a"b'):
        with pytest.raises(ValueError, match="offset from an answer"):
            handle.append(1, expected_offset=wrong)


def test_another_content_type_is_a_conflict_of_its_own(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="text/plain")
    with pytest.raises(DurableStreamError) as caught:
        handle.append(b"a", content_type="image/png", seq="1")
    assert type(caught.value) is DurableStreamError
    assert caught.value.status == 409


@pytest.mark.every_store
@pytest.mark.every_transport
def test_a_fork_reads_as_its_source_and_then_its_own(facade: Facade, url: str) -> None:
    source = facade.DurableStream.create(url, content_type="application/json", body=1)
    middle = source.append(2).next_offset
    source.append(3)
    fork = source.fork(url + "-fork", offset=middle)
    fork.append("4")
    assert fork.stream(live=False).read_json() == [1, 2, 4]
    deeper = source.fork(url + "-deeper", offset=middle, sub_offset=1)
    assert deeper.stream(live=False).read_json() == [1, 2, 3]


def test_headers_and_parameters_may_be_callables_called_per_request(facade: Facade, url: str) -> None:
    made = iter(range(100))
    handle = facade.DurableStream.create(
        url, headers={"X-Request": facade.callable(lambda: str(next(made)))}, params={"key": "a b"}
    )
    handle.append(b"x")
    handle.stream(live=False, headers={"Y": "z"}).read_bytes()
    assert next(made) == 3
    with pytest.raises(ValueError, match="header"):
        facade.DurableStream(url, headers={"X": "a\r\nb"}).head()
    with pytest.raises(ZeroDivisionError):
        facade.DurableStream(url, headers={"X": facade.callable(lambda: str(1 // 0))}).head()
    with pytest.raises(ZeroDivisionError):
        facade.stream(url, params={"x": facade.callable(lambda: str(1 // 0))})


def test_threads_share_one_handle(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json")
    threads = [
        threading.Thread(target=lambda n=n: [handle.append({"n": n, "i": i}) for i in range(25)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    items = handle.stream(live=False).read_json()
    assert len(items) == 200
    for n in range(8):
        assert [item["i"] for item in items if item["n"] == n] == list(range(25))


@pytest.mark.every_transport
def test_nobody_listening_is_a_fetch_error_of_ours(facade: Facade) -> None:
    """Pitfall 15."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    nothing = f"http://127.0.0.1:{address[1]}/s"
    with pytest.raises(DurableStreamError, match=r"(?i)refused|connect") as caught:
        facade.DurableStream(nothing, retry=AT_ONCE).head()
    assert caught.value.code == "CONNECT"
    assert not caught.value.may_have_been_sent  # type: ignore[attr-defined]
    with pytest.raises(DurableStreamError) as caught:
        facade.stream("http://no-such-host.invalid/s", retry=AT_ONCE)
    assert caught.value.code == "CONNECT"


@pytest.mark.parametrize("address", ["streams.example.com/s", "ftp://host/s", "http://host/a b", "http:///s"])
def test_a_url_that_is_none_is_reported_before_any_request(facade: Facade, address: str) -> None:
    """Pitfall 15."""
    for use in (facade.stream, facade.DurableStream, facade.DurableStream.create):
        with pytest.raises(ValueError, match="URL"):
            use(address)


def test_what_is_no_client_is_reported(facade: Facade, url: str) -> None:
    with pytest.raises(TypeError, match="client="):
        facade.DurableStream(url, client=object()).head()


@pytest.mark.parametrize("options", [{"timeout": 0}, {"live": "ws"}, {"offset": ""}, {"offset": 5}])
def test_arguments_that_make_no_sense(facade: Facade, url: str, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        facade.stream(url, **options)


def test_a_handle_closes_nothing_but_itself(facade: Facade, url: str) -> None:
    with facade.DurableStream.create(url, body=b"x") as handle:
        pass
    handle.close()
    assert not facade.DurableStream(url).head().stream_closed


@pytest.mark.every_transport
@pytest.mark.every_store
def test_a9_a_creation_says_whether_it_made_the_stream(facade: Facade, url: str) -> None:
    assert facade.DurableStream(url).created is None
    for created in (True, False):
        handle = facade.DurableStream.create(url, content_type="text/plain", body=f"body of {created}")
        assert handle.created is created
        assert handle.fork(url + "-fork").created is created
        assert facade.DurableStream(url + "-2").create_stream().created is created
        assert handle.head().created is None
        assert handle.created is created
    assert facade.stream(url, live=False).read_text() == "body of True"


@pytest.mark.every_transport
def test_a9_a_creation_whose_first_answer_was_lost_does_not_say_that_it_found_the_stream(
    facade: Facade, scripted: ScriptedServer
) -> None:
    """It may have been made by the attempt before; one that was refused made nothing."""
    found = scripted.send(scripted.response(200, stream_next_offset="1", content_type="text/plain"))
    for first, created in (
        (scripted.reset, None),
        (scripted.send(scripted.response(502)), None),
        (scripted.send(scripted.response(503, retry_after="0")), False),
    ):
        scripted.requests.clear()
        scripted.replies = [first, found]
        retry = RetryPolicy(initial_delay=0.001, max_delay=0.01)
        handle = facade.DurableStream.create(f"{scripted.root}/s", body=b"x", retry=retry)
        assert len(scripted.requests) == 2
        assert handle.created is created
