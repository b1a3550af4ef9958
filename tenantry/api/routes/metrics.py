"""Metrics for Prometheus: as a route of the API, and alone, for a port of their own."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tenantry.api.access import rule_for
from tenantry.api.openapi import Routes
from tenantry.api.services import Injected
from tenantry.http.auth import Authentication
from tenantry.http.identity import Identity
from tenantry.http.middleware import BoundedBody, RequestContext
from tenantry.http.pool import Pool
from tenantry.http.problems import Problem
from tenantry.metrics.page import Metrics

PATH = "/metrics"
ALONE = "Tenantry-Alone"
"""The header by which a process that merges its siblings' pages asks each for its own alone."""

_AT_ONCE = 2
_BODY_BYTES = 0
_BODY_SECONDS = 5.0

routes = Routes("daemon")


@routes(f"GET {PATH}", "Show the metrics", None, response_class=PlainTextResponse)
async def show(request: Request, services: Injected) -> Response:
    """Show everything that is counted and measured, for Prometheus.

    In its text format (version 0.0.4), or in OpenMetrics for those who accept it.
    """
    return await _answer(services.metrics, services.pools.metrics, request.headers)


async def _answer(page: Metrics, pool: Pool, headers: Headers) -> Response:
    """Answer with a page. With many tenants writing it takes long, so a thread does that."""
    # Prometheus may send the header more than once.
    accept, encoding = (",".join(headers.getlist(name)) for name in ("accept", "accept-encoding"))
    if ALONE in headers:
        written = await pool.run(page.render_alone, accept)
    else:
        written = await pool.run(page.render, accept, encoding)
    told = {"Content-Type": written.content_type, "Vary": "Accept, Accept-Encoding"}
    if written.encoding is not None:
        told["Content-Encoding"] = written.encoding
    return Response(written.body, headers=told)


def alone(page: Metrics) -> ASGIApp:
    """Make an application that serves `page` under `/metrics` without a token, and nothing else.

    It is for loopback: web pages that a browser on this machine has open are refused.
    """
    only = BoundedBody(_Only(page), max_bytes=_BODY_BYTES, seconds=_BODY_SECONDS)
    return RequestContext(Authentication(only, identity=Identity(), rule_for=rule_for))


class _Only:
    def __init__(self, page: Metrics) -> None:
        self._page = page
        self._pool = Pool(_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']!r} is not served")
        try:
            response = await self._answer(scope)
        except Problem as problem:
            response = problem.response()
        await response(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        if scope["path"] != PATH:
            raise Problem(404, f"nothing but {PATH} is served here")
        if scope["method"] != "GET":
            raise Problem(405, "the metrics can only be read", headers={"Allow": "GET"})
        return await _answer(self._page, self._pool, Headers(scope=scope))
