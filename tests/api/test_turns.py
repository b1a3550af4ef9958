"""A pool's threads by turns: one client's calls, however many, are not in the others' way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from tenantry.api import publisher
from tenantry.http.pool import CLIENT, WAITING_FOR_A_THREAD, Pool
from tenantry.http.problems import Problem
from tenantry.turns.fair_queue import Grant
from tests.api.serving import World, serving
from tests.waiting import DEADLINE


def asking(client: str, pool: Pool, call: Callable[[], Any]) -> asyncio.Task[Any]:
    """Have a client ask for a call."""

    async def run() -> Any:
        CLIENT.set(client)
        return await pool.run(call)

    return asyncio.create_task(run())


def in_a_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), DEADLINE))


async def let_them_wait() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def turns_of(pool: Pool) -> list[str]:
    """Give whose turn it was, one after the other; each counts as a second.

    When their threads run, and for how long, is up to the machine.
    """
    given: list[str] = []
    queue = pool._places._queue
    taken, ended = queue.next, queue.ended

    def following() -> Grant[Any] | None:
        grant = taken()
        if grant is not None:
            given.append(grant.client)
        return grant

    queue.next = following  # type: ignore[method-assign]
    queue.ended = lambda grant, _seconds: ended(grant, 1.0)  # type: ignore[method-assign]
    return given


def test_a_neighbour_of_a_tenant_with_many_calls_is_served_after_a_few_of_them() -> None:
    async def scenario() -> None:
        pool, begin = Pool(4, patience=DEADLINE), threading.Event()
        given = turns_of(pool)

        def work() -> None:
            begin.wait(DEADLINE)

        noisy = [asking("noisy", pool, work) for _ in range(4 * WAITING_FOR_A_THREAD)]
        await let_them_wait()
        quiet = [asking("quiet", pool, work) for _ in range(3)]
        await let_them_wait()
        begin.set()
        await asyncio.gather(*noisy, *quiet)
        # A thread is kept free for it; all of its calls are through before many of the others are.
        assert len(given) == len(noisy) + len(quiet)
        assert max(at for at, client in enumerate(given) if client == "quiet") < 12

    in_a_loop(scenario)


def test_one_client_s_calls_that_hang_leave_a_thread_to_the_others() -> None:
    async def scenario() -> None:
        pool, release = Pool(4, patience=DEADLINE), threading.Event()
        stuck = [asking("stuck", pool, lambda: release.wait(DEADLINE)) for _ in range(10)]
        await let_them_wait()
        for number in range(3):
            assert await asking(f"other-{number}", pool, lambda: "served") == "served"
        release.set()
        assert all(await asyncio.gather(*stuck))

    in_a_loop(scenario)


def test_calls_without_a_thread_take_places_by_the_same_turns() -> None:
    async def scenario() -> None:
        pool, release = Pool(4, patience=DEADLINE), asyncio.Event()

        async def ask(client: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
            CLIENT.set(client)
            return await pool.await_in_turn(0.01, call)

        async def served() -> str:
            return "served"

        stuck = [asyncio.create_task(ask("stuck", release.wait)) for _ in range(10)]
        await let_them_wait()
        assert await asyncio.create_task(ask("other", served)) == "served"
        assert await asking("another", pool, lambda: "served too") == "served too"
        # Who gives up leaves the place to its call until that ends.
        stuck[0].cancel()
        await let_them_wait()
        assert pool._places.waiting_of("stuck") == 7
        release.set()
        given_up, *others = await asyncio.gather(*stuck, return_exceptions=True)
        assert isinstance(given_up, asyncio.CancelledError)
        assert others == [True] * 9

    in_a_loop(scenario)


def test_a_client_with_too_many_calls_waiting_is_told_so_and_others_may_wait() -> None:
    async def scenario() -> None:
        pool, release = Pool(1, patience=DEADLINE), threading.Event()
        held = asking("noisy", pool, lambda: release.wait(DEADLINE))
        waiting = [asking("noisy", pool, str) for _ in range(WAITING_FOR_A_THREAD)]
        await let_them_wait()
        with pytest.raises(Problem) as refused:
            await asking("noisy", pool, str)
        assert refused.value.status == 429
        assert "Retry-After" in refused.value.headers
        quiet = asking("quiet", pool, str)
        await let_them_wait()
        release.set()
        await asyncio.gather(held, quiet, *waiting)

    in_a_loop(scenario)


def test_who_gives_up_waiting_leaves_its_turn_to_the_next() -> None:
    async def scenario() -> None:
        pool, release = Pool(1, patience=DEADLINE), threading.Event()
        held = asking("one", pool, lambda: release.wait(DEADLINE))
        await let_them_wait()
        gone = [asking("one", pool, str) for _ in range(3)]
        last = asking("two", pool, lambda: "served")
        await let_them_wait()
        for one in gone:
            one.cancel()
        release.set()
        assert await last == "served"
        assert await held
        assert await asking("one", pool, lambda: "again") == "again"
        assert not pool.wanted

    in_a_loop(scenario)


def test_hundreds_that_give_up_at_once_are_passed_over() -> None:
    async def scenario() -> None:
        pool, release = Pool(2, patience=DEADLINE), threading.Event()
        held = [asking("one", pool, lambda: release.wait(DEADLINE)) for _ in range(2)]
        await let_them_wait()
        gone = [asking(f"tenant-{number}", pool, str) for number in range(1500)]
        await let_them_wait()
        for one in gone:
            one.cancel()
        pool._places._free = 1  # a thread comes free before they have left by themselves
        pool._places._give_turns()
        assert (pool._places._free, pool.wanted) == (1, False)
        pool._places._free = 0
        release.set()
        await asyncio.gather(*held)

    in_a_loop(scenario)


def test_whose_turn_a_request_takes_is_the_tenant_s_it_is_about() -> None:
    seen: list[str] = []
    with serving(World()) as api:
        api.world.create("acme")
        existing = api.world.directory.get

        def get(tenant_id: str) -> Any:
            seen.append(CLIENT.get())
            return existing(tenant_id)

        api.world.directory.get = get  # type: ignore[method-assign]
        assert api.tcp.get("/tenants/acme").status_code == 200
        assert api.tcp.post("/tenants/acme/messages", json={"payload": 1}).status_code == 202
        assert api.tcp.get("/messages?tenant_id=acme").status_code == 200
        assert api.control.get("/tenants/acme").status_code == 200
    assert set(seen) == {"acme"}
    assert copy_context().get(CLIENT, "") == ""


def test_large_lists_are_read_one_at_a_time_and_small_messages_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, release, cut_out = threading.Semaphore(0), threading.Event(), publisher.members

    def members(body: bytes, name: str) -> list[bytes]:
        if len(body) > publisher.LARGE:
            entered.release()
            release.wait(DEADLINE)
        return cut_out(body, name)

    monkeypatch.setattr(publisher, "members", members)
    large = [{"payload": "x" * 1000}] * 20
    with serving(World()) as api, ThreadPoolExecutor(2) as threads:
        api.world.create("noisy")
        api.world.create("quiet")

        def post() -> int:
            return api.tcp.post("/tenants/noisy/messages", json=large).status_code

        lists = [threads.submit(post) for _ in range(2)]
        assert entered.acquire(timeout=DEADLINE)
        assert api.tcp.post("/tenants/quiet/messages", json={"payload": 1}).status_code == 202
        assert not entered.acquire(blocking=False)
        release.set()
        assert [one.result(DEADLINE) for one in lists] == [202, 202]
