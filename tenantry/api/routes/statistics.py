"""Statistics of one tenant."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tenantry.api.openapi import Routes
from tenantry.api.routing import Who
from tenantry.api.schemas.common import dumps, json_response
from tenantry.api.schemas.statistics import StatisticsQuery, TenantStatistics
from tenantry.api.services import Injected

routes = Routes("tenants")


@routes(
    "GET /tenants/{tenant_id}/stats", "Show a tenant's statistics", TenantStatistics,
    errors=(404, 422),
)  # fmt: skip
async def show_statistics(
    services: Injected, tenant_id: str, who: Who, query: Annotated[StatisticsQuery, Query()]
) -> Response:
    """Show what became of a tenant's messages over time: rates, latency, backlog.

    They are kept for a day by minutes, and for a week by hours, over restarts and moves.
    """

    def read() -> bytes:
        services.lookup.existing(tenant_id, who)
        series = services.statistics.series(tenant_id, query.window)
        return dumps(TenantStatistics.of(tenant_id, series))

    return json_response(await services.pools.reads.run(read))
