"""Making a tenant, once for each idempotency key."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import answers, idempotency, render, schemas
from tenantry.api.documented import errors
from tenantry.api.idempotency import Once
from tenantry.api.services import Caller, Services
from tenantry.control.port import Outcome
from tenantry.domain import names
from tenantry.domain.commands import CreateTenant
from tenantry.domain.errors import TenantExistsError
from tenantry.domain.events import ProvisioningAbandoned, TenantCreated
from tenantry.domain.tenant import Lifecycle
from tenantry.http.problems import RETRY_AFTER_SECONDS, Problem
from tenantry.journal.port import Metadata

_LOCATION = {"Location": {"description": "Where it is.", "schema": {"type": "string"}}}


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve the creation of tenants on `app`."""

    @app.post(
        "/tenants",
        status_code=201,
        response_model=answers.CreatedTenant,
        summary="Create a tenant",
        tags=["tenants"],
        responses={
            201: {
                "description": "It exists and consumes. The credentials are shown this once.",
                "headers": _LOCATION | idempotency.REPLAYED,
            },
            **errors(409, 503, 504, body=True),
        },
    )
    async def create_tenant(
        wanted: schemas.TenantCreation,
        caller: Caller,
        request: Request,
        idempotency_key: idempotency.Key = None,
    ) -> Response:
        """Make a tenant with its stream, queues, broker user and partition, and consume.

        A step that fails leaves nothing behind. After no answer, or a 503 or 504, call again with
        the same `Idempotency-Key`: a tenant that was made by then is answered without
        `credentials`, which are kept nowhere. Rotate them to have others.
        """
        once = None
        if idempotency_key is not None:
            once = Once("POST /tenants", idempotency_key, await request.body())
        outcome, replayed = await services.pools.commands.run(
            _create, services, wanted, caller, once
        )
        headers = {"Location": f"/tenants/{outcome.tenant.tenant_id}"}
        if replayed:
            headers["Idempotency-Replayed"] = "true"
        return render.json_response(render.dumps(render.outcome(outcome)), 201, headers)


def _create(
    services: Services, wanted: schemas.TenantCreation, caller: Metadata, once: Once | None
) -> tuple[Outcome, bool]:
    """Create the tenant, or find it created by the same call before. Blocks."""
    tenant_id = wanted.id
    if tenant_id is None:
        tenant_id = str(uuid4()) if once is None else once.id()
    if once is not None:
        once.claim(services.idempotency)
        caller = replace(caller, causation_id=once.cause)
        if (made := _made_before(services, tenant_id, once)) is not None:
            return made, True
    command = CreateTenant(
        tenant_id=tenant_id,
        name=wanted.name,
        workers=services.default_workers() if wanted.workers is None else wanted.workers,
        topics=tuple(wanted.topics),
        partitions=wanted.partitions,
    )
    try:
        outcome = services.control.execute(
            command, metadata=caller, timeout=services.command_timeout
        )
    except TenantExistsError:
        # The same call may have come in twice at a time.
        if once is None or (made := _made_before(services, tenant_id, once)) is None:
            raise
        return made, True
    return outcome, False


def _made_before(services: Services, tenant_id: str, once: Once) -> Outcome | None:
    """Find the tenant this very call has made: the journal knows who caused what."""
    if not names.is_tenant_id(tenant_id):
        return None
    state = services.directory.get(tenant_id)
    if state is None:
        return None
    made = mine = False
    for recorded in services.journal.read_stream(names.journal_stream(tenant_id)):
        match recorded.event:
            case TenantCreated():
                mine = recorded.metadata.causation_id == once.cause
                made = made or mine
            case ProvisioningAbandoned() if mine:
                made = mine = False
            case _:
                pass
    if not made:
        return None
    if not mine or not state.exists or state.lifecycle is Lifecycle.DELETING:
        raise Problem(
            409,
            "the tenant that was made with this idempotency key has been deleted since",
            code="tenant-deleted-since",
            title="Deleted since",
        )
    if state.lifecycle is Lifecycle.PROVISIONING:
        raise Problem(
            409,
            "the same call is being carried out; ask again",
            code="idempotency-in-progress",
            title="Being carried out",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
    return Outcome(tenant=state, runtime=services.control.runtime(tenant_id))
