from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from durable_streams import errors
from durable_streams.protocol.effects import READ, RELEASE, Call, Effect, Give, Machine, Pause, Send
from durable_streams.protocol.jsonarrays import split
from durable_streams.protocol.jsonchunks import PIECE_SIZE
from durable_streams.protocol.reader import Portion, Reader
from durable_streams.protocol.request import Request
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.protocol.sse import encode_control, encode_data

URL = "http://host/s"
SSE = {"content-type": "text/event-stream"}
POLICY = RetryPolicy(max_retries=2, initial_delay=1, max_delay=8, multiplier=2, jitter=0)


class Clock:
    """A clock that the script of a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


def reader(**options: object) -> Reader:
    return Reader(URL, random=lambda: 0.0, clock=CLOCK, **options)  # type: ignore[arg-type]


def next_request(machine: Reader) -> Request | None:
    """Return the request that the machine would send next, None for none."""
    for effect in machine.run():
        if isinstance(effect, Send):
            return effect.request
        assert effect == Pause(machine.delay)
    return None


def play(
    machine: Reader,
    head: SimpleNamespace | errors.FetchError,
    body: bytes = b"",
    *,
    lasting: float = 0.0,
    error: errors.FetchError | None = None,
) -> Iterator[Portion]:
    """Play one request and its answer, which ends with ``error`` after ``lasting`` seconds; give its portions."""
    pieces, run, given, sent = [body] if body else [], machine.run(), None, False
    effect: Effect | None = next(run)
    while effect is not None:
        if isinstance(effect, (Send, Pause)) and sent:
            return  # the next round
        failure: errors.FetchError | None = None
        given = None
        if isinstance(effect, Send):
            sent = True
            CLOCK.now += lasting if isinstance(head, errors.FetchError) else 0
            given, failure = (None, head) if isinstance(head, errors.FetchError) else (head, None)
        elif effect is READ:
            CLOCK.now += 0 if pieces else lasting
            given, failure = (pieces.pop(), None) if pieces else (b"", error)
        elif isinstance(effect, Give):
            machine.commit(effect.value)
            yield effect.value
        try:
            effect = run.send(given) if failure is None else run.throw(failure)
        except StopIteration:
            return


def answer(
    machine: Reader,
    status: int = 200,
    body: bytes = b"",
    *,
    lasting: float = 0.0,
    error: errors.FetchError | None = None,
    **headers: str,
) -> list[Portion]:
    assert not machine.finished
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    head = SimpleNamespace(status=status, headers=named)
    return list(play(machine, head, body, lasting=lasting, error=error))


def tail(machine: Reader, offset: str = "5", **headers: str) -> list[Portion]:
    headers.setdefault("content_type", "application/json")  # a type that live=True follows over SSE
    return answer(machine, body=b"x", stream_next_offset=offset, stream_up_to_date="true", **headers)


def query(machine: Reader) -> str:
    request = next_request(machine)
    assert request is not None
    return request.url.partition("?")[2]


def test_catch_up_reads_to_the_tail_over_many_requests() -> None:
    machine = reader(live=False)
    assert query(machine) == "offset=-1"
    answer(machine, body=b"ab", stream_next_offset="2", content_type="text/plain")
    assert query(machine) == "offset=2"
    assert (machine.offset, machine.up_to_date, machine.finished) == ("2", False, False)
    answer(machine, body=b"c", stream_next_offset="3", stream_up_to_date="true")
    assert next_request(machine) is None
    assert (machine.offset, machine.up_to_date, machine.stream_closed) == ("3", True, False)
    assert machine.content_type == "text/plain"


@pytest.mark.parametrize("live", [False, True, "long-poll"])
def test_a_closed_stream_is_never_asked_again(live: object) -> None:
    machine = reader(live=live)
    tail(machine, stream_closed="true")
    assert machine.stream_closed
    assert next_request(machine) is None


def test_a_closed_event_stream_is_never_asked_again_and_what_follows_is_ignored() -> None:
    machine = reader(live="sse")
    wire = encode_data(b"a", text=True) + encode_control("1", closed=True) + encode_data(b"b", text=True)
    batches = answer(machine, body=wire + encode_control("2"), **SSE)  # type: ignore[arg-type]
    assert [batch.data for batch in batches] == [b"a"]
    assert (machine.offset, machine.stream_closed, next_request(machine)) == ("1", True, None)


def test_live_true_catches_up_then_follows_events_and_echoes_the_cursor() -> None:
    machine = reader()
    assert query(machine) == "offset=-1"
    tail(machine, stream_cursor="17")
    assert query(machine) == "cursor=17&live=sse&offset=5"
    answer(machine, body=encode_control("5", cursor="18", up_to_date=True), lasting=60, **SSE)  # type: ignore[arg-type]
    assert query(machine) == "cursor=18&live=sse&offset=5"
    assert machine.delay == 0


@pytest.mark.parametrize("status", [400, 405, 406, 415, 501])
def test_a_refusal_of_events_turns_to_long_polling(status: int) -> None:
    machine = reader()
    tail(machine)
    answer(machine, status)
    assert query(machine) == "live=long-poll&offset=5"


def test_an_answer_that_is_no_event_stream_turns_to_long_polling_or_says_so() -> None:
    machine = reader()
    tail(machine)
    answer(machine, body=b"<html>", content_type="text/html")
    assert machine.mode == "long-poll"
    with pytest.raises(errors.SSENotSupportedError):
        answer(reader(live="sse"), body=b"<html>", content_type="text/html")


def test_event_streams_cut_without_progress_turn_to_long_polling() -> None:
    machine = reader()
    tail(machine)
    for _ in range(3):
        assert machine.mode == "sse"
        answer(machine, error=errors.FetchError("reset"), body=b": heartbeat\n", **SSE)  # type: ignore[arg-type]
    assert machine.mode == "long-poll"


def test_an_event_stream_that_stays_silent_turns_to_long_polling_at_once() -> None:
    machine = reader()
    tail(machine)
    answer(machine, error=errors.FetchError("silent", code="TIMEOUT"), lasting=90, **SSE)  # type: ignore[arg-type]
    assert machine.mode == "long-poll"


def test_uncommitted_events_are_dropped_and_come_again() -> None:
    machine = reader(live="sse", policy=POLICY)
    wire = encode_data(b"a", text=True) + encode_control("1") + encode_data(b"lost", text=True)
    assert [b.data for b in answer(machine, body=wire, error=errors.FetchError("cut"), **SSE)] == [b"a"]  # type: ignore[arg-type]
    assert query(machine) == "live=sse&offset=1"
    again = encode_data(b"lost", text=True) + encode_control("5")
    assert [b.data for b in answer(machine, body=again, **SSE)] == [b"lost"]  # type: ignore[arg-type]


def test_several_data_events_before_one_control_move_the_position_once() -> None:
    machine = reader(live="sse")
    wire = encode_data(b"a", text=True) + encode_data(b"b", text=True) + encode_control("2")
    assert [(b.data, b.next_offset) for b in answer(machine, body=wire, **SSE)] == [(b"a", "-1"), (b"b", "2")]  # type: ignore[arg-type]


def test_a_body_cut_short_is_dropped_and_asked_for_again() -> None:
    machine = reader(live=False, policy=POLICY)
    assert answer(machine, body=b"abc", content_length="9", stream_next_offset="9") == []
    assert machine.delay == 1
    assert query(machine) == "offset=-1"


def test_failures_back_off_until_the_policy_ends() -> None:
    machine = reader(live=False, policy=POLICY)
    answer(machine, 503)
    assert machine.delay == 1
    answer(machine, 429, retry_after="30")
    assert machine.delay == 30
    with pytest.raises(errors.DurableStreamError) as caught:
        answer(machine, 503, b'{"error":{"code":"BUSY","message":"the store is busy"}}')
    assert caught.value.code == "BUSY"
    assert "the store is busy" in str(caught.value)
    assert next_request(machine) is None


def test_only_progress_resets_the_back_off() -> None:
    machine = reader(
        live="long-poll", policy=RetryPolicy(max_retries=-1, initial_delay=1, max_delay=64, jitter=0)
    )
    answer(machine, 503)
    answer(machine, 503)
    assert machine.delay == 2
    answer(machine, 204)  # a success, but no progress
    answer(machine, 503)
    assert machine.delay == 4
    tail(machine)
    answer(machine, 503)
    assert machine.delay == 1


@pytest.mark.parametrize("body", [b"", b"[]", b" [\n]\r\n"])
def test_g8_a_position_that_moves_without_data_is_no_progress(body: bytes) -> None:
    policy = RetryPolicy(max_retries=-1, initial_delay=1, max_delay=64, jitter=0)
    machine = reader(live="long-poll", policy=policy)
    tail(machine, "5")
    answer(machine, 503)
    answer(machine, 503)
    answer(machine, body=body, stream_next_offset="6", stream_up_to_date="true")
    assert machine.delay == 1.0  # the distance after an empty round
    answer(machine, 503)
    assert machine.delay == 4
    tail(machine, "7")
    answer(machine, 503)
    assert machine.delay == 1


def test_g8_to_learn_where_the_tail_is_counts_as_a_result() -> None:
    machine = reader(live="long-poll", offset="now", policy=POLICY)
    answer(machine, 204, stream_next_offset="5")
    assert machine.delay == 0
    answer(machine, 204, stream_next_offset="5")
    assert machine.delay == 1


def test_g8_an_event_stream_that_only_moves_turns_to_long_polling() -> None:
    machine = reader()
    tail(machine)
    for number in "678":
        assert machine.mode == "sse"
        answer(machine, body=encode_control(number, up_to_date=True), **SSE)  # type: ignore[arg-type]
    assert machine.mode == "long-poll"


def test_g8_what_came_before_an_offset_that_goes_back_is_handed_over() -> None:
    machine = reader(live="sse")
    wire = (
        encode_data(b"a", text=True)
        + encode_control("5")
        + encode_data(b"b", text=True)
        + encode_control("4")
    )
    portions = play(machine, SimpleNamespace(status=200, headers=SSE), wire)
    assert next(portions).data == b"a"
    with pytest.raises(errors.StreamParseError, match="went back to 4"):
        next(portions)


def test_empty_rounds_keep_a_distance_that_counts_their_own_length() -> None:
    machine = reader(live="long-poll", policy=POLICY)
    answer(machine, 204)
    assert machine.delay == 0, "the first poll is no repetition"
    answer(machine, 204)
    assert machine.delay == 1.0
    answer(machine, 204, lasting=0.25)
    assert machine.delay == 0.75
    answer(machine, 204, lasting=30)
    assert machine.delay == 0


def test_silence_within_the_callers_time_limit_is_no_failure() -> None:
    machine = reader(live="long-poll", policy=RetryPolicy(max_retries=0))
    tail(machine)
    silence = errors.FetchError("silent", code="TIMEOUT")
    for _ in range(3):
        assert next_request(machine) is not None
        assert list(play(machine, silence, lasting=5.0)) == []
        assert machine.delay == 0
    machine = reader(live="sse", policy=RetryPolicy(max_retries=0))
    for _ in range(3):
        answer(machine, body=encode_control("1", up_to_date=True), error=silence, lasting=5, **SSE)  # type: ignore[arg-type]
    assert query(machine) == "live=sse&offset=1"


def test_a_live_read_that_began_is_retried_forever_by_default() -> None:
    machine = reader()
    tail(machine)
    for _ in range(100):
        answer(machine, 502)
    assert next_request(machine) is not None
    assert machine.delay <= 10


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, errors.StreamNotFoundError), (410, errors.RetentionGoneError), (401, errors.DurableStreamError)],
)
def test_what_no_retry_fixes_ends_the_read(status: int, kind: type[Exception]) -> None:
    machine = reader()
    tail(machine)
    with pytest.raises(kind):
        answer(machine, status)
    assert next_request(machine) is None
    machine.resume()
    assert query(machine) == "live=sse&offset=5"
    assert machine.delay > 0


def test_an_answer_without_progress_or_tail_is_no_endless_loop() -> None:
    machine = reader(live=False, policy=POLICY)
    tail_less = {"stream_next_offset": "-1"}
    answer(machine, **tail_less)
    answer(machine, **tail_less)
    with pytest.raises(errors.DurableStreamError, match="gave no data"):
        answer(machine, **tail_less)


def test_an_answer_without_position_is_refused() -> None:
    with pytest.raises(errors.StreamParseError, match="Stream-Next-Offset"):
        answer(reader(), body=b"<html>")


@pytest.mark.parametrize(
    "control", [b"{", b"[]", b'{"streamNextOffset":5}', b"{}", b'{"streamNextOffset":""}']
)
def test_a_malformed_control_event_ends_the_read_at_a_safe_offset(control: bytes) -> None:
    machine = reader(live="sse")
    with pytest.raises(errors.StreamParseError) as caught:
        answer(machine, body=b"event: control\ndata: " + control + b"\n\n", **SSE)  # type: ignore[arg-type]
    assert caught.value.offset == "-1"


def test_payloads_that_are_not_what_the_headers_promise() -> None:
    machine = reader(live="sse")
    with pytest.raises(errors.SSEEncodingError):
        answer(machine, body=b"event: data\ndata: ???\n\n", stream_sse_data_encoding="base64", **SSE)  # type: ignore[arg-type]
    with pytest.raises(errors.SSEEncodingError, match="rot13"):
        answer(reader(live="sse"), stream_sse_data_encoding="rot13", **SSE)  # type: ignore[arg-type]


def test_a_message_over_the_limit_is_refused_but_no_body_of_many() -> None:
    machine = reader(limit=100, live=False)
    machine.give_early(100)
    body = b"[" + b",".join([b'"' + b"x" * 90 + b'"'] * 10_000) + b"]"
    data = answer(machine, body=body, content_type="application/json", stream_next_offset="1")
    assert b"".join(batch.data for batch in data).count(b"x") == 900_000
    with pytest.raises(errors.StreamParseError, match="limit") as caught:
        answer(
            machine, body=b'["' + b"x" * 1_000_000, stream_next_offset="2", content_type="application/json"
        )
    assert (caught.value.code, caught.value.offset) == ("TOO_LARGE", "1")


@pytest.mark.parametrize("options", [{"live": "always"}, {"offset": ""}, {"offset": 5}])
def test_arguments_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"live|offset"):
        reader(**options)


def head(status: int, **headers: str) -> SimpleNamespace:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(status=status, headers=named)


def test_an_error_that_no_retry_fixes_is_shown_first_and_the_read_goes_on_if_its_cause_is_removed() -> None:
    machine = reader(live=False)
    run = machine.run()
    assert isinstance(next(run), Send)
    assert run.send(head(401)) is READ
    assert run.send(b"") is RELEASE
    assert next(run) is RELEASE
    call = next(run)
    assert isinstance(call, Call)
    assert (call.name, call.arguments[0].status) == ("on_error", 401)
    assert run.send(True) == Pause(machine.delay)
    assert isinstance(next(run), Send)


@pytest.mark.parametrize("removed", [False, True])
def test_a_refusal_that_asks_for_a_long_pause_is_shown_and_waited_for_unless_its_cause_is_removed(
    removed: bool,
) -> None:
    machine = reader(live=False, policy=POLICY)
    run = machine.run()
    next(run)
    assert run.send(head(429, retry_after="90")) is READ
    assert run.send(b"") is RELEASE
    call = next(run)
    assert isinstance(call, Call)
    assert (call.name, call.arguments[0].status, call.arguments[1]) == ("on_long_wait", 429, 90)
    assert run.send(removed) == Pause(1.0 if removed else 90.0)


def test_an_answer_that_trickles_is_given_up() -> None:
    machine = reader(live=False, policy=POLICY, trickle=10.0)
    run = machine.run()
    next(run)
    assert run.send(head(200, stream_next_offset="9")) is READ
    CLOCK.now += 9
    assert run.send(b"a") is READ
    CLOCK.now += 2
    assert run.send(b"b") is RELEASE
    assert next(run) == Pause(1.0)


def test_auto_is_another_word_for_true() -> None:
    assert reader(live="auto").live is True


def test_a_known_tag_is_sent_until_the_first_answer() -> None:
    machine = reader(live=False, offset="3", etag='"t"')
    sent = next_request(machine)
    assert sent is not None
    assert sent.headers["if-none-match"] == '"t"'
    assert [b.data for b in answer(machine, 304, stream_next_offset="3", stream_up_to_date="true")] == [b""]
    assert machine.finished
    machine = reader(live=False, offset="3", etag='"t"')
    answer(machine, body=b"x", stream_next_offset="4", etag='"u"')
    sent = next_request(machine)
    assert sent is not None
    assert "if-none-match" not in sent.headers
    assert machine.etag == '"u"'


def test_the_place_is_what_commit_comes_back_to() -> None:
    machine = reader(live="long-poll")
    tail(machine, "5", stream_cursor="c")
    place = machine.place
    assert place == Portion(b"", "5", "c", True, False)
    tail(machine, "9")
    assert machine.offset == "9"
    machine.commit(place)
    assert (machine.offset, machine.cursor) == ("5", "c")


def array(machine: Reader, body: bytes, **headers: str) -> list[Portion]:
    headers = {"content_type": "application/json", "stream_next_offset": "9", **headers}
    return answer(machine, body=body, **headers)  # type: ignore[arg-type]


def test_a_body_that_is_given_early_comes_in_pieces_before_its_end() -> None:
    machine = reader(live=False, policy=POLICY)
    run = machine.run()
    next(run)
    assert run.send(head(200, stream_next_offset="9", content_length="6")) is READ
    machine.give_early(2)
    given = run.send(b"abc")
    assert isinstance(given, Give)
    assert (given.value.data, given.value.next_offset) == (b"abc", "-1")
    assert next(run) is READ
    assert run.send(b"def") is READ
    last = [effect for effect in (run.send(b""), next(run)) if isinstance(effect, Give)]
    assert [(give.value.data, give.value.next_offset) for give in last] == [(b"def", "9")]


MESSAGES = [b'"%d"' % number for number in range(60_000)]  # more than one piece


def test_an_array_that_ends_without_its_bracket_was_cut_and_the_rest_is_asked_for() -> None:
    machine = reader(live=False, policy=POLICY)
    machine.give_early(4)
    [first] = array(machine, b"[" + b",".join(MESSAGES))
    assert (machine.delay, first.next_offset, machine.offset) == (1, "-1", "-1")
    # The next answer begins at the same place: what was given out is left out.
    rest = array(machine, b"[" + b",".join(MESSAGES) + b"]")
    assert machine.offset == "9"
    given = [message for portion in (first, *rest) for message in split(portion.data)]
    assert given == MESSAGES


@pytest.mark.parametrize("body", [b'{"a":1}', b'{"a":"' + b"x" * PIECE_SIZE + b'"}'])
def test_a_body_that_is_no_array_ends_the_read(body: bytes) -> None:
    machine = reader(live=False)
    machine.give_early(4)
    with pytest.raises(errors.StreamParseError, match="not a JSON array"):
        array(machine, body)


def test_a_message_over_the_limit_ends_the_read_before_it_is_whole() -> None:
    machine = reader(live=False, limit=64)
    machine.give_early(4)
    with pytest.raises(errors.StreamParseError) as caught:
        array(machine, b'["' + b"x" * PIECE_SIZE)
    assert caught.value.code == "TOO_LARGE"


def test_a_stream_that_ends_before_what_was_read_already_is_another_one() -> None:
    machine = reader(live=False, policy=POLICY)
    machine.give_early(2)
    cut = answer(machine, body=b"abcdef", content_length="9", stream_next_offset="9")
    assert b"".join(b.data for b in cut) == b"abcdef"
    with pytest.raises(errors.StreamParseError, match="another stream has replaced it"):
        answer(machine, body=b"abc", stream_next_offset="3", stream_up_to_date="true")


def test_what_was_given_out_already_may_come_again_in_answers_of_other_sizes() -> None:
    machine = reader(live=False, policy=POLICY)
    machine.give_early(2)
    answer(machine, body=b"abcdef", content_length="9", stream_next_offset="9")
    assert b"".join(b.data for b in answer(machine, body=b"abc", stream_next_offset="3")) == b""
    again = answer(machine, body=b"defghi", stream_next_offset="9", stream_up_to_date="true")
    assert b"".join(b.data for b in again) == b"ghi"


def test_an_answer_that_moves_without_data_before_the_tail_is_followed_with_a_pause() -> None:
    machine = reader(live=False, offset="3", policy=POLICY)
    answer(machine, stream_next_offset="4")
    assert (machine.delay, query(machine)) == (1.0, "offset=4")


def test_an_offset_of_the_server_that_is_none_ends_the_read() -> None:
    machine = reader(live=False)
    with pytest.raises(errors.StreamParseError, match="gave 'now', which is not an offset") as caught:
        answer(machine, body=b"x", stream_next_offset="now")
    assert caught.value.code == "BAD_OFFSET"


@pytest.mark.parametrize("status", [204, 406, 400])
def test_live_sse_says_whether_the_server_has_no_event_streams(status: int) -> None:
    machine = reader(live="sse")
    kind = errors.DurableStreamError if status == 400 else errors.SSENotSupportedError
    with pytest.raises(kind) as caught:
        answer(machine, status)
    assert type(caught.value) is kind


def test_an_event_stream_that_lasted_is_no_repeated_failure() -> None:
    machine = reader(live="sse", policy=POLICY)
    for _ in range(POLICY.max_retries + 3):
        answer(
            machine,
            body=encode_control("-1", up_to_date=True),
            error=errors.FetchError("cut"),
            lasting=60.0,
            **SSE,  # type: ignore[arg-type]
        )
        assert machine.delay == 1.0


def test_an_event_stream_that_ends_without_an_event_is_a_failure() -> None:
    machine = reader(live="sse", policy=RetryPolicy(max_retries=0))
    with pytest.raises(errors.FetchError, match="ended before its first event"):
        answer(machine, **SSE)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [0, 1])
def test_b10_a_read_that_the_driver_broke_off_goes_on_from_where_it_was(given: int) -> None:
    """What was given out of a body in pieces is not given again, whatever else had come of it."""
    machine = reader(live=False)
    machine.give_early(1)
    course = machine.run()
    send = next(course)
    assert isinstance(send, Send)
    head = SimpleNamespace(status=200, headers={"content-type": "text/plain", "stream-next-offset": "6"})
    assert course.send(head) is READ
    pieces: list[bytes] = []
    for chunk in [b"abc"][:given]:
        effect = course.send(chunk)
        while isinstance(effect, Give):
            pieces.append(effect.value.data)
            effect = next(course)
        assert effect is READ
    machine.break_off()
    again = machine.run()
    request = next(again)
    assert isinstance(request, Send)
    assert request.request.url == send.request.url
    assert again.send(head) is READ
    for chunk in (b"abcdef", b""):
        effect = again.send(chunk)
        while isinstance(effect, Give):
            pieces.append(effect.value.data)
            effect = next(again, None)
        if effect is RELEASE:
            effect = next(again, None)
            assert isinstance(effect, Give)
            pieces.append(effect.value.data)
    assert b"".join(pieces) == b"abcdef"


def test_b10_a_request_that_the_driver_broke_off_is_made_again() -> None:
    machine = reader(live="sse", offset="3")
    first = next(machine.run())
    machine.break_off()
    assert machine.delay == 0.0
    second = next(machine.run())
    assert isinstance(first, Send)
    assert isinstance(second, Send)
    assert first.request == second.request


def test_an_answer_that_the_driver_broke_off_is_asked_for_again_at_once_without_what_was_given() -> None:
    machine = reader(live=False, policy=POLICY)
    machine.give_early(2)
    run = machine.run()
    next(run)
    assert run.send(head(200, stream_next_offset="9", content_length="6")) is READ
    given = run.send(b"abcd")
    assert isinstance(given, Give)
    assert given.value.data == b"abcd"
    run.close()
    machine.break_off()
    machine.break_off()  # between two answers there is nothing to end
    assert (machine.delay, query(machine)) == (0.0, "offset=-1")
    rest = answer(machine, body=b"abcdef", stream_next_offset="9", stream_up_to_date="true")
    assert b"".join(portion.data for portion in rest) == b"ef"


# -- where the stream begins behind the position


def gone(run: Machine[None], earliest: str | None = "7") -> tuple[Request, Call]:
    """Play a request and its 410; return the request, and whom the machine asks what to do."""
    effect = next(run)
    while not isinstance(effect, Send):
        assert isinstance(effect, (Pause, Give))
        effect = next(run)
    headers = {} if earliest is None else {"stream_earliest_offset": earliest}
    assert run.send(head(410, **headers)) is READ
    assert run.send(b"") is RELEASE
    assert next(run) is RELEASE
    call = next(run)
    assert isinstance(call, Call)
    [error] = call.arguments
    assert isinstance(error, errors.RetentionGoneError)
    assert error.earliest == earliest
    return effect.request, call


def sent(effect: Effect) -> str:
    """Return the query of a request that is sent now, without a pause."""
    assert isinstance(effect, Send)
    return effect.request.url.partition("?")[2]


@pytest.mark.parametrize("offset", ["-1", "now", "3"])
def test_a_read_goes_on_from_where_the_stream_begins_if_that_is_wanted(offset: str) -> None:
    machine = reader(live=False, offset=offset)
    run = machine.run()
    request, call = gone(run)
    assert request.url.endswith(f"?offset={offset}")
    assert call.name == "on_gone"
    assert sent(run.send(True)) == "offset=7"
    # Nothing was handed over, so that the public position has not moved.
    assert (machine.offset, machine.finished) == (offset, False)
    assert run.send(head(200, stream_next_offset="9", stream_up_to_date="true")) is READ
    assert run.send(b"ab") is READ
    assert run.send(b"") is RELEASE
    given = next(run)
    assert isinstance(given, Give)
    assert given.value == Portion(b"ab", "9", None, True, False)
    assert next(run, None) is None


@pytest.mark.parametrize("wanted", [False, None])
def test_a_read_ends_where_data_is_gone_unless_it_shall_go_on(wanted: bool | None) -> None:
    machine = reader(live=False, offset="3")
    run = machine.run()
    gone(run)
    call = run.send(wanted)
    assert isinstance(call, Call)
    assert call.name == "on_error"
    with pytest.raises(errors.RetentionGoneError, match="answered 410"):
        run.send(None)
    assert machine.finished


@pytest.mark.parametrize("earliest", [None, "3", "2"])
def test_a_read_does_not_go_on_from_what_is_not_behind_its_position(earliest: str | None) -> None:
    _, call = gone(reader(live=False, offset="3").run(), earliest)
    assert call.name == "on_error"


def test_data_is_passed_over_once_until_there_is_data_again() -> None:
    machine = reader(live=False, offset="3", policy=POLICY)
    run = machine.run()
    assert gone(run)[1].name == "on_gone"
    assert sent(run.send(True)) == "offset=7"
    # An answer without data does not count.
    assert run.send(head(200, stream_next_offset="8")) is READ
    assert run.send(b"") is RELEASE
    request, call = gone(run, "9")
    assert (request.url.partition("?")[2], call.name) == ("offset=8", "on_error")
    # The caller has removed the cause: then there is data.
    assert run.send(True) == Pause(machine.delay)
    assert isinstance(next(run), Send)
    assert run.send(head(200, stream_next_offset="9")) is READ
    assert run.send(b"ab") is READ
    assert run.send(b"") is RELEASE
    assert gone(run, "99")[1].name == "on_gone"


def test_what_was_given_out_of_a_body_that_is_gone_is_not_left_out_of_the_next() -> None:
    machine = reader(live=False, offset="3", policy=POLICY)
    machine.give_early(2)
    cut = answer(machine, body=b"abcdef", content_length="9", stream_next_offset="5")
    assert b"".join(portion.data for portion in cut) == b"abcdef"
    run = machine.run()
    gone(run)
    assert sent(run.send(True)) == "offset=7"
    assert run.send(head(200, stream_next_offset="9", stream_up_to_date="true")) is READ
    given = run.send(b"ghi")
    data = b""
    while given is not None:
        data += given.value.data if isinstance(given, Give) else b""
        given = run.send(b"") if given is READ else next(run, None)
    assert (data, machine.finished) == (b"ghi", True)


def test_pieces_of_a_body_are_data_after_which_the_read_may_go_on_again() -> None:
    machine = reader(live=False, offset="3", policy=POLICY)
    machine.give_early(2)
    run = machine.run()
    gone(run)
    run.send(True)
    assert run.send(head(200, stream_next_offset="9", content_length="9")) is READ
    assert isinstance(run.send(b"abc"), Give)
    assert next(run) is READ
    assert run.send(b"") is RELEASE  # it is cut
    assert gone(run, "9")[1].name == "on_gone"


@pytest.mark.parametrize("live", ["long-poll", "sse"])
def test_a_live_read_that_goes_on_from_elsewhere_has_no_cursor(live: str) -> None:
    machine = reader(live=live, offset="3", cursor="17")
    if live == "long-poll":
        tail(machine, "4")
    run = machine.run()
    request, call = gone(run)
    assert request.url.partition("?")[2] == f"cursor=17&live={live}&offset={machine.offset}"
    assert call.name == "on_gone"
    assert sent(run.send(True)) == f"live={live}&offset=7"
