"""Calls of clients that make many go one by one while others make few."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tenantry.api.routes.publishing import seconds_for
from tenantry.http.pool import CLIENT, WAITING_FOR_A_THREAD, Pool
from tenantry.http.problems import Problem
from tenantry.turns import neighbours, one_by_one
from tenantry.turns.neighbours import Neighbours
from tenantry.turns.one_by_one import FREE, SMALL, OneByOne, Turn
from tests.waiting import DEADLINE


@pytest.fixture(autouse=True)
def turns_that_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have turns end with their calls, and neighbours stay, however slow the machine is."""
    monkeypatch.setattr(one_by_one, "LONGEST", 10 * DEADLINE)
    monkeypatch.setattr(neighbours, "LATELY", 10 * DEADLINE)


def running(act: Callable[[OneByOne], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(_made(act), DEADLINE))


async def _made(act: Callable[[OneByOne], Awaitable[None]]) -> None:
    calls = OneByOne(patience=DEADLINE)
    await act(calls)
    assert not calls._clients, "nothing is kept of clients without calls"
    assert calls._places.has_one_for("anyone")
    assert not calls._places.waiting


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


def test_a_client_makes_a_few_small_calls_at_once_and_more_in_turns() -> None:
    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        tasks = [asyncio.ensure_future(calls.begin("flood", 1.0, SMALL)) for _ in range(FREE + 2)]
        turns = await as_far_as_they_can(tasks)
        assert [one.place is None for one in turns] == [True] * FREE + [False]
        calls.ended(turns.pop())
        turns = await as_far_as_they_can(tasks)
        assert len(turns) == FREE + 2
        for one in turns:
            if one.place is not None or one is not turns[FREE]:
                calls.ended(one)

    running(act)


def test_those_that_wait_go_on_once_the_neighbour_has_gone() -> None:
    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        tasks = begun(calls, 4)
        (first,) = await as_far_as_they_can(tasks)
        calls._clients["flood"].apart = 10.0
        assert calls.seconds_to_wait("flood") == 30.0
        calls._neighbours = Neighbours()
        assert calls.seconds_to_wait("flood") == 0.0
        calls.release(first)
        turns = await as_far_as_they_can(tasks)
        assert len(turns) == 4
        for one in turns:
            calls.ended(one)

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


def test_how_long_another_would_wait_is_what_those_before_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def act(calls: OneByOne) -> None:
        clock = [asyncio.get_running_loop().time()]
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0])
        await with_a_neighbour(calls)
        tasks = begun(calls, 10)
        for ended in range(3):
            turns = await as_far_as_they_can(tasks)
            clock[0] += 0.25
            calls.ended(turns[ended])
        await as_far_as_they_can(tasks)
        # Six wait, and turns began 0.25 s apart.
        assert calls.seconds_to_wait("flood") == pytest.approx(6 * 0.25)
        assert calls.seconds_to_wait("another") == 0.0
        for one in tasks[4:]:
            one.cancel()
        calls.ended((await as_far_as_they_can(tasks))[3])

    running(act)


@pytest.mark.usefixtures("client")
def test_a_call_that_would_wait_too_long_is_refused_for_at_least_as_long() -> None:
    async def act() -> None:
        pool, over = Pool(1), asyncio.Event()
        calls = pool._one_by_one
        await with_a_neighbour(calls)
        tasks = begun(calls, 9)
        (first,) = await as_far_as_they_can(tasks)
        calls._clients["flood"].apart = 10.0
        refused = set()
        for _ in range(50):
            with pytest.raises(Problem) as problem:
                await pool.run_in_turn(1.0, over.set)
            assert problem.value.status == 429
            refused.add(int(problem.value.headers["Retry-After"]))
        # They would wait 80 s, and may wait 8: where all came back after 72, most would find the
        # room that there is by then taken.
        assert 80 <= min(refused) < max(refused) <= 160
        for one in tasks:
            one.cancel()
        await as_far_as_they_can(tasks)
        calls.ended(first)
        assert await pool.run_in_turn(1.0, lambda: "done") == "done"
        assert not calls._clients

    asyncio.run(act())


@pytest.mark.usefixtures("client")
def test_a_call_whose_turn_did_not_come_is_told_that_it_was_one_too_many() -> None:
    async def act() -> None:
        pool = Pool(1, patience=0.005)
        await with_a_neighbour(pool._one_by_one)
        turn = await pool._one_by_one.begin("flood", 1.0, DEADLINE)
        with pytest.raises(Problem) as late:
            await pool.run_in_turn(1.0, str)
        assert late.value.status == 429
        assert int(late.value.headers["Retry-After"]) in {1, 2}
        pool._one_by_one.ended(turn)
        assert not pool._one_by_one._clients

    asyncio.run(act())


@pytest.mark.usefixtures("client")
def test_a_call_that_gets_no_thread_leaves_its_turn() -> None:
    async def act() -> None:
        pool, release = Pool(1, patience=0.01), threading.Event()
        stuck = asyncio.ensure_future(pool.run(lambda: release.wait(DEADLINE)))
        await as_far_as_they_can([])
        await with_a_neighbour(pool._one_by_one)
        with pytest.raises(Problem) as late:
            await pool.run_in_turn(1.0, str)
        assert late.value.status == 503
        waiting = [asyncio.ensure_future(pool._places.take("flood")) for _ in range(8)]
        await asyncio.sleep(0)
        assert len(waiting) == WAITING_FOR_A_THREAD
        with pytest.raises(Problem) as too_many:
            await pool.run_in_turn(1.0, str)
        assert too_many.value.status == 429
        assert not pool._one_by_one._clients
        assert pool._one_by_one._places.has_one_for("flood")
        for one in waiting:
            one.cancel()
        release.set()
        await stuck

    asyncio.run(act())


@pytest.mark.usefixtures("client")
def test_a_pool_s_calls_take_turns_by_the_weights_of_their_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    async def begin(_self: OneByOne, client: str, weight: float, seconds: float) -> Turn:
        seen.append((client, weight, seconds))
        return await given(_self, client, weight, seconds)

    given = OneByOne.begin
    monkeypatch.setattr(OneByOne, "begin", begin)
    pool = Pool(2, weight_of=lambda client: float(len(client)))
    assert asyncio.run(pool.run_in_turn(0.5, lambda: "done")) == "done"
    assert seen == [("flood", 5.0, 0.5)]


def test_a_message_is_small_whatever_is_in_it_and_a_list_as_large_as_its_messages() -> None:
    single = b'{"payload": {"lines": [' + b"{}, " * 99 + b"{}]}}"
    assert seconds_for(single) <= SMALL
    few, many = (b" [" + b", ".join([b'{"payload": {}}'] * count) + b"]" for count in (24, 200))
    assert seconds_for(few) <= SMALL < seconds_for(many)
    assert seconds_for(b'{"payload": "' + b"x" * 1_000_000 + b'"}') > SMALL
