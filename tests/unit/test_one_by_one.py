"""Calls of clients that make many go one by one while others make few."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tenantry.http.pool import CLIENT, Pool
from tenantry.http.problems import Problem
from tenantry.turns import one_by_one
from tenantry.turns.one_by_one import SMALL, OneByOne, Turn
from tests.waiting import DEADLINE


@pytest.fixture(autouse=True)
def turns_that_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have turns end with their calls, however slow the machine is."""
    monkeypatch.setattr(one_by_one, "LONGEST", 10 * DEADLINE)


def running(act: Callable[[OneByOne], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(_made(act), DEADLINE))


async def _made(act: Callable[[OneByOne], Awaitable[None]]) -> None:
    calls = OneByOne(patience=DEADLINE)
    await act(calls)
    assert not calls._clients, "nothing is kept of clients without calls"


async def as_far_as_they_can(tasks: list[asyncio.Task[Turn]]) -> list[Turn]:
    """Let calls go on; return the turns of those that have begun."""
    for _ in range(20):
        await asyncio.sleep(0)
    return [one.result() for one in tasks if one.done() and not one.cancelled()]


def begun(
    calls: OneByOne, count: int, client: str = "flood", *, weight: float = 1.0
) -> list[asyncio.Task[Turn]]:
    """Begin calls that hold others up until they end."""
    return [asyncio.ensure_future(calls.begin(client, weight, 10 * DEADLINE)) for _ in range(count)]


async def with_a_neighbour(calls: OneByOne, client: str = "quiet") -> None:
    calls.ended(await calls.begin(client, 1.0, SMALL))


def test_while_nobody_makes_small_ones_calls_are_made_side_by_side() -> None:
    async def act(calls: OneByOne) -> None:
        turns = await as_far_as_they_can(begun(calls, 5) + begun(calls, 5, "other"))
        assert len(turns) == 10
        for one in turns:
            calls.ended(one)

    running(act)


def test_beside_a_small_call_of_another_they_are_made_one_after_the_other() -> None:
    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        tasks = begun(calls, 2) + begun(calls, 2, "other")
        for number in range(1, 5):
            turns = await as_far_as_they_can(tasks)
            assert len(turns) == number
            calls.ended(next(one for one in turns if one.place is not None))

    running(act)


def test_small_calls_side_by_side_are_made_one_after_the_other_too() -> None:
    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        tasks = [asyncio.ensure_future(calls.begin("flood", 1.0, SMALL)) for _ in range(3)]
        # The first is as good as one that is made by itself.
        turns = await as_far_as_they_can(tasks)
        assert [one.place is None for one in turns] == [True, False]
        calls.ended(turns[1])
        turns = await as_far_as_they_can(tasks)
        assert len(turns) == 3
        calls.ended(turns[0])
        calls.ended(turns[2])

    running(act)


def test_a_small_call_by_itself_waits_for_nobody() -> None:
    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        tasks = begun(calls, 2)
        (first,) = await as_far_as_they_can(tasks)
        await with_a_neighbour(calls, "another")
        calls.ended(first)
        for one in (await as_far_as_they_can(tasks))[1:]:
            calls.ended(one)

    running(act)


def test_nobody_is_its_own_neighbour() -> None:
    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls, "flood")
        turns = await as_far_as_they_can(begun(calls, 3))
        assert len(turns) == 3
        for one in turns:
            calls.ended(one)

    running(act)


def test_one_that_takes_longer_than_expected_holds_up_no_other() -> None:
    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        turns = [await calls.begin("flood", 1.0, SMALL * 2) for _ in range(3)]
        for one in turns:
            calls.ended(one)
        calls.ended(await calls.begin("flood", 1.0, SMALL * 2))

    running(act)


def test_one_that_hangs_holds_up_no_other_whatever_was_expected_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(one_by_one, "LONGEST", 0.01)

    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        for one in [await calls.begin(client, 1.0, 10 * DEADLINE) for client in ("bad", "good")]:
            calls.ended(one)

    running(act)


def test_clients_take_turns_by_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    given = one_by_one.Places.give_back
    # Each turn costs the same, whatever the machine makes of it.
    monkeypatch.setattr(
        one_by_one.Places, "give_back", lambda self, place, _seconds: given(self, place, 1.0)
    )

    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        tasks = begun(calls, 40, "heavy", weight=3.0) + begun(calls, 40, "light")
        order = []
        for _ in range(40):
            turn = next(one for one in await as_far_as_they_can(tasks) if one.place is not None)
            order.append(turn.client)
            calls.ended(turn)
        counts = Counter(order)
        assert 28 <= counts["heavy"] <= 32, "three of four turns"
        for one in tasks:
            one.cancel()
        for one in await as_far_as_they_can(tasks):
            if one.place is not None:
                calls.ended(one)

    running(act)


def test_one_that_gives_up_leaves_the_next_one_its_turn() -> None:
    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        tasks = begun(calls, 3)
        (first,) = await as_far_as_they_can(tasks)
        tasks[1].cancel()
        assert await as_far_as_they_can(tasks) == [first]
        calls.ended(first)
        _, last = await as_far_as_they_can(tasks)
        calls.ended(last)

    running(act)


def test_one_whose_turn_does_not_come_in_time_is_refused() -> None:
    async def act() -> None:
        calls = OneByOne(patience=0.01)
        await with_a_neighbour(calls)
        first = await calls.begin("flood", 1.0, DEADLINE)
        with pytest.raises(TimeoutError):
            await calls.begin("flood", 1.0, DEADLINE)
        calls.ended(first)
        assert not calls._clients

    asyncio.run(act())


@pytest.fixture
def client() -> Iterator[str]:
    token = CLIENT.set("flood")
    yield "flood"
    CLIENT.reset(token)


@pytest.mark.usefixtures("client")
def test_a_call_that_would_wait_too_long_is_refused_until_the_others_will_be_over() -> None:
    async def act() -> None:
        pool, over = Pool(1), asyncio.Event()
        calls = pool._one_by_one
        await with_a_neighbour(calls)
        tasks = begun(calls, 9)
        (first,) = await as_far_as_they_can(tasks)
        calls._clients["flood"].apart = 10.0
        with pytest.raises(Problem) as refused:
            await pool.run(over.set)
        assert refused.value.status == 429
        assert 40 <= int(refused.value.headers["Retry-After"]) <= 120
        for one in tasks:
            one.cancel()
        await as_far_as_they_can(tasks)
        calls.ended(first)
        assert await pool.run(lambda: "done") == "done"
        assert not calls._clients

    asyncio.run(act())
