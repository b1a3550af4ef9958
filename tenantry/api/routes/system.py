"""The daemon itself: its health, its state, its end.

Health, readiness and status touch no thread: they answer when every thread is stuck.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from tenantry.api.openapi import error_answers
from tenantry.api.schemas.common import answer
from tenantry.api.schemas.daemon import State, Status
from tenantry.api.services import Services
from tenantry.control.port import SystemStatus
from tenantry.http.problems import unavailable

_TAG = "daemon"


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve the daemon's own state on `app`."""
    control = services.control

    @app.get(
        "/healthz",
        response_model=dict[str, str],
        summary="Is the daemon alive?",
        tags=[_TAG],
        responses=error_answers(503, public=True),
    )
    async def health() -> Response:
        """Answer 200 while the actors live, whatever they stand on may do.

        A 503 names what is dead or hangs: an actor, or a loop that all depend on.
        """
        problem = await services.health.check()
        if problem is not None:
            raise problem
        return answer({"status": "ok"})

    @app.get(
        "/readyz",
        response_model=State,
        summary="Does the daemon consume?",
        tags=[_TAG],
        responses=error_answers(503, public=True),
    )
    async def readiness() -> Response:
        """Answer 200 while consuming; a 503 says in `reasons` why not."""
        system = control.status()
        if not system.ready:
            reasons = list(system.reasons) or [f"the daemon is {system.state.value}"]
            raise unavailable(
                "; ".join(reasons),
                code="not-ready",
                extra={"state": system.state.value, "reasons": reasons},
            )
        return answer(_state(system))

    @app.get(
        "/status",
        response_model=Status,
        summary="Show the daemon at a glance",
        tags=[_TAG],
        responses=error_answers(),
    )
    async def status() -> Response:
        """Show the tree of actors and what every tenant's actors do."""
        return answer(Status.model_validate(control.status()))

    @app.get(
        "/info",
        response_model=dict[str, Any],
        summary="Show what the daemon runs on",
        tags=[_TAG],
        responses=error_answers(),
    )
    async def info() -> Response:
        """Show the version and the places the daemon was configured with, without secrets."""
        return answer(dict(services.info))

    @app.post(
        "/drain",
        status_code=202,
        response_model=State,
        summary="Stop consuming but stay up",
        tags=[_TAG],
        responses=error_answers(503),
    )
    async def drain() -> Response:
        """Begin to drain; `/status` tells when it is done."""
        await services.pools.urgent.run(control.drain)
        return answer(_state(control.status()), 202)

    @app.post(
        "/stop",
        status_code=202,
        response_model=State,
        summary="Shut the daemon down",
        tags=[_TAG],
        responses=error_answers(503),
    )
    async def stop() -> Response:
        """Begin a graceful shutdown."""
        await services.pools.urgent.run(control.stop)
        return answer(_state(control.status()), 202)


def _state(system: SystemStatus) -> State:
    return State(state=system.state.value)
