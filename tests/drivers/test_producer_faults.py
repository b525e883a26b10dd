"""The idempotent producer against servers that fail, forget, fence it off or fall behind. Pitfalls 18 and 19."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from facade import Facade
from scripted import Received, ScriptedServer

from durable_streams import DurableStreamError, FetchError, RetryPolicy, SequenceGapError, StreamNotFoundError

QUICK = RetryPolicy(max_retries=-1, initial_delay=0.001, max_delay=0.01)
WITHIN = 30.0


class ProducerServer:
    """Keeps to the protocol's table for producers; ``before`` may answer, or fail, in its place."""

    def __init__(self, scripted: ScriptedServer) -> None:
        self.epoch = -1
        self.last = -1
        self.records: list[Any] = []
        self.bodies: dict[tuple[int, int], set[str]] = {}
        self.largest = 0
        self.before: Callable[[Received], bytes | None] = lambda _: None
        self._scripted = scripted
        scripted.answer = self._answer

    def _answer(self, request: Received) -> bytes:
        epoch, seq = int(request.headers["producer-epoch"]), int(request.headers["producer-seq"])
        self.bodies.setdefault((epoch, seq), set()).add(request.body)
        self.largest = max(self.largest, len(request.body))
        return self.before(request) or self.decide(epoch, seq, request)

    def decide(self, epoch: int, seq: int, request: Received) -> bytes:
        response = self._scripted.response
        if epoch < self.epoch:
            return response(403, producer_epoch=str(self.epoch))
        if epoch > self.epoch:
            if seq:
                return response(400)
            self.epoch, self.last = epoch, -1
        if seq > self.last + 1:
            return response(409, producer_expected_seq=str(self.last + 1), producer_received_seq=str(seq))
        known = {
            "stream_next_offset": str(len(self.records)),
            "producer_epoch": str(epoch),
            "producer_seq": str(self.last),
        }
        if seq <= self.last:
            return response(204, **known)
        self.last = seq
        self.records += json.loads(request.body)
        return response(
            200, **{**known, "stream_next_offset": str(len(self.records)), "producer_seq": str(seq)}
        )


@pytest.fixture
def server(scripted: ScriptedServer) -> ProducerServer:
    return ProducerServer(scripted)


def producer_of(facade: Facade, scripted: ScriptedServer, **options: Any) -> Any:
    settings = {"content_type": "application/json", "retry": QUICK, "linger_ms": 1, **options}
    return facade.Producer(scripted.root + "/s", "p", **settings)


@pytest.mark.every_transport
def test_lost_answers_and_refusals_are_retried_with_the_same_request(
    facade: Facade, scripted: ScriptedServer
) -> None:
    """Pitfall 18: one dropped connection does not poison it; the same epoch, number and body go out again."""
    accepted = scripted.response(200, stream_next_offset="1", producer_epoch="0", producer_seq="0")
    scripted.replies = [
        scripted.reset,
        scripted.send(scripted.response(503)),
        scripted.send(scripted.response(429, retry_after="0")),
        scripted.send(accepted[:20], close=True),
        scripted.send(accepted),
    ]
    with producer_of(facade, scripted, content_type="text/plain") as producer:
        producer.append("x")
    assert len(scripted.requests) == 5
    names = ("producer-id", "producer-epoch", "producer-seq", "content-type")
    sent = {(request.body, *(request.headers[name] for name in names)) for request in scripted.requests}
    assert sent == {("x", "p", "0", "0", "text/plain")}


@pytest.mark.every_transport
def test_nothing_is_lost_or_doubled_when_answers_get_lost(
    facade: Facade, scripted: ScriptedServer, server: ProducerServer
) -> None:
    """Pitfall 18: pipelined, every third answer lost after the server wrote, every fifth request before."""
    counter = iter(range(10**6))

    def before(request: Received) -> bytes | None:
        number = next(counter)
        if number % 5 == 4:
            raise ConnectionAbortedError
        if number % 3 == 2:
            server.decide(
                int(request.headers["producer-epoch"]), int(request.headers["producer-seq"]), request
            )
            raise ConnectionAbortedError
        return None

    server.before = before
    with producer_of(facade, scripted, max_batch_bytes=50) as producer:
        for number in range(200):
            producer.append(number)
    assert server.records == list(range(200))
    assert all(len(bodies) == 1 for bodies in server.bodies.values())
    assert server.largest <= 50


def test_batches_by_size(facade: Facade, scripted: ScriptedServer, server: ProducerServer) -> None:
    """Pitfall 18: a batch is never over max_batch_bytes, and goes out full long before the linger ends."""
    with producer_of(facade, scripted, max_batch_bytes=100, linger_ms=60_000) as producer:
        futures = [producer.submit(f'"{number:07d}"') for number in range(100)]
        futures[80].result(WITHIN)
        assert server.largest <= 100
        assert len(server.bodies) <= 11  # a batch that overtook another is sent again
        producer.append('"' + "y" * 300 + '"')  # larger than a batch: alone in one
    assert server.records == [f"{number:07d}" for number in range(100)] + ["y" * 300]


def test_batches_by_time(facade: Facade, scripted: ScriptedServer, server: ProducerServer) -> None:
    """Ten records within the linger are one request; without any flush it goes out."""
    with producer_of(facade, scripted, linger_ms=300) as producer:
        futures = [producer.submit(number) for number in range(10)]
        assert [future.result(WITHIN).offset for future in futures] == ["10"] * 10
        assert len(scripted.requests) == 1


def test_several_requests_are_under_way_at_once(
    facade: Facade, scripted: ScriptedServer, server: ProducerServer
) -> None:
    """Pipelining, bounded by max_in_flight."""
    under_way = threading.Semaphore(0)
    gate = threading.Event()
    most, now, lock = [0], [0], threading.Lock()

    def slowly(connection: Any) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        under_way.release()
        assert gate.wait(WITHIN)
        with lock:
            now[0] -= 1
            answers.append(b"")
            connection.sendall(
                scripted.response(200, stream_next_offset="1", producer_epoch="0", producer_seq="99")
            )

    answers: list[bytes] = []
    scripted.answer = None
    first = scripted.response(200, stream_next_offset="1", producer_epoch="0", producer_seq="0")
    scripted.replies = [scripted.send(first), slowly]
    with producer_of(facade, scripted, max_in_flight=3, max_batch_bytes=10) as producer:
        producer.append(0)
        producer.flush()
        for number in range(12):
            producer.append(f"{number:08d}".replace("0", "1"))
        for _ in range(3):
            assert under_way.acquire(timeout=WITHIN)
        assert producer.in_flight_count == 3
        assert not under_way.acquire(timeout=0.2)
        gate.set()
    assert most[0] == 3
    sent = [int(request.headers["producer-seq"]) for request in scripted.requests]
    assert sorted(sent) == list(range(13))


@pytest.mark.every_transport
def test_a_claim_sends_everything_unacknowledged_again_in_order(
    facade: Facade, scripted: ScriptedServer, server: ProducerServer
) -> None:
    """Pitfall 18: with several batches in flight, not all of them as number 0, and none left out."""
    fenced = threading.Event()

    def before(request: Received) -> bytes | None:
        if request.headers["producer-epoch"] == "0" and int(request.headers["producer-seq"]) >= 2:
            if not fenced.is_set():
                fenced.set()
                server.epoch = 6
            return None
        return None

    server.before = before
    with producer_of(facade, scripted, auto_claim=True, max_batch_bytes=30) as producer:
        for number in range(100):
            producer.append(number)
        producer.flush()
        assert producer.epoch == 7
    assert server.records == list(range(100))
    claimed = [request for request in scripted.requests if request.headers["producer-epoch"] == "7"]
    numbers = [int(request.headers["producer-seq"]) for request in claimed]
    assert numbers[0] == 0
    assert sorted(set(numbers)) == list(range(len(set(numbers))))


def test_a_gap_that_does_not_close_is_an_error_and_no_recursion(
    facade: Facade, scripted: ScriptedServer, server: ProducerServer
) -> None:
    """Pitfall 18: a server that lost acknowledged records answers 409 forever."""
    producer = producer_of(facade, scripted)
    producer.append(1)
    producer.flush()
    server.last = -1
    producer.append(2)
    with pytest.raises(SequenceGapError) as caught:
        producer.flush()
    assert (caught.value.expected_seq, caught.value.received_seq) == (0, 1)
    with pytest.raises(SequenceGapError):
        producer.close()
    assert len(scripted.requests) == 2


def test_a_lost_batch_is_reported_by_everything_that_follows(
    facade: Facade, scripted: ScriptedServer, server: ProducerServer
) -> None:
    """Pitfall 18: flush and close do not return normally, and restart begins again."""
    server.before = lambda request: scripted.response(404) if "2" in request.body else None
    told: list[Exception] = []
    producer = producer_of(facade, scripted, on_error=told.append)
    assert producer.submit(1).result(WITHIN).offset == "1"
    lost = producer.submit(2)
    assert isinstance(lost.exception(WITHIN), StreamNotFoundError)
    for use in (producer.flush, lambda: producer.append(3), producer.flush):
        with pytest.raises(StreamNotFoundError):
            use()
    producer.restart()
    assert producer.submit(3).result(WITHIN).offset == "2"
    producer.close()
    assert server.records == [1, 3]
    assert [type(error) for error in told] == [StreamNotFoundError]


def test_a_full_queue_waits_for_room(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 18: the queue is bounded. append_nowait says so, put waits; of the sync API append waits too."""
    gate = threading.Event()

    def slowly(connection: Any) -> None:
        assert gate.wait(WITHIN)
        connection.sendall(
            scripted.response(200, stream_next_offset="1", producer_epoch="0", producer_seq="0")
        )

    scripted.replies = [slowly]
    options = {"content_type": "text/plain", "max_pending_bytes": 100, "linger_ms": 0}
    with producer_of(facade, scripted, **options) as producer:
        producer.append(b"x" * 90)
        assert scripted.arrived.acquire(timeout=WITHIN)
        refusing = [producer.append_nowait, *([producer.append] if facade.is_async else [])]
        for append in refusing:
            with pytest.raises(DurableStreamError) as caught:
                append(b"y" * 90)
            assert caught.value.code == "QUEUE_FULL"
        waiting = [producer.put, *([] if facade.is_async else [producer.append])]
        threads = [threading.Thread(target=append, args=(b"y" * 60,)) for append in waiting]
        for thread in threads:
            thread.start()
        threading.Event().wait(0.1)
        assert all(thread.is_alive() for thread in threads)
        assert producer.pending_count == 1
        gate.set()
        for thread in threads:
            thread.join(WITHIN)
            assert not thread.is_alive()


def test_who_waits_for_room_is_notified_when_the_producer_fails(
    facade: Facade, scripted: ScriptedServer
) -> None:
    """Pitfall 18."""
    gate = threading.Event()

    def refuse(connection: Any) -> None:
        assert gate.wait(WITHIN)
        connection.sendall(scripted.response(404))

    scripted.replies = [refuse]
    options = {"content_type": "text/plain", "max_pending_bytes": 100, "linger_ms": 0}
    producer = producer_of(facade, scripted, **options)
    producer.append(b"x" * 90)
    assert scripted.arrived.acquire(timeout=WITHIN)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            producer.put(b"y" * 90)
        except DurableStreamError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    threading.Event().wait(0.1)
    gate.set()
    thread.join(WITHIN)
    assert [type(error) for error in errors] == [StreamNotFoundError]
    with pytest.raises(StreamNotFoundError):
        producer.close()


@pytest.mark.every_transport
def test_a_server_that_stays_away_is_given_up_and_said(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfalls 15 and 18."""
    scripted.stop()
    producer = producer_of(facade, scripted, retry_timeout=0.2)
    producer.append("1")
    with pytest.raises(FetchError) as caught:
        producer.close()
    assert caught.value.code == "CONNECT"


@pytest.mark.every_transport
def test_credentials_are_fresh_for_every_attempt(
    facade: Facade, scripted: ScriptedServer, server: ProducerServer
) -> None:
    """Pitfall 18: a producer has credentials, callable ones too, and parameters."""
    attempts = iter(range(100))
    server.before = lambda _: scripted.response(503) if len(scripted.requests) < 3 else None
    headers = {"Authorization": facade.callable(lambda: f"Bearer {next(attempts)}"), "X-Team": "a"}
    params = {"key": facade.callable(lambda: "k")}
    with producer_of(facade, scripted, headers=headers, params=params) as producer:
        producer.append(1)
    assert [request.headers["authorization"] for request in scripted.requests] == [
        f"Bearer {number}" for number in range(3)
    ]
    assert {request.headers["x-team"] for request in scripted.requests} == {"a"}
    assert {request.query["key"] for request in scripted.requests} == {"k"}


def test_close_of_the_stream_is_repeated_safely(
    facade: Facade, scripted: ScriptedServer, server: ProducerServer
) -> None:
    """Its answer lost, the close goes out again under the same number."""
    lost = iter([True])

    def before(request: Received) -> bytes | None:
        if request.headers.get("stream-closed") == "true" and next(lost, False):
            server.decide(0, int(request.headers["producer-seq"]), request)
            raise ConnectionAbortedError
        return None

    server.before = before
    with producer_of(facade, scripted) as producer:
        producer.append(1)
        assert producer.close_stream(2).offset == "2"
    closes = [request for request in scripted.requests if "stream-closed" in request.headers]
    assert len(closes) == 2
    assert closes[0].headers["producer-seq"] == closes[1].headers["producer-seq"]
    assert server.records == [1, 2]
