"""Laws of shares between nodes: by weight where nodes share what is scarce, and free elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tenantry.turns.backlogs import NOTHING_YET, Progress
from tenantry.turns.balance import (
    AGAIN_SELDOM,
    AHEAD,
    LEAST,
    SETTLE,
    SILENT,
    STEP,
    WINDOWS,
    Balance,
)
from tests.depth import examples

LOOK = 0.5
"""Seconds between a node's looks at the others."""

BATCH = 0.2
"""Full batches that a batch is."""

SECONDS = 240.0
SETTLED = 60.0
"""For how long nodes are followed, and after what time of it their shares are measured."""

AMPLE = 1000.0


@dataclass(kw_only=True)
class Node:
    """A node with a backlog of so much weight, which could store so much a second by itself."""

    weight: float
    alone: float = 20.0
    works: Callable[[float], bool] = lambda _: True
    """Whether it has a backlog at a time, in seconds."""
    silent: bool = False
    """Whether it tells nothing, as one of the version before, or one that hangs."""
    slow: bool = False
    """Whether it says that it is held itself."""
    balance: Balance = field(default_factory=lambda: Balance(chance=lambda: 0.5))
    held: float = inf
    needed: bool = False
    progress: Progress = NOTHING_YET
    told: Progress = NOTHING_YET
    rates: list[float] = field(default_factory=list)
    holds: list[float] = field(default_factory=list)

    def rate(self, since: float = 0.0, until: float = SECONDS) -> float:
        """Give its full batches a second, on average."""
        rates = self.rates[int(since / LOOK) : int(until / LOOK)]
        return sum(rates) / len(rates)

    def free(self, since: float = 0.0) -> float:
        """Give the part of the time in which it was not held."""
        holds = self.holds[int(since / LOOK) :]
        return sum(one == inf for one in holds) / len(holds)


@dataclass(kw_only=True)
class Nodes:
    """Nodes that share a database, which stores so much a second of all; and the clock.

    It gives each the same, as far as that can use it, with some chance.
    """

    nodes: Mapping[str, Node]
    capacity: float
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    varies: float = 0.0
    look: float = LOOK
    now: float = 0.0

    def run(self, seconds: float = SECONDS) -> None:
        until = self.now + seconds
        while self.now < until:
            self.step()

    def step(self) -> None:
        self.now += self.look
        given = self._shared()
        for name, node in self.nodes.items():
            rate = given[name] * max(0.0, self.chance.gauss(1, self.varies))
            node.rates.append(rate)
            node.holds.append(node.held)
            before = node.progress
            node.progress = Progress(
                seconds=before.seconds + self.look,
                weight=before.weight + (node.weight * self.look if node.works(self.now) else 0),
                work=before.work + rate * self.look,
                batches=before.batches + round(rate * self.look / BATCH),
            )
            node.needed = given[name] < node.alone and node.held < inf
        for name, node in self.nodes.items():
            others = {one: of.told for one, of in self.nodes.items() if one != name}
            node.held = node.balance.step(self.now, node.progress, others, needed=node.needed)
            if not node.silent:
                held = node.slow or node.held < inf or node.balance.trying
                node.told = replace(node.progress, held=held)

    def _shared(self) -> dict[str, float]:
        wanted = {
            name: min(of.alone, of.held * of.weight) if of.works(self.now) else 0.0
            for name, of in self.nodes.items()
        }
        left, given = self.capacity, dict[str, float]()
        for count, name in enumerate(sorted(wanted, key=lambda one: wanted[one])):
            given[name] = min(wanted[name], left / (len(wanted) - count))
            left -= given[name]
        return given


def pair(heavy: float, light: float = 1, *, capacity: float = 20.0) -> Nodes:
    return Nodes(
        nodes={"heavy": Node(weight=heavy), "light": Node(weight=light)}, capacity=capacity
    )


WEIGHTS = st.lists(st.integers(1, 10), min_size=2, max_size=5)
CHANCES = st.integers(0, 10_000).map(random.Random)
SLOWLY = settings(
    max_examples=examples(8, 100), phases=(Phase.explicit, Phase.reuse, Phase.generate)
)


@SLOWLY
@given(st.integers(1, 8), CHANCES)
def test_two_nodes_on_a_database_that_is_too_slow_for_both_share_it_by_weight(
    weight: int, chance: random.Random
) -> None:
    nodes = pair(weight)
    nodes.chance, nodes.varies = chance, 0.05
    nodes.run()
    heavy, light = (nodes.nodes[name].rate(SETTLED) for name in ("heavy", "light"))
    # Trials whether it still pays, and what nobody holds, are a part of it.
    assert weight / 1.4 < heavy / light < weight * 1.3
    assert heavy + light > 0.9 * nodes.capacity


@SLOWLY
@given(WEIGHTS, CHANCES)
def test_many_nodes_come_closer_to_their_shares_than_without(
    weights: list[int], chance: random.Random
) -> None:
    nodes = Nodes(
        nodes={str(number): Node(weight=one) for number, one in enumerate(weights)},
        capacity=20.0,
        chance=chance,
        varies=0.05,
    )
    nodes.run()
    rates = [one.rate(SETTLED) / one.weight for one in nodes.nodes.values()]
    assert max(rates) / min(rates) < max(2.0, 0.5 * max(weights) / min(weights))
    assert sum(one.rate(SETTLED) for one in nodes.nodes.values()) > 0.85 * nodes.capacity


@SLOWLY
@given(st.floats(0.1, 2.0), st.integers(1, 10), st.integers(0, 40), CHANCES)
def test_beside_a_third_that_is_slow_by_itself_two_that_are_equal_have_the_same(
    alone: float, weight: int, later: int, chance: random.Random
) -> None:
    slow = Node(weight=weight, alone=alone)
    equal = Node(weight=1), Node(weight=1, works=lambda now: now > later)
    nodes = Nodes(
        nodes={"slow": slow, "one": equal[0], "other": equal[1]},
        capacity=20.0,
        chance=chance,
        varies=0.05,
    )
    for one in nodes.nodes.values():
        one.balance = Balance(chance=chance.random)
    nodes.run(2 * SECONDS)
    one, other = (node.rate(SETTLED, 2 * SECONDS) for node in equal)
    assert 1 / 1.6 < one / other < 1.6


@SLOWLY
@given(st.floats(0.3, 2.0))
def test_it_does_not_matter_how_often_nodes_look(look: float) -> None:
    nodes = pair(3)
    nodes.look = look
    nodes.run()
    since = int(SETTLED / look)
    heavy, light = (sum(nodes.nodes[name].rates[since:]) for name in ("heavy", "light"))
    assert 2 < heavy / light < 3.5
    nodes.capacity = AMPLE
    nodes.run()
    later = nodes.nodes["light"].holds[int(1.5 * SECONDS / look) :]
    assert sum(one < inf for one in later) < 0.25 * len(later)


@SLOWLY
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.5, 15.0))
def test_where_nothing_is_shared_a_neighbour_whose_backlog_comes_and_goes_costs_little(
    there: int, away: int, alone: float
) -> None:
    nodes = pair(1, capacity=AMPLE)
    other, mine = nodes.nodes.values()
    other.alone = alone
    other.works = lambda now: now % (there + away) < there
    nodes.run(2 * SECONDS)
    assert mine.rate(SECONDS, 2 * SECONDS) > 0.9 * mine.alone


@SLOWLY
@given(WEIGHTS, CHANCES)
def test_where_the_database_has_room_for_all_nodes_are_hardly_ever_held(
    weights: list[int], chance: random.Random
) -> None:
    nodes = Nodes(
        nodes={str(number): Node(weight=one) for number, one in enumerate(weights)},
        capacity=AMPLE,
        chance=chance,
        varies=0.02,
    )
    nodes.run(2 * SECONDS)
    for node in nodes.nodes.values():
        assert node.rate(SECONDS, 2 * SECONDS) > 0.9 * node.alone


@SLOWLY
@given(st.floats(0.01, 10.0), st.integers(1, 1000), CHANCES)
def test_a_node_that_is_slow_for_a_reason_of_its_own_holds_up_no_other(
    alone: float, weight: int, chance: random.Random
) -> None:
    nodes = pair(weight, capacity=AMPLE)
    nodes.chance, nodes.varies = chance, 0.05
    nodes.nodes["heavy"].alone = alone
    nodes.run(2 * SECONDS)
    assert nodes.nodes["light"].rate(SECONDS, 2 * SECONDS) > 0.9 * nodes.nodes["light"].alone


def test_of_nodes_with_equal_shares_none_is_ever_held() -> None:
    nodes = pair(3, 3)
    nodes.run()
    assert all(one.free() == 1.0 for one in nodes.nodes.values())


def test_a_node_alone_is_never_held_nor_beside_nodes_without_backlogs_or_that_tell_nothing() -> (
    None
):
    for beside in (Node(weight=9, works=lambda _: False), Node(weight=9, silent=True)):
        nodes = Nodes(nodes={"me": Node(weight=1), "beside": beside}, capacity=20.0)
        nodes.run()
        assert nodes.nodes["me"].free() == 1.0
    alone = Nodes(nodes={"me": Node(weight=1)}, capacity=20.0)
    alone.run()
    assert alone.nodes["me"].free() == 1.0


@pytest.mark.parametrize("how", ["ends its backlog", "hangs", "leaves"])
def test_a_node_is_free_at_once_when_the_other_is_not_there_any_more(how: str) -> None:
    nodes = pair(5)
    nodes.run(SETTLED)
    light, heavy = nodes.nodes["light"], nodes.nodes["heavy"]
    assert light.held < inf
    if how == "ends its backlog":
        heavy.works = lambda _: False
    elif how == "hangs":
        heavy.works, heavy.silent = (lambda _: False), True
    else:
        nodes.nodes = {"light": light}
    nodes.run(max(SILENT, WINDOWS[0]) + 2 * LOOK)
    assert light.held == inf


def test_for_the_sake_of_a_node_that_is_held_itself_nobody_goes_slower() -> None:
    nodes = pair(5)
    nodes.nodes["heavy"].slow = True
    nodes.run()
    assert nodes.nodes["light"].free() == 1.0


def test_where_all_become_slower_as_a_trial_begins_the_way_back_tells_what_it_is_worth() -> None:
    nodes = pair(3)
    light = nodes.nodes["light"]
    while not light.balance.trying:
        nodes.step()
    nodes.capacity *= 0.75
    for _ in range(2):
        nodes.run(SETTLE + WINDOWS[0] + LOOK)
    assert light.held < inf
    assert not light.balance.trying


def test_tenants_that_have_just_come_are_not_tried_for_before_it_shows_how_they_weigh() -> None:
    # So slow that it takes some seconds until it is known how fast they are.
    nodes = pair(1, capacity=2.0)
    nodes.run(2.0)
    nodes.nodes["heavy"].weight = 3
    light = nodes.nodes["light"]
    while not light.balance.trying:
        nodes.step()
    nodes.run(SETTLE + WINDOWS[1] + LOOK)
    assert light.held < inf
    assert not light.balance.trying


def test_what_has_paid_is_not_tried_again_when_a_backlog_comes_back_soon() -> None:
    nodes = pair(4)
    nodes.nodes["heavy"].works = lambda now: not 30 < now < 45
    nodes.run(44)
    assert nodes.nodes["light"].held == inf
    while nodes.nodes["light"].held == inf:
        nodes.step()
    assert not nodes.nodes["light"].balance.trying
    assert nodes.now < 45 + 2 * WINDOWS[0]


def test_what_pays_no_more_ends_and_is_tried_more_and_more_seldom() -> None:
    nodes = pair(4)
    nodes.run(SETTLED)
    assert nodes.nodes["light"].held < inf
    nodes.capacity = AMPLE
    nodes.run(3 * AGAIN_SELDOM)
    began = len(nodes.nodes["light"].holds)
    nodes.run(4 * AGAIN_SELDOM)
    later = nodes.nodes["light"].holds[began:]
    trials = sum(one < inf and before == inf for before, one in pairwise(later))
    assert 2 <= trials <= 5
    assert sum(one < inf for one in later) <= trials * (SETTLE + WINDOWS[0] + LOOK) / LOOK


TOLD = st.tuples(
    st.sampled_from([LOOK, LOOK, LOOK, 0.0, -5.0, 2.0]),
    st.floats(0, 10),
    st.floats(0, 50),
    st.integers(0, 30),
    st.sampled_from([False, False, False, True]),
)
"""What a neighbour adds to what it told: seconds, weight, work, batches; and whether it is held."""


@SLOWLY
@given(st.lists(TOLD, min_size=40, max_size=120), st.integers(1, 100))
def test_whatever_a_neighbour_tells_a_node_stores_something_and_is_free_when_that_is_silent(
    told: list[tuple[float, float, float, int, bool]], weight: int
) -> None:
    balance, now, mine, other = Balance(chance=lambda: 0.5), 0.0, NOTHING_YET, NOTHING_YET
    held = inf
    for seconds, weighs, work, batches, is_held in told:
        other = Progress(
            seconds=other.seconds + seconds,
            weight=other.weight + weighs,
            work=other.work + work,
            batches=other.batches + batches,
            held=is_held,
        )
        now += LOOK
        rate = min(200.0, held * weight)
        mine = Progress(
            seconds=mine.seconds + LOOK,
            weight=mine.weight + weight * LOOK,
            work=mine.work + rate * LOOK,
            batches=mine.batches + 20,
        )
        before, held = held, balance.step(now, mine, {"other": other}, needed=True)
        assert held >= LEAST
        assert held == inf or held >= min(before, rate / weight) / 2 / STEP
    for _ in range(int(SILENT / LOOK) + 1):
        now += LOOK
        mine = replace(mine, seconds=mine.seconds + LOOK, weight=mine.weight + weight * LOOK)
        held = balance.step(now, mine, {"other": other}, needed=True)
    assert held == inf


def test_a_gap_as_when_the_machine_slept_is_no_time_in_which_others_were_slow() -> None:
    nodes = pair(1)
    nodes.run(SETTLED)
    nodes.now += 3600
    for node in nodes.nodes.values():
        node.progress = replace(node.progress, seconds=node.progress.seconds + 3600)
    nodes.run(SETTLED)
    assert all(one.free() == 1.0 for one in nodes.nodes.values())


def test_a_node_that_starts_again_counts_from_nothing() -> None:
    nodes = pair(4)
    nodes.run(SETTLED)
    nodes.nodes["heavy"].progress = nodes.nodes["heavy"].told = NOTHING_YET
    nodes.nodes["heavy"].balance = Balance(chance=lambda: 0.5)
    nodes.run(SETTLED)
    heavy, light = (nodes.nodes[name].rate(SETTLED) for name in ("heavy", "light"))
    assert heavy / light > 4 / AHEAD / 1.2
