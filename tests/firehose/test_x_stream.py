"""The imitated filtered stream, over plain http.client: what it answers, sends, refuses and forgets."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import pytest

from xdk_testing import XFilteredStream

TOKEN = "test-token"


@pytest.fixture
def x() -> Iterator[XFilteredStream]:
    with XFilteredStream(heartbeat=60) as server:
        yield server


@contextmanager
def asking(url: str, token: str = TOKEN, **headers: str) -> Iterator[HTTPResponse]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        path = url.removeprefix(f"http://{parts.netloc}")
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}", **headers})
        yield connection.getresponse()
    finally:
        connection.close()


def post(url: str, body: Any, token: str = TOKEN) -> tuple[int, dict[str, Any]]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", url.removeprefix(f"http://{parts.netloc}"), data, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def get(url: str, token: str = TOKEN) -> tuple[int, dict[str, Any]]:
    with asking(url, token) as answer:
        return answer.status, json.loads(answer.read())


def record(number: int, text: str = "hello") -> dict[str, Any]:
    return {"data": {"id": str(number), "text": text}}


def read(answer: HTTPResponse, records: int = 1) -> list[dict[str, Any]]:
    """Return this many records, without heartbeats."""
    found: list[dict[str, Any]] = []
    while len(found) < records:
        line = answer.readline()
        assert line.endswith(b"\r\n"), f"the stream ended after {len(found)} records"
        if line != b"\r\n":
            found.append(json.loads(line))
    return found


def ids(records: list[dict[str, Any]]) -> list[int]:
    return [int(record["data"]["id"]) for record in records]


# -- the stream


def test_records_arrive_as_they_are_published_with_the_rules_that_match_them(x: XFilteredStream) -> None:
    with asking(x.stream_url) as answer:
        assert answer.status == 200
        assert answer.getheader("Content-Type") == "application/json; charset=utf-8"
        assert answer.getheader("Transfer-Encoding") == "chunked"
        assert x.publish(record(1, "ünï\u2028code")) == 1
        [got] = read(answer)
        assert got["data"] == {"id": "1", "text": "ünï\u2028code"}
        assert list(got["matching_rules"][0]) == ["id"]
        x.publish(record(2), record(3))
        assert ids(read(answer, 2)) == [2, 3]


def test_a_quiet_stream_has_heartbeats() -> None:
    with XFilteredStream(heartbeat=0.02) as x, asking(x.stream_url) as answer:
        assert [answer.readline() for _ in range(3)] == [b"\r\n"] * 3
        x.publish(record(1))
        assert ids(read(answer)) == [1]


def test_gzip_is_flushed_at_every_record(x: XFilteredStream) -> None:
    with asking(x.stream_url, **{"Accept-Encoding": "gzip, deflate"}) as answer:
        assert answer.getheader("Content-Encoding") == "gzip"
        decoder = zlib.decompressobj(wbits=31)
        for number in range(3):
            x.publish(record(number))
            line = b""
            while not line.endswith(b"\r\n"):
                line += decoder.decompress(answer.read1())
            assert ids([json.loads(line)]) == [number]


def test_gzip_can_be_turned_off() -> None:
    with XFilteredStream(compress=False) as x, asking(x.stream_url, **{"Accept-Encoding": "gzip"}) as answer:
        assert answer.getheader("Content-Encoding") is None


def test_a_gzip_stream_that_ends_is_whole(x: XFilteredStream) -> None:
    with asking(x.stream_url, **{"Accept-Encoding": "gzip"}) as answer:
        x.publish(record(1))
        x.end()
        assert ids([json.loads(gzip.decompress(answer.read()))]) == [1]


def test_bytes_go_out_as_they_are(x: XFilteredStream) -> None:
    with asking(x.stream_url) as answer:
        x.publish(b"{not json")
        assert answer.readline() == b"{not json\r\n"


def test_every_redundant_connection_gets_every_record() -> None:
    with (
        XFilteredStream(connections=2) as x,
        asking(x.stream_url) as first,
        asking(x.stream_url) as second,
    ):
        x.wait_for_connections(2)
        x.publish(record(1))
        assert ids(read(first)) == ids(read(second)) == [1]


def test_it_runs_where_it_is_asked_to() -> None:
    with XFilteredStream() as x:
        host, _, port = x.base_url.removeprefix("http://").partition(":")
    with XFilteredStream(host, int(port)) as again:
        assert again.base_url == x.base_url


def test_stopping_twice_and_with_open_connections_is_fine(x: XFilteredStream) -> None:
    with asking(x.stream_url) as answer:
        x.wait_for_connections()
        x.stop()
        x.stop()
        assert answer.status == 200
    with pytest.raises(RuntimeError, match="stopped"):
        x.publish(record(1))


# -- how it ends


def test_an_operational_disconnect_is_an_errors_record_and_the_end(x: XFilteredStream) -> None:
    with asking(x.stream_url) as answer:
        x.publish(record(1))
        x.disconnect()
        assert ids(read(answer)) == [1]
        [error] = read(answer)[0]["errors"]
        assert error["title"] == "operational-disconnect"
        assert error["disconnect_type"] == "UpstreamOperationalDisconnect"
        assert answer.read() == b""


def test_a_dropped_connection_has_no_regular_end(x: XFilteredStream) -> None:
    with asking(x.stream_url) as answer:
        x.publish(record(1))
        x.drop(partial=b'{"data": {"id"')
        assert ids(read(answer)) == [1]
        with pytest.raises(HTTPException):
            answer.read()


def test_a_connection_can_be_reset(x: XFilteredStream) -> None:
    with asking(x.stream_url) as answer:
        x.wait_for_connections()
        x.drop(reset=True)
        with pytest.raises((ConnectionResetError, HTTPException)):
            answer.read()


def test_a_stalled_connection_gets_nothing_until_it_ends() -> None:
    with XFilteredStream(heartbeat=0.02) as x, asking(x.stream_url) as answer:
        x.wait_for_connections()
        x.stall()
        x.publish(record(1))
        time.sleep(0.1)
        x.end()
        assert len(answer.read().splitlines()) < 5


def test_faults_meet_the_next_requests(x: XFilteredStream) -> None:
    x.refuse(503, retry_after=2)
    x.refuse(429, x_rate_limit_reset="1700000000")
    with asking(x.stream_url) as answer:
        assert (answer.status, answer.getheader("Retry-After")) == (503, "2")
        assert json.loads(answer.read())["title"] == "Service Unavailable"
    with asking(x.stream_url) as answer:
        assert (answer.status, answer.getheader("x-rate-limit-reset")) == (429, "1700000000")
    x.faults.cut(after=20)
    with asking(x.stream_url) as answer:
        x.publish(record(1))
        with pytest.raises(HTTPException):
            answer.read()
    assert [attempt.status for attempt in x.attempts] == [200]  # what a fault answered never reached it


# -- who may connect


def test_a_wrong_token_is_401_and_the_right_one_may_change(x: XFilteredStream) -> None:
    status, body = get(x.stream_url, "wrong")
    assert status == 401
    assert body == {"title": "Unauthorized", "detail": "Unauthorized", "type": "about:blank", "status": 401}
    assert get(x.rules_url, "wrong")[0] == 401
    assert post(x.rules_url, {"add": [{"value": "cat"}]}, "wrong")[0] == 401
    x.bearer_token = "fresh"
    with asking(x.stream_url, "fresh") as answer:
        assert answer.status == 200


def test_one_connection_too_many_is_429_with_its_issue(x: XFilteredStream) -> None:
    with asking(x.stream_url):
        status, body = get(x.stream_url)
        assert status == 429
        assert body["title"] == "ConnectionException"
        assert body["connection_issue"] == "TooManyConnections"
    x.wait_for_no_connection()
    with asking(x.stream_url) as answer:
        assert answer.status == 200


def test_the_rate_limit_is_reported_and_kept() -> None:
    with XFilteredStream(rate_limit=2, minute=10, connections=9) as x:
        before = time.time()
        for remaining in ("1", "0"):
            with asking(x.stream_url) as answer:
                assert answer.status == 200
                assert answer.getheader("x-rate-limit-limit") == "2"
                assert answer.getheader("x-rate-limit-remaining") == remaining
        with asking(x.stream_url) as answer:
            assert answer.status == 429
            assert json.loads(answer.read())["title"] == "Too Many Requests"
            reset = int(answer.getheader("x-rate-limit-reset", "0"))
            assert before + 150 <= reset <= time.time() + 151


def test_the_rate_limit_ends_with_its_window() -> None:
    with XFilteredStream(rate_limit=1, minute=0.01) as x:
        with asking(x.stream_url):
            pass
        x.wait_for_no_connection()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with asking(x.stream_url) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.05)
        pytest.fail("the window never ended")


@pytest.mark.parametrize("minutes", ["6", "-1", "x", "1.5"])
def test_backfill_of_more_than_five_minutes_is_400(x: XFilteredStream, minutes: str) -> None:
    status, body = get(f"{x.stream_url}?backfill_minutes={minutes}")
    assert status == 400
    assert body["title"] == "Invalid Request"
    assert body["errors"][0]["parameters"] == {"backfill_minutes": [minutes]}


# -- backfill


def leave_and_publish(x: XFilteredStream, *numbers: int) -> None:
    """Connect, get record 1, go; then records are published to nobody."""
    with asking(x.stream_url) as answer:
        x.publish(record(1))
        assert ids(read(answer)) == [1]
    x.wait_for_no_connection()
    x.publish(*(record(number) for number in numbers))


def test_what_was_missed_comes_back_when_it_is_asked_for(x: XFilteredStream) -> None:
    leave_and_publish(x, 2, 3)
    with asking(f"{x.stream_url}?backfill_minutes=2") as answer:
        x.publish(record(4))
        assert ids(read(answer, 4)) == [1, 2, 3, 4]  # 1 is a duplicate: it came just before the outage
    assert x.attempts[-1].query == {"backfill_minutes": "2"}


def test_what_was_missed_is_lost_when_it_is_not_asked_for(x: XFilteredStream) -> None:
    leave_and_publish(x, 2, 3)
    with asking(x.stream_url) as answer:
        x.publish(record(4))
        assert ids(read(answer)) == [4]


def test_backfill_goes_no_further_back_than_it_is_asked_for() -> None:
    with XFilteredStream(minute=0.2) as x:
        leave_and_publish(x, 2)
        time.sleep(0.3)
        x.publish(record(3))
        with asking(f"{x.stream_url}?backfill_minutes=1") as answer:
            assert ids(read(answer)) == [3]


def test_a_first_connection_has_nothing_to_backfill(x: XFilteredStream) -> None:
    x.publish(record(1))
    with asking(f"{x.stream_url}?backfill_minutes=5") as answer:
        x.publish(record(2))
        assert ids(read(answer)) == [2]


# -- rules


def test_rules_are_added_listed_and_deleted() -> None:
    with XFilteredStream(rules=()) as x:
        assert get(x.rules_url)[1]["meta"]["result_count"] == 0
        status, body = post(
            x.rules_url, {"add": [{"value": "cat has:images", "tag": "cats"}, {"value": "dog"}]}
        )
        assert status == 201
        assert body["meta"]["summary"] == {"created": 2, "not_created": 0, "valid": 2, "invalid": 0}
        cats, dogs = body["data"]
        assert (cats["value"], cats["tag"]) == ("cat has:images", "cats")
        assert "tag" not in dogs
        listed = get(x.rules_url)[1]
        assert listed["data"] == [cats, dogs]
        assert listed["meta"]["result_count"] == 2
        assert get(f"{x.rules_url}?ids={dogs['id']}")[1]["data"] == [dogs]
        status, body = post(x.rules_url, {"delete": {"ids": [cats["id"], "404"]}})
        assert (status, body["meta"]["summary"]) == (200, {"deleted": 1, "not_deleted": 1})
        assert len(body["errors"]) == 1
        assert post(x.rules_url, {"delete": {"values": ["dog"]}})[1]["meta"]["summary"]["deleted"] == 1
        assert "data" not in get(x.rules_url)[1]


def test_a_rule_that_is_there_already_is_an_error_in_the_answer(x: XFilteredStream) -> None:
    status, body = post(x.rules_url, {"add": [{"value": "lang:en"}, {"value": "cat"}]})
    assert status == 201
    assert body["meta"]["summary"] == {"created": 1, "not_created": 1, "valid": 1, "invalid": 1}
    assert body["errors"][0]["title"] == "DuplicateRule"


def test_a_dry_run_changes_nothing(x: XFilteredStream) -> None:
    before = get(x.rules_url)[1]["data"]
    assert (
        post(f"{x.rules_url}?dry_run=true", {"add": [{"value": "cat"}]})[1]["meta"]["summary"]["created"] == 1
    )
    post(f"{x.rules_url}?dry_run=true", {"delete": {"values": ["lang:en"]}})
    assert get(x.rules_url)[1]["data"] == before


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        {},
        {"add": []},
        {"add": [{"tag": "x"}]},
        {"delete": {}},
        {"add": [{"value": "a"}], "delete": {"ids": ["1"]}},
    ],
)
def test_a_change_that_makes_no_sense_is_400(x: XFilteredStream, body: Any) -> None:
    status, answer = post(x.rules_url, body)
    assert (status, answer["title"]) == (400, "Invalid Request")


def test_a_record_goes_out_when_its_words_match() -> None:
    with XFilteredStream(rules=()) as x, asking(x.stream_url) as answer:
        _, body = post(
            x.rules_url,
            {
                "add": [
                    {"value": 'cat "big paws" -is:retweet', "tag": "cats"},
                    {"value": "#Dogs lang:en", "tag": "dogs"},
                ]
            },
        )
        cats, dogs = ({"id": rule["id"], "tag": rule["tag"]} for rule in body["data"])
        assert x.publish(record(1, "a dog")) == 0
        assert x.publish(record(2, "Cat with BIG PAWS"), record(3, "cat, paws: big")) == 1
        assert x.publish(record(4, "cat with big paws, #dogs")) == 1
        assert x.publish({**record(5, "bird"), "matching_rules": []}) == 1  # a record says what it matches
        got = read(answer, 3)
        assert ids(got) == [2, 4, 5]
        assert [item["matching_rules"] for item in got] == [[cats], [cats, dogs], []]


def test_waiting_for_a_connection_has_an_end(x: XFilteredStream) -> None:
    with pytest.raises(TimeoutError, match="0 connections"):
        x.wait_for_connections(timeout=0.05)
