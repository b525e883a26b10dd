"""Token buckets, on a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from durable_streams.protocol.buckets import TokenBucket


def test_a_burst_and_then_the_rate() -> None:
    bucket = TokenBucket(2, 4, 100.0)
    for _ in range(4):
        assert bucket.wait(1, 100.0) == 0
        bucket.take(1)
    assert bucket.wait(1, 100.0) == 0.5
    assert bucket.wait(1, 100.25) == 0.25
    assert bucket.wait(1, 100.5) == 0


def test_an_amount_that_was_not_known_is_paid_off() -> None:
    bucket = TokenBucket(10, 10, 0.0)
    assert bucket.wait(1, 0.0) == 0
    bucket.take(35)
    assert bucket.wait(1, 0.0) == 2.6
    assert not bucket.is_full(3.4)
    assert bucket.is_full(3.5)


def test_more_than_fits_waits_for_a_full_bucket() -> None:
    bucket = TokenBucket(1, 2, 0.0)
    assert bucket.wait(100, 0.0) == 0
    bucket.take(2)
    assert bucket.wait(100, 0.0) == 2


@given(
    st.floats(0.1, 1000),
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 50)), max_size=50),
)
def test_no_more_than_the_burst_and_the_rate(
    rate: float, capacity: float, steps: list[tuple[float, float]]
) -> None:
    bucket, now, taken, largest = TokenBucket(rate, capacity, 0.0), 0.0, 0.0, 0.0
    for pause, amount in steps:
        now += pause
        if bucket.wait(amount, now) == 0:
            bucket.take(amount)
            taken += amount
            largest = max(largest, amount)
    assert taken <= (capacity + now * rate + largest) * (1 + 1e-9)
