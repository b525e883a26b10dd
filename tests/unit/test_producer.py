from __future__ import annotations

import pytest

from durable_streams import errors
from durable_streams.protocol.producer import Outcome, Producer, ProducerJob, ProducerSettings
from durable_streams.protocol.request import Response
from durable_streams.protocol.retry import RetryPolicy

POLICY = RetryPolicy(max_retries=-1, initial_delay=1, max_delay=4, multiplier=2, jitter=0)


def make(content_type: str = "text/plain", **options: object) -> Producer:
    limits = {"linger": 0.0, "policy": POLICY, "retry_timeout": 60.0}
    own = {name: options.pop(name) for name in list(options) if name in ProducerSettings.__dataclass_fields__}
    return Producer(
        "http://host/s",
        "p",
        random=lambda: 0.0,
        content_type=content_type,
        settings=ProducerSettings(**{**limits, **own}),  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )


def add(machine: Producer, *records: bytes, now: float = 0.0) -> None:
    for record in records:
        machine.add(record, now)


def take(machine: Producer, now: float = 0.0) -> ProducerJob:
    job = machine.next_request(now)
    assert job is not None
    return job


def accept(machine: Producer, job: ProducerJob, now: float = 0.0) -> list[Outcome]:
    seq = job.request.headers["producer-seq"]
    return machine.answered(
        job.token, Response(200, {"producer-seq": seq, "stream-next-offset": "o" + seq}), now
    )


def seqs(*jobs: ProducerJob) -> list[tuple[str, str]]:
    return [(job.request.headers["producer-epoch"], job.request.headers["producer-seq"]) for job in jobs]


def established(**options: object) -> Producer:
    """A producer with one acknowledged batch and one record per batch."""
    machine = make(max_batch_bytes=2, **options)
    add(machine, b"0")
    accept(machine, take(machine))
    return machine


def test_a_batch_lingers_then_goes_out_whole() -> None:
    machine = make("application/json", linger=0.5)
    assert machine.add(machine.encode({"a": 1}), 10.0)
    assert not machine.add(machine.encode("[2]"), 10.1)
    assert machine.next_request(10.4) is None
    assert machine.wake_at(10.4) == 10.5
    assert take(machine, 10.5).request.body == b'[{"a":1},[2]]'


def test_flush_and_a_full_batch_do_not_linger() -> None:
    machine = make(linger=60.0, max_batch_bytes=4)
    add(machine, b"a")
    assert machine.next_request(0.0) is None
    machine.flush()
    accept(machine, take(machine))
    add(machine, b"bb", b"ccc", b"dddddddd")
    bodies = []
    while (job := machine.next_request(0.0)) is not None:
        bodies.append(job.request.body)
    assert bodies == [b"bb", b"ccc", b"dddddddd"]  # a record over the limit goes alone


def test_the_first_batch_of_an_epoch_goes_alone_and_then_several() -> None:
    machine = make(max_batch_bytes=2, max_in_flight=3)
    add(machine, *[b"%d" % number for number in range(6)])
    first = take(machine)
    assert machine.next_request(0.0) is None
    accept(machine, first)
    jobs = [take(machine) for _ in range(3)]
    assert seqs(*jobs) == [("0", "1"), ("0", "2"), ("0", "3")]
    assert machine.next_request(0.0) is None
    assert machine.wake_at(0.0) is None


def test_a_retry_is_the_same_request_after_a_pause_and_alone() -> None:
    machine = established()
    add(machine, b"1", b"2")
    one, two = take(machine), take(machine)
    machine.failed(one.token, errors.FetchError("reset"), 5.0)
    machine.failed(two.token, errors.FetchError("reset"), 5.0)
    assert machine.next_request(5.9) is None
    assert machine.wake_at(5.0) == 6.0
    again = take(machine, 6.0)
    assert again.request == one.request
    assert machine.next_request(6.0) is None
    accept(machine, again)
    assert take(machine, 6.0).request == two.request


def test_retry_after_is_a_floor() -> None:
    machine = established()
    add(machine, b"1")
    machine.answered(take(machine).token, Response(429, {"retry-after": "30"}), 5.0)
    assert machine.wake_at(5.0) == 35.0


def test_it_gives_up_after_the_retry_timeout_and_stays_given_up() -> None:
    machine, ticket, now = established(), object(), 0.0
    machine.add(b"1", now, ticket)
    outcomes: list[Outcome] = []
    while machine.error is None:
        now = machine.wake_at(now) or now
        outcomes = machine.failed(take(machine, now).token, errors.FetchError("refused"), now)
    assert 60 <= now < 70
    assert [outcome.ticket for outcome in outcomes] == [ticket]
    assert outcomes[0].error is machine.error
    assert machine.idle
    with pytest.raises(errors.FetchError):
        machine.add(b"2", now)


def test_a_batch_that_overtook_another_waits_for_it() -> None:
    machine = established()
    add(machine, b"1", b"2", b"3")
    one, two, three = take(machine), take(machine), take(machine)
    gap = {"producer-expected-seq": "1", "producer-received-seq": "2"}
    assert machine.answered(two.token, Response(409, gap), 0.0) == []
    assert machine.next_request(0.0) is None
    accept(machine, one)
    assert take(machine).request == two.request
    accept(machine, three)


def test_a_server_that_forgot_what_it_acknowledged_is_an_error() -> None:
    machine = established()
    add(machine, b"1")
    gap = {"producer-expected-seq": "0", "producer-received-seq": "1"}
    machine.answered(take(machine).token, Response(409, gap), 0.0)
    assert isinstance(machine.error, errors.SequenceGapError)


def test_an_older_gap_answer_is_no_error() -> None:
    """The server looked before batch 1 came, and its answer arrived after batch 1's."""
    machine = established()
    add(machine, b"1", b"2")
    one, two = take(machine), take(machine)
    accept(machine, one)
    gap = {"producer-expected-seq": "1", "producer-received-seq": "2"}
    machine.answered(two.token, Response(409, gap), 0.0)
    assert take(machine).request == two.request


def test_without_auto_claim_a_stale_epoch_is_sticky() -> None:
    machine = make()
    add(machine, b"0")
    machine.answered(take(machine).token, Response(403, {"producer-epoch": "7"}), 0.0)
    assert isinstance(machine.error, errors.StaleEpochError)
    assert machine.error.current_epoch == 7
    machine.restart()
    assert (machine.epoch, machine.next_seq, machine.error) == (1, 0, None)


def test_a_claim_waits_for_what_is_in_flight_and_resends_the_rest_in_order() -> None:
    machine = established(auto_claim=True)
    add(machine, b"1", b"2", b"3")
    one, two, three = take(machine), take(machine), take(machine)
    stale = Response(403, {"producer-epoch": "4"})
    machine.answered(two.token, stale, 0.0)
    assert machine.next_request(0.0) is None
    accept(machine, one)  # it was written before the other producer came
    machine.answered(three.token, stale, 0.0)
    first = take(machine)
    assert seqs(first) == [("5", "0")]
    assert first.request.body == b"2"
    assert machine.next_request(0.0) is None
    accept(machine, first)
    second = take(machine)
    assert (seqs(second), second.request.body) == ([("5", "1")], b"3")
    assert machine.epoch == 5


def test_claims_without_end_are_an_error() -> None:
    machine, now = make(auto_claim=True), 0.0
    add(machine, b"0")
    while machine.error is None:
        now = max(now, machine.wake_at(now) or now)
        job = take(machine, now)
        machine.answered(job.token, Response(403, {"producer-epoch": str(machine.epoch + 1)}), now)
    assert isinstance(machine.error, errors.StaleEpochError)


def test_new_data_that_is_called_a_duplicate_means_another_producer() -> None:
    """A second run with the same id and epoch: its data must not be swallowed."""
    machine = make()
    add(machine, b"new")
    duplicate = Response(204, {"producer-seq": "0", "stream-next-offset": "9"})
    machine.answered(take(machine).token, duplicate, 0.0)
    assert isinstance(machine.error, errors.StaleEpochError)
    claiming = make(auto_claim=True)
    add(claiming, b"new")
    claiming.answered(take(claiming).token, duplicate, 0.0)
    assert seqs(take(claiming)) == [("1", "0")]


def test_a_duplicate_after_a_lost_answer_is_our_own() -> None:
    machine, ticket = make(), object()
    machine.add(b"0", 0.0, ticket)
    machine.failed(take(machine).token, errors.FetchError("lost"), 0.0)
    duplicate = Response(204, {"producer-seq": "0", "stream-next-offset": "9"})
    [outcome] = machine.answered(take(machine, 1.0).token, duplicate, 1.0)
    assert outcome.result is not None
    assert (outcome.result.offset, outcome.result.duplicate) == ("9", True)


def test_what_no_retry_fixes_fails_everything_queued() -> None:
    machine, tickets = established(), [object() for _ in range(4)]
    for number, ticket in enumerate(tickets):
        machine.add(b"%d" % number, 0.0, ticket)
    job, other = take(machine), take(machine)
    outcomes = machine.answered(job.token, Response(413, {}), 0.0)
    assert [outcome.ticket for outcome in outcomes] == tickets
    assert {type(outcome.error) for outcome in outcomes} == {errors.DurableStreamError}
    assert accept(machine, other) == []  # late, and nobody waits for it any more
    assert (machine.pending_count, machine.pending_bytes, machine.in_flight_count) == (0, 0, 0)


def test_the_close_goes_last_and_alone() -> None:
    machine, ticket = established(), object()
    add(machine, b"1")
    machine.close_stream(b"end", ticket)
    one = take(machine)
    assert machine.next_request(0.0) is None
    with pytest.raises(errors.DurableStreamError, match="closed"):
        machine.add(b"2", 0.0)
    accept(machine, one)
    last = take(machine)
    assert last.request.headers["stream-closed"] == "true"
    assert last.request.body == b"end"
    [outcome] = accept(machine, last)
    assert outcome.ticket is ticket
    assert machine.idle


def test_an_empty_close_answered_with_204_is_no_duplicate() -> None:
    machine = make()
    machine.close_stream(None, object())
    job = take(machine)
    assert "content-type" not in job.request.headers
    [outcome] = machine.answered(job.token, Response(204, {"stream-next-offset": "3"}), 0.0)
    assert outcome.result is not None
    assert not outcome.result.duplicate


def test_the_queue_is_bounded_in_bytes() -> None:
    machine = make(max_pending_bytes=10)
    assert machine.has_room(1000)  # one always may
    add(machine, b"12345678")
    assert machine.has_room(2)
    assert not machine.has_room(3)
    accept(machine, take(machine))
    assert machine.pending_bytes == 0


@pytest.mark.parametrize(
    "options",
    [
        {"epoch": -1},
        {"epoch": 2**53},
        {"max_batch_bytes": 0},
        {"max_in_flight": True},
        {"linger": -1},
        {"retry_timeout": float("nan")},
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)


def test_a_producer_id_must_be_a_safe_header() -> None:
    for bad in ("", "a\r\nb"):
        with pytest.raises(ValueError, match=r"id|header"):
            Producer("http://host/s", bad, random=lambda: 0.0)


def test_b16_what_comes_beside_a_request_in_flight_goes_out_together() -> None:
    machine = make()
    add(machine, b"0")
    accept(machine, take(machine))
    assert machine.add(b"1", 10.0), "nothing is in flight: it goes out at once"
    first = take(machine, 10.0)
    assert machine.add(b"2", 10.0)
    assert not any(machine.add(b"%d" % number, 10.001) for number in range(3, 9))
    assert machine.next_request(10.001) is None
    wake = machine.wake_at(10.001)
    assert wake is not None
    assert 10.001 < wake < 10.01, "a slow answer delays nothing for longer than that"
    second = take(machine, wake)
    assert second.request.body == b"2345678"
    add(machine, b"9", now=wake)
    assert machine.next_request(wake) is None
    accept(machine, first, wake)
    assert machine.next_request(wake) is None, "another one is in flight"
    accept(machine, second, wake)
    assert take(machine, wake).request.body == b"9"


def test_b16_a_full_batch_goes_out_beside_a_request_in_flight() -> None:
    machine = established()
    add(machine, b"1", b"2", b"3")
    assert seqs(take(machine), take(machine)) == [("0", "1"), ("0", "2")]


def test_a_record_that_fits_joins_the_open_batch_without_a_decision() -> None:
    machine = make(max_batch_bytes=8)
    assert not machine.fits(b"a"), "the first record of a batch starts its time"
    add(machine, b"a")
    assert [machine.fits(record) for record in (b"b", b"c", b"too long")] == [True, True, False]
    assert (machine.pending_count, machine.pending_bytes) == (3, 3)
    assert take(machine).request.body == b"abc"


def test_a_flush_is_over_when_what_was_queued_before_it_is_acknowledged() -> None:
    machine = make(linger=60.0)
    assert machine.passed(machine.flush()), "nothing was queued"
    add(machine, b"a")
    barrier = machine.flush()
    assert not machine.passed(barrier)
    job = take(machine)
    add(machine, b"b")  # behind the barrier
    assert not machine.passed(barrier)
    accept(machine, job)
    assert machine.passed(barrier)
    assert not machine.idle


def test_a_flush_is_over_when_its_records_have_failed() -> None:
    machine = make()
    add(machine, b"a")
    barrier = machine.flush()
    machine.fail(errors.DurableStreamError("no more"))
    assert machine.passed(barrier)


def test_while_a_claim_waits_for_requests_in_flight_there_is_nothing_to_wake_for() -> None:
    machine = established(auto_claim=True)
    add(machine, b"1", b"2", b"3")
    first, second = take(machine), take(machine)
    machine.answered(first.token, Response(403, {"producer-epoch": "4"}), 0.0)
    assert machine.wake_at(0.0) is None
    assert machine.next_request(0.0) is None
    machine.answered(second.token, Response(403, {"producer-epoch": "4"}), 0.0)
    assert machine.wake_at(0.0) == 0.0
    assert seqs(take(machine)) == [("5", "0")]


def test_a_producer_that_failed_is_never_woken() -> None:
    machine = make()
    add(machine, b"a")
    machine.fail(errors.DurableStreamError("no more"))
    assert machine.wake_at(0.0) is None


def test_the_first_error_of_a_producer_stays_its_error() -> None:
    machine = make()
    machine.add(b"a", 0.0, "ticket")
    machine.fail(first := errors.DurableStreamError("first"))
    assert machine.fail(errors.DurableStreamError("second")) == []
    assert machine.error is first
    with pytest.raises(errors.DurableStreamError, match="first"):
        add(machine, b"b")


def test_a_restart_waits_for_requests_in_flight_and_sends_the_rest_under_the_next_epoch() -> None:
    machine = established()
    add(machine, b"1")
    job = take(machine)
    with pytest.raises(errors.DurableStreamError, match="flush it first") as caught:
        machine.restart()
    assert caught.value.code == "BUSY"
    machine.broken_off(job.token)
    machine.broken_off(job.token)  # it is known already
    machine.restart()
    again = take(machine)
    assert (seqs(again), again.request.body) == ([("1", "0")], b"1")


def test_a_request_that_the_driver_ended_goes_out_again_with_its_number() -> None:
    machine = established()
    add(machine, b"1")
    job = take(machine)
    machine.broken_off(job.token)
    again = take(machine)
    assert (seqs(again), again.request.body) == (seqs(job), job.request.body)


def test_what_belongs_to_another_process_is_dropped_without_being_lost_here() -> None:
    machine = established()
    add(machine, b"1", b"2")
    take(machine)
    machine.disown(errors.DurableStreamError("made before the fork"))
    assert (machine.pending_count, machine.in_flight_count, machine.lost_count) == (0, 0, 0)
    with pytest.raises(errors.DurableStreamError, match="made before the fork"):
        add(machine, b"3")


def test_an_acknowledgement_with_an_offset_that_is_none_fails_the_producer() -> None:
    machine = make()
    machine.add(b"a", 0.0, "ticket")
    machine.flush()
    [outcome] = machine.answered(take(machine).token, Response(200, {"stream-next-offset": "now"}), 0.0)
    assert isinstance(outcome.error, errors.StreamParseError)
    assert (outcome.ticket, machine.error) == ("ticket", outcome.error)


def test_a_content_type_that_becomes_known_says_how_records_are_encoded() -> None:
    machine = make()
    machine.content_type = "application/json"
    assert machine.encode({"a": 1}) == b'{"a":1}'
    machine.content_type = None  # no longer known: what was said stays
    assert (machine.content_type, machine.encode([2])) == (None, b"[2]")


def test_a_producer_is_woken_when_a_batch_may_go_and_its_pause_is_over() -> None:
    machine = make(linger=2.0)
    assert machine.wake_at(1.0) is None
    add(machine, b"a", now=1.0)
    assert machine.wake_at(1.0) == 3.0
    machine.flush()
    assert machine.wake_at(1.5) == 1.5
    job = take(machine, 1.5)
    assert machine.wake_at(1.5) is None, "its answer comes first"
    machine.failed(job.token, errors.FetchError("lost"), 2.0)
    assert machine.wake_at(2.0) == 3.0
    add(machine, b"b", now=2.0)
    machine.restart()
    assert machine.wake_at(2.5) == 2.5
