"""What stands before the application while the daemon is still starting."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from tenantry.http.problems import unavailable


class Door:
    """What the listeners serve while the daemon is still starting: 503, then the application."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    def open(self, app: ASGIApp) -> None:
        """Let requests in."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503 with a problem document, or pass the request on."""
        app = self._app
        if app is None:
            problem = unavailable("the daemon is starting", code="starting")
            await problem.response()(scope, receive, send)
        else:
            await app(scope, receive, send)
