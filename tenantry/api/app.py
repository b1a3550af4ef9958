"""Puts the API together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from fastapi import FastAPI

from tenantry import __version__
from tenantry.api import access, errors, openapi
from tenantry.api.health import Health
from tenantry.api.idempotency import IdempotencyKeys, MemoryIdempotencyKeys
from tenantry.api.paging import Cursors
from tenantry.api.routes import checks, events, stream, system, tenants
from tenantry.api.routes import dead_letters as dead_letter_routes
from tenantry.api.routes import messages as message_routes
from tenantry.api.routes import metrics as metrics_routes
from tenantry.api.routes import publishing as publish_routes
from tenantry.api.routes.messages import MessageReading
from tenantry.api.routes.publishing import PUBLISH_SECONDS, Publisher
from tenantry.api.routing import FastRoutes, JsonRoute
from tenantry.api.services import Pools, Services, TenantLookup
from tenantry.api.streams import Streams
from tenantry.api.tail import JournalTail
from tenantry.audit.auditor import Auditor
from tenantry.broker.port import Publishing
from tenantry.control.port import Control
from tenantry.dead_letters.port import DeadLetterIndex
from tenantry.dead_letters.replay import Reprocessing
from tenantry.http.auth import Authentication
from tenantry.http.middleware import (
    MAX_REQUESTS,
    REQUEST_SECONDS,
    BoundedBody,
    Limits,
    RequestContext,
)
from tenantry.http.tokens import Tokens
from tenantry.isolation.port import Prover
from tenantry.journal.port import EventStore
from tenantry.messages.port import MessageStore, PageReader
from tenantry.metrics.page import MetricsPage
from tenantry.projections.port import TenantDirectory

MAX_BODY_BYTES: Final = 1024 * 1024
COMMAND_SECONDS: Final = 30.0
BODY_SECONDS: Final = 30.0


def create_app(
    *,
    control: Control,
    directory: TenantDirectory,
    journal: EventStore,
    messages: MessageStore,
    page_reader: PageReader,
    publishing: Publishing,
    dead_letters: DeadLetterIndex,
    auditor: Auditor,
    prover: Prover,
    reprocessing: Reprocessing,
    cursor_key: bytes,
    default_workers: Callable[[], int],
    info: Mapping[str, object] | None = None,
    jwt_secret: str | None = None,
    metrics: MetricsPage | None = None,
    idempotency: IdempotencyKeys | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    command_timeout: float = COMMAND_SECONDS,
    publish_timeout: float = PUBLISH_SECONDS,
    body_timeout: float = BODY_SECONDS,
    request_timeout: float = REQUEST_SECONDS,
    max_requests: int = MAX_REQUESTS,
) -> FastAPI:
    """Make the application both listeners serve.

    `cursor_key` (16 bytes at least) seals cursors: they outlive a restart if it does. Without
    `jwt_secret` (32 bytes at least) TCP takes no tokens, and must be on loopback only. `info` is
    what `GET /info` shows: no secrets. `metrics` is what `GET /metrics` shows. Without
    `idempotency` keys are forgotten with the process. Timeouts are in seconds.
    """
    pools, lookup, cursors = Pools(), TenantLookup(directory), Cursors(cursor_key)
    idempotency = idempotency or MemoryIdempotencyKeys()
    reading = MessageReading(
        page_reader=page_reader, lookup=lookup, cursors=cursors, threads=pools.reads
    )
    publisher = Publisher(
        lookup=lookup, publishing=publishing, idempotency=idempotency, timeout=publish_timeout
    )
    services = Services(
        control=control,
        directory=directory,
        lookup=lookup,
        journal=journal,
        messages=messages,
        idempotency=idempotency,
        info=dict(info or {}),
        default_workers=default_workers,
        command_timeout=command_timeout,
        cursors=cursors,
        dead_letters=dead_letters,
        reprocessing=reprocessing,
        tail=JournalTail(journal),
        streams=Streams(control),
        health=Health(control),
        auditor=auditor,
        prover=prover,
        pools=pools,
    )
    app = FastAPI(
        title="Tenantry",
        version=__version__,
        description=openapi.DESCRIPTION,
        openapi_url=None,  # served as a route like all others, under the same rules
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    app.router.route_class = JsonRoute
    system.add_routes(app, services)
    metrics_routes.add_routes(app, metrics or MetricsPage())
    tenants.add_routes(app, services)
    publish_routes.add_routes(app, publisher)
    message_routes.add_routes(app, reading)
    stream.add_routes(app, services)
    dead_letter_routes.add_routes(app, services)
    events.add_routes(app, services)
    checks.add_routes(app, services)
    openapi.add_routes(app)
    access.check_routes(app.routes)
    errors.install(app)
    # The last one added is the outermost: who it is, and whether they may, comes before the body.
    fast = [*message_routes.fast_routes(reading), publish_routes.fast_route(publisher)]
    app.add_middleware(FastRoutes, routes=fast)
    app.add_middleware(Limits, most=max_requests, seconds=request_timeout)
    app.add_middleware(BoundedBody, max_bytes=max_body_bytes, seconds=body_timeout)
    app.add_middleware(
        Authentication,
        tokens=Tokens(jwt_secret) if jwt_secret else None,
        rule_for=access.rule_for,
    )
    app.add_middleware(RequestContext)
    return app
