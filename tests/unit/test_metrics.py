"""What is counted, against a slower way of counting it."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.broker.port import Delivery
from tenantry.metrics.recorder import (
    BATCH_SIZES,
    LATENCY_MS,
    SECONDS,
    Distribution,
    Recorder,
    latencies,
)
from tests.fakes.messages import incoming

NOW = 1_800_000_000_000


def batch(*published_ms: int | None) -> list[Delivery]:
    return [
        Delivery(tag, False, incoming(str(tag))._replace(published_at_ms=at))
        for tag, at in enumerate(published_ms, start=1)
    ]


@pytest.mark.parametrize("bounds", [LATENCY_MS, BATCH_SIZES, SECONDS])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


@given(st.lists(st.integers(NOW - 100_000, NOW + 1000), max_size=50))
def test_latencies_are_sorted_into_the_slots_one_would_sort_them_into_by_hand(
    published: list[int],
) -> None:
    expected = Distribution(LATENCY_MS)
    for at in published:
        expected.add(max(0, NOW - at))
    counts, seconds = latencies(published.copy(), NOW)
    found = Distribution(LATENCY_MS)
    found.add_many(counts, seconds)
    assert found.read().counts == expected.read().counts
    assert math.isclose(seconds * 1000, expected.read().total, abs_tol=1e-6)


def test_a_latency_on_a_bound_belongs_under_it() -> None:
    for slot, bound in enumerate(LATENCY_MS):
        counts, seconds = latencies([NOW - bound], NOW)
        assert counts.index(1) == slot
        assert seconds == bound / 1000


def test_a_clock_that_is_ahead_means_no_time_at_all() -> None:
    assert latencies([NOW + 86_400_000, 2**63], NOW) == ([2] + [0] * len(LATENCY_MS), 0.0)


def test_a_time_that_nobody_can_believe_is_no_latency() -> None:
    counts, seconds = latencies([-(2**63), 0, NOW - 5], NOW)
    assert sum(counts) == 1
    assert seconds == 0.005


def test_a_distribution_loses_no_value_of_many_threads() -> None:
    distribution = Distribution((1, 10))

    def add() -> None:
        for value in (0.5, 1, 5, 10, 50) * 200:
            distribution.add(value)
            distribution.add_many([1, 0, 0], 1.0)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(add) for _ in range(8)]:
            future.result()
    reading = distribution.read()
    assert reading.counts == (8 * 1400, 8 * 1800, 8 * 2000)
    assert reading.total == 8 * (200 * 66.5 + 1000)


def test_a_batch_is_counted_with_its_size_its_time_and_its_messages_latencies() -> None:
    recorder = Recorder()
    now = time.time_ns() // 1_000_000
    recorder.batch_stored("a", batch(now - 3000, None, now), 0.02)
    assert recorder.batch_sizes.read().total == 3
    assert recorder.store_seconds.read().total == 0.02
    reading = recorder.latency("a")
    assert reading is not None
    assert reading.counts[-1] == 2
    assert 3.0 <= reading.total < 10.0


def test_messages_without_a_time_have_no_latency() -> None:
    recorder = Recorder()
    recorder.batch_stored("a", batch(None, None), 0.02)
    assert recorder.latency("a") is None


def test_a_tenant_that_is_gone_is_forgotten() -> None:
    recorder = Recorder()
    recorder.batch_stored("a", batch(NOW), 0.02)
    recorder.batch_stored("b", batch(NOW), 0.02)
    recorder.tenant_gone("a")
    recorder.tenant_gone("never there")
    assert recorder.latency("a") is None
    assert recorder.latency("b") is not None
