"""Does it add up: accepted = stored + duplicates + dead-lettered + in flight."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import answers, links, lookup, render, schemas
from tenantry.api.documented import errors
from tenantry.api.services import Services, Who
from tenantry.http.problems import no_such_tenant

_TAG = "audit"


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve audits on `app`."""
    auditor, cursors, pool = services.auditor, services.cursors, services.pools.audits

    @app.get(
        "/audit",
        response_model=answers.AuditPage,
        summary="Audit tenants",
        tags=[_TAG],
        responses={200: {"headers": links.DOCUMENTED}, **errors(400, 422, 503)},
    )
    async def audit_tenants(
        request: Request, query: Annotated[schemas.AuditsQuery, Query()]
    ) -> Response:
        """Hold the counts of tenants against rows, dead letters and queues, by id.

        Each tenant is read in one snapshot, while messages pour in. Counting very many rows takes
        its time: a page may then be shorter than `limit`, and the next goes on.
        """
        after = None if query.cursor is None else cursors.open(query.cursor, _TAG).decode()

        def read() -> tuple[bytes, str | None]:
            found = services.directory.page(after=after, limit=query.limit + 1)
            wanted = [state.tenant_id for state in found[: query.limit]]
            audits = auditor.audit(wanted, quick=query.quick)
            last = audits[-1].tenant_id if audits else ""
            done = [one for one in wanted if one <= last] if audits else wanted
            end = None
            if done and len(found) > len(done):
                end = cursors.seal(done[-1].encode(), _TAG)
            body = {
                "balanced": all(one.balanced for one in audits),
                "data": [render.audit(one) for one in audits],
                "next_cursor": end,
            }
            return render.dumps(body), end

        body, end = await pool.run(read)
        return render.json_response(body, headers=links.next_page(request, end))

    @app.get(
        "/tenants/{tenant_id}/audit",
        response_model=answers.TenantAudit,
        summary="Audit a tenant",
        tags=[_TAG],
        responses=errors(404, 422, 503),
    )
    async def audit_tenant(
        tenant_id: str, who: Who, query: Annotated[schemas.AuditQuery, Query()]
    ) -> Response:
        """Hold a tenant's counts against its rows, dead letters and queues."""

        def read() -> bytes:
            lookup.readable(services.directory, tenant_id, who)
            audits = auditor.audit([tenant_id], quick=query.quick)
            if not audits:
                raise no_such_tenant()
            return render.dumps(render.audit(audits[0]))

        return render.json_response(await pool.run(read))
