"""Spans for the API's requests that change something.

Publishing has its own spans, in the front as well. Requests that only read have none.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenantry.api import access
from tenantry.tracing import Asked, TraceContext, Tracer

_KEY: Final = "tenantry.trace"
_APART: Final = access.LOOKS_BY_POST | {("POST", "/tenants/{tenant_id}/messages")}


def trace_of(scope: Scope) -> TraceContext | None:
    """Return the trace context of a request, to be passed on; None if it is not recorded."""
    context = scope.get(_KEY)
    return context if isinstance(context, TraceContext) and context.sampled else None


class Traced:
    """Middleware that makes a span of each request that changes something.

    A request that is handed on is a span on both nodes.
    """

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
    """Return the call that a request makes, and its tenant; None for a request without a span."""
    if scope["type"] != "http" or scope["method"] == "GET":
        return None
    found = access.call_of(scope["method"], scope["path"])
    return None if found is None or found[0] in _APART else found
