"""A rate, held whatever is asked for and however the clock goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.turns.token_bucket import TokenBucket

rates = st.integers(1, 1_000_000)
bursts = st.none() | st.integers(1, 10_000_000)
pauses = st.floats(0, 100, allow_nan=False)


@given(rates, bursts, st.booleans(), st.lists(st.tuples(pauses, st.floats(0, 1)), max_size=50))
def test_no_span_of_time_sees_more_than_its_rate_and_one_burst(
    rate: int, burst: int | None, full: bool, steps: list[tuple[float, float]]
) -> None:
    now, taken = 0.0, [(0.0, 0)]
    bucket = TokenBucket(rate=rate, burst=burst, now=now, full=full)
    for pause, part in steps:
        now += pause
        count = int(bucket.available(now) * part)
        bucket.take(count)
        taken.append((now, count))
    for first in range(len(taken)):
        count = 0
        for at, more in taken[first:]:
            count += more
            assert count <= rate * (at - taken[first][0]) + bucket.burst + 1e-3


@given(rates, bursts, st.integers(1, 2_000_000))
def test_who_waits_as_long_as_told_gets_what_was_asked_for(
    rate: int, burst: int | None, count: int
) -> None:
    bucket = TokenBucket(rate=rate, burst=burst, now=0.0, full=False)
    wait = bucket.seconds_until(count, 0.0)
    assert wait <= count / rate + 1e-9
    assert bucket.available(wait) >= min(count, int(bucket.burst))


@given(rates, st.lists(pauses, min_size=1, max_size=30))
def test_a_backlog_gets_its_whole_rate(rate: int, gaps: list[float]) -> None:
    # Nothing is lost to rounding while somebody takes all there is, now and then.
    bucket = TokenBucket(rate=rate, burst=rate * 200, now=0.0, full=False)
    now, taken = 0.0, 0
    for gap in gaps:
        now += gap
        count = bucket.available(now)
        bucket.take(count)
        taken += count
    assert taken == pytest.approx(rate * now, abs=1.001)


@given(rates, st.lists(st.floats(-50, 50, allow_nan=False), max_size=50))
def test_a_clock_that_steps_back_brings_nothing_and_starves_nobody(
    rate: int, steps: list[float]
) -> None:
    bucket = TokenBucket(rate=rate, burst=None, now=0.0, full=False)
    now, forward, taken = 0.0, 0.0, 0
    for step in steps:
        now += step
        forward += max(0.0, step)
        count = bucket.available(now)
        bucket.take(count)
        taken += count
        assert taken <= rate * forward + 1e-3
    assert bucket.available(now + 1.1) >= 1


@given(rates, bursts, rates, bursts)
def test_a_change_gives_no_new_burst(
    rate: int, burst: int | None, then: int, then_burst: int | None
) -> None:
    bucket = TokenBucket(rate=rate, burst=burst, now=0.0, full=True)
    bucket.take(bucket.available(0.0))
    bucket.change(rate=then, burst=then_burst, now=0.0)
    assert bucket.available(0.0) == 0
    assert bucket.available(1e9) == int(bucket.burst)


def test_what_is_owed_comes_in_first() -> None:
    bucket = TokenBucket(rate=10, burst=10, now=0.0, full=True)
    bucket.take(30)
    assert bucket.available(1.0) == 0
    assert bucket.seconds_until(1, 1.0) == pytest.approx(1.1)
    assert bucket.available(3.0) == 10
