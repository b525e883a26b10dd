"""The idempotent producer against a real server."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from facade import Facade

from durable_streams import (
    DurableStreamError,
    FetchError,
    IdempotentAppendResult,
    StaleEpochError,
    StreamClosedError,
    StreamNotFoundError,
)


@pytest.mark.every_store
@pytest.mark.every_transport
def test_records_are_batched_and_come_back_in_order(facade: Facade, url: str) -> None:
    """Pitfall 18: no batch is over max_batch_bytes, and a full one does not wait for the linger."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    with facade.Producer(url, "orders", linger_ms=1, max_batch_bytes=2000) as producer:
        for number in range(1000):
            producer.append({"order": number} if number % 2 else b'{"order":%d}' % number)
        producer.append_nowait("[1, 2]")
        producer.flush()
        assert (producer.pending_count, producer.in_flight_count) == (0, 0)
        assert 5 < producer.next_seq < 1000
    assert handle.stream(live=False).read_json() == [{"order": number} for number in range(1000)] + [[1, 2]]


def test_bytes_are_joined(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url)
    with facade.Producer(url, "p") as producer:
        for number in range(1000):
            producer.append(b"%d," % number)
    expected = b"".join(b"%d," % number for number in range(1000))
    assert facade.stream(url, live=False).read_bytes() == expected


@pytest.mark.every_store
def test_a_submitted_record_tells_when_it_is_durable(facade: Facade, url: str) -> None:
    """Pitfall 19."""
    handle = facade.DurableStream.create(url, content_type="text/plain")
    with facade.Producer(url, "p") as producer:
        result = producer.submit("x").result(timeout=30)
        assert result == IdempotentAppendResult(handle.head().offset or "", duplicate=False)


def test_many_threads_share_one_producer(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json")
    with facade.Producer(url, "p", max_batch_bytes=500) as producer:
        threads = [
            threading.Thread(target=lambda n=n: [producer.append([n, i]) for i in range(250)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    items = handle.stream(live=False).read_json()
    assert len(items) == 1000
    for n in range(4):
        assert [i for thread, i in items if thread == n] == list(range(250))


def test_a_second_run_with_the_same_epoch_is_reported_and_with_auto_claim_goes_on(
    facade: Facade, url: str
) -> None:
    """Fencing: an epoch that was used is refused; a newer one goes on."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    with facade.Producer(url, "p") as producer:
        producer.append(1)
    with pytest.raises(StaleEpochError), facade.Producer(url, "p") as producer:
        producer.append(2)
    with facade.Producer(url, "p", auto_claim=True) as producer:
        producer.append(3)
        producer.flush()
        assert producer.epoch == 1
    with facade.Producer(url, "p", epoch=2) as producer:
        producer.append(4)
        producer.flush()
        producer.restart()
        assert (producer.epoch, producer.next_seq) == (3, 0)
        producer.append(5)
    assert handle.stream(live=False).read_json() == [1, 3, 4, 5]


def test_an_older_producer_is_fenced_off(facade: Facade, url: str) -> None:
    """Its error is sticky, and says which epoch the server has."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    old = facade.Producer(url, "p", epoch=1)
    old.append("1")
    old.flush()
    with facade.Producer(url, "p", epoch=7) as new:
        new.append("2")
    future = old.submit("3")
    error = future.exception(timeout=30)
    assert isinstance(error, StaleEpochError)
    assert error.current_epoch == 7
    for use in (lambda: old.append("4"), old.flush, old.close):
        with pytest.raises(StaleEpochError):
            use()
    assert handle.stream(live=False).read_json() == [1, 2]


def test_two_producers_that_claim_from_each_other_lose_nothing(facade: Facade, url: str) -> None:
    """Pitfall 18."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    one = facade.Producer(url, "p", auto_claim=True)
    two = facade.Producer(url, "p", auto_claim=True)
    for number in range(5):
        one.append(["one", number])
        one.flush()
        two.append(["two", number])
        two.flush()
    one.close()
    two.close()
    items = handle.stream(live=False).read_json()
    assert sorted(items) == sorted([name, number] for name in ("one", "two") for number in range(5))


@pytest.mark.parametrize("final", [None, {"last": True}])
@pytest.mark.every_store
def test_the_stream_is_closed_behind_everything(facade: Facade, url: str, final: Any) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json")
    with facade.Producer(url, "p", linger_ms=50) as producer:
        producer.append(1)
        result = producer.close_stream(final)
        assert result.offset == handle.head().offset
        with pytest.raises(DurableStreamError, match="closed"):
            producer.append(2)
    assert handle.head().stream_closed
    assert handle.stream().read_json() == ([1] if final is None else [1, final])


def test_what_was_lost_is_raised_by_flush_close_and_futures(facade: Facade, url: str) -> None:
    """Pitfall 18: no normal return after a loss, and on_error is called once."""
    handle = facade.DurableStream.create(url, content_type="text/plain")
    told: list[Exception] = []
    producer = facade.Producer(url, "p", on_error=told.append, linger_ms=20, content_type="text/plain")
    handle.close_stream()
    futures = [producer.submit("x") for _ in range(3)]
    with pytest.raises(StreamClosedError):
        producer.flush()
    for future in futures:
        assert isinstance(future.exception(timeout=30), StreamClosedError)
    with pytest.raises(StreamClosedError):
        producer.append("y")
    with pytest.raises(StreamClosedError):
        producer.close()
    assert [type(error) for error in told] == [StreamClosedError]


def test_a_missing_stream_is_reported(facade: Facade, url: str) -> None:
    """Pitfall 18."""
    with pytest.raises(StreamNotFoundError), facade.Producer(url, "p") as producer:
        producer.append(b"x")


def test_bad_data_is_reported_at_once_and_does_not_end_the_producer(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type="application/json")
    with facade.Producer(url, "p", content_type="application/json") as producer:
        with pytest.raises(ValueError, match="not valid JSON"):
            producer.append("{")
        producer.append("{}")
    assert facade.stream(url, live=False).read_json() == [{}]


def test_the_blocks_own_error_is_not_hidden(facade: Facade, url: str) -> None:
    def fail() -> None:
        with facade.Producer(url, "p", content_type="text/plain") as producer:
            producer.append("x")  # there is no such stream
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_closed_producer_takes_nothing(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url)
    producer = facade.Producer(url, "p", content_type="application/octet-stream")
    producer.close()
    producer.close()
    for use in (lambda: producer.append(b"x"), lambda: producer.submit(b"x"), lambda: producer.put(b"x")):
        with pytest.raises(DurableStreamError, match="closed") as caught:
            use()
        assert caught.value.code == "PRODUCER_CLOSED"


def test_a_header_callable_that_fails_ends_the_producer_with_its_error(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type="text/plain")
    headers = {"X": facade.callable(lambda: str(1 // 0))}
    producer = facade.Producer(url, "p", content_type="text/plain", headers=headers)
    producer.append("x")
    with pytest.raises(FetchError, match="division") as caught:
        producer.close()
    assert isinstance(caught.value.original, ZeroDivisionError)


def test_what_a_producer_knows(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url)
    with facade.Producer(url, "p", epoch=3) as producer:
        assert (producer.url, producer.producer_id, producer.epoch, producer.next_seq) == (url, "p", 3, 0)
        assert (producer.pending_count, producer.in_flight_count) == (0, 0)


@pytest.mark.parametrize(
    "options",
    [{"max_batch_bytes": 0}, {"linger_ms": -1}, {"max_in_flight": 0}, {"epoch": -1}, {"timeout": -1}],
)
def test_settings_that_make_no_sense(facade: Facade, url: str, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).removesuffix("_ms")):
        facade.Producer(url, "p", **options)
