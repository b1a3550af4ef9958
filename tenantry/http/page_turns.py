"""Turns for requests of the operator's page: each makes several API calls on the event loop.

The event loops serve health and publishing as well. So under load requests of the page wait here,
before they cost more than reading their headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenantry.http.auth import connection_of, session_of
from tenantry.http.identity import Identity
from tenantry.http.problems import Problem, too_many, unavailable
from tenantry.turns.places import Places

AT_ONCE: Final = 8
"""Pages served to one session at once. A browser asks for fewer."""

STRANGERS: Final = 8
"""Pages served at once to all clients without a session; three quarters of them to one address."""

WAITING: Final = 64
"""Waiting pages of one session or address; further ones are refused at once."""

ALL_WAITING: Final = 256
"""Waiting pages of all clients without a session: each holds one of the server's requests."""

PATIENCE_SECONDS: Final = 5.0


class PageTurns:
    """Lets few requests of the page run at once; an answer that has begun is not counted.

    Requests with a valid token are counted by session, all others by address. Beyond the limit a
    request waits, as refusing it only to have it sent again costs more. Too many waiting requests
    are a 429; one that waits too long gets that or a 503.
    """

    def __init__(self, app: ASGIApp, *, identity: Identity, is_page: Callable[[str], bool]) -> None:
        self._app = app
        self._identity = identity
        self._is_page = is_page
        self._sessions: dict[str, _Session] = {}
        self._patience = PATIENCE_SECONDS
        self._strangers = Places(STRANGERS, patience=PATIENCE_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not self._is_page(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            end = await self._turn(scope)
        except Problem as problem:
            await _told(problem)(scope, receive, send)
            return
        ended = False

        def end_once() -> None:
            nonlocal ended
            if not ended:
                ended = True
                end()

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                end_once()
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            end_once()

    async def _turn(self, scope: Scope) -> Callable[[], None]:
        """Wait for a turn; give the function that ends it. Raises `Problem`."""
        token = session_of(Headers(scope=scope))
        if token is not None and self._identity.is_signed(token):
            # By the signed part: a signature can be encoded in several ways.
            return await self._of_session(token.rpartition(".")[0])
        client = connection_of(scope).peer
        if self._strangers.waiting_of(client) >= WAITING:
            raise too_many(f"{WAITING} pages wait for this address already")
        busy = unavailable("too many ask for the page; try again", code="busy")
        if self._strangers.waiting >= ALL_WAITING:
            raise busy
        try:
            place = await self._strangers.take(client)
        except TimeoutError:
            raise busy from None
        clock = asyncio.get_running_loop().time
        began = clock()
        return lambda: self._strangers.give_back(place, clock() - began)

    async def _of_session(self, name: str) -> Callable[[], None]:
        session = self._sessions.setdefault(name, _Session())
        if session.there >= AT_ONCE + WAITING:
            raise too_many(f"{WAITING} pages wait for this session already")
        session.there += 1
        try:
            async with asyncio.timeout(self._patience):
                await session.places.acquire()
        except BaseException as error:
            self._leave(name, session)
            if isinstance(error, TimeoutError):
                raise too_many(f"a session may ask for {AT_ONCE} pages at once") from None
            raise

        def end() -> None:
            session.places.release()
            self._leave(name, session)

        return end

    def _leave(self, name: str, session: _Session) -> None:
        session.there -= 1
        if not session.there:
            del self._sessions[name]


class _Session:
    """A session's requests: their number, and the places that they take."""

    def __init__(self) -> None:
        self.there = 0
        self.places = asyncio.Semaphore(AT_ONCE)


def _told(problem: Problem) -> Response:
    return Response(
        f"{problem.title}: {problem.detail}.\n",
        status_code=problem.status,
        media_type="text/plain",
        headers=problem.headers,
    )
