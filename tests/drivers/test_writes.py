"""Writing through networks that fail: requests repeated or not, or sent together, and the errors of callers."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
from facade import Facade
from scripted import Received, ScriptedServer

from durable_streams import (
    DurableStreamError,
    FetchError,
    OffsetConflictError,
    RetryPolicy,
    StreamClosedError,
)

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
WITHIN = 30.0


@pytest.mark.every_transport
def test_a_timeout_of_a_request_says_that_it_may_have_been_executed(
    facade: Facade, scripted: ScriptedServer
) -> None:
    """Pitfalls 8, 15 and 19."""
    scripted.replies = [scripted.stall()]
    handle = facade.DurableStream(scripted.root + "/s", content_type="text/plain", timeout=0.2, retry=QUICK)
    with pytest.raises(FetchError) as caught:
        handle.append(b"x")
    assert caught.value.code == "TIMEOUT"
    assert caught.value.may_have_been_sent
    assert caught.value.original is not None
    assert len(scripted.requests) == 1


@pytest.mark.every_transport
def test_a_dropped_append_is_not_repeated(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 19: unless it certainly was not executed, it is the caller's to decide."""
    scripted.replies = [scripted.reset]
    handle = facade.DurableStream(scripted.root + "/s", content_type="text/plain", retry=QUICK)
    for write in (lambda: handle.append(b"x"), lambda: handle.close_stream(b"x")):
        scripted.requests.clear()
        with pytest.raises(FetchError) as caught:
            write()
        assert caught.value.may_have_been_sent
        assert len(scripted.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_append_that_may_have_been_written_is_not_repeated(
    facade: Facade, scripted: ScriptedServer, status: int
) -> None:
    """Pitfalls 12 and 19."""
    scripted.replies = [scripted.send(scripted.response(status))]
    with pytest.raises(DurableStreamError, match="may have been written"):
        facade.DurableStream(scripted.root + "/s", content_type="text/plain", retry=QUICK).append(b"x")
    assert len(scripted.requests) == 1


def test_an_append_that_expects_an_offset_is_repeated(facade: Facade, scripted: ScriptedServer) -> None:
    """The server refuses the repetition of what it has."""
    refusal = scripted.response(412, stream_next_offset="8")
    scripted.replies = [scripted.reset, scripted.send(refusal)]
    handle = facade.DurableStream(scripted.root + "/s", content_type="text/plain", retry=QUICK)
    with pytest.raises(OffsetConflictError, match="may have been written") as caught:
        handle.append(b"x", expected_offset="7")
    assert caught.value.may_have_been_sent
    assert (caught.value.expected_offset, caught.value.current_offset) == ("7", "8")
    assert [request.count('if-match: "7"') for request in scripted.requests] == [1, 1]


@pytest.mark.parametrize("status", [425, 429, 503])
@pytest.mark.every_transport
def test_an_append_that_was_refused_is_repeated(
    facade: Facade, scripted: ScriptedServer, status: int
) -> None:
    """Pitfall 12: these answers say that nothing was written."""
    scripted.replies = [
        scripted.send(scripted.response(status, retry_after="0")),
        scripted.send(scripted.response(204, stream_next_offset="7")),
    ]
    handle = facade.DurableStream(scripted.root + "/s", content_type="text/plain", retry=QUICK)
    assert handle.append(b"x").next_offset == "7"
    assert [request.body for request in scripted.requests] == ["x", "x"]


@pytest.mark.every_transport
def test_idempotent_operations_are_repeated(facade: Facade, scripted: ScriptedServer) -> None:
    """Pitfall 12."""
    scripted.replies = [
        scripted.reset,
        scripted.send(scripted.response(503)),
        scripted.send(scripted.response(429, retry_after="0")),
        scripted.send(scripted.response(204, stream_next_offset="7")),
    ]
    handle = facade.DurableStream(scripted.root + "/s", retry=QUICK)
    assert handle.close_stream().final_offset == "7"
    assert len(scripted.requests) == 4


def test_create_head_and_delete_are_repeated(facade: Facade, scripted: ScriptedServer) -> None:
    found = scripted.send(scripted.response(200, stream_next_offset="7", content_type="text/plain"))
    scripted.replies = [scripted.reset, found]
    handle = facade.DurableStream.create(scripted.root + "/s", retry=QUICK)
    scripted.requests.clear()
    assert handle.head().offset == "7"
    scripted.requests.clear()
    handle.delete()
    assert [request.method for request in scripted.requests] == ["DELETE"] * 2


def test_a_delete_whose_answer_was_lost_is_done(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.reset, scripted.send(scripted.response(404))]
    facade.DurableStream(scripted.root + "/s", retry=QUICK).delete()


def test_credentials_are_fresh_for_every_attempt(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [
        scripted.send(scripted.response(429, retry_after="0")),
        scripted.send(scripted.response(204, stream_next_offset="7")),
    ]
    tokens = iter(["one", "two"])
    headers = {"Authorization": facade.callable(lambda: next(tokens))}
    handle = facade.DurableStream(
        scripted.root + "/s", headers=headers, content_type="text/plain", retry=QUICK
    )
    handle.append(b"x")
    assert [request.headers["authorization"] for request in scripted.requests] == ["one", "two"]


# -- appends at once


class Appends:
    """A server that counts what it is sent, and answers the first append only on command."""

    def __init__(self, scripted: ScriptedServer) -> None:
        self.gate = threading.Event()
        self.first = threading.Event()
        self.records: list[Any] = []
        self.status = 204
        self._scripted = scripted
        scripted.answer = self._answer

    @property
    def requests(self) -> list[Received]:
        return [request for request in self._scripted.requests if request.method == "POST"]

    def _answer(self, request: Received) -> bytes:
        if request.method != "POST":
            return self._scripted.response(200, content_type="application/json", stream_next_offset="0")
        status = self.status
        if not self.first.is_set():
            self.first.set()
            assert self.gate.wait(WITHIN)
        if status == 204:
            self.records += json.loads(request.body)
        return self._scripted.response(status, stream_next_offset=str(len(self.records)))


@pytest.fixture
def appends(scripted: ScriptedServer) -> Appends:
    return Appends(scripted)


def started(pool: ThreadPoolExecutor, appends: Appends, handle: Any, count: int) -> list[Future[Any]]:
    """Begin this many appends, the first of which is in progress when the others come."""
    futures = [pool.submit(handle.append, {"n": 0})]
    assert appends.first.wait(WITHIN)
    futures += [pool.submit(handle.append, {"n": number}) for number in range(1, count)]
    threading.Event().wait(0.3)  # for them to gather; where they are late, there are more requests
    return futures


@pytest.mark.every_transport
def test_appends_at_once_are_sent_together(
    facade: Facade, scripted: ScriptedServer, appends: Appends
) -> None:
    """Fewer requests than appends; each tells the position after the request that carried it."""
    handle = facade.DurableStream(scripted.root + "/s", content_type="application/json")
    with ThreadPoolExecutor(20) as pool:
        futures = started(pool, appends, handle, 20)
        appends.gate.set()
        results = [future.result(WITHIN).next_offset for future in futures]
    assert sorted(record["n"] for record in appends.records) == list(range(20))
    assert len(appends.requests) < 10
    ends = []
    for request in appends.requests:
        numbers = [record["n"] for record in json.loads(request.body)]
        ends.append((ends[-1] if ends else 0) + len(numbers))
        assert {results[number] for number in numbers} == {str(ends[-1])}


def test_without_batching_each_append_is_a_request(
    facade: Facade, scripted: ScriptedServer, appends: Appends
) -> None:
    handle = facade.DurableStream(scripted.root + "/s", content_type="application/json", batching=False)
    appends.gate.set()
    with ThreadPoolExecutor(8) as pool:
        wait([pool.submit(handle.append, {"n": number}) for number in range(8)])
    assert len(appends.requests) == len(appends.records) == 8


def test_one_failed_request_does_not_strand_the_appends_behind_it(
    facade: Facade, scripted: ScriptedServer, appends: Appends
) -> None:
    """Pitfall 17."""
    handle = facade.DurableStream(scripted.root + "/s", content_type="application/json", retry=QUICK)
    appends.status = 500
    with ThreadPoolExecutor(10) as pool:
        futures = started(pool, appends, handle, 10)
        appends.status = 204
        appends.gate.set()
        with pytest.raises(DurableStreamError, match="500"):
            futures[0].result(WITHIN)
        for future in futures[1:]:
            assert future.result(WITHIN).next_offset
    assert sorted(record["n"] for record in appends.records) == list(range(1, 10))


def test_one_append_with_bad_data_fails_alone(
    facade: Facade, scripted: ScriptedServer, appends: Appends
) -> None:
    """Pitfall 17."""
    handle = facade.DurableStream(scripted.root + "/s", content_type="application/json")
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(handle.append, {"n": 0})
        assert appends.first.wait(WITHIN)
        bad = [pool.submit(handle.append, "{"), pool.submit(handle.append, {"set": object()})]
        good = [pool.submit(handle.append, {"n": number}) for number in range(1, 5)]
        threading.Event().wait(0.2)
        appends.gate.set()
        for future in bad:
            assert isinstance(future.exception(WITHIN), (ValueError, TypeError))
        for future in (first, *good):
            assert future.result(WITHIN).next_offset
    assert sorted(record["n"] for record in appends.records) == list(range(5))


def test_a_header_callable_that_fails_strands_nobody(facade: Facade, url: str) -> None:
    """Pitfall 17: the error of the caller's own code reaches who met it; everybody gets an answer."""
    turns = iter(range(100))

    def token() -> str:
        if next(turns) < 3:
            raise LookupError("no token")
        return "Bearer x"

    facade.DurableStream.create(url, content_type="text/plain")
    headers = {"authorization": facade.callable(token)}
    handle = facade.DurableStream(url, content_type="text/plain", headers=headers)
    with ThreadPoolExecutor(8) as pool:
        errors = [future.exception(WITHIN) for future in [pool.submit(handle.append, "x") for _ in range(8)]]
    assert any(isinstance(error, LookupError) for error in errors)
    assert all(error is None or isinstance(error, (LookupError, DurableStreamError)) for error in errors)
    assert handle.append("y").next_offset
    assert handle.stream(live=False).read_text() == "x" * errors.count(None) + "y"


def test_appends_at_once_that_are_too_large_together_go_alone(
    facade: Facade, scripted: ScriptedServer, appends: Appends
) -> None:
    """A server's limit on bodies is not met by what no caller sent."""
    limit = 60
    answer = scripted.answer
    assert answer is not None
    scripted.answer = lambda request: scripted.response(413) if len(request.body) > limit else answer(request)
    handle = facade.DurableStream(scripted.root + "/s", content_type="application/json")
    with ThreadPoolExecutor(12) as pool:
        futures = started(pool, appends, handle, 10)
        futures.append(pool.submit(handle.append, '"' + "x" * limit + '"'))
        appends.gate.set()
        for future in futures[:10]:
            assert future.result(WITHIN).next_offset
        error = futures[10].exception(WITHIN)
    assert isinstance(error, DurableStreamError)
    assert error.status == 413
    assert sorted(record["n"] for record in appends.records) == list(range(10))


def test_appends_at_once_to_a_closed_stream_are_all_refused(facade: Facade, url: str) -> None:
    """Pitfall 17."""
    handle = facade.DurableStream.create(url, content_type="text/plain", closed=True)
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(handle.append, "x") for _ in range(8)]:
            assert isinstance(future.exception(WITHIN), StreamClosedError)


def test_an_append_with_a_sequence_number_goes_alone(
    facade: Facade, scripted: ScriptedServer, appends: Appends
) -> None:
    """The number says something of one append: it must not cover others."""
    handle = facade.DurableStream(scripted.root + "/s", content_type="application/json")
    with ThreadPoolExecutor(6) as pool:
        futures = started(pool, appends, handle, 4)
        futures.append(pool.submit(handle.append, {"n": 9}, seq="1"))
        appends.gate.set()
        wait(futures)
    [numbered] = [request for request in appends.requests if "stream-seq" in request.headers]
    assert json.loads(numbered.body) == [{"n": 9}]
    assert len(appends.records) == 5


@pytest.mark.every_store
def test_many_appends_at_once_on_a_real_server(facade: Facade, url: str) -> None:
    """Each thread's own order is kept, nothing is lost, and every result lies on its own append's end or after."""
    handle = facade.DurableStream.create(url, content_type="application/json")

    def write(thread: int) -> list[str]:
        return [handle.append([thread, number]).next_offset for number in range(30)]

    with ThreadPoolExecutor(8) as pool:
        offsets = [future.result(WITHIN) for future in [pool.submit(write, thread) for thread in range(8)]]
    items = handle.stream(live=False).read_json()
    assert len(items) == 240
    for thread in range(8):
        assert [number for one, number in items if one == thread] == list(range(30))
        assert offsets[thread] == sorted(set(offsets[thread]))
        for number, offset in enumerate(offsets[thread]):
            after = handle.stream(live=False, offset=offset).read_json() if number % 10 == 0 else []
            assert [thread, number] not in after


def test_text_appended_at_once_is_joined(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="text/plain")
    with ThreadPoolExecutor(8) as pool:
        wait([pool.submit(handle.append, f"<{number}>") for number in range(100)])
    found = re.findall(r"<(\d+)>", handle.stream(live=False).read_text())
    assert sorted(map(int, found)) == list(range(100))
