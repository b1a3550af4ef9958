"""The front's application: what comes often by itself, everything else by the daemon."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from tenantry.api.access import rule_for
from tenantry.api.app import BODY_SECONDS, MAX_BODY_BYTES
from tenantry.api.lanes import Lane, Lanes
from tenantry.front.forward import Forward
from tenantry.http.auth import Authentication
from tenantry.http.limits import REQUEST_SECONDS, Limits
from tenantry.http.middleware import BoundedBody, RequestContext
from tenantry.http.tokens import Tokens

_PATIENCE: Final = 5.0
"""Seconds more than the daemon has for a request, so that it is the one who says what is late."""


class FrontApplication:
    """Serves what the daemon's application serves, under the same rules, before it is reached."""

    def __init__(
        self,
        relay: socket.socket,
        jwt_secret: str | None,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_timeout: float = BODY_SECONDS,
    ) -> None:
        self._forward = Forward(relay)
        self._inner: ASGIApp = self._forward
        app: ASGIApp = self._serve
        app = Limits(app, seconds=REQUEST_SECONDS + _PATIENCE)
        app = self.bodies = BoundedBody(app, max_bytes=max_body_bytes, seconds=body_timeout)
        app = Authentication(
            app, tokens=Tokens(jwt_secret) if jwt_secret else None, rule_for=rule_for
        )
        self._outer = RequestContext(app)

    def use(self, lanes: Sequence[Lane]) -> None:
        """Serve these here from now on; on the event loop only."""
        self._inner = Lanes(self._forward, lanes=lanes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._outer(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._inner(scope, receive, send)
