"""Audits of tenants' counts, and proofs of tenants' isolation."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api.openapi import Routes
from tenantry.api.paging import link_header
from tenantry.api.routing import Caller, Who
from tenantry.api.schemas.checks import (
    AuditPage,
    AuditQuery,
    AuditsQuery,
    Isolation,
    ProofWanted,
    TenantAudit,
)
from tenantry.api.schemas.common import dumps, json_response
from tenantry.api.services import Injected, Services
from tenantry.api.tenant_list import owners_of, runtimes_of
from tenantry.http.problems import no_such_tenant

_TAG = "audit"

routes, isolation_routes = Routes(_TAG), Routes("isolation")


@routes("GET /audit", "Audit tenants", AuditPage, errors=(400, 422), paged=True)
async def audit_tenants(
    services: Injected, request: Request, query: Annotated[AuditsQuery, Query()]
) -> Response:
    """Compare tenants' counts with their rows, dead letters and queues, by id.

    Each tenant is read in one snapshot, while messages pour in. Counting very many rows takes
    long: a page may then be shorter than `limit`, and the next one continues.
    """
    cursors = services.cursors
    after = None if query.cursor is None else cursors.open(query.cursor, _TAG).decode()

    def read() -> tuple[AuditPage, str | None]:
        found = services.directory.page(after=after, limit=query.limit + 1)
        wanted = [state.tenant_id for state in found[: query.limit]]
        audits = services.auditor.audit(wanted, quick=query.quick)
        last = audits[-1].tenant_id if audits else ""
        done = [one for one in wanted if one <= last] if audits else wanted
        end = None
        if done and len(found) > len(done):
            end = cursors.seal(done[-1].encode(), _TAG)
        page = AuditPage(
            balanced=all(one.balanced for one in audits),
            data=[TenantAudit.of(one) for one in audits],
            next_cursor=end,
        )
        return page, end

    page, end = await services.pools.audits.run(read)
    await _ask_owners(services, request, page.data)
    return json_response(dumps(page), headers=link_header(request, end))


async def _ask_owners(services: Services, request: Request, audits: list[TenantAudit]) -> None:
    """Add the messages that tenants of other nodes have in flight; null if a node is silent."""
    asked = {one.tenant_id: one for one in audits if one.in_flight is None}
    if not asked or services.peers is None:
        return
    ids = list(asked)
    owners = await services.pools.reads.run(owners_of, services, ids)
    told = await runtimes_of(services, request.scope, ids, owners)
    for tenant_id, runtime in told.runtimes.items():
        if runtime is not None:
            asked[tenant_id].in_flight = runtime.unsettled
            asked[tenant_id].accepted += runtime.unsettled


@routes("GET /tenants/{tenant_id}/audit", "Audit a tenant", TenantAudit, errors=(404, 422))
async def audit_tenant(
    services: Injected, tenant_id: str, who: Who, query: Annotated[AuditQuery, Query()]
) -> Response:
    """Compare a tenant's counts with its rows, dead letters and queues."""

    def read() -> bytes:
        services.lookup.readable(tenant_id, who)
        audits = services.auditor.audit([tenant_id], quick=query.quick)
        if not audits:
            raise no_such_tenant()
        return dumps(TenantAudit.of(audits[0]))

    return json_response(await services.pools.audits.run(read))


@isolation_routes("POST /isolation", "Prove the tenants' isolation", Isolation, errors=(404,))
async def prove_isolation(
    services: Injected, wanted: ProofWanted, caller: Caller, who: Who
) -> Response:
    """Try, in each tenant's place, to reach its own resources and those of others.

    No password is needed or changed: a user and a role are made with the same rights as the
    tenant's, and removed afterwards. Among very many tenants each is tried on twenty others.
    Nothing is left behind; the outcome is journalled.
    """

    def run() -> bytes:
        for tenant_id in wanted.tenants or ():
            services.lookup.existing(tenant_id, who)
        report = services.prover.prove(wanted.tenants, broker=wanted.broker, metadata=caller)
        return dumps(Isolation.of(report))

    return json_response(await services.pools.proofs.run(run))
