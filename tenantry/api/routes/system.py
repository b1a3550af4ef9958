"""The daemon itself: its health, its state, its end.

Health, readiness and status use no thread of a pool: they answer even if every thread is stuck.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from tenantry.api.openapi import Routes
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
from tenantry.api.services import Injected, Services
from tenantry.control.port import Control, TenantRuntime
from tenantry.domain.tenant import Lifecycle
from tenantry.http.auth import HANDED_ON
from tenantry.http.problems import unavailable
from tenantry.nodes.port import NodeState
from tenantry.unavailable import UnavailableError

routes = Routes("daemon")

_SUMS: Final = ("rate", "pending", "unsettled", "stored", "duplicates", "dead_lettered")
_ASKED: Final = frozenset({NodeState.ACTIVE, NodeState.DRAINING})


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


async def overview(services: Services, scope: Scope) -> Overview:
    """Add up the tenants of all nodes; answer another node with this node's alone."""
    own = await services.pools.reads.run(_own, services)
    if any(name == HANDED_ON for name, _ in scope["headers"]):
        return own
    cluster, peers = services.cluster, services.peers
    others = [
        one.name for one in cluster.glance() if one.name != cluster.name and one.state in _ASKED
    ]
    if peers is None:
        return own.model_copy(update={"silent_nodes": others})
    answers = await asyncio.gather(*(peers.ask(one, scope, "GET", "/overview") for one in others))
    parts = {node: _read(answer) for node, answer in zip(others, answers, strict=True)}
    silent = sorted(node for node, part in parts.items() if part is None)
    return _sum([own, *(part for part in parts.values() if part is not None)], silent)


def _own(services: Services) -> Overview:
    tenants = services.control.runtimes()
    states = Counter(one.lifecycle or Lifecycle.PROVISIONING for one in tenants.values())
    try:
        dead_letters = sum(services.dead_letters.counts(list(tenants)).values())
    except UnavailableError:
        dead_letters = None
    return Overview(
        tenants=len(tenants),
        states={state.value: count for state, count in sorted(states.items())},
        troubled=sum(_is_troubled(one) for one in tenants.values()),
        **{name: sum(getattr(one, name) or 0 for one in tenants.values()) for name in _SUMS},
        dead_letters=dead_letters,
        silent_nodes=[],
    )


def _is_troubled(one: TenantRuntime) -> bool:
    return one.parked is not None or one.trouble is not None


def _read(answer: Any) -> Overview | None:
    try:
        return None if answer is None else Overview.model_validate(answer)
    except ValueError:  # the node runs another version
        return None


def _sum(parts: list[Overview], silent: list[str]) -> Overview:
    states: Counter[str] = Counter()
    for one in parts:
        states.update(one.states)
    listed = [one.dead_letters for one in parts if one.dead_letters is not None]
    return Overview(
        tenants=sum(one.tenants for one in parts),
        states=dict(sorted(states.items())),
        troubled=sum(one.troubled for one in parts),
        **{name: sum(getattr(one, name) for one in parts) for name in _SUMS},
        dead_letters=sum(listed) if len(listed) == len(parts) else None,
        silent_nodes=silent,
    )
