"""The daemon itself: its health, its state, its end.

Health, readiness and status use no thread of a pool: they answer even if every thread is stuck.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api.openapi import Routes
from tenantry.api.overview import overview
from tenantry.api.routing import Who
from tenantry.api.schemas.common import answer, json_response
from tenantry.api.schemas.daemon import (
    LoginCode,
    Overview,
    State,
    Status,
    StatusQuery,
    WhoAmI,
    status_json,
)
from tenantry.api.services import Injected
from tenantry.control.port import Control
from tenantry.http.problems import unavailable

routes = Routes("daemon")


@routes("GET /healthz", "Is the daemon alive?", dict[str, str])
async def health(services: Injected) -> Response:
    """Answer 200 while the actors live, whatever state the broker and the database are in.

    A 503 names what is dead or hangs: an actor, or a loop that all depend on.
    """
    problem = await services.health.check()
    if problem is not None:
        raise problem
    return answer({"status": "ok"})


@routes("GET /readyz", "Does the daemon consume?", State)
async def readiness(services: Injected) -> Response:
    """Answer 200 while consuming; a 503 says in `reasons` why not."""
    system = services.control.readiness()
    if system.reasons:
        reasons = list(system.reasons)
        raise unavailable(
            "; ".join(reasons),
            code="not-ready",
            extra={"state": system.state.value, "reasons": reasons},
        )
    return answer(State(state=system.state.value))


@routes("GET /status", "Show the daemon at a glance", Status, errors=(404, 422))
async def status(services: Injected, _query: Annotated[StatusQuery, Query()]) -> Response:
    """Show a node's tree of actors and what every actor of its tenants does."""
    return json_response(status_json(services.control.status()))


@routes("GET /overview", "Show all tenants together", Overview)
async def show_overview(services: Injected, request: Request) -> Response:
    """Add up what the actors of all tenants do, on all nodes; each is asked, for two seconds."""
    return answer(await overview(services, request.scope))


@routes("GET /whoami", "Show who calls", WhoAmI, errors=(404,))
async def show_caller(services: Injected, who: Who) -> Response:
    """Show what the caller's token permits, as the rules of all calls understand it.

    For a tenant's token the answer is 404 once that tenant no longer exists.
    """
    if who.tenant_id is not None:
        await services.pools.reads.run(services.lookup.existing, who.tenant_id, who)
    return answer(WhoAmI.made_of(who, scope=who.scope.value))


@routes("POST /login-codes", "Make a code for the page", LoginCode, errors=(409,), status=201)
async def make_login_code(services: Injected, who: Who) -> Response:
    """Make a code that begins an admin's session of the page, in the caller's name."""
    code = services.login_codes.issue(who, datetime.now(UTC))
    return answer(LoginCode(code=code), 201)


@routes("GET /info", "Show what the daemon runs on", dict[str, Any])
async def info(services: Injected) -> Response:
    """Show the version and the places the daemon was configured with, without secrets."""
    return answer(dict(services.info))


@routes("POST /drain", "Stop consuming but stay up", State, status=202)
async def drain(services: Injected) -> Response:
    """Begin to drain; `/status` tells when it is done."""
    await services.pools.urgent.run(services.control.drain)
    return _state(services.control, 202)


@routes("POST /stop", "Shut the daemon down", State, status=202)
async def stop(services: Injected) -> Response:
    """Begin a graceful shutdown."""
    await services.pools.urgent.run(services.control.stop)
    return _state(services.control, 202)


def _state(control: Control, status_code: int = 200) -> Response:
    return answer(State(state=control.readiness().state.value), status_code)
