"""The engine on the imitated filtered stream: what happens there loses no record that X itself would not lose."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from durable_streams.firehose import (
    AsyncFirehoseStream,
    FirehoseStream,
    StreamConfig,
    StreamError,
    StreamErrorType,
    backfill,
)
from xdk_testing import XFilteredStream

QUICK: dict[str, Any] = {"initial_backoff": 0.02, "max_backoff": 0.2, "max_retries": 20}


def record(number: int) -> dict[str, Any]:
    return {"data": {"id": str(number), "text": f"number {number}"}}


class Reader:
    """Reads a feed in a thread of its own."""

    def __init__(self, feed: FirehoseStream) -> None:
        self.feed = feed
        self.ids: list[int] = []
        self.error: StreamError | None = None
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self.feed:
                with self._more:
                    self.ids.append(int(item["data"]["id"]))
                    self._more.notify_all()
        except StreamError as error:
            self.error = error

    def wait_for(self, number: int) -> list[int]:
        """Return what was read once this has been."""
        with self._more:
            assert self._more.wait_for(lambda: number in self.ids, 20), f"{self.ids}, {self.feed.state}"
            return list(self.ids)

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def reading(
    x: XFilteredStream, *, token: Any = None, params: Any = None, **settings: Any
) -> Iterator[Reader]:
    bearer = token or (lambda: f"Bearer {x.bearer_token}")
    feed = FirehoseStream(
        x.stream_url,
        config=StreamConfig(**{**QUICK, **settings}),
        headers={"Authorization": bearer},
        params=params,
    )
    reader = Reader(feed)
    try:
        yield reader
    finally:
        feed.stop()
        reader.join()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def x() -> Iterator[XFilteredStream]:
    with XFilteredStream(heartbeat=0.1, rate_limit=1000) as server:
        yield server


def publish_and_read(x: XFilteredStream, reader: Reader, *numbers: int) -> list[int]:
    x.wait_for_connections()
    x.publish(*(record(number) for number in numbers))
    return reader.wait_for(numbers[-1])


def test_records_and_heartbeats(x: XFilteredStream) -> None:
    with reading(x, stall_timeout=5.0) as reader:
        assert publish_and_read(x, reader, 1, 2) == [1, 2]
        time.sleep(0.3)
        assert publish_and_read(x, reader, 3) == [1, 2, 3]
    assert len(x.attempts) == 1
    x.wait_for_no_connection()


@pytest.mark.parametrize("ending", ["disconnect", "end", "drop", "reset"])
def test_every_ending_is_followed_by_a_reconnect(x: XFilteredStream, ending: str) -> None:
    seen: list[StreamError] = []
    with reading(x, on_error=seen.append) as reader:
        publish_and_read(x, reader, 1)
        if ending == "reset":
            x.drop(reset=True)
        else:
            getattr(x, ending)()
        x.wait_for_no_connection()
        assert publish_and_read(x, reader, 2) == [1, 2]
    kinds = [error.error_type for error in seen]
    assert kinds == ([] if ending == "end" else [StreamErrorType.STREAM_INTERRUPTED])
    if ending == "disconnect":
        assert "disconnect" in str(seen[0])


def test_a_partial_record_is_dropped_and_counted(x: XFilteredStream) -> None:
    with reading(x) as reader:
        publish_and_read(x, reader, 1)
        x.drop(partial=b'{"data": {"id": "2"')
        x.wait_for_no_connection()
        assert publish_and_read(x, reader, 2) == [1, 2]
        assert reader.feed.state.partial == 1


def test_backfill_and_deduplication_leave_neither_gap_nor_double(x: XFilteredStream) -> None:
    gaps: list[Any] = []
    asked = threading.Event()

    def params(attempt: Any) -> dict[str, Any]:
        if attempt.down_for:
            asked.wait(20)  # what is published meanwhile is missed
            return {"backfill_minutes": 1}
        return {}

    with reading(
        x, params=params, dedupe_key="data.id", on_gap=lambda last, down: gaps.append((last, down))
    ) as reader:
        publish_and_read(x, reader, 1, 2)
        x.drop()
        x.wait_for_no_connection()
        x.publish(record(3), record(4))
        asked.set()
        assert reader.wait_for(4) == [1, 2, 3, 4]
        assert publish_and_read(x, reader, 5) == [1, 2, 3, 4, 5]
        assert reader.feed.state.duplicates == 2
    assert x.attempts[-1].query == {"backfill_minutes": "1"}
    [(last, down_for)] = gaps
    assert last["data"]["id"] == "2"
    assert down_for > 0


def test_the_helper_asks_for_the_minutes_of_the_outage(x: XFilteredStream) -> None:
    with reading(x, params=backfill({"tweet.fields": "created_at"}), dedupe_key="data.id") as reader:
        publish_and_read(x, reader, 1)
        x.drop()
        x.wait_for_no_connection()
        x.publish(record(2))
        assert publish_and_read(x, reader, 3) == [1, 2, 3]
    assert [attempt.query for attempt in x.attempts] == [
        {"tweet.fields": "created_at"},
        {"tweet.fields": "created_at", "backfill_minutes": "1"},
    ]


def test_a_stalled_connection_is_given_up(x: XFilteredStream) -> None:
    errors: list[StreamError] = []
    with reading(x, stall_timeout=0.5, on_error=errors.append) as reader:
        publish_and_read(x, reader, 1)
        x.stall()
        deadline = time.monotonic() + 20
        while len(x.attempts) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert publish_and_read(x, reader, 2)[-1] == 2
    assert errors[0].error_type is StreamErrorType.TIMEOUT


def test_503_and_429_wait_as_they_are_asked_to(x: XFilteredStream) -> None:
    delays: list[float] = []
    x.refuse(503, retry_after=1)
    x.refuse(429, x_rate_limit_remaining="0", x_rate_limit_reset=str(int(time.time()) + 4))
    with reading(x, on_reconnect=lambda _, delay: delays.append(delay)) as reader:
        assert publish_and_read(x, reader, 1) == [1]
    assert delays[0] >= 1
    assert 0.5 < delays[1] <= 4


def test_one_connection_too_many_is_tried_again_until_there_is_room(x: XFilteredStream) -> None:
    errors: list[StreamError] = []
    with reading(x) as first:
        publish_and_read(x, first, 1)
        with reading(x, on_error=errors.append, max_retries=-1) as second:
            eventually(lambda: bool(errors))
            first.feed.stop()
            eventually(lambda: second.feed.state.is_connected)
            assert publish_and_read(x, second, 2) == [2]
    assert errors[0].status_code == 429
    assert errors[0].is_retryable


def test_a_wrong_token_is_final_and_an_expired_one_is_renewed(x: XFilteredStream) -> None:
    with reading(x, token="Bearer wrong") as reader:
        reader.join()
        assert reader.error is not None
        assert reader.error.error_type is StreamErrorType.AUTHENTICATION_ERROR
    with reading(x) as reader:
        publish_and_read(x, reader, 1)
        x.bearer_token = "renewed"
        x.drop()
        x.wait_for_no_connection()
        assert publish_and_read(x, reader, 2) == [1, 2]


def test_gzip_that_is_cut_in_the_middle(x: XFilteredStream) -> None:
    with reading(x) as reader:
        publish_and_read(x, reader, 1)
        x.faults.cut(after=1000)  # of the next connection
        x.drop()
        x.wait_for_no_connection()
        deadline = time.monotonic() + 20
        number = 1
        while len(x.attempts) < 3 and time.monotonic() < deadline:
            number += 1
            x.publish(record(number))
            time.sleep(0.005)
        ids = publish_and_read(x, reader, number + 1)
        assert len(x.attempts) >= 3
        assert ids == sorted(set(ids))


def test_the_async_engine_reads_it_too(x: XFilteredStream) -> None:
    async def run() -> list[str]:
        got: list[str] = []
        feed = AsyncFirehoseStream(
            x.stream_url, config=StreamConfig(**QUICK), headers={"Authorization": f"Bearer {x.bearer_token}"}
        )
        async with feed:
            publishing = asyncio.create_task(asyncio.to_thread(publish))
            async for item in feed:
                got.append(item["data"]["id"])
                if len(got) == 2:
                    break
            await publishing
        return got

    def publish() -> None:
        x.wait_for_connections()
        x.publish(record(1))
        x.drop()
        x.wait_for_no_connection()
        x.wait_for_connections()
        x.publish(record(2))

    assert asyncio.run(asyncio.wait_for(run(), 30)) == ["1", "2"]
