"""How much of what a client is answered may be left unread."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Message

from tenantry.http import auth
from tenantry.http.auth import Connection, Listener
from tenantry.http.middleware import PART_BYTES, UNREAD_BYTES, Limits
from tenantry.http.tokens import Principal, Scope
from tests.waiting import DEADLINE

LARGE: Final = bytes(UNREAD_BYTES // 2 + 1)


class Reader:
    """A client of a tenant's, which reads what is sent to it when it is told to."""

    def __init__(self, tenant_id: str) -> None:
        who = Principal(name="ann", scope=Scope.TENANT, tenant_id=tenant_id)
        self.scope: Any = {"type": "http", "path": "/messages", auth._PRINCIPAL_KEY: who}
        auth.mark(self.scope, Connection(listener=Listener.TCP, peer="127.0.0.1"))
        self.reads = asyncio.Event()
        self.begun = asyncio.Event()
        self.status = 0
        self.parts: list[bytes] = []

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.begun.set()
            return
        await self.reads.wait()
        self.parts.append(message["body"])

    async def ask(self, app: Limits) -> asyncio.Task[None]:
        """Ask for something; when this returns, the answer has begun."""
        asked = asyncio.create_task(app(self.scope, never, self.take))
        await self.begun.wait()
        return asked


async def never() -> Message:
    raise AssertionError


def test_who_reads_nothing_is_given_some_answers_and_no_more_and_others_are_answered() -> None:
    async def scenario() -> None:
        app = Limits(Response(LARGE))
        first, second, other, later = (Reader(one) for one in ("acme", "acme", "other", "acme"))
        second.reads.set()
        answers = [await one.ask(app) for one in (first, second, other)]
        assert [one.status for one in (first, second, other)] == [200, 429, 200]
        first.reads.set()
        other.reads.set()
        await asyncio.gather(*answers)
        assert b"".join(first.parts) == LARGE
        assert max(map(len, first.parts)) == PART_BYTES
        later.reads.set()
        await (await later.ask(app))
        assert later.status == 200

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE))


def test_one_answer_is_given_however_large_it_is_and_to_the_last_byte() -> None:
    async def scenario() -> None:
        for size in (0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, UNREAD_BYTES + 1):
            body, reader = bytes(size), Reader("acme")
            reader.reads.set()
            await (await reader.ask(Limits(Response(body))))
            assert (reader.status, b"".join(reader.parts) == body) == (200, True)

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE))
