"""Short ways to the calls that come most often: the same handlers, past FastAPI's machinery.

A lane serves what is plain to read. Whatever is unusual about a request, above all what is wrong
with it, goes the usual way, and is answered there in the usual words.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenantry.api import handlers


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A short way to one route.

    `serve` gets the request, the match of its path and its body; None sends it the usual way.
    """

    method: str
    path: re.Pattern[str]
    serve: Callable[[Request, re.Match[str], bytes], Awaitable[Response | None]]


class Lanes:
    """Innermost: who calls and whether they may is decided, and the body is there in one piece."""

    def __init__(self, app: ASGIApp, *, lanes: Sequence[Lane]) -> None:
        self._app = app
        self._lanes = lanes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            for lane in self._lanes:
                if scope["method"] == lane.method and (match := lane.path.fullmatch(scope["path"])):
                    await self._serve(lane, match, scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _serve(
        self, lane: Lane, match: re.Match[str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        message = await receive()
        if message["type"] != "http.request":  # the client has gone
            return
        request = Request(scope)
        try:
            response = await lane.serve(request, match, message.get("body", b""))
        except Exception as error:  # noqa: BLE001 - what is unknown is raised again there
            response = await handlers.answer(request, error)
        if response is not None:
            await response(scope, receive, send)
            return
        taken = False

        async def receive_again() -> Message:
            nonlocal taken
            if taken:
                return await receive()
            taken = True
            return message

        await self._app(scope, receive_again, send)
