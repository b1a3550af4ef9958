"""Turns are shared by weight, however long they last and in whatever order they are asked for."""

from __future__ import annotations

import heapq
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.turns.fair_queue import LEAD, FairQueue, Grant

NAMES = ("a", "b", "c", "d")

clients = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(st.integers(1, 10), st.floats(0.02, 0.5)),
    min_size=2,
)
"""By name: the weight, and the seconds that each of its turns lasts."""


def served(
    wanted: dict[str, tuple[int, float]], *, places: int, most_of_one: int, seconds: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Give the seconds each client has had, and its longest wait, while all of them always wait."""
    queue: FairQueue[str] = FairQueue(most_of_one=most_of_one)
    for name, (weight, _) in wanted.items():
        for _ in range(places + 1):
            queue.add(name, weight, name)
    now, free = 0.0, places
    running: list[tuple[float, int, float, Grant[str]]] = []
    had, since, longest = dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, 0.0), dict[str, float]()
    number = 0
    while now < seconds:
        while free and (grant := queue.next()) is not None:
            free -= 1
            name = grant.client
            longest[name] = max(longest.get(name, 0.0), now - since[name])
            since[name] = now
            number += 1
            heapq.heappush(running, (now + wanted[name][1], number, now, grant))
        now, _, began, grant = heapq.heappop(running)
        free += 1
        had[grant.client] += now - began
        queue.ended(grant, now - began)
        queue.add(grant.client, wanted[grant.client][0], grant.client)
    return had, longest


@given(clients)
def test_who_always_waits_gets_its_weight_s_share_of_the_time(
    wanted: dict[str, tuple[int, float]],
) -> None:
    seconds = 30.0
    had, _ = served(wanted, places=1, most_of_one=1, seconds=seconds)
    total = sum(weight for weight, _ in wanted.values())
    for name, (weight, lasts) in wanted.items():
        # Within a turn of each: none is interrupted.
        slack = 4 * lasts + 4 * max(other for _, other in wanted.values())
        assert abs(had[name] - seconds * weight / total) <= slack


@given(clients, st.integers(1, 8), st.integers(1, 8))
def test_nobody_waits_for_long_whatever_the_others_do(
    wanted: dict[str, tuple[int, float]], places: int, most: int
) -> None:
    _, longest = served(wanted, places=places, most_of_one=min(most, places), seconds=15.0)
    longest_turn = max(lasts for _, lasts in wanted.values())
    total = sum(weight for weight, _ in wanted.values())
    for name, (weight, _) in wanted.items():
        assert longest[name] <= 4 * longest_turn * (1 + total / weight)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 3)), max_size=40))
def test_a_turn_is_given_as_long_as_somebody_waits_who_may_have_one(
    asked: list[tuple[str, int]],
) -> None:
    queue: FairQueue[int] = FairQueue(most_of_one=len(asked) + 1)
    for number, (name, weight) in enumerate(asked):
        queue.add(name, weight, number)
    given_out = []
    while (grant := queue.next()) is not None:
        given_out.append(grant)
    assert queue.waiting == 0
    assert sorted(one.item for one in given_out) == list(range(len(asked)))
    for name in NAMES:
        own = [one.item for one in given_out if one.client == name]
        assert own == sorted(own)
    for grant in given_out:
        queue.ended(grant, 0.01)
    assert not queue._clients
    assert not queue._away


steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "next", "of", "end", "drop", "expect", "forget"]),
        st.sampled_from(NAMES),
        st.integers(1, 9),
    ),
    max_size=80,
)


@given(steps)
def test_the_next_turn_is_of_one_who_has_had_the_least_of_those_that_wait_or_are_expected(
    steps: list[tuple[str, str, int]],
) -> None:
    queue: FairQueue[int] = FairQueue(most_of_one=2)
    running: list[Grant[int]] = []
    wanted: dict[str, list[int]] = {name: [] for name in NAMES}
    expected: set[str] = set()
    for number, (step, name, size) in enumerate(steps):
        known = queue._clients
        ready = [
            known[one].finish
            for one, items in wanted.items()
            if items and sum(grant.client == one for grant in running) < 2
        ]
        awaited = [
            known[one].finish + LEAD * known[one].usual / known[one].weight
            for one in expected
            if not wanted[one]
        ]
        grant = None
        match step:
            case "add":
                queue.add(name, size, number)
                wanted[name].append(number)
            case "next":
                grant = queue.next()
                held = bool(ready) and min(awaited, default=inf) < min(ready)  # but for its lead
                assert (grant is None) == (held or not ready)
                assert (queue.held is not None) == held
                if grant is not None:
                    assert known[grant.client].finish - grant.charged <= min(ready) + 1e-9
            case "of":
                grant = queue.next_of(name)
                if grant is not None:
                    assert not any(one.client == name for one in running)
            case "end" if running:
                queue.ended(running.pop(size % len(running)), size / 10)
            case "expect" if any(one.client == name for one in running):
                queue.expect(name)
                expected.add(name)
            case "forget":
                queue.expect_no_more(name)
                expected.discard(name)
            case "drop" if wanted[name]:
                queue.remove(name, wanted[name].pop())
        if grant is not None:
            assert grant.item == wanted[grant.client].pop(0)
            running.append(grant)
        assert queue.waiting == sum(map(len, wanted.values()))


def test_a_client_that_seldom_has_turns_goes_first_and_one_that_always_does_does_not() -> None:
    queue: FairQueue[int] = FairQueue(most_of_one=8)
    for number in range(4):
        queue.add("busy", 1, number)
        assert queue.next() is not None
    queue.add("quiet", 1, 4)
    assert queue.next_of("quiet") is not None
    queue.add("quiet", 1, 5)
    assert queue.next_of("quiet") is None, "it has one"
    queue.add("busy", 1, 6)
    assert queue.next_of("busy") is None


@pytest.mark.parametrize("expected", [True, False])
def test_one_that_comes_later_than_expected_makes_up_for_its_lead_and_no_more(
    expected: bool,
) -> None:
    queue: FairQueue[int] = FairQueue(most_of_one=1)

    def turn(*, expect: bool = False) -> str | None:
        grant = queue.next()
        if grant is None:
            return None
        if expect and grant.client == "late":
            queue.expect("late")
        queue.ended(grant, 1.0)
        return grant.client

    for number in range(1000):
        queue.add("busy", 1, number)
    for number in range(50):
        queue.add("late", 1, number)
    while queue.waiting_of("late"):
        turn(expect=expected)
    if expected:
        ahead = 0
        while turn() == "busy":
            ahead += 1
        assert ahead in {LEAD, LEAD + 1}, "then others wait for it"
        queue.expect_no_more("late")
    for _ in range(100):
        assert turn() == "busy"
    for number in range(50):
        queue.add("late", 1, number)
    made_up = 0
    while turn() == "late":
        made_up += 1
    assert made_up in ({LEAD, LEAD + 1} if expected else {0, 1})


def test_one_client_never_has_all_places() -> None:
    queue: FairQueue[int] = FairQueue(most_of_one=3)
    for number in range(10):
        queue.add("noisy", 1000, number)
    grants = [queue.next() for _ in range(4)]
    assert [grant is not None for grant in grants] == [True, True, True, False]
    queue.add("quiet", 1, 10)
    found = queue.next()
    assert found is not None
    assert found.client == "quiet"


def test_who_was_away_has_saved_nothing_and_who_comes_back_at_once_gains_nothing() -> None:
    queue: FairQueue[int] = FairQueue(most_of_one=1)

    def turn(name: str, seconds: float) -> None:
        queue.add(name, 1, 0)
        grant = queue.next()
        assert grant is not None
        assert grant.client == name
        queue.ended(grant, seconds)

    queue.add("busy", 1, 0)
    first = queue.next()
    queue.add("busy", 1, 0)
    assert first is not None
    # It goes away after a long turn, and is back while the other has not had as much.
    queue.add("greedy", 1, 0)
    greedy = queue.next()
    assert greedy is not None
    queue.ended(greedy, 50.0)
    queue.ended(first, 1.0)
    queue.add("greedy", 1, 0)
    for _ in range(20):
        grant = queue.next()
        assert grant is not None
        assert grant.client == "busy"
        queue.ended(grant, 1.0)
        queue.add("busy", 1, 0)
