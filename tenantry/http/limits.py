"""How many requests may be served at once, altogether and for one client, and for how long."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenantry.http.auth import client_of
from tenantry.http.connection import Listener, connection_of
from tenantry.http.problems import Problem, too_many, unavailable

MAX_REQUESTS: Final = 1024
MAX_OF_A_CLIENT: Final = 256
REQUEST_SECONDS: Final = 90.0
"""Longer than any command, page or long poll takes: the last resort."""

_UNCOUNTED: Final = frozenset({"/healthz", "/readyz"})
_ENDLESS: Final = frozenset({"/messages/stream"})


class Limits:
    """Turns away what is too much, and ends what takes too long.

    Requests count from when their body is there, so that a client that only trickles takes
    nobody's place. The control socket is counted by itself, and its clients are not told apart.
    Health is always answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        most: int = MAX_REQUESTS,
        most_of_a_client: int = MAX_OF_A_CLIENT,
        seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._app = app
        self._most = most
        self._most_of_a_client = most_of_a_client
        self._seconds = seconds
        self._served: Counter[Listener] = Counter()
        self._clients: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
            return
        listener = connection_of(scope).listener
        client = client_of(scope) if listener is Listener.TCP else ""
        if self._served[listener] >= self._most:
            problem = unavailable("too many requests at once; try again", code="busy")
        elif client and self._clients[client] >= self._most_of_a_client:
            problem = too_many(f"a client may have {self._most_of_a_client} requests at once")
        else:
            self._served[listener] += 1
            self._clients[client] += 1
            try:
                await self._bounded(scope, receive, send)
            finally:
                self._served[listener] -= 1
                self._clients[client] -= 1
                if not self._clients[client]:
                    del self._clients[client]
            return
        await problem.response()(scope, receive, send)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _ENDLESS:
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self._app(scope, receive, watched)
        except TimeoutError:
            if started or not limit.expired():
                raise
            problem = Problem(
                504,
                f"no answer within {self._seconds:g} seconds; what was asked may still happen",
                code="request-timeout",
                title="No answer in time",
            )
            await problem.response()(scope, receive, send)
