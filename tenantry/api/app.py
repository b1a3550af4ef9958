"""Assembles the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastapi import FastAPI
from starlette.middleware import Middleware

from tenantry import __version__
from tenantry.api import access, errors, openapi
from tenantry.api.handing_on import HandOn, RefuseHandedOn
from tenantry.api.publisher import Publisher
from tenantry.api.routes import (
    asyncapi,
    checks,
    dead_letters,
    events,
    messages,
    metrics,
    nodes,
    publishing,
    stream,
    system,
    tenants,
)
from tenantry.api.routes.messages import MessageReading
from tenantry.api.routing import FastRoutes
from tenantry.api.services import Services
from tenantry.api.tracing import Traced

ROUTES: Final = (
    *system.routes,
    *nodes.routes,
    *metrics.routes,
    *tenants.routes,
    *asyncapi.routes,
    *publishing.routes,
    *messages.routes,
    *stream.routes,
    *dead_letters.routes,
    *events.routes,
    *checks.routes,
    *checks.isolation_routes,
    *openapi.routes,
)
# Checked at import: a route without an access rule keeps the daemon from starting.
access.check_routes(ROUTES)


def create_app(services: Services, way_in: Sequence[Middleware]) -> FastAPI:
    """Make the application of both listeners; `way_in` is the middleware before its routes."""
    reading = MessageReading(
        page_reader=services.page_reader,
        lookup=services.lookup,
        cursors=services.cursors,
        threads=services.pools.reads,
    )
    publisher = Publisher(
        lookup=services.lookup,
        publishing=services.publishing,
        threads=services.pools.publishes,
        idempotency=services.idempotency,
        tracer=services.tracer,
        refusals=services.refusals,
    )
    fast = [*messages.fast_routes(reading), publishing.fast_route(publisher)]
    app = FastAPI(
        title="Tenantry",
        version=__version__,
        description=openapi.DESCRIPTION,
        routes=list(ROUTES),
        middleware=[
            *way_in,
            *([Middleware(Traced, tracer=services.tracer)] if services.tracer.on else []),
            Middleware(FastRoutes, routes=fast),
            *_handing_on(services),
        ],
        openapi_url=None,  # served as a route like all others, under the same rules
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services, app.state.reading, app.state.publisher = services, reading, publisher
    errors.install(app)
    return app


def _handing_on(services: Services) -> list[Middleware]:
    if services.peers is None:
        return [Middleware(RefuseHandedOn)]

    def exists(tenant_id: str) -> bool:
        state = services.directory.get(tenant_id)
        return state is not None and state.exists

    return [
        Middleware(
            HandOn,
            cluster=services.cluster,
            peers=services.peers,
            exists=exists,
            reads=services.pools.reads,
            identity=services.identity,
        )
    ]
