"""What is noted of tenants' messages minute by minute, and how it is shown in points."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.broker.port import Delivery, Incoming
from tenantry.control.port import TenantRuntime
from tenantry.domain.tenant import Lifecycle
from tenantry.messages.port import StoreUnavailableError
from tenantry.metrics.recorder import LATENCY_MS, Recorder
from tenantry.metrics.statistics import (
    BUCKETS,
    NONE,
    STEPS,
    WEEK,
    Note,
    Slot,
    Statistics,
    StatisticsKeeper,
)

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
IDLE = TenantRuntime(
    tenant_id="a", workers_current=0, consuming=True, unsettled=0, rate=0.0, pending=0, stored=0,
    duplicates=0, dead_lettered=0, parked=None, lifecycle=Lifecycle.ACTIVE,
)  # fmt: skip


class MemoryStatistics:
    """Remembers what was noted, and gives what a test has put in."""

    def __init__(self, *slots: Slot) -> None:
        self.slots = slots
        self.noted: list[tuple[datetime, dict[str, Note]]] = []
        self.away = False

    def note(self, at: datetime, notes: Mapping[str, Note]) -> None:
        if self.away:
            raise StoreUnavailableError("away")
        self.noted.append((at, dict(notes)))

    def read(
        self, tenant_id: str, *, hourly: bool, start: datetime, end: datetime
    ) -> Sequence[Slot]:
        assert tenant_id == "a"
        # No more is read than is kept: a day by minutes, a week by hours.
        assert end - start <= timedelta(days=7 if hourly else 1)
        return [one for one in self.slots if start <= one.at < end]


class Node:
    """A node whose tenants and clock a test moves."""

    def __init__(self) -> None:
        self.time = START.timestamp()
        self.store = MemoryStatistics()
        self.recorder = Recorder()
        self.tenants = {"a": IDLE, "b": IDLE}
        self.keeper = StatisticsKeeper(
            self.store,
            tenants=lambda: self.tenants,
            recorder=self.recorder,
            now=lambda: self.time,
        )

    def pass_minutes(self, count: int = 1) -> list[tuple[datetime, dict[str, Note]]]:
        """Go on to when so many minutes are over; give what is noted then."""
        before = len(self.store.noted)
        self.time += 60 * count
        self.keeper.turn()
        return self.store.noted[before:]


@pytest.fixture
def node() -> Node:
    node = Node()
    node.pass_minutes()
    return node


def test_a_tenant_that_does_nothing_is_not_noted_and_one_that_does_is(node: Node) -> None:
    assert node.pass_minutes() == []
    node.tenants["b"] = replace(IDLE, stored=3)
    node.time += 10
    node.keeper.turn()
    ((at, notes),) = node.pass_minutes()
    assert (at, notes) == (START + timedelta(minutes=2), {"b": Note(0, NONE)})
    assert node.pass_minutes() == []
    node.tenants["a"] = replace(IDLE, pending=7)
    assert [notes for _, notes in node.pass_minutes()] == [{"a": Note(7, NONE)}]


def test_a_minute_that_can_t_be_noted_is_noted_with_the_next(node: Node) -> None:
    node.tenants["b"] = replace(IDLE, stored=3)
    node.store.away = True
    with pytest.raises(StoreUnavailableError):
        node.pass_minutes()
    node.store.away = False
    assert [set(notes) for _, notes in node.pass_minutes()] == [{"b"}]


def store(node: Node, count: int, seconds: int) -> None:
    """Have so many messages of tenant `a` stored that were published so long ago."""
    at = int(time.time() - seconds) * 1000
    message = Incoming("id", "logs", 0, b"{}", None, None, published_at_ms=at)
    batch = [Delivery(1, redelivered=False, message=message)] * count
    node.recorder.batch_stored("a", batch, 0.01)


def test_the_latency_of_the_last_minute_is_told_of_the_tenant_that_had_the_id_in_it(
    node: Node,
) -> None:
    node.tenants["a"] = replace(IDLE, incarnation=2)
    store(node, 90, 0)
    store(node, 10, 15)
    assert node.keeper.latency_p99("a", 2) is None
    node.store.away = True  # it is told whether or not it can be noted
    with pytest.raises(StoreUnavailableError):
        node.pass_minutes()
    found = node.keeper.latency_p99("a", 2)
    assert found is not None
    assert 10_000 < found <= 30_000
    assert node.keeper.latency_p99("a", 1) is None
    assert node.keeper.latency_p99("a", 3) is None
    node.store.away = False
    node.pass_minutes()
    node.pass_minutes()
    assert node.keeper.latency_p99("a", 2) is None


def test_a_window_has_the_points_of_its_minutes_and_ends_with_the_last_that_is_over() -> None:
    slots = [Slot(at=START + timedelta(minutes=n), stored=60 * n, backlog=n) for n in range(5)]
    now = START + timedelta(minutes=4, seconds=20)
    series = Statistics(MemoryStatistics(*slots), now=lambda: now).series("a", timedelta(minutes=3))
    assert [(one.at.minute, one.stored) for one in series.points] == [(1, 60), (2, 120), (3, 180)]
    assert (series.total.stored, series.total.backlog) == (360, 3)
    assert series.end == START + timedelta(minutes=4)


def test_the_last_of_longer_steps_counts_for_as_long_as_it_has_lasted() -> None:
    now = START + timedelta(minutes=20, seconds=20)
    slot = Slot(at=START, stored=1200)
    series = Statistics(MemoryStatistics(slot), now=lambda: now).series("a", WEEK)
    assert (len(series.points), series.points[-1].stored) == (168, 1200)
    assert series.seconds(series.points[-1]) == 20 * 60
    assert series.seconds(series.points[0]) == 60 * 60


@given(
    window=st.integers(1, 7 * 24 * 60),
    past=st.integers(0, 7 * 24 * 60 * 60),
    counts=st.lists(st.tuples(st.integers(0, 8 * 24 * 60), st.integers(1, 9)), max_size=20),
)
def test_whatever_the_window_each_slot_in_it_counts_once_in_a_bounded_number_of_points(
    window: int, past: int, counts: list[tuple[int, int]]
) -> None:
    now = START + timedelta(seconds=past)
    wanted = timedelta(minutes=window)
    step = next(step for longest, step in STEPS if wanted <= longest)
    hourly = step >= timedelta(hours=1)
    slots = [
        Slot(at=START + timedelta(minutes=minute // 60 * 60 if hourly else minute), stored=count)
        for minute, count in counts
    ]
    series = Statistics(MemoryStatistics(*slots), now=lambda: now).series("a", wanted)
    start = series.points[0].at
    inside = [one for one in slots if start <= one.at < series.end]
    assert sum(point.stored for point in series.points) == series.total.stored
    assert series.total.stored == sum(one.stored for one in inside)
    assert len(series.points) <= 168
    assert now - series.end <= timedelta(seconds=65)
    assert all(0 < series.seconds(point) <= step.total_seconds() for point in series.points)


@given(st.lists(st.integers(0, LATENCY_MS[-1]), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_is_within_the_bucket_of_the_message_it_is_of(
    values: list[int], share: float
) -> None:
    counts = [0] * BUCKETS
    for value in values:
        counts[next(n for n, bound in enumerate(LATENCY_MS) if value <= bound)] += 1
    found = Slot(at=START, latencies=counts).latency(share)
    wanted = len(values) * share
    ordered = sorted(values)
    message = ordered[min(len(values) - 1, max(0, -int(-wanted // 1) - 1))]
    bucket = next(n for n, bound in enumerate(LATENCY_MS) if message <= bound)
    assert found is not None
    assert (0, *LATENCY_MS)[bucket] <= found <= LATENCY_MS[bucket]


def test_without_messages_there_is_no_latency_and_beyond_the_last_bound_it_is_that() -> None:
    assert Slot(at=START).latency(0.5) is None
    assert Slot(at=START, latencies=(*NONE[1:], 3)).latency(0.5) == LATENCY_MS[-1]
