"""Laws of the rests of backlogs: they come where quiet tenants are late, and are shared."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenantry.turns.neighbours import FEW
from tenantry.turns.pacing import AFTERMATH, LEARN_EVERY
from tenantry.turns.rests import ENOUGH, LEAST, LONGER, PATIENCE, SMALL_BYTES, Rests
from tenantry.turns.turns import Weights
from tests.depth import examples

TOOK = 0.005
"""Seconds that a quiet tenant's batch takes, mostly."""


class Store:
    """Backlogs and quiet tenants that store, and the clock."""

    def __init__(self, weights: dict[str, int] | None = None, *, learnt: bool = True) -> None:
        self.now = 0.0
        shared = Weights()
        for tenant, weight in (weights or {}).items():
            shared.weigh(tenant, weight)
        self.rests = Rests(shared, now=lambda: self.now, sleep=self._pass)
        self._number = 0
        self.seconds: dict[str, float] = {}
        """How long each backlog was in the store."""
        if learnt:
            self.quiet(count=2 * ENOUGH)

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def quiet(
        self, took: float = TOOK, *, size: int = 250, messages: int = 1, count: int = 1
    ) -> None:
        """Have batches of quiet tenants stored, one after the other."""
        for _ in range(count):
            self._number += 1
            with self.rests.storing(f"quiet {self._number % 20}", messages, size, backlog=False):
                self.now += took

    def all_late(self) -> None:
        """Have quiet tenants' batches become late, so that rests are as long as they get."""
        with self.batch("another"):
            self.quiet(0.2, count=60)

    def one_late(self) -> None:
        """Have a quiet tenant's batch end that has been late."""
        with self.rests.storing("late", 1, 1, backlog=False):
            now, self.now = self.now, self.now + 10.0
        self.now = now

    def batch(self, tenant: str) -> AbstractContextManager[None]:
        return self.rests.storing(tenant, 100, 25_000, backlog=True)

    def backlog(self, tenant: str = "flood", took: float = 0.01) -> float:
        """Have a batch of a backlog stored; return how long it has rested before."""
        began = self.now
        while not self.rests.rest(tenant):
            pass
        rested = self.now - began
        with self.batch(tenant):
            self.now += took
        return rested

    def run(
        self, backlogs: dict[str, int], *, took: float, seconds: float, each: Callable[[], None]
    ) -> None:
        """Have backlogs stored side by side, each by so many workers, and `each` after a batch."""
        due: list[tuple[float, int, str, ExitStack | None]] = []
        number, began = 0, self.now
        self.seconds = dict.fromkeys(backlogs, 0.0)

        def at(time: float, tenant: str, batch: ExitStack | None) -> None:
            nonlocal number
            number += 1
            heapq.heappush(due, (time, number, tenant, batch))

        for tenant, workers in backlogs.items():
            for _ in range(workers):
                at(self.now, tenant, None)
        while (next_one := heapq.heappop(due))[0] < began + seconds:
            self.now = max(self.now, next_one[0])
            _, _, tenant, ends = next_one
            if ends is None:
                if (left := self.rests.claim(tenant, self.now)) > 0:
                    at(self.now + left, tenant, None)
                    continue
                stack = ExitStack()
                stack.enter_context(self.batch(tenant))
                at(self.now + took, tenant, stack)
                continue
            ends.close()
            self.seconds[tenant] += took
            each()
            at(self.now, tenant, None)


def test_beside_batches_as_fast_as_ever_there_is_no_rest() -> None:
    store = Store()
    for _ in range(300):
        assert store.backlog() == 0.0
        with store.batch("flood"):
            store.quiet(TOOK * 1.5)


def test_rests_get_longer_with_batches_that_are_late_and_shorter_with_others() -> None:
    store, rests = Store(), [0.0]
    store.backlog()
    for _ in range(5):
        with store.batch("flood"):
            store.quiet(0.2)
        store.backlog()
        rests.append(store.backlog())
        assert rests[-1] > rests[-2]
    store.all_late()
    for _ in range(100):
        store.backlog()
    assert store.backlog() == pytest.approx(0.01 * (1 / LEAST - 1), rel=0.01)
    with store.batch("flood"):
        store.quiet(count=1000)
    store.backlog()
    assert store.backlog() == 0.0
    assert store.rests.part == 1.0


@pytest.mark.parametrize(
    ("messages", "size", "is_timed"),
    [(FEW, SMALL_BYTES, True), (FEW + 1, 250, False), (1, SMALL_BYTES + 1, False)],
)
def test_only_small_batches_are_timed(messages: int, size: int, is_timed: bool) -> None:
    store = Store()
    with store.batch("flood"):
        store.quiet(0.2, messages=messages, size=size, count=10)
    assert (store.rests.part < 1.0) is is_timed


def test_a_batch_that_fails_is_not_timed_and_one_of_a_backlog_is_over() -> None:
    store = Store()
    for backlog in (False, True):
        for _ in range(10):
            with suppress(OSError), store.rests.storing("any", 1, 1, backlog=backlog):
                store.now += 30.0
                raise OSError
    assert store.rests.part == 1.0
    # If a batch of a backlog counted as running, nothing would be learnt any more.
    store.now += 1.0
    store.quiet(0.1, count=1500)
    with store.batch("flood"):
        store.quiet(0.2, count=10)
    assert store.rests.part == 1.0


def test_what_takes_place_beside_a_backlog_does_not_become_usual_however_long_a_batch_lasts() -> (
    None
):
    store = Store()
    for _ in range(50):
        with store.batch("flood"):
            store.now += 3 * AFTERMATH
            store.quiet(0.2, count=20)
    assert store.rests.part == LEAST


@settings(max_examples=examples(15, 200))
@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(st.integers(1, 10), st.integers(1, 8)), min_size=1
    ),
    st.floats(0.002, 0.05),
)
def test_backlogs_have_the_least_part_together_and_share_it_by_weight_however_many_workers(
    backlogs: dict[str, tuple[int, int]], took: float
) -> None:
    weights = {one: weight for one, (weight, _) in backlogs.items()}
    store = Store(weights)
    store.all_late()
    workers = {one: count for one, (_, count) in backlogs.items()}
    for seconds in (20.0, 120.0):
        store.run(workers, took=took, seconds=seconds, each=store.one_late)
    assert sum(store.seconds.values()) / 120.0 == pytest.approx(LEAST, rel=0.1)
    of_all = sum(store.seconds.values()) / sum(weights.values())
    for one, weight in weights.items():
        assert store.seconds[one] == pytest.approx(of_all * weight, rel=0.1, abs=2 * took)


def test_a_backlog_whose_batches_last_long_does_not_escape_beside_one_whose_are_short() -> None:
    store = Store()
    store.all_late()
    took = {"long": 1.5, "short": 0.01}
    ends = dict.fromkeys(took, 0.0)
    running: dict[str, ExitStack | None] = dict.fromkeys(took)
    stored = dict.fromkeys(took, 0.0)
    began = store.now
    while store.now < began + 600.0:
        for tenant, seconds in took.items():
            stack = running[tenant]
            if stack is not None and store.now >= ends[tenant]:
                stack.close()
                stored[tenant] += seconds
                running[tenant] = stack = None
                store.one_late()
            if stack is None and store.rests.claim(tenant, store.now) <= 0:
                running[tenant] = ExitStack()
                running[tenant].enter_context(store.batch(tenant))  # type: ignore[union-attr]
                ends[tenant] = store.now + seconds
        store.now += 0.01
    # Of a long one a second is charged: what it waits for then is not what others would use.
    assert stored["long"] == pytest.approx(600.0 * LEAST / 2 * 1.5, rel=0.15)
    assert stored["short"] == pytest.approx(600.0 * LEAST / 2, rel=0.3)


def test_what_the_heaviest_does_not_need_is_left_to_the_others() -> None:
    store = Store({"heavy": 10})
    with store.batch("another"):
        store.quiet(0.2)
    part = store.rests.part
    assert 0.5 < part < 1.0
    store.run({"heavy": 1, "light": 1}, took=0.01, seconds=30.0, each=lambda: None)
    assert store.seconds["heavy"] == pytest.approx(30.0, rel=0.02)
    assert store.seconds["light"] == pytest.approx(30.0 * (2 * part - 1), rel=0.05)


def test_a_backlog_that_is_worked_off_leaves_its_part_to_the_others() -> None:
    store = Store()
    for tenant in "abcd":
        store.backlog(tenant)
    store.all_late()
    for _ in range(2):
        store.run(dict.fromkeys("abcd", 1), took=0.01, seconds=20.0, each=store.one_late)
    together = store.seconds["a"]
    assert together == pytest.approx(20.0 * LEAST / 4, rel=0.1)
    store.run({"a": 1}, took=0.01, seconds=20.0, each=lambda: None)
    assert store.seconds["a"] > together * 3


def test_a_batch_that_rests_for_long_is_given_back_and_rests_on_later() -> None:
    store = Store()
    store.all_late()
    store.backlog(took=0.5)
    began = store.now
    gave_up = 0
    while not store.rests.rest("flood"):
        gave_up += 1
        assert store.now - began == pytest.approx(gave_up * PATIENCE)
    assert gave_up == 2
    assert store.now - began == pytest.approx(0.5 / LEAST - 0.5)


def test_messages_that_are_late_beside_no_backlog_cost_none() -> None:
    store = Store()
    store.now += 10.0
    store.quiet(0.2, count=50)
    assert store.rests.part == 1.0


def test_batches_that_are_not_plain_are_not_timed() -> None:
    store = Store()
    with store.batch("flood"):
        for _ in range(10):
            with store.rests.storing("quiet", 1, 1, backlog=False) as timed:
                store.now += 0.2
                timed.plain = False
    assert store.rests.part == 1.0


def test_a_batch_is_late_beyond_some_times_what_nine_of_ten_take_and_not_before() -> None:
    for took, is_late in ((TOOK * LONGER * 0.99, False), (TOOK * LONGER * 1.01, True)):
        store = Store()
        with store.batch("flood"):
            store.quiet(took)
        assert (store.rests.part < 1.0) is is_late


def test_nothing_is_late_before_enough_is_known() -> None:
    store = Store(learnt=False)
    store.quiet(count=ENOUGH - 1)
    with store.batch("flood"):
        store.quiet(1.0, count=10)
    assert store.rests.part == 1.0
    store.now += 1.0
    store.quiet(count=2)
    with store.batch("flood"):
        store.quiet(1.0)
    assert store.rests.part < 1.0


def test_all_backlogs_rest_while_it_is_learnt_what_is_usual() -> None:
    store = Store(learnt=False)
    store.quiet()
    store.now += 0.1
    pause = store.rests.claim("a", store.now)
    assert pause == pytest.approx(2 * AFTERMATH)
    store.now += 0.1
    assert store.rests.claim("b", store.now) == pytest.approx(pause - 0.1)
    store.now += pause
    store.quiet()
    assert store.rests.claim("a", store.now) <= 0, "not again so soon"
    store.now += LEARN_EVERY
    store.quiet()
    assert store.rests.claim("a", store.now) > 0, "as little is known so far"


def test_one_that_rests_already_rests_on_while_it_is_learnt_what_is_usual() -> None:
    store = Store(learnt=False)
    store.quiet()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        store.now += seconds
        if len(slept) == 1:  # meanwhile
            store.rests._paused_until = store.now + 0.3

    store.rests._sleep = sleep
    assert not store.rests.rest("a")
    assert store.rests.rest("a")
    assert slept == [pytest.approx(2 * AFTERMATH), pytest.approx(0.3)]


def test_there_is_no_rest_to_learn_in_if_nobody_would_be_timed() -> None:
    store = Store(learnt=False)
    assert sum(store.backlog(took=1.0) for _ in range(100)) == 0.0


def test_times_to_learn_become_seldom_where_nothing_is_learnt_in_them() -> None:
    """As quiet tenants' batches take longer than such a time, say."""
    store, paused = Store(learnt=False), 0.0
    while store.now < 1000.0:
        with store.batch("flood"):
            store.now += 0.01
        with store.rests.storing("quiet", 1, 1, backlog=False):
            paused += store.backlog()
            store.now += 0.5
            with store.batch("flood"):
                store.now += 0.01
    assert 0.0 < paused < 1000.0 / 100
