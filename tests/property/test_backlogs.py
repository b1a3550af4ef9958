"""Laws of a node's backlogs: how far they have come, and that held ones go as fast as they may."""

from __future__ import annotations

import heapq
from collections import Counter
from unittest.mock import Mock, call

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.turns import storing
from tenantry.turns.backlogs import BURST, BUSY, Backlogs
from tenantry.turns.room import Room
from tenantry.turns.storing import FULL, FULL_BYTES, TRANSACTION, StoringTurns
from tenantry.turns.turns import Weights

LONG = 1e9
RATES = st.floats(0.1, 50)


class Node:
    """A node whose tenants' workers store, and the clock."""

    def __init__(self, weights: dict[str, int] | None = None) -> None:
        self.now = 100.0
        shared = Weights()
        for tenant, weight in (weights or {}).items():
            shared.weigh(tenant, weight)
        self.backlogs = Backlogs(shared, now=lambda: self.now, sleep=self._pass)
        self.began: Counter[str] = Counter()
        """How many batches each tenant has begun."""

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def batch(self, tenant: str, *, takes: float, work: float = 1.0, beyond: float = 0.0) -> float:
        """Have a batch stored; return how long it has rested before."""
        self.backlogs.begun(tenant)
        began = self.now
        while not self.backlogs.rest(tenant, work):
            pass
        rested = self.now - began
        self.now += takes
        self.backlogs.ended(tenant, work + beyond, beyond=beyond)
        return rested

    def run(self, workers: dict[str, int], *, seconds: float, takes: float) -> None:
        """Have workers take batches of one full batch each, one after the other, side by side."""
        self.began.clear()
        until = self.now + seconds
        due = [(self.now, number, one) for one, many in workers.items() for number in range(many)]
        heapq.heapify(due)
        while due[0][0] < until:
            at, number, tenant = heapq.heappop(due)
            self.now = max(self.now, at)
            self.backlogs.begun(tenant)
            if left := self.backlogs.claim(tenant, 1.0, self.now):
                self.backlogs.ended(tenant)
                heapq.heappush(due, (self.now + left, number, tenant))
                continue
            self.began[tenant] += 1
            self.backlogs.ended(tenant, 1.0)
            heapq.heappush(due, (self.now + takes, number, tenant))
        self.now = until


@given(
    RATES,
    st.dictionaries(
        st.sampled_from("abc"), st.tuples(st.integers(1, 9), st.integers(1, 8)), min_size=1
    ),
)
def test_held_backlogs_go_as_fast_as_they_may_for_their_weights_and_no_faster(
    rate: float, tenants: dict[str, tuple[int, int]]
) -> None:
    node = Node({name: weight for name, (weight, _) in tenants.items()})
    node.backlogs.hold_to(rate, seconds=LONG)
    seconds = 20 + 20 / rate
    node.run({name: workers for name, (_, workers) in tenants.items()}, seconds=seconds, takes=0.0)
    for name, (weight, _) in tenants.items():
        may = rate * weight * seconds
        assert may - 1.01 <= node.began[name] <= may + BURST + 1


def test_after_a_pause_a_held_backlog_saves_up_little() -> None:
    node = Node()
    node.backlogs.hold_to(2.0, seconds=LONG)
    node.batch("a", takes=0.0)
    node.now += 1000
    assert sum(node.batch("a", takes=0.0) for _ in range(23)) == pytest.approx(10.0)


def test_without_a_hold_nobody_rests_and_a_hold_ends_by_itself() -> None:
    node = Node()
    assert node.batch("a", takes=0.1) == 0
    node.backlogs.hold_to(1.0, seconds=5)
    assert node.backlogs.held_to == 1.0
    assert node.batch("a", takes=0.1) == pytest.approx(1.0)
    node.now += 5
    assert node.backlogs.held_to == 0
    assert node.batch("a", takes=0.1) == 0
    node.backlogs.hold_to(1.0, seconds=5)
    node.backlogs.release()
    assert node.batch("a", takes=0.1) == node.backlogs.held_to == 0


def test_another_hold_counts_from_now_on_however_slow_it_was_before() -> None:
    node = Node()
    node.backlogs.hold_to(0.1, seconds=LONG)
    node.batch("a", takes=0.1)
    node.backlogs.hold_to(10.0, seconds=LONG)
    assert node.batch("a", takes=0.1) <= 0.1


def test_work_that_was_not_expected_is_paid_for_by_the_next_batch() -> None:
    node = Node()
    node.backlogs.hold_to(1.0, seconds=LONG)
    node.batch("a", takes=0.0, beyond=1.5)
    assert node.batch("a", takes=0.0) == pytest.approx(2.5)
    node.batch("a", takes=0.0, beyond=1000.0)
    assert node.batch("a", takes=0.0) == pytest.approx(1 + BURST), "a batch that hung, say"


def test_a_held_backlog_comes_to_its_turn_however_seldom_it_asks() -> None:
    node, stored = Node(), 0
    node.backlogs.hold_to(0.5, seconds=LONG)
    for _ in range(50):
        node.backlogs.begun("a")
        stored += node.backlogs.claim("a", 1.0, node.now) == 0
        node.backlogs.ended("a")
        for _ in range(4):
            node.now += 0.5
            node.backlogs.progress()
    assert stored >= 49


def test_tenants_without_backlogs_are_forgotten_once_nothing_is_held() -> None:
    node = Node()
    node.backlogs.hold_to(100.0, seconds=5)
    node.batch("a", takes=0.1)
    for held in (True, True, False):
        assert bool(node.backlogs._tenants) is held
        node.now += 3
        node.backlogs.progress()


def test_whether_a_hold_matters_is_told_by_batches_that_wait_for_it() -> None:
    node = Node()
    node.batch("a", takes=0.1)
    assert not node.backlogs.waited()
    node.backlogs.hold_to(1.0, seconds=LONG)
    node.batch("a", takes=0.1)
    assert node.backlogs.waited()
    node.now += 10
    node.batch("a", takes=0.1)
    assert not node.backlogs.waited()


@given(st.integers(1, 9), st.integers(1, 8), st.floats(0.0, 1.0))
def test_a_backlog_weighs_as_much_as_its_tenant_however_many_workers_it_has(
    weight: int, workers: int, part: float
) -> None:
    node = Node({"a": weight})
    for _ in range(100):
        for _ in range(workers):
            node.backlogs.begun("a")
        node.now += part
        for _ in range(workers):
            node.backlogs.ended("a", 1.0)
        node.now += 1 - part
        told = node.backlogs.progress()
    # One that is seldom in the store has a rate, say, and weighs less.
    assert told.weight == pytest.approx(100 * weight * min(1.0, part / BUSY), abs=1e-6)
    assert told.seconds == pytest.approx(100)
    assert told.work == told.batches == 100 * workers


def test_a_batch_counts_while_it_is_under_way_however_long_that_is() -> None:
    node = Node()
    node.backlogs.begun("a")
    for seconds in range(1, 6):
        node.now += 1
        assert node.backlogs.progress().weight == pytest.approx(seconds)
    node.backlogs.ended("a")
    node.now += 10
    assert node.backlogs.progress().weight == pytest.approx(5)


def test_a_batch_that_did_not_begin_after_all_costs_nothing_of_what_it_may() -> None:
    node = Node()
    node.backlogs.hold_to(1.0, seconds=LONG)
    node.backlogs.begun("a")
    assert node.backlogs.claim("a", 1.0, node.now) == pytest.approx(1.0)
    node.now += 1
    assert node.backlogs.claim("a", 1.0, node.now) == 0
    node.backlogs.ended("a", beyond=-1.0)
    assert node.batch("a", takes=0.0) == 0


def test_batches_count_as_backlogs_until_they_are_stored_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storing, "PATIENCE", 0.0)
    turns = StoringTurns(Weights(), room=Room(least=1, most=1), connections=1)
    full = 1 + TRANSACTION
    assert turns.take("none", FULL) is not None, "the only place"
    turns.backlogs.ended = ended = Mock()  # type: ignore[method-assign]
    assert turns.take("late", FULL, more=True) is None
    assert ended.call_args_list == [call("late", beyond=-full)]
    turns = StoringTurns(Weights(), room=Room(least=1, most=1), connections=1)
    turns.backlogs.ended = ended = Mock()  # type: ignore[method-assign]
    turn = turns.take("stored", FULL, more=True)
    assert turn is not None
    turns.ended(turn, beside=FULL_BYTES)
    assert ended.call_args_list == [call("stored", full + 1, beyond=pytest.approx(1.0))]
    turns.backlogs.rest = Mock(return_value=False)  # type: ignore[method-assign]
    ended.reset_mock()
    assert turns.take("resting", FULL, more=True) is None
    assert ended.call_args_list == [call("resting")]
