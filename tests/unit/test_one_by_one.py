"""Calls of clients that make many go one by one while others make few."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tenantry.api.publisher import seconds_for
from tenantry.http.pool import CLIENT, LATEST, WAITING_FOR_A_THREAD, Pool
from tenantry.http.problems import Problem
from tenantry.turns import neighbours, one_by_one
from tenantry.turns.neighbours import Neighbours
from tenantry.turns.one_by_one import ALIKE, FREE, LONGEST_PAUSE, SMALL, OneByOne, Turn
from tenantry.turns.pacing import Pacing
from tests.waiting import DEADLINE


@pytest.fixture(autouse=True)
def turns_that_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have turns end with their calls, and neighbours stay, however slow the machine is."""
    monkeypatch.setattr(one_by_one, "LONGEST", 10 * DEADLINE)
    monkeypatch.setattr(neighbours, "LATELY", 10 * DEADLINE)
    # Only tests of rests are to wait for some.
    rests(monkeypatch, 0.0)


def rests(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have all rests last so long."""
    monkeypatch.setattr(Pacing, "rest", lambda _pacing, _taken: seconds)
    monkeypatch.setattr(Pacing, "ended", lambda _pacing, _taken, _now: seconds)


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

        async def refused_for(apart: float) -> list[int]:
            calls._clients["flood"].apart = apart
            seconds = []
            for _ in range(50):
                with pytest.raises(Problem) as problem:
                    await pool.run_in_turn(1.0, lambda _turn: over.set())
                assert problem.value.status == 429
                seconds.append(int(problem.value.headers["Retry-After"]))
            return sorted(seconds)

        # They would wait 16 s, and may wait 8: where all came back after 8, most would find the
        # room that there is by then taken.
        shortest, *_, longest = await refused_for(2.0)
        assert 16 <= shortest < longest <= 32
        shortest, *_, longest = await refused_for(1000.0)
        assert LATEST <= shortest < longest <= 2 * LATEST, "not for hours"
        for one in tasks:
            one.cancel()
        await as_far_as_they_can(tasks)
        calls.ended(first)
        assert await pool.run_in_turn(1.0, lambda _turn: "done") == "done"
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
def test_where_turns_have_become_slower_it_is_told_to_come_back_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = iter([0.0, 15.0])
    monkeypatch.setattr(OneByOne, "seconds_to_wait", lambda *_given: next(expected))

    async def act() -> None:
        pool = Pool(1, patience=0.005)
        await with_a_neighbour(pool._one_by_one)
        turn = await pool._one_by_one.begin("flood", 1.0, DEADLINE)
        with pytest.raises(Problem) as late:
            await pool.run_in_turn(1.0, str)
        assert 15 <= int(late.value.headers["Retry-After"]) <= 30, "not after a second"
        pool._one_by_one.ended(turn)

    asyncio.run(act())


def test_calls_that_came_together_do_not_all_give_up_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, waits = asyncio.timeout, list[float]()

    def timeout(seconds: float) -> asyncio.Timeout:
        waits.append(seconds)
        return given(DEADLINE)

    async def act() -> None:
        calls = OneByOne(patience=10.0)
        await with_a_neighbour(calls)
        monkeypatch.setattr(asyncio, "timeout", timeout)
        tasks = begun(calls, 50)
        (first,) = await as_far_as_they_can(tasks)
        for one in tasks:
            one.cancel()
        await as_far_as_they_can(tasks)
        calls.ended(first)

    asyncio.run(act())
    assert 8.0 <= min(waits) < max(waits) <= 10.0
    assert len(set(waits)) > 40


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


def test_after_a_turn_there_is_a_rest_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(calls: OneByOne) -> None:
        loop, later = asyncio.get_running_loop(), []
        await with_a_neighbour(calls)
        tasks = begun(calls, 2)
        (first,) = await as_far_as_they_can(tasks)
        rests(monkeypatch, 0.5)
        with monkeypatch.context() as patched:
            patched.setattr(loop, "call_later", lambda *given: later.append(given))
            calls.ended(first)
        assert await as_far_as_they_can(tasks) == [first]
        ((seconds, go_on, *given),) = later
        assert seconds == 0.5
        go_on(*given)
        rests(monkeypatch, 0.0)
        _, second = await as_far_as_they_can(tasks)
        calls.ended(second)

    running(act)


def test_a_turn_goes_on_as_long_as_its_call_goes_on_in_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        tasks = begun(calls, 2)
        (first,) = await as_far_as_they_can(tasks)
        assert first.in_portions
        assert first.over is not None
        for _ in range(3):
            first.rest(0.001)
            calls._look(first, 10 * DEADLINE, first.rests - 1)
            assert await as_far_as_they_can(tasks) == [first]
        first.resting = True
        calls._look(first, 10 * DEADLINE, first.rests)
        assert await as_far_as_they_can(tasks) == [first], "a rest may last longer than a look"
        first.resting = False
        calls._look(first, 10 * DEADLINE, first.rests)
        _, second = await as_far_as_they_can(tasks)
        for one in (first, second):
            calls.ended(one)

    running(act)


def test_rests_between_portions_are_not_charged_nor_rested_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    charged, rested_from, clock = [], [], [100.0]
    given = one_by_one.Places.give_back

    def give_back(places: Any, place: Any, seconds: float) -> None:
        charged.append(seconds)
        given(places, place, seconds)

    def sleep(seconds: float) -> None:
        assert seconds == LONGEST_PAUSE, "no single one is long"
        clock[0] += 3 * seconds  # the thread was not woken in time

    def ended(_pacing: Pacing, seconds: float, _now: float) -> float:
        rested_from.append(seconds)
        return 0.0

    monkeypatch.setattr(one_by_one.Places, "give_back", give_back)
    monkeypatch.setattr(one_by_one, "monotonic", lambda: clock[0])
    monkeypatch.setattr(one_by_one, "sleep", sleep)

    async def act(calls: OneByOne) -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0])
        await with_a_neighbour(calls)
        turn = await calls.begin("flood", 1.0, DEADLINE)
        rests(monkeypatch, 1000.0)
        monkeypatch.setattr(Pacing, "ended", ended)
        for _ in range(3):
            clock[0] += 0.2
            turn.rest(0.2)
        clock[0] += 0.1
        calls.ended(turn)

    running(act)
    assert charged == [pytest.approx(3 * 0.2 + 0.1)]
    assert rested_from == [pytest.approx(0.1)]


def test_a_turn_given_up_in_a_rest_charges_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    charged = []
    given = one_by_one.Places.give_back

    def give_back(places: Any, place: Any, seconds: float) -> None:
        charged.append(seconds)
        given(places, place, seconds)

    monkeypatch.setattr(one_by_one.Places, "give_back", give_back)

    async def act(calls: OneByOne) -> None:
        await with_a_neighbour(calls)
        turn = await calls.begin("flood", 1.0, DEADLINE)
        monkeypatch.setattr(one_by_one, "sleep", lambda _seconds: calls.release(turn))
        turn.rest(0.2)
        calls.ended(turn)

    running(act)
    assert len(charged) == 1
    assert charged[0] >= 0.0, "nobody comes first for having rested"


@pytest.mark.usefixtures("client")
def test_only_small_calls_that_went_well_tell_how_long_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = []
    monkeypatch.setattr(Pacing, "small_call", lambda *_given: told.append("small"))

    async def act() -> None:
        pool = Pool(4)

        async def well() -> str:
            return "done"

        async def badly() -> str:
            raise Problem(404, "no such tenant")

        with pytest.raises(Problem):
            await pool.await_in_turn(ALIKE, badly)
        await pool.await_in_turn(1.0, well)
        assert not told
        await pool.await_in_turn(SMALL, well)
        assert not told, "one that is not as small as the others takes longer anyway"
        await pool.await_in_turn(ALIKE, well)
        assert told == ["small"]
        calls = pool._one_by_one
        both = [await calls.begin("flood", 1.0, ALIKE) for _ in range(2)]
        for one in both:
            calls.ended(one)
        assert told == ["small"] * 2, "of several at once only the first"

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
    assert asyncio.run(pool.run_in_turn(0.5, lambda _turn: "done")) == "done"
    assert seen == [("flood", 5.0, 0.5)]


def test_a_message_is_small_whatever_is_in_it_and_a_list_as_large_as_its_messages() -> None:
    single = b'{"payload": {"lines": [' + b"{}, " * 99 + b"{}]}}"
    assert seconds_for(single) <= ALIKE
    few, many = (b" [" + b", ".join([b'{"payload": {}}'] * count) + b"]" for count in (24, 200))
    assert seconds_for(few) <= SMALL < seconds_for(many)
    assert seconds_for(b'{"payload": "' + b"x" * 1_000_000 + b'"}') > SMALL
