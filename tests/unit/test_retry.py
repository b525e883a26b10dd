from __future__ import annotations

import pytest

from durable_streams.errors import FetchError
from durable_streams.protocol.effects import READ, RELEASE, Call, Pause, Send
from durable_streams.protocol.request import Op, Request, Response
from durable_streams.protocol.retry import RetryPolicy, with_retry

NO_JITTER = RetryPolicy(max_retries=3, initial_delay=1, max_delay=5, multiplier=2, jitter=0)


def op(request: Request) -> Op[Response]:
    return (yield request)


def play(request: Request, events: list[Response | FetchError]) -> tuple[list[float], Response | FetchError]:
    """Return the delays of all attempts, and how it ended."""
    machine = with_retry(op(request), NO_JITTER, lambda: 0.0, lambda: 0.0)
    delays, delay = [], 0.0
    left = iter(events)
    answer: object = None
    try:
        effect = next(machine)
        while True:
            if isinstance(effect, Send):
                delays.append(delay)
                answer = next(left, None)
                assert answer is not None, "it wants another attempt"
            elif isinstance(effect, Pause):
                delay, answer = effect.seconds, None
            else:
                assert effect is READ or effect is RELEASE or isinstance(effect, Call)
                answer = b""
            effect = machine.throw(answer) if isinstance(answer, FetchError) else machine.send(answer)
    except StopIteration as done:
        return delays, done.value
    except FetchError as error:
        return delays, error


def test_the_series_grows_to_its_maximum_and_never_overflows() -> None:
    assert [NO_JITTER.delay(n, lambda: 0.0) for n in range(5)] == [1, 2, 4, 5, 5]
    assert RetryPolicy().delay(10**9, lambda: 0.0) == 10.0
    assert RetryPolicy(multiplier=1.0).delay(10**9, lambda: 0.0) == 0.1
    assert RetryPolicy(initial_delay=0.0).delay(7, lambda: 0.0) == 0.0
    assert RetryPolicy(initial_delay=5e-324, max_delay=1.7e308, multiplier=1.7e308).delay(1, lambda: 0.0) > 0


def test_jitter_only_shortens_and_retry_after_is_a_floor() -> None:
    policy = RetryPolicy(initial_delay=2, max_delay=2, jitter=0.5)
    assert policy.delay(0, lambda: 0.999) == pytest.approx(1.001)
    assert policy.delay(0, lambda: 0.5, retry_after=7.0) == 7.0
    assert policy.delay(0, lambda: 0.0, retry_after=0.1) == 2.0
    assert policy.delay(0, lambda: 0.0, retry_after=1e9) == 3600.0


@pytest.mark.parametrize(
    "settings",
    [
        {"max_retries": -2},
        {"max_retries": 1.5},
        {"initial_delay": -1},
        {"initial_delay": float("nan")},
        {"max_delay": 0.01},
        {"max_delay": float("inf")},
        {"multiplier": 0.5},
        {"jitter": 1.1},
        {"jitter": -0.1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RetryPolicy(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_idempotent_requests_are_repeated(status: int) -> None:
    delays, last = play(Request("GET", "u"), [Response(status, {})] * 4)
    assert delays == [0, 1, 2, 4]
    assert isinstance(last, Response)
    assert last.status == status


@pytest.mark.parametrize("status", [200, 204, 400, 401, 403, 404, 409, 410, 413, 501, 507])
def test_what_no_retry_fixes_is_not_repeated(status: int) -> None:
    assert play(Request("GET", "u"), [Response(status, {})])[0] == [0]


def test_a_plain_append_is_repeated_only_when_it_was_not_executed() -> None:
    append = Request("POST", "u", idempotent=False)
    lost = FetchError("reset", may_have_been_sent=True)
    assert play(append, [lost]) == ([0], lost)
    assert play(append, [Response(500, {})])[0] == [0]
    assert play(append, [Response(503, {})])[0] == [0]
    ok = Response(204, {})
    assert play(append, [FetchError("refused", may_have_been_sent=False), ok])[0] == [0, 1]
    assert play(append, [Response(429, {"retry-after": "9"}), ok])[0] == [0, 9]
    assert play(append, [Response(503, {"retry-after": "2"}), ok])[0] == [0, 2]


def test_the_answer_says_whether_an_earlier_attempt_may_have_been_executed() -> None:
    _, response = play(Request("DELETE", "u"), [FetchError("reset"), Response(404, {})])
    assert isinstance(response, Response)
    assert response.after_doubt
    _, response = play(
        Request("DELETE", "u"), [FetchError("refused", may_have_been_sent=False), Response(404, {})]
    )
    assert isinstance(response, Response)
    assert not response.after_doubt
