"""What may be changed of a tenant that exists."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

from tenantry.api import answers, lookup, render, schemas
from tenantry.api.documented import errors
from tenantry.api.services import Caller, Services
from tenantry.control.port import Outcome
from tenantry.domain.commands import (
    AddTopics,
    Command,
    GrantSqlAccess,
    PauseTenant,
    ResizeWorkers,
    ResumeTenant,
    RevokeSqlAccess,
    RotateCredentials,
)
from tenantry.journal.port import Metadata

_TAG = "tenants"


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve changes of tenants on `app`."""

    async def execute(command: Command, caller: Metadata) -> Outcome:
        return await services.pools.commands.run(
            services.control.execute, command, metadata=caller, timeout=services.command_timeout
        )

    async def carry_out(command: Command, caller: Metadata) -> Response:
        outcome = await execute(command, caller)
        return render.json_response(render.dumps(render.outcome(outcome)))

    @app.put(
        "/tenants/{tenant_id}/config/concurrency",
        response_model=answers.Tenant,
        summary="Resize a tenant's workers",
        tags=[_TAG],
        responses=errors(404, 409, 503, 504, body=True),
    )
    async def resize(tenant_id: str, wanted: schemas.Concurrency, caller: Caller) -> Response:
        """Set how many workers may store messages at once: in force at once, losing nothing."""
        tenant_id = lookup.checked_id(tenant_id)
        return await carry_out(ResizeWorkers(tenant_id=tenant_id, workers=wanted.workers), caller)

    @app.post(
        "/tenants/{tenant_id}/pause",
        response_model=answers.Tenant,
        summary="Pause a tenant",
        tags=[_TAG],
        responses=errors(404, 409, 503, 504),
    )
    async def pause(tenant_id: str, caller: Caller) -> Response:
        """Stop consuming; messages wait in the queues. A paused tenant stays paused."""
        return await carry_out(PauseTenant(tenant_id=lookup.checked_id(tenant_id)), caller)

    @app.post(
        "/tenants/{tenant_id}/resume",
        response_model=answers.Tenant,
        summary="Resume a tenant",
        tags=[_TAG],
        responses=errors(404, 409, 503, 504),
    )
    async def resume(tenant_id: str, caller: Caller) -> Response:
        """Consume again after a pause, or revive a tenant the daemon has parked."""
        return await carry_out(ResumeTenant(tenant_id=lookup.checked_id(tenant_id)), caller)

    @app.post(
        "/tenants/{tenant_id}/credentials/rotate",
        response_model=answers.TenantWithCredentials,
        summary="Rotate a tenant's credentials",
        tags=[_TAG],
        responses=errors(404, 409, 503, 504),
    )
    async def rotate_credentials(tenant_id: str, caller: Caller) -> Response:
        """Replace the password of the tenant's broker user. It is shown this once."""
        return await carry_out(RotateCredentials(tenant_id=lookup.checked_id(tenant_id)), caller)

    @app.post(
        "/tenants/{tenant_id}/sql-access",
        response_model=answers.SqlAccessData,
        summary="Let a tenant read its messages with SQL",
        tags=[_TAG],
        responses=errors(404, 409, 503, 504),
    )
    async def grant_sql_access(tenant_id: str, caller: Caller) -> Response:
        """Give the tenant a database role that reads its own rows of `public.messages` only.

        One it has already gets a new password. It is shown this once.
        """
        command = GrantSqlAccess(tenant_id=lookup.checked_id(tenant_id))
        outcome = await execute(command, caller)
        return render.json_response(render.dumps(render.sql_access(outcome)))

    @app.delete(
        "/tenants/{tenant_id}/sql-access",
        status_code=204,
        response_class=Response,
        summary="Revoke a tenant's SQL access",
        tags=[_TAG],
        responses=errors(404, 409, 503, 504),
    )
    async def revoke_sql_access(tenant_id: str, caller: Caller) -> Response:
        """End the sessions of the tenant's database role, if it has one, and drop it."""
        await execute(RevokeSqlAccess(tenant_id=lookup.checked_id(tenant_id)), caller)
        return Response(status_code=204)

    @app.post(
        "/tenants/{tenant_id}/topics",
        response_model=answers.Tenant,
        summary="Add topics to a tenant",
        tags=[_TAG],
        responses=errors(404, 409, 503, 504, body=True),
    )
    async def add_topics(tenant_id: str, wanted: schemas.NewTopics, caller: Caller) -> Response:
        """Give the tenant more topics, with as many partitions as its others have."""
        tenant_id = lookup.checked_id(tenant_id)
        command = AddTopics(tenant_id=tenant_id, topics=tuple(wanted.topics))
        return await carry_out(command, caller)
