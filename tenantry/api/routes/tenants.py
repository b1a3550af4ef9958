"""Tenants: made, looked at, deleted."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import answers, links, lookup, render, schemas
from tenantry.api.documented import errors
from tenantry.api.routes import creation
from tenantry.api.services import Caller, Services, Who
from tenantry.domain.commands import RequestDeletion
from tenantry.http.tokens import Scope

_TENANTS = "tenants"


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve tenants on `app`."""
    creation.add_routes(app, services)
    _add_reading(app, services)
    control, pool = services.control, services.pools.commands

    @app.delete(
        "/tenants/{tenant_id}",
        status_code=204,
        response_class=Response,
        summary="Delete a tenant",
        tags=[_TENANTS],
        responses=errors(404, 409, 422, 503, 504),
    )
    async def delete_tenant(
        tenant_id: str, query: Annotated[schemas.DeletionQuery, Query()], caller: Caller
    ) -> Response:
        """Finish what is in flight, then remove the queues, the user and the messages.

        The journal keeps what happened, and how many messages were dropped.
        """
        command = RequestDeletion(tenant_id=lookup.checked_id(tenant_id), retain=query.retain)
        await pool.run(control.execute, command, metadata=caller, timeout=services.command_timeout)
        return Response(status_code=204)


def _add_reading(app: FastAPI, services: Services) -> None:
    control, directory, cursors = services.control, services.directory, services.cursors

    @app.get(
        "/tenants",
        response_model=answers.TenantPage,
        summary="List tenants",
        tags=[_TENANTS],
        responses={200: {"headers": links.DOCUMENTED}, **errors(400, 422, 503)},
    )
    async def list_tenants(
        request: Request, query: Annotated[schemas.PageQuery, Query()]
    ) -> Response:
        """List the tenants that exist, by id."""
        after = None if query.cursor is None else cursors.open(query.cursor, _TENANTS).decode()

        def read() -> tuple[bytes, str | None]:
            states = directory.page(after=after, limit=query.limit + 1)
            page = states[: query.limit]
            end = None
            if len(states) > query.limit:
                end = cursors.seal(page[-1].tenant_id.encode(), _TENANTS)
            shown = [render.tenant(one, control.runtime(one.tenant_id)) for one in page]
            return render.dumps({"data": shown, "next_cursor": end}), end

        body, end = await services.pools.reads.run(read)
        return render.json_response(body, headers=links.next_page(request, end))

    @app.get(
        "/tenants/{tenant_id}",
        response_model=answers.Tenant,
        summary="Show a tenant, now or in the past",
        tags=[_TENANTS],
        responses=errors(404, 422, 503),
    )
    async def show_tenant(
        tenant_id: str, who: Who, query: Annotated[schemas.TenantQuery, Query()]
    ) -> Response:
        """Show a tenant as it is, or with `at` as of a time or a version, deleted ones too."""

        def read() -> bytes:
            if query.at is not None:
                then = lookup.past(directory, tenant_id, query.at, who)
                return render.dumps(render.past_tenant(then))
            now = lookup.existing(directory, tenant_id, who)
            to_admin = who.scope is Scope.ADMIN
            return render.dumps(render.tenant(now, control.runtime(tenant_id), to_admin=to_admin))

        return render.json_response(await services.pools.reads.run(read))
