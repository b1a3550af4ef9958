"""What is asked of the API as spans: those requests that change something.

Publishing is followed where it is done, by the front as well; who only looks is not followed.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenantry.api import access
from tenantry.tracing import Asked, TraceContext, Tracer

_KEY: Final = "tenantry.trace"
_APART: Final = access.LOOKS_BY_POST | {("POST", "/tenants/{tenant_id}/messages")}


def trace_of(scope: Scope) -> TraceContext | None:
    """Give what is recorded of a request, to be told to others; None where nothing is."""
    context = scope.get(_KEY)
    return context if isinstance(context, TraceContext) and context.sampled else None


class Traced:
    """Within it a request that changes something is a span, here and where it is handed on to."""

    def __init__(self, app: ASGIApp, *, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        call = _call(scope)
        if call is None:
            await self._app(scope, receive, send)
            return
        (method, route), tenant_id = call
        asked = Asked(method, access.shown(route), scope["path"], tenant_id)
        parent = self._tracer.context_of(scope["headers"])
        with self._tracer.serving(asked, parent) as span:
            scope[_KEY] = span.context

            async def send_told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.answered(message["status"])
                await send(message)

            await self._app(scope, receive, send_told)


def _call(scope: Scope) -> tuple[tuple[str, str], str | None] | None:
    """Tell which call a request is, and of which tenant; None for one that is not followed."""
    if scope["type"] != "http" or scope["method"] == "GET":
        return None
    found = access.call_of(scope["method"], scope["path"])
    return None if found is None or found[0] in _APART else found
