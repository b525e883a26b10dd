"""The reconnect machine: waits, counters, callbacks and verdicts, with a clock of its own."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playing import CUT, REFUSED, STALL, Answer, Player

from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.firehose import X_SCHEDULE, Linear, StreamConfig, StreamError, StreamErrorType
from durable_streams.firehose.errors import from_failure
from durable_streams.protocol.effects import Call, Pause

LINE = b'{"data":{"id":1}}\r\n'
DATA = Answer(body=(LINE,))
KIND = StreamErrorType


def plain(**settings: Any) -> StreamConfig:
    return StreamConfig(**{"jitter": False, **settings})


# -- waits


def test_the_waits_are_the_documented_series_and_stay_below_their_maximum() -> None:
    """Pitfall 22."""
    player = Player(plain(max_retries=-1)).play(*[REFUSED] * 2000)
    assert player.pauses == [1, 2, 4, 8, 16, 32] + [64] * 1994
    assert player.state.retry_count == 2000
    for chance in (0.0, 0.5, 0.999):
        pauses = Player(StreamConfig(max_retries=-1), chance=chance).play(*[REFUSED] * 50).pauses
        assert all(0.5 * full <= pause <= full for pause, full in zip(pauses, player.pauses, strict=False))


def test_a_connect_alone_does_not_start_the_series_over() -> None:
    """Pitfall 20: a server that accepts and drops is met less and less often, and then no more."""
    player = Player(plain(max_retries=4)).play(*[Answer(body=(CUT,))] * 20)
    assert player.pauses == [1, 2, 4, 8]
    assert len(player.attempts) == 5
    assert player.error is not None
    assert "4 retries" in str(player.error)


@pytest.mark.parametrize("body", [b"\r\n\r\n", b"<html>\n", b'{"errors":[{"title":"x"}]}\n', b'{"dat'])
def test_what_is_no_record_does_not_start_the_series_over(body: bytes) -> None:
    assert Player(plain(max_retries=3)).play(*[Answer(body=(body,))] * 9).pauses == [1, 2, 4]


def test_data_starts_the_series_over() -> None:
    player = Player(plain(max_retries=3)).play(REFUSED, REFUSED, REFUSED, DATA, REFUSED, REFUSED, DATA)
    assert player.pauses == [1, 2, 4, 1, 2, 4, 1]
    assert player.error is None


def test_heartbeats_start_it_over_once_the_connection_has_lasted() -> None:
    quiet = Answer(body=(*[b"\r\n", 20.0] * 5, b"\r\n", CUT))
    player = Player(plain(max_retries=2)).play(*[quiet] * 30)
    assert player.error is None
    assert set(player.pauses) == {1.0, 2.0} or set(player.pauses) == {1.0}


def test_duplicates_do_not_start_it_over() -> None:
    player = Player(plain(max_retries=2, dedupe_key="data.id")).play(*[DATA] * 9)
    assert player.error is not None
    assert player.state.duplicates == 2


def test_a_clean_end_waits_too_and_is_reported() -> None:
    """Pitfall 21."""
    player = Player(plain()).play(DATA, DATA, Answer())
    assert player.pauses == [1, 1, 2]
    assert player.log[:4] == ["on_connect", {"data": {"id": 1}}, "on_disconnect", "on_reconnect"]
    for chance in (0.0, 0.999):
        player = Player(StreamConfig(), chance=chance).play(*[DATA] * 3)
        assert all(1 <= pause <= 1.5 for pause in player.pauses)
    assert Player(StreamConfig(max_backoff=0.2), chance=0.9).play(DATA, DATA).pauses == [0.2, 0.2]


def refusal(status: int, body: bytes = b"", **headers: str) -> Answer:
    return Answer(status, (body,), {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("answer", "least"),
    [
        (refusal(429, retry_after="120"), 120.0),
        (refusal(503, retry_after="120"), 120.0),
        (refusal(429, x_rate_limit_reset="1000300"), 300.0),
        (refusal(503, x_rate_limit_reset="1000300"), 300.0),
        (refusal(429, retry_after="7", x_rate_limit_reset="1000300"), 300.0),
        (
            refusal(429, retry_after="Thu, 01 Jan 1970 00:01:30 GMT", date="Thu, 01 Jan 1970 00:00:00 GMT"),
            90.0,
        ),
        (refusal(429, retry_after="1e9", x_rate_limit_reset="soon"), 1.0),
        (refusal(429, retry_after="999999999"), 3600.0),
        (refusal(429, x_rate_limit_reset="1"), 1.0),
    ],
)
def test_a_server_that_names_a_time_is_met_no_sooner(answer: Answer, least: float) -> None:
    """Pitfall 25: even past ``max_backoff``, but no longer than an hour."""
    assert Player(plain()).play(answer).pauses == [least]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"date": "Thu, 01 Jan 1970 00:00:00 GMT", "x_rate_limit_reset": "2"}, 2.0),
        ({"date": "Thu, 01 Jan 1970 00:00:00", "x_rate_limit_reset": "2"}, 2.0),
        ({"date": "Thu, 01 Jan 1970 00:00:00 +0000", "retry_after": "Thu, 01 Jan 1970 00:00:02 GMT"}, 2.0),
        ({"date": "a while ago", "x_rate_limit_reset": "1000002"}, 2.0),
        ({"date": "a while ago", "retry_after": "Mon, 12 Jan 1970 13:46:42 GMT"}, 2.0),
        ({"retry_after": "Mon, 12 Jan 1970 13:46:42 GMT"}, 2.0),
        ({"x_rate_limit_reset": "1000002"}, 2.0),
    ],
)
def test_b5_a_moment_is_measured_by_the_clock_of_the_server(headers: dict[str, str], wait: float) -> None:
    """The local clock, here at 1,000,000 seconds, counts where the answer does not say the server's time."""
    assert Player(plain()).play(refusal(429, **headers)).pauses == [wait]


@pytest.mark.parametrize(
    "body",
    [
        b'{"title":"ConnectionException","detail":"maximum","connection_issue":"TooManyConnections"}',
        b'{"title":"ConnectionException"}',
    ],
)
def test_a_connection_limit_is_no_rate_limit(body: bytes) -> None:
    """Pitfall 25: waiting for the rate window would not free a connection."""
    player = Player(plain()).play(refusal(429, body, x_rate_limit_reset="1000900"))
    assert player.pauses == [1.0]
    assert player.state.last_error is not None
    assert player.state.last_error.error_type is KIND.CONNECTION_ERROR
    assert player.state.last_error.status_code == 429


def test_the_schedule_of_the_x_documentation() -> None:
    def pauses(answer: Any, count: int) -> list[float]:
        return Player(StreamConfig(max_retries=-1, schedule=X_SCHEDULE)).play(*[answer] * count).pauses

    assert pauses(REFUSED, 70) == [min(16.0, 0.25 * n) for n in range(1, 71)]
    assert pauses(refusal(503), 9) == [5, 10, 20, 40, 80, 160, 320, 320, 320]
    assert pauses(refusal(429), 6) == [60, 120, 240, 480, 960, 960]
    player = Player(StreamConfig(schedule=X_SCHEDULE)).play(REFUSED, refusal(503), REFUSED, refusal(429))
    assert player.pauses == [0.25, 5, 0.5, 60]


def test_a_linear_series_never_overflows() -> None:
    assert Linear(0.25, 16).delay(10**400, lambda: 0.5) == 16
    assert Linear(0, 0).delay(3, lambda: 0.5) == 0


def test_two_hours_of_outage() -> None:
    """Pitfall 22: no overflow, attempts and waits as documented, memory flat."""
    player = Player(StreamConfig(max_retries=-1), chance=0.5)
    sizes: list[int] = []

    def outage() -> Iterator[Any]:
        yield DATA
        while player.time < 2 * 3600:
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
            player.log.clear()
            player.attempts.clear()
            yield FetchError("refused", code="CONNECT", may_have_been_sent=False)

    gc.freeze()  # a collection looks only at what the machine makes, not at everything that the test run holds
    tracemalloc.start()
    try:
        player.play_all(outage())
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    # Half of the jitter's half is taken off: 0.75 + 1.5 + ... + 24 seconds, then 48 each time.
    assert player.pauses[:9] == [1.25, 1.5, 3, 6, 12, 24, 48, 48, 48]
    assert len(sizes) == pytest.approx(2 * 3600 / 48, rel=0.1)
    assert sizes[-1] - sizes[10] < 50_000
    assert player.state.retry_count == len(sizes) + 1
    assert player.error is None


# -- verdicts


@pytest.mark.parametrize(
    ("error", "connected", "kind", "retryable"),
    [
        (REFUSED, False, KIND.CONNECTION_ERROR, True),
        (CUT, False, KIND.CONNECTION_ERROR, True),
        (CUT, True, KIND.STREAM_INTERRUPTED, True),
        (STALL, True, KIND.TIMEOUT, True),
        (STALL, False, KIND.TIMEOUT, True),
        (FetchError("tls", code="TLS", may_have_been_sent=False), False, KIND.FATAL_ERROR, False),
        (FetchError("bad", code="NETWORK", may_have_been_sent=False), False, KIND.FATAL_ERROR, False),
        (DurableStreamError("closed", code="CLIENT_CLOSED"), False, KIND.FATAL_ERROR, False),
    ],
)
def test_failures_by_kind(error: DurableStreamError, connected: bool, kind: KIND, retryable: bool) -> None:
    """Pitfall 26: a read timeout is a timeout; TLS and proxies are not tried forever."""
    found = from_failure(error, connected=connected)
    assert (found.error_type, found.is_retryable) == (kind, retryable)


def test_a_proxy_that_refuses_is_fatal() -> None:
    """Pitfall 26."""

    class ProxyError(OSError):
        pass

    error = FetchError("proxy", code="CONNECT", original=ProxyError("no tunnel"), may_have_been_sent=False)
    player = Player(plain()).play(error)
    assert player.error is not None
    assert player.error.error_type is KIND.FATAL_ERROR
    assert isinstance(player.error.original_exception, ProxyError)


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (301, KIND.CLIENT_ERROR, False),
        (400, KIND.CLIENT_ERROR, False),
        (401, KIND.AUTHENTICATION_ERROR, False),
        (403, KIND.AUTHENTICATION_ERROR, False),
        (404, KIND.CLIENT_ERROR, False),
        (408, KIND.TIMEOUT, True),
        (425, KIND.SERVER_ERROR, True),
        (429, KIND.RATE_LIMITED, True),
        (500, KIND.SERVER_ERROR, True),
        (501, KIND.SERVER_ERROR, False),
        (502, KIND.SERVER_ERROR, True),
        (503, KIND.SERVER_ERROR, True),
        (599, KIND.SERVER_ERROR, True),
    ],
)
def test_statuses_by_kind(status: int, kind: KIND, retryable: bool) -> None:
    """Pitfall 26: 408 is retried."""
    player = Player(plain()).play(refusal(status, b'{"title":"Oh","detail":"No."}', x_request_id="7"))
    error = player.state.last_error
    assert error is not None
    assert (error.error_type, error.is_retryable, error.status_code) == (kind, retryable, status)
    assert (error is player.error) is not retryable
    assert str(error) == f"The feed answered {status}: Oh: No."
    assert error.response_body == '{"title":"Oh","detail":"No."}'
    assert error.headers["x-request-id"] == "7"


def test_the_last_error_keeps_status_body_and_cause() -> None:
    """Pitfall 29."""
    error = Player(plain(max_retries=1)).play(*[refusal(503, b"down", retry_after="2")] * 3).error
    assert error is not None
    assert (error.status_code, error.response_body, error.retry_after) == (503, "down", 2)
    assert error.error_type is KIND.FATAL_ERROR
    assert not error.is_retryable
    assert isinstance(error.__cause__, StreamError)
    assert error.__cause__.error_type is KIND.SERVER_ERROR
    assert (
        str(error) == "Gave up after 1 retry in a row without data: The feed answered 503: the server failed."
    )
    cut = Player(plain(max_retries=0)).play(Answer(body=(CUT,))).error
    assert cut is not None
    assert cut.original_exception is CUT
    ended = Player(plain(max_retries=0)).play(Answer()).error
    assert ended is not None
    assert ended.error_type is KIND.FATAL_ERROR


def test_a_401_after_success_gets_one_immediate_attempt() -> None:
    """Pitfall 29: credentials may have expired."""
    player = Player(plain()).play(DATA, refusal(401), DATA, refusal(401), refusal(401), DATA)
    assert player.pauses == [1, 0, 1, 0]
    assert player.error is not None
    assert player.error.error_type is KIND.AUTHENTICATION_ERROR
    first = Player(plain()).play(refusal(401), DATA)
    assert first.error is not None
    assert len(first.attempts) == 1


# -- what is reported


def test_callbacks_come_in_pairs_and_in_order() -> None:
    """Pitfall 21."""
    log = Player(plain()).play(REFUSED, DATA, Answer(body=(LINE, CUT)), refusal(404)).log
    data = {"data": {"id": 1}}
    assert log == [
        *("on_error", "on_reconnect"),
        *("on_connect", data, "on_disconnect", "on_reconnect"),
        *("on_connect", "on_gap", data, "on_disconnect", "on_error", "on_reconnect"),
        "on_error",
    ]


def test_errors_inside_the_stream_end_the_connection() -> None:
    """Pitfall 24: neither data nor dropped."""
    report = b'{"errors":[{"title":"operational-disconnect","detail":"Lost."}]}\r\n'
    player = Player(plain()).play(Answer(body=(LINE + report + LINE,)), DATA)
    data = {"data": {"id": 1}}
    assert player.log[:5] == ["on_connect", data, "on_disconnect", "on_error", "on_reconnect"]
    error = player.state.last_error
    assert error is not None
    assert error.error_type is KIND.STREAM_INTERRUPTED
    assert str(error) == "The feed reported an error: operational-disconnect: Lost."
    assert error.details["errors"][0]["detail"] == "Lost."


def test_invalid_records_are_counted_and_reported() -> None:
    """Pitfall 23."""
    body = (LINE + b"nope\n" + LINE,)
    data = {"data": {"id": 1}}
    for on_invalid, told in (("skip", []), (print, ["on_invalid"])):
        player = Player(plain(on_invalid=on_invalid)).play(Answer(body=body))
        assert player.log[1:-2] == [data, *told, data]
        assert player.state.invalid == 1
    player = Player(plain(on_invalid="raise")).play(Answer(body=body))
    assert player.log[1:] == [data, "on_disconnect", "on_error"]
    assert player.error is not None
    assert player.error.response_body == "nope"


def test_cut_off_records_are_counted_and_dropped() -> None:
    player = Player(plain()).play(Answer(body=(LINE + b'{"data":{"id":2}}', CUT)), Answer(body=(b'{"da',)))
    assert player.state.partial == 2
    assert player.state.total_items_received == 1


def test_a_record_over_the_limit_is_an_error() -> None:
    player = Player(plain(max_record_bytes=100)).play(Answer(body=(LINE + b"x" * 200, b"\n")))
    assert player.error is not None
    assert player.error.code == "TOO_LARGE"
    assert player.state.total_items_received == 1


def test_attempts_know_how_long_the_feed_was_down() -> None:
    """Pitfall 30."""
    player = Player(plain()).play(REFUSED, Answer(body=(LINE, 30.0, STALL)), REFUSED, DATA)
    assert [attempt.down_for for attempt in player.attempts] == [0, 0, 31, 33]
    assert [attempt.number for attempt in player.attempts] == [1, 2, 3, 4]
    assert player.attempts[-1].last_record == {"data": {"id": 1}}


def test_duplicates_are_dropped_within_a_window() -> None:
    """Pitfall 30."""
    lines = [b'{"id":%d}\n' % number for number in (1, 2, 1, 3, 4, 5, 1)]
    player = Player(plain(dedupe_key="id", dedupe_window=3)).play(Answer(body=(*lines, b"{}\n{}\n")))
    assert [value.get("id") for value in player.log[1:-2]] == [1, 2, 3, 4, 5, 1, None, None]
    assert player.state.duplicates == 1
    broken = plain(dedupe_key=lambda record: record["none"])
    assert Player(broken).play(DATA, DATA).state.total_items_received == 2


@given(places=st.lists(st.integers(0, 400), max_size=9))
def test_where_the_body_is_cut_changes_nothing(places: list[int]) -> None:
    wire = (LINE + b"\r\n" + b"nope\n" + LINE) * 4 + b'{"da'
    cuts = sorted({*places, 0, len(wire)})
    pieces = tuple(wire[start:end] for start, end in pairwise(cuts) if wire[start:end])
    whole, cut = (Player(plain()).play(Answer(body=(*body, CUT))) for body in ((wire,), pieces))
    assert cut.log == whole.log
    counters = [(p.state.invalid, p.state.partial, p.state.total_items_received) for p in (whole, cut)]
    assert counters == [(4, 1, 8)] * 2


@pytest.mark.parametrize(
    "settings",
    [
        {"max_retries": -2},
        {"initial_backoff": -1},
        {"backoff_multiplier": 0.5},
        {"timeout": 0},
        {"stall_timeout": -1},
        {"chunk_size": 0},
        {"on_invalid": "drop"},
        {"record_format": "xml"},
        {"dedupe_window": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings)).partition("_")[0]):
        StreamConfig(**settings)


# -- server-sent events


def events(body: bytes, *after: Any) -> Answer:
    return Answer(body=(body, *after), headers={"content-type": "text/event-stream"})


def last_ids(player: Player) -> list[str | None]:
    return [request.headers.get("last-event-id") for request in player.requests]


def test_a_reconnect_asks_for_what_follows_the_last_event() -> None:
    first = events(b"id: 1\ndata: 1\n\nid: 2\ndata: 2\n\ndata: 3\n\nid: 4\ndata: ", CUT)
    player = Player(plain()).play(first, REFUSED, events(b"data: 4\n\n"), events(b"id\ndata: 5\n\n"), DATA)
    assert last_ids(player) == [None, "2", "2", "2", None, None]
    assert [value for value in player.log if isinstance(value, int)] == [1, 2, 3, 4, 5]


def test_only_what_was_handed_over_or_left_out_is_not_asked_for_again() -> None:
    refused = b'id: 3\ndata: {"errors": [{"title": "x"}]}\n\n'
    player = Player(plain()).play(events(b"id: 1\ndata: 1\n\nid: 2\ndata: nope\n\n" + refused), DATA)
    assert last_ids(player)[:2] == [None, "2"]
    assert player.state.invalid == 1


def test_ids_of_lines_and_ids_that_no_header_can_carry_are_not_sent() -> None:
    assert last_ids(Player(plain()).play(Answer(body=(b"id: 1\n1\n",)), DATA)) == [None, None, None]
    assert last_ids(Player(plain()).play(events("id: é\ndata: 1\n\n".encode()), DATA))[1] is None
    assert last_ids(Player(plain()).play(events(b"id: a\x01b\ndata: 1\n\n"), DATA))[1] is None


def test_a_feed_of_events_says_how_long_to_wait() -> None:
    asks = events(b"retry: 2500\ndata: 1\n\n")
    assert Player(plain()).play(asks, REFUSED, asks, DATA).pauses == [2.5] * 4
    assert Player(plain()).play(events(b"retry: 99999999999999\n\n")).pauses == [3600.0]
    assert Player(plain()).play(events(b"retry: 1s\nretry: -5\nretry\n\n")).pauses == [1.0]


def test_no_content_ends_a_feed_of_events_only() -> None:
    player = Player(plain()).play(events(b"data: 1\n\n"), Answer(204), DATA)
    assert player.error is not None
    assert (player.error.status_code, len(player.requests)) == (204, 2)
    assert Player(plain()).play(DATA, Answer(204), DATA).error is None


def test_a_feed_of_events_is_asked_for_by_its_type() -> None:
    player = Player(plain(record_format="sse")).play(DATA)
    assert player.requests[0].headers["accept"] == "text/event-stream"
    assert "accept" not in Player(plain()).play(DATA).requests[0].headers


def test_a_request_that_cannot_be_made_is_a_failed_attempt() -> None:
    """The caller's parameters for an attempt may fail: the driver throws what that is, and the feed goes on."""
    feed = Player(plain()).feed
    run = feed.run()
    call = next(run)
    assert isinstance(call, Call)
    error = StreamError("no token", "timeout")
    assert run.throw(error) == Call("on_error", (error,))
    assert [next(run), next(run)] == [Call("on_reconnect", (1, 1.0)), Pause(1.0)]


@pytest.mark.parametrize(("empty_records", "given"), [(True, [{}, {"a": 1}, {}]), (False, [{"a": 1}])])
def test_empty_records_are_records_unless_they_are_not_wanted(empty_records: bool, given: list[Any]) -> None:
    player = Player(plain(empty_records=empty_records)).play(Answer(body=(b'{}\n{"a":1}\n {} \r\n',)))
    assert [entry for entry in player.log if isinstance(entry, dict)] == given
