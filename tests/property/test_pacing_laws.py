"""Laws of the rests between turns: small calls are late now and then, and turns get the rest."""

from __future__ import annotations

import random
from math import ceil, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenantry.turns.pacing import (
    AFTERMATH,
    BEFORE,
    ENOUGH,
    LEARN_EVERY,
    LEARN_SELDOM,
    LEAST,
    LONGER,
    LONGEST_REST,
    MANY,
    REMEMBERED,
    SLOW,
    STEP,
    Pacing,
)
from tests.depth import examples

LEARNING = BEFORE + 2 * AFTERMATH
seconds = st.floats(min_value=0.0001, max_value=1.0)


class Calls:
    """Small calls of some tenants, one after the other, and the clock."""

    def __init__(self) -> None:
        self.pacing = Pacing()
        self.now = 0.0
        self._number = 0

    def small(self, took: float, client: str | None = None) -> None:
        """Have a call end that took so long."""
        self._number += 1
        named = f"quiet {self._number % 50}" if client is None else client
        self.pacing.small_call(named, self.now, self.now + took)
        self.now += took

    def learn(self, took: list[float]) -> None:
        """Have calls without turns, and have that known."""
        for one in took:
            self.small(one)
        self.now += BEFORE + 0.1
        self.turn(0.0)

    def turn(self, took: float) -> float:
        """Have a turn; return the rest after it."""
        self.pacing.began(self.now)
        self.now += took
        return self.pacing.ended(took, self.now)


@given(
    st.lists(
        st.tuples(st.sampled_from(["small", "turn", "portion"]), seconds),
        max_size=200,
    )
)
def test_whatever_happens_turns_have_a_part_of_the_time_and_rests_end(
    happens: list[tuple[str, float]],
) -> None:
    calls = Calls()
    for what, took in happens:
        if what == "small":
            calls.small(took)
        elif what == "turn":
            rest = calls.turn(took)
            assert 0.0 <= rest <= max(LONGEST_REST, LEARNING)
            calls.now += rest
        else:
            assert 0.0 <= calls.pacing.rest(took) <= took * (1 / LEAST - 1) * 1.001
        assert LEAST <= calls.pacing.part <= 1.0


@given(st.lists(seconds, min_size=ENOUGH, max_size=100))
def test_where_small_calls_are_all_late_turns_have_the_least_part_and_later_all_of_it(
    took: list[float],
) -> None:
    calls = Calls()
    calls.learn(took)
    calls.pacing.began(calls.now)
    slow, fast = max(took) * 3, min(took)
    for _ in range(20):
        calls.small(slow)
    assert calls.pacing.part == LEAST
    assert calls.pacing.rest(0.01) == pytest.approx(0.01 * (1 / LEAST - 1))
    for _ in range(ceil(log(1 / LEAST) / (STEP * MANY)) + 1):
        calls.small(fast)
    assert calls.pacing.part == 1.0
    assert calls.pacing.rest(0.01) == 0.0


@given(st.integers(0, 2**32), st.integers(1, REMEMBERED))
@settings(max_examples=examples(4, 50))
def test_what_is_usual_is_what_the_latest_calls_took(seed: int, before: int) -> None:
    """And not the earliest, be they slower or faster."""
    chance, calls, others = random.Random(seed), Calls(), Calls()
    took = [chance.lognormvariate(-5.0, 1.0) for _ in range(REMEMBERED)]
    calls.learn([one * chance.choice([0.1, 10.0]) for one in took[:before]] + took)
    others.learn(took)
    limits = [one.pacing._limit for one in (calls, others)]
    assert limits == [pytest.approx(sorted(took)[int(REMEMBERED * SLOW)] * LONGER)] * 2


@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 1.0, 2.0]))
@settings(max_examples=examples(8, 100))
def test_small_calls_that_take_as_long_as_ever_cost_turns_nearly_nothing(
    seed: int, spread: float
) -> None:
    """However unevenly they take their time: a long tail is no fault of the turns."""
    calls, chance = Calls(), random.Random(seed)

    def took() -> float:
        return chance.lognormvariate(-5.0, spread)

    calls.learn([took() for _ in range(2000)])
    calls.pacing.began(calls.now)
    parts = []
    for _ in range(2000):
        calls.small(took())
        parts.append(calls.pacing.part)
    assert sum(parts) / len(parts) > 0.5


@given(st.integers(0, 2**32), st.floats(min_value=0.1, max_value=0.9))
@settings(max_examples=examples(8, 100))
def test_turns_get_as_much_as_leaves_few_calls_late(seed: int, bearable: float) -> None:
    """Where calls are late beside more than a bearable part of turns, they get about that part."""
    calls, chance = Calls(), random.Random(seed)
    calls.learn([0.005] * 100)
    calls.pacing.began(calls.now)
    late, parts = 0, []
    for number in range(4000):
        # The fuller it is, the likelier a call is late; at the bearable part it is as it may be.
        is_late = chance.random() < MANY * (calls.pacing.part / bearable) ** 4
        calls.small(0.05 if is_late else 0.005)
        if number >= 500:
            late += is_late
            parts.append(calls.pacing.part)
    assert MANY / 2 < late / 3500 < MANY * 1.6
    assert bearable / 2 < sum(parts) / len(parts) < min(1.0, bearable * 1.3)


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 10]))
@settings(max_examples=examples(8, 100))
def test_one_client_whose_calls_are_always_late_takes_hardly_anything_from_others_turns(
    seed: int, share: int
) -> None:
    calls, chance = Calls(), random.Random(seed)
    calls.learn([0.005] * 100)
    calls.pacing.began(calls.now)
    calls.small(0.005)
    parts = []
    for _ in range(2000):
        for _ in range(share):
            calls.small(0.02, "slow")
        calls.small(0.05 if chance.random() < MANY / 5 else 0.005)
        parts.append(calls.pacing.part)
    assert sum(parts) / len(parts) > 0.5


def test_one_client_that_is_the_only_one_is_heard() -> None:
    calls = Calls()
    calls.learn([0.005] * 100)
    calls.pacing.began(calls.now)
    for _ in range(20):
        calls.small(0.5, "only")
    assert calls.pacing.part == LEAST


def test_calls_near_a_turn_do_not_tell_what_is_usual() -> None:
    calls = Calls()
    calls.learn([0.01] * ENOUGH)

    def slow(count: int = 100) -> None:
        at = calls.now
        for _ in range(count):
            calls.small(0.5)
            calls.now = at

    calls.now += 1.0
    slow()  # just before a turn
    calls.now += 0.6
    calls.pacing.began(calls.now)
    slow()  # during it
    calls.now += 1.0
    calls.pacing.ended(1.0, calls.now)
    calls.now += AFTERMATH / 2
    slow()  # just after it
    calls.now += 3.0
    calls.pacing.began(calls.now)
    while calls.pacing.part < 1.0:
        calls.small(0.01)
    calls.small(0.021, "another")
    assert calls.pacing.part < 1.0, "a call counts as late as if there had been none of them"


def test_what_has_become_usual_is_learnt_though_turns_never_end() -> None:
    """Small calls take longer for another reason: turns are not to pay for that for ever."""
    calls = Calls()
    calls.learn([0.002] * 1000)
    turns, until = 0, calls.now + 300 * LEARN_EVERY
    while calls.now < until and (turns < 10 or calls.pacing.part < 0.9):
        turns += 1
        rested = calls.now + 0.01 + calls.turn(0.01)
        while calls.now < rested:
            calls.small(0.0045)
            calls.now += 0.0055
    assert calls.pacing.part >= 0.9


def test_a_time_to_learn_comes_once_in_a_while_and_not_where_enough_is_learnt_without() -> None:
    calls, rests = Calls(), []
    while calls.now < 7.5 * LEARN_EVERY:
        rests.append(calls.turn(0.1))
        calls.now += rests[-1]
    assert rests.count(LEARNING) == 4, "at the first turn, and after 10, 20 and 40 seconds"
    assert {one for one in rests if one != LEARNING} == {0.0}
    until = calls.now + 50 * LEARN_SELDOM
    while calls.now < until:
        rests.append(calls.turn(0.1))
        calls.now += rests[-1]
    assert 50 <= rests.count(LEARNING) <= 60, "never given up"
    calls = Calls()
    while calls.now < 2.5 * LEARN_EVERY:
        for _ in range(20):
            calls.small(0.1)
        assert calls.turn(0.1) == 0.0
        calls.now += 1.0
    for _ in range(1000):
        assert calls.turn(0.1) == 0.0, "nothing has to be learnt while turns slow nothing down"
