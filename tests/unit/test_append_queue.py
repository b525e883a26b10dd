"""Appends that wait for each other, played without a client: who leads, what goes out, and how each one ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from durable_streams.errors import DurableStreamError, FetchError, StreamNotFoundError
from durable_streams.protocol.append_queue import MAX_BATCH_BYTES, AppendQueue, Entry
from durable_streams.protocol.request import Request, Response

URL = "http://host/v1/stream/a"
TEXT = "text/plain"
OK = Response(204, {"stream-next-offset": "7"})


def queued(*data: Any) -> tuple[AppendQueue[str], list[Entry[str]]]:
    queue: AppendQueue[str] = AppendQueue()
    entries = [Entry(item, f"caller {number}") for number, item in enumerate(data)]
    leading = [queue.add(entry) for entry in entries]
    assert leading == [True] + [False] * (len(data) - 1)
    return queue, entries


def send(
    queue: AppendQueue[str], answers: Iterable[Response | FetchError] = (), content_type: str | None = TEXT
) -> tuple[list[Request], str | None]:
    """Play a leader's request with these answers; return what was sent, and the content type."""
    requests, left, op = [], iter(answers), queue.send(URL, content_type)
    try:
        request = next(op)
        while True:
            requests.append(request)
            answer = next(left)
            request = op.throw(answer) if isinstance(answer, FetchError) else op.send(answer)
    except StopIteration as done:
        assert next(left, None) is None
        return requests, done.value


def test_what_waits_goes_out_as_one_request_and_all_of_it_has_the_result() -> None:
    queue, entries = queued(b"a", "b", b"c")
    assert len(queue) == 3
    [request], known = send(queue, [OK])
    assert (request.method, request.body, known) == ("POST", b"abc", TEXT)
    assert queue.finish() == entries
    assert [entry.outcome().next_offset for entry in entries] == ["7"] * 3
    assert (len(queue), queue.hand_over()) == (0, None)
    assert queue.add(Entry(b"d", "later")), "without a leader the next one leads"


def test_what_comes_during_a_request_is_in_the_next_one_whose_leader_is_its_first() -> None:
    queue, [first] = queued(b"a")
    op = queue.send(URL, TEXT)
    assert next(op).body == b"a"
    late = Entry(b"b", "late")
    assert not queue.add(late)
    with pytest.raises(StopIteration):
        op.send(OK)
    assert queue.finish() == [first]
    assert (late.done, queue.hand_over()) == (False, late)
    [request], _ = send(queue, [OK])
    assert request.body == b"b"


def test_a_batch_is_full_at_its_limit_and_the_rest_waits() -> None:
    large = b"x" * (MAX_BATCH_BYTES // 2)
    queue, entries = queued(large, large, b"rest")
    [request], _ = send(queue, [OK])
    assert request.body == large + large
    assert queue.finish() == entries[:2]
    assert queue.hand_over() is entries[2]


def test_data_that_the_stream_cannot_hold_fails_alone() -> None:
    queue, [bad, good] = queued(3.5, b"good")
    [request], _ = send(queue, [OK])
    assert request.body == b"good"
    assert queue.finish() == [bad, good]
    with pytest.raises(TypeError, match="takes bytes or text, not float"):
        bad.outcome()
    assert good.outcome().next_offset == "7"


def test_where_nothing_can_be_encoded_nothing_is_sent() -> None:
    queue, [bad] = queued(None)
    assert send(queue) == ([], TEXT)
    assert bad.done


def test_an_unknown_content_type_is_asked_for_first() -> None:
    queue, [entry] = queued({"a": 1})
    requests, known = send(queue, [Response(200, {"content-type": "application/json"}), OK], None)
    assert [(request.method, request.body) for request in requests] == [
        ("HEAD", None),
        ("POST", b'[{"a":1}]'),
    ]
    assert known == "application/json"
    assert entry.outcome().next_offset == "7"


def test_where_the_content_type_cannot_be_had_only_the_leaders_append_fails() -> None:
    queue, [leader, other] = queued(b"a", b"b")
    assert send(queue, [Response(404, {})], None)[1] is None
    assert queue.finish() == [leader]
    with pytest.raises(StreamNotFoundError):
        leader.outcome()
    assert queue.hand_over() is other


def test_each_caller_has_an_error_of_its_own() -> None:
    queue, [one, two] = queued(b"a", b"b")
    send(queue, [FetchError("lost", code="NETWORK")])
    assert one.error is not two.error
    for entry in (one, two):
        with pytest.raises(FetchError, match="lost"):
            entry.outcome()


def test_what_is_too_large_together_goes_one_by_one() -> None:
    queue, [one, two] = queued(b"a", b"b")
    requests, _ = send(queue, [Response(413, {}), OK, Response(413, {})])
    assert [request.body for request in requests] == [b"ab", b"a", b"b"]
    assert one.outcome().next_offset == "7"
    with pytest.raises(DurableStreamError) as caught:
        two.outcome()
    assert caught.value.status == 413


def test_an_append_whose_caller_has_gone_is_in_no_request() -> None:
    queue, [_, gone, _] = queued(b"a", b"b", b"c")
    assert queue.take_back(gone) is None
    [request], _ = send(queue, [OK])
    assert request.body == b"ac"


def test_where_the_next_leader_has_gone_the_one_behind_it_leads() -> None:
    queue, [first, second, third] = queued(b"a", b"b", b"c")
    queue.take_back(first)
    assert queue.hand_over() is second
    assert queue.take_back(second) is third
    assert queue.take_back(third) is None
    assert queue.add(Entry(b"d", "later"))


def test_an_append_that_is_in_a_request_already_cannot_be_taken_back() -> None:
    queue, [entry] = queued(b"a")
    op = queue.send(URL, TEXT)
    next(op)
    assert queue.take_back(entry) is None
    assert queue.finish() == [entry]


@pytest.mark.parametrize(
    ("cause", "code", "may_have_been_sent"),
    [
        (ValueError("no token"), "REQUEST_FAILED", False),
        (KeyboardInterrupt(), "INTERRUPTED", True),
        (None, "INTERRUPTED", True),
    ],
)
def test_a_leader_that_ends_in_the_middle_leaves_no_append_without_an_outcome(
    cause: BaseException | None, code: str, may_have_been_sent: bool
) -> None:
    queue, [one, two] = queued(b"a", b"b")
    next(queue.send(URL, TEXT))
    assert not one.done
    with pytest.raises(AssertionError, match="not done"):
        one.outcome()
    assert queue.finish(cause) == [one, two]
    assert isinstance(two.error, FetchError)
    assert (two.error.code, two.error.may_have_been_sent) == (code, may_have_been_sent)
