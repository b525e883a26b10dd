"""The sync idempotent producer against a real server, and against ones that misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_streams import (
    DurableStream,
    DurableStreamError,
    FetchError,
    IdempotentAppendResult,
    RetryPolicy,
    StaleEpochError,
    StreamClosedError,
    StreamNotFoundError,
    SyncIdempotentProducer,
)

ScriptedServer = Any  # conftest.py has it

QUICK = RetryPolicy(max_retries=-1, initial_delay=0.001, max_delay=0.01)


def test_records_are_batched_and_come_back_in_order(url: str) -> None:
    handle = DurableStream.create(url, content_type="application/json")
    with SyncIdempotentProducer(url, "orders", linger_ms=1, max_batch_bytes=2000) as producer:
        for number in range(5000):
            producer.append({"order": number} if number % 2 else b'{"order":%d}' % number)
        producer.append_nowait("[1, 2]")
        producer.flush()
        assert (producer.pending_count, producer.in_flight_count) == (0, 0)
        assert 25 < producer.next_seq < 2000
    assert handle.stream(live=False).read_json() == [{"order": number} for number in range(5000)] + [[1, 2]]


def test_bytes_are_joined(url: str) -> None:
    DurableStream.create(url)
    with SyncIdempotentProducer(url, "p") as producer:
        for number in range(1000):
            producer.append(b"%d," % number)
    assert DurableStream(url).stream(live=False).read_bytes() == b"".join(
        b"%d," % number for number in range(1000)
    )


def test_a_submitted_record_tells_when_it_is_durable(url: str) -> None:
    handle = DurableStream.create(url, content_type="text/plain")
    with SyncIdempotentProducer(url, "p") as producer:
        result = producer.submit("x").result(timeout=30)
        assert result == IdempotentAppendResult(handle.head().offset or "", duplicate=False)


def test_many_threads_share_one_producer(url: str) -> None:
    handle = DurableStream.create(url, content_type="application/json")
    with SyncIdempotentProducer(url, "p", max_batch_bytes=500) as producer:
        threads = [
            threading.Thread(target=lambda n=n: [producer.append([n, i]) for i in range(500)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    items = handle.stream(live=False).read_json()
    assert len(items) == 2000
    for n in range(4):
        assert [i for thread, i in items if thread == n] == list(range(500))


def test_a_second_run_with_the_same_epoch_is_told_and_with_auto_claim_goes_on(url: str) -> None:
    handle = DurableStream.create(url, content_type="application/json")
    with SyncIdempotentProducer(url, "p") as producer:
        producer.append(1)
    with pytest.raises(StaleEpochError), SyncIdempotentProducer(url, "p") as producer:
        producer.append(2)
    with SyncIdempotentProducer(url, "p", auto_claim=True) as producer:
        producer.append(3)
        producer.flush()
        assert producer.epoch == 1
    with SyncIdempotentProducer(url, "p", epoch=2) as producer:
        producer.append(4)
        producer.flush()
        producer.restart()
        assert (producer.epoch, producer.next_seq) == (3, 0)
        producer.append(5)
    assert handle.stream(live=False).read_json() == [1, 3, 4, 5]


def test_two_producers_that_claim_from_each_other_lose_nothing(url: str) -> None:
    handle = DurableStream.create(url, content_type="application/json")
    one = SyncIdempotentProducer(url, "p", auto_claim=True)
    two = SyncIdempotentProducer(url, "p", auto_claim=True)
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
def test_the_stream_is_closed_behind_everything(url: str, final: object) -> None:
    handle = DurableStream.create(url, content_type="application/json")
    with SyncIdempotentProducer(url, "p", linger_ms=50) as producer:
        producer.append(1)
        result = producer.close_stream(final)
        assert result.offset == handle.head().offset
        with pytest.raises(DurableStreamError, match="closed"):
            producer.append(2)
    assert handle.head().stream_closed
    assert handle.stream().read_json() == ([1] if final is None else [1, final])


def test_what_was_lost_is_raised_by_flush_close_and_futures(url: str) -> None:
    """Pitfall 18: no normal return after a loss, and on_error is told once."""
    handle = DurableStream.create(url, content_type="text/plain")
    told: list[Exception] = []
    producer = SyncIdempotentProducer(url, "p", on_error=told.append, linger_ms=20)
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


def test_a_missing_stream_and_bad_data_are_told_at_once(url: str) -> None:
    with pytest.raises(StreamNotFoundError), SyncIdempotentProducer(url, "p") as producer:
        producer.append(b"x")
    DurableStream.create(url, content_type="application/json")
    with SyncIdempotentProducer(url, "p") as producer:
        with pytest.raises(ValueError, match="not valid JSON"):
            producer.append("{")
        producer.append("{}")
    assert DurableStream(url).stream(live=False).read_json() == [{}]


def test_the_blocks_own_error_is_not_hidden(url: str) -> None:
    def fail() -> None:
        with SyncIdempotentProducer(url, "p", content_type="text/plain") as producer:
            producer.append("x")  # there is no such stream
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_closed_producer_takes_nothing(url: str) -> None:
    DurableStream.create(url)
    producer = SyncIdempotentProducer(url, "p")
    producer.close()
    producer.close()
    with pytest.raises(DurableStreamError, match="closed"):
        producer.append(b"x")


def accepted(scripted: ScriptedServer, seq: int) -> Callable[[object], None]:
    answer = scripted.response(200, stream_next_offset=str(seq), producer_epoch="0", producer_seq=str(seq))
    reply: Callable[[object], None] = scripted.send(answer)
    return reply


def test_lost_answers_and_refusals_are_retried_with_the_same_request(scripted: ScriptedServer) -> None:
    scripted.replies = [
        scripted.reset,
        scripted.send(scripted.response(503)),
        scripted.send(scripted.response(429, retry_after="0")),
        accepted(scripted, 0),
    ]
    with SyncIdempotentProducer(
        scripted.root + "/s", "p", content_type="text/plain", retry=QUICK
    ) as producer:
        producer.append("x")
    heads = [request.lower() for request in scripted.requests]
    assert len(heads) == 4
    assert len(set(heads)) == 1
    assert "producer-id: p\r\nproducer-epoch: 0\r\nproducer-seq: 0\r\n" in heads[0]


def test_a_full_queue_waits_for_room(scripted: ScriptedServer) -> None:
    gate = threading.Event()

    def slowly(connection: object) -> None:
        gate.wait(30)
        accepted(scripted, 0)(connection)

    scripted.replies = [slowly]
    url = scripted.root + "/s"
    with SyncIdempotentProducer(
        url, "p", content_type="text/plain", max_pending_bytes=100, linger_ms=0
    ) as producer:
        producer.append(b"x" * 90)
        appended = threading.Event()

        def more() -> None:
            producer.append(b"y" * 90)
            appended.set()

        thread = threading.Thread(target=more)
        thread.start()
        assert scripted.arrived.acquire(timeout=10)
        assert not appended.is_set()
        assert producer.pending_count == 1
        gate.set()
        thread.join(30)
        assert appended.is_set()


def test_a_server_that_stays_away_is_given_up_and_said(scripted: ScriptedServer) -> None:
    scripted.stop()
    producer = SyncIdempotentProducer(
        scripted.root + "/s", "p", content_type="text/plain", retry=QUICK, retry_timeout=0.2
    )
    producer.append("x")
    with pytest.raises(FetchError) as caught:
        producer.close()
    assert caught.value.code == "CONNECT"


def test_a_header_callable_that_fails_ends_the_producer_with_its_error(url: str) -> None:
    DurableStream.create(url, content_type="text/plain")
    producer = SyncIdempotentProducer(url, "p", content_type="text/plain", headers={"X": lambda: str(1 // 0)})
    producer.append("x")
    with pytest.raises(FetchError, match="division") as caught:
        producer.close()
    assert isinstance(caught.value.original, ZeroDivisionError)


def test_a_server_killed_and_restarted_loses_and_repeats_nothing(
    run_server: Callable[..., object], tmp_path: Path
) -> None:
    import sys

    def serve(port: int) -> object:
        command = [sys.executable, "-m", "durable_streams.cli", "serve", "--port", str(port)]
        return run_server([*command, "--data-dir", str(tmp_path)]).wait_until_ready()  # type: ignore[attr-defined]

    server = serve(0)
    url = f"{server.root}/orders"  # type: ignore[attr-defined]
    handle = DurableStream.create(url, content_type="application/json")
    with SyncIdempotentProducer(url, "p", max_batch_bytes=200, linger_ms=1) as producer:
        for kill in range(3):
            for number in range(300):
                producer.append([kill, number])
                time.sleep(0.0005)
                if number == 150:
                    port = server.port  # type: ignore[attr-defined]
                    server.kill()  # type: ignore[attr-defined]
                    server = serve(port)
        producer.flush()
    assert handle.stream(live=False).read_json() == [
        [kill, number] for kill in range(3) for number in range(300)
    ]
