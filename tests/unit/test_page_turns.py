"""Whose turn it is at the operator's page, and what is counted of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tenantry.http.auth import Connection, Listener, mark
from tenantry.http.identity import Identity
from tenantry.http.middleware import MAX_REQUESTS
from tenantry.http.page_turns import ALL_WAITING, AT_ONCE, STRANGERS, WAITING, PageTurns
from tenantry.http.tokens import Tokens
from tests.api.serving import SECRET
from tests.waiting import DEADLINE

MOST_OF_ONE = STRANGERS - STRANGERS // 4


class Doors:
    """A page whose answers are held back, and who asks for it."""

    def __init__(self) -> None:
        self.under_way: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.open = asyncio.Event()
        self.ended = asyncio.Event()
        self.turns = PageTurns(
            self._page, identity=Identity([SECRET]), is_page=lambda path: path != "/healthz"
        )
        self.turns._patience = self.turns._strangers._patience = DEADLINE

    async def _page(self, scope: Any, receive: Any, send: Any) -> None:
        self.under_way[scope["who"]] += 1
        try:
            if scope["path"] != "/healthz":
                await self.open.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
        finally:
            self.under_way[scope["who"]] -= 1
        if scope["path"] == "/ui/tail":
            await self.ended.wait()

    async def ask(self, who: str, *, session: str = "", path: str = "/ui") -> None:
        cookies = [(b"cookie", f"tenantry_session={session}".encode())] if session else []
        scope: dict[str, Any] = {"type": "http", "path": path, "headers": cookies, "who": who}
        mark(scope, Connection(listener=Listener.TCP, peer=who))

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.statuses[message["status"]] += 1

        await self.turns(scope, lambda: asyncio.sleep(DEADLINE), send)  # type: ignore[arg-type]

    def many(self, count: int, who: str, **more: str) -> list[asyncio.Task[None]]:
        return [asyncio.ensure_future(self.ask(who, **more)) for _ in range(count)]


async def settled() -> None:
    """Let everything come as far as it can."""
    for _ in range(50):
        await asyncio.sleep(0)


def on_a_loop(test: Callable[[Doors], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE):
            await test(Doors())

    def wrapped() -> None:
        asyncio.run(run())

    wrapped.__name__ = test.__name__
    return wrapped


def token(name: str) -> str:
    now, hour = datetime.now(UTC), timedelta(hours=1)
    return Tokens(SECRET).issue(subject=name, now=now, ttl=hour)


@on_a_loop
async def test_who_has_no_session_waits_and_leaves_room_for_others(doors: Doors) -> None:
    asked = doors.many(WAITING, "here") + doors.many(WAITING, "here", session="made.up.x")
    await settled()
    assert doors.under_way["here"] == MOST_OF_ONE
    assert doors.statuses == {429: WAITING - MOST_OF_ONE}
    asked += doors.many(20, "there")
    await settled()
    assert doors.under_way == {"here": MOST_OF_ONE, "there": STRANGERS - MOST_OF_ONE}
    await doors.ask("here", path="/healthz")
    sessions = doors.many(3, "somebody", session=token("ann"))
    await settled()
    assert doors.under_way["somebody"] == 3
    doors.open.set()
    await asyncio.gather(*asked, *sessions)
    assert doors.statuses[200] == WAITING + MOST_OF_ONE + 20 + 3 + 1


@on_a_loop
async def test_who_has_no_session_takes_a_part_of_all_requests_from_however_many_addresses(
    doors: Doors,
) -> None:
    count = 2 * ALL_WAITING
    asked = [one for number in range(count) for one in doors.many(1, f"address {number}")]
    await settled()
    assert sum(doors.under_way.values()) == STRANGERS
    assert doors.statuses == {503: count - STRANGERS - ALL_WAITING}
    assert ALL_WAITING <= MAX_REQUESTS // 4
    doors.open.set()
    await asyncio.gather(*asked)
    assert doors.statuses[200] == STRANGERS + ALL_WAITING


@on_a_loop
async def test_a_session_has_so_many_at_once_and_is_forgotten_with_the_last(doors: Doors) -> None:
    asked = doors.many(AT_ONCE + WAITING + 5, "here", session=token("ann"))
    others = doors.many(2, "there", session=token("bob"))
    await settled()
    assert doors.under_way == {"here": AT_ONCE, "there": 2}
    assert doors.statuses == {429: 5}
    doors.open.set()
    await asyncio.gather(*asked, *others)
    assert doors.statuses == {429: 5, 200: AT_ONCE + WAITING + 2}
    assert doors.turns._sessions == {}


@on_a_loop
async def test_what_goes_on_after_its_beginning_takes_nobodys_turn(doors: Doors) -> None:
    doors.open.set()
    session = token("ann")
    tails = doors.many(3 * AT_ONCE, "here", session=session, path="/ui/tail")
    tails += doors.many(3 * STRANGERS, "here", path="/ui/tail")
    await settled()
    await doors.ask("here", session=session)
    await doors.ask("here")
    doors.ended.set()
    await asyncio.gather(*tails)


@on_a_loop
async def test_who_leaves_while_waiting_or_being_served_leaves_nothing_behind(doors: Doors) -> None:
    session = token("ann")
    asked = doors.many(2 * AT_ONCE, "here", session=session) + doors.many(20, "here")
    await settled()
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert doors.turns._sessions == {}
    assert doors.turns._strangers.waiting == 0
    again = doors.many(AT_ONCE, "here", session=session) + doors.many(MOST_OF_ONE, "here")
    await settled()
    assert doors.under_way["here"] == AT_ONCE + MOST_OF_ONE
    doors.open.set()
    await asyncio.gather(*again)


@pytest.mark.parametrize(("session", "status"), [(token("ann"), 429), ("", 503)])
def test_who_waits_for_too_long_is_told_so(session: str, status: int) -> None:
    async def run() -> None:
        doors = Doors()
        asked = doors.many(AT_ONCE, "here", session=session)
        await settled()
        doors.turns._patience = doors.turns._strangers._patience = 0.0
        await doors.ask("here", session=session)
        assert doors.statuses == {status: 1}
        doors.open.set()
        await asyncio.gather(*asked)

    asyncio.run(run())
