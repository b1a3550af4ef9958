"""A tenant's rate and weight: what the rate lets through, and who is told of the weight."""

from __future__ import annotations

import time
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.actors.messages import Reminder
from tenantry.actors.pace import Pace, paced
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.domain.commands import (
    ChangeLimits,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
)
from tenantry.domain.limits import Limits
from tests.fakes.actors import Tree
from tests.fakes.messages import incoming
from tests.waiting import DEADLINE, eventually

SLOW = {"rate": 1, "burst": 5}


class Hours:
    """A clock that stands still until the next reminder."""

    def __init__(self) -> None:
        self.time = 0.0
        self.due: float | None = None

    def now(self) -> float:
        return self.time

    def tell_later(self, delay: float, _ref: object, message: object) -> None:
        assert message is Reminder.TOKENS_DUE
        assert self.due is None, "one reminder is enough"
        self.due = self.time + delay


def stored_within(clock: Hours, pace: Pace, seconds: float, *, late: float = 0.0) -> int:
    """Give out all that may go, of a backlog without end, whenever it may; count it."""
    count, until = 0, clock.now() + seconds
    while True:
        while allowed := pace.allowed(10_000, batch_size=1000):
            pace.gone(allowed)
            count += allowed
        assert clock.due is not None
        if clock.due > until:
            return count
        clock.time, clock.due = clock.due + late, None
        pace.reminded()


def pace_of(clock: Hours, limits: Limits, runtime: TenantRuntimeState | None = None) -> Pace:
    """Give the pace of a tenant that has just come to this process, or is here already."""
    runtime = runtime or TenantRuntimeState("acme")
    pace = paced(limits, consumer=Mock(), clock=clock, runtime=runtime, full=False)
    assert pace is not None
    return pace


@given(st.integers(1, 100_000), st.none() | st.integers(1, 1_000_000), st.sampled_from([0.0, 0.02]))
def test_a_backlog_is_stored_at_its_rate_within_five_percent_over_ten_seconds(
    rate: int, burst: int | None, late: float
) -> None:
    clock = Hours()
    pace = pace_of(clock, Limits(rate=rate, burst=burst))
    count = stored_within(clock, pace, 10.0, late=late)
    assert count <= rate * 10.02 + 1
    if burst is None or burst >= rate * 0.1:  # one that is less is gone before anybody looks
        assert count >= rate * 10 * 0.95 - 1


def test_small_batches_are_gathered_and_a_single_message_goes_as_soon_as_it_may() -> None:
    clock = Hours()
    pace = pace_of(clock, Limits(rate=1000))
    assert pace.allowed(10_000, batch_size=1000) == 0
    assert clock.due == pytest.approx(0.05)
    clock.time, clock.due = 0.001, None
    pace.reminded()
    assert pace.allowed(1, batch_size=1000) == 1


def test_a_burst_goes_at_once_after_a_pause() -> None:
    clock = Hours()
    pace = pace_of(clock, Limits(rate=10, burst=500))
    clock.time = 3600.0
    assert stored_within(clock, pace, 0.01) == 500


def test_another_consumer_of_the_tenant_begins_with_what_is_left() -> None:
    clock, runtime = Hours(), TenantRuntimeState("acme")
    first = pace_of(clock, Limits(rate=10, burst=500), runtime)
    clock.time = 20.0
    assert stored_within(clock, first, 0.01) == 200
    clock.due = None
    again = pace_of(clock, Limits(rate=10, burst=500), runtime.renewed())
    assert again.allowed(1, batch_size=1000) == 0


def test_what_a_tenant_may_store_at_once_is_stored_and_the_rest_in_time(tree: Tree) -> None:
    tree.create("a")
    tree.execute(ChangeLimits(tenant_id="a", changes=SLOW))
    began = time.monotonic()
    tree.deliver("a", *map(str, range(12)))
    eventually(lambda: len(tree.stored("a")) >= 5)
    assert len(tree.stored("a")) <= 5 + (time.monotonic() - began)
    tree.execute(ChangeLimits(tenant_id="a", changes={"rate": None}))
    tree.subscription("a").deliver([])
    eventually(lambda: len(tree.stored("a")) == 12)


def test_fewer_deliveries_are_taken_of_a_tenant_that_may_store_few(tree: Tree) -> None:
    tree.create("a")
    assert tree.broker.prefetch["a"] == 100
    tree.execute(ChangeLimits(tenant_id="a", changes={"rate": 20}))
    assert tree.broker.prefetch["a"] == 40
    assert tree.subscription("a").consuming
    tree.execute(ChangeLimits(tenant_id="a", changes={"rate": None}))
    assert tree.broker.prefetch["a"] == 100


def test_a_drain_gives_back_what_would_wait_for_its_turn(tree: Tree) -> None:
    tree.create("a")
    tree.execute(ChangeLimits(tenant_id="a", changes=SLOW))
    subscription = tree.subscription("a")
    subscription.deliver([incoming(str(number)) for number in range(200)])
    eventually(lambda: len(tree.stored("a")) >= 5)
    began = time.monotonic()
    tree.execute(PauseTenant(tenant_id="a"))
    assert time.monotonic() - began < DEADLINE / 2, "it did not wait for 195 s"
    stored = len(tree.stored("a"))
    eventually(lambda: len(subscription.requeued) == 200 - stored)
    assert len(subscription.acked) == stored
    assert tree.runtime.tenant("a").unsettled == 0


def test_neither_a_resize_nor_a_consumer_that_begins_again_brings_a_new_burst(tree: Tree) -> None:
    tree.create("a")
    tree.execute(ChangeLimits(tenant_id="a", changes=SLOW))
    began = time.monotonic()
    tree.deliver("a", *map(str, range(100)))
    eventually(lambda: len(tree.stored("a")) >= 5)
    tree.execute(ResizeWorkers(tenant_id="a", workers=9))
    tree.execute(PauseTenant(tenant_id="a"))
    tree.execute(ResumeTenant(tenant_id="a"))
    tree.subscription("a").lose()
    tree.subscription("a").connect()
    before = len(tree.stored("a"))
    eventually(lambda: len(tree.stored("a")) > before)
    assert len(tree.stored("a")) <= 5 + (time.monotonic() - began)


def test_a_tenant_s_weight_is_known_where_turns_are_given_out_as_long_as_the_tenant_exists(
    tree: Tree,
) -> None:
    tree.create("a")
    tree.execute(ChangeLimits(tenant_id="a", changes={"weight": 5}))
    eventually(lambda: tree.weights.of("a") == 5)
    tree.stop()
    tree.start()
    eventually(lambda: tree.weights.of("a") == 5)
    tree.execute(RequestDeletion(tenant_id="a", retain=False))
    eventually(lambda: tree.weights.of("a") == 1)
