"""A tenant's large calls go one by one while others make small ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tenantry.http.pool import CLIENT, WAITING_FOR_A_THREAD, Pool
from tenantry.http.problems import Problem
from tenantry.turns import one_by_one
from tenantry.turns.one_by_one import OneByOne
from tests.waiting import DEADLINE

MOST = 3


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_by_one, "PATIENCE", DEADLINE)


def running(act: Callable[[OneByOne], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(_made(act), DEADLINE))


async def _made(act: Callable[[OneByOne], Awaitable[None]]) -> None:
    calls = OneByOne(most=MOST, patience=DEADLINE)
    await act(calls)
    assert not calls._clients, "nothing is kept of clients without large calls"


async def all_that_can(tasks: list[asyncio.Task[None]]) -> int:
    """Let tasks go on as far as they can; tell how many have ended."""
    for _ in range(20):
        await asyncio.sleep(0)
    return sum(one.done() for one in tasks)


def begun(calls: OneByOne, count: int, client: str = "flood") -> list[asyncio.Task[None]]:
    return [asyncio.ensure_future(calls.begin(client)) for _ in range(count)]


def test_alone_a_client_makes_as_many_at_once_as_it_may_have_places() -> None:
    async def act(calls: OneByOne) -> None:
        tasks = begun(calls, 5)
        assert await all_that_can(tasks) == MOST
        assert calls.waiting_of("flood") == 2
        for ended in range(5):
            calls.ended("flood")
            assert await all_that_can(tasks) == min(5, MOST + ended + 1)

    running(act)


def test_beside_small_calls_of_another_they_are_made_one_after_the_other() -> None:
    async def act(calls: OneByOne) -> None:
        calls.note_small("quiet")
        tasks = begun(calls, 4)
        for number in range(1, 5):
            assert await all_that_can(tasks) == number
            calls.ended("flood")

    running(act)


def test_other_clients_large_calls_do_not_wait_for_them() -> None:
    async def act(calls: OneByOne) -> None:
        calls.note_small("quiet")
        tasks = begun(calls, 1) + begun(calls, 1, "other")
        assert await all_that_can(tasks) == 2
        calls.ended("flood")
        calls.ended("other")

    running(act)


def test_nobody_is_its_own_neighbour() -> None:
    async def act(calls: OneByOne) -> None:
        calls.note_small("flood")
        tasks = begun(calls, 2)
        calls.note_small("flood")
        assert await all_that_can(tasks) == 2
        calls.ended("flood")
        calls.ended("flood")

    running(act)


def test_one_that_takes_long_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_by_one, "PATIENCE", 0.01)

    async def act(calls: OneByOne) -> None:
        calls.note_small("quiet")
        for _ in range(2):
            await calls.begin("flood")
        assert calls.seconds_to_wait("flood") == 0.0
        calls.ended("flood")
        calls.ended("flood")

    running(act)


def test_one_that_gives_up_leaves_the_next_one_its_turn() -> None:
    async def act(calls: OneByOne) -> None:
        calls.note_small("quiet")
        first, second, third = begun(calls, 3)
        assert await all_that_can([first, second, third]) == 1
        second.cancel()
        assert await all_that_can([second]) == 1
        calls.ended("flood")
        assert await all_that_can([third]) == 1
        calls.ended("flood")

    running(act)


def test_one_whose_turn_does_not_come_in_time_is_refused() -> None:
    async def act() -> None:
        calls = OneByOne(most=1, patience=0.01)
        await calls.begin("flood")
        with pytest.raises(TimeoutError):
            await calls.begin("flood")
        assert calls.waiting_of("flood") == 0
        calls.ended("flood")

    asyncio.run(act())


@pytest.fixture
def client() -> Iterator[str]:
    token = CLIENT.set("flood")
    yield "flood"
    CLIENT.reset(token)


@pytest.mark.usefixtures("client")
def test_a_large_call_too_many_is_refused_until_the_others_will_be_over() -> None:
    async def act() -> None:
        pool = Pool(1)
        large, over = pool._large, asyncio.Event()
        await large.begin("flood")
        waiting = begun(large, WAITING_FOR_A_THREAD)
        await all_that_can(waiting)
        large._clients["flood"].apart = 10.0
        with pytest.raises(Problem) as refused:
            await pool.run_large(over.set)
        seconds = int(refused.value.headers["Retry-After"])
        assert 0.5 <= seconds / (WAITING_FOR_A_THREAD * 10) <= 1.5
        for one in waiting:
            one.cancel()
        await all_that_can(waiting)
        large.ended("flood")
        assert await pool.run_large(lambda: "done") == "done"
        assert not large._clients

    asyncio.run(act())
