"""Lists of tenants that are searched, or sorted by what their actors do, page by page.

A page begins at the count at which the previous one ended: a tenant that has moved past that place
meanwhile is shown twice, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.types import Scope

from tenantry.api.node_runtimes import Told, runtimes_of
from tenantry.api.schemas.tenants import TenantsQuery
from tenantry.api.services import Services
from tenantry.control.port import TenantRuntime
from tenantry.domain.tenant import TenantState
from tenantry.nodes.port import Owned
from tenantry.projections.port import Found

FIGURES: Final[Mapping[str, Callable[[TenantRuntime], float]]] = {
    "rate": lambda one: one.rate,
    "pending": lambda one: one.pending or 0,
    "dead_lettered": lambda one: one.dead_lettered,
}
"""Sort keys that only the actors know."""

_FACTS: Final[Mapping[str, Callable[[Found], str]]] = {
    "id": lambda one: one.tenant_id,
    "name": lambda one: one.name.lower(),
    "state": lambda one: one.lifecycle,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A page of the list: states, owners and runtimes, and whether others follow."""

    states: Sequence[TenantState]
    owners: Mapping[str, Owned]
    told: Told
    more: bool


async def by_id(services: Services, scope: Scope, after: str | None, limit: int) -> Part:
    """Give existing tenants after an id."""

    def read() -> tuple[list[TenantState], Mapping[str, Owned]]:
        states = services.directory.page(after=after, limit=limit + 1)
        return states, owners_of(services, [one.tenant_id for one in states[:limit]])

    states, owners = await services.pools.reads.run(read)
    page = states[:limit]
    told = await told_of(services, scope, [one.tenant_id for one in page], owners)
    return Part(states=page, owners=owners, told=told, more=len(states) > limit)


async def sorted_by(services: Services, scope: Scope, query: TenantsQuery, begin: int) -> Part:
    """Give the tenants that match, in the given order, from an offset on."""
    run = services.pools.reads.run
    key, descending = query.sort.removeprefix("-"), query.sort.startswith("-")
    found = await run(services.directory.search, query.search)
    known: Told | None = None
    if key in FIGURES:
        ids = [one.tenant_id for one in found]
        known = await told_of(services, scope, ids, await run(owners_of, services, ids))
        found.sort(key=_by_figure(FIGURES[key], known.runtimes), reverse=descending)
    else:
        found.sort(key=_FACTS[key], reverse=descending)
    page = [one.tenant_id for one in found[begin : begin + query.limit]]
    states = await run(services.directory.several, page)
    owners = await run(owners_of, services, page)
    if known is None:
        known = await told_of(services, scope, page, owners)
    more = len(found) > begin + query.limit
    return Part(states=states, owners=owners, told=known, more=more)


def _by_figure(
    figure: Callable[[TenantRuntime], float], runtimes: Mapping[str, TenantRuntime | None]
) -> Callable[[Found], float]:
    def key(one: Found) -> float:
        runtime = runtimes.get(one.tenant_id)
        return -1.0 if runtime is None else figure(runtime)

    return key


def owners_of(services: Services, tenant_ids: Sequence[str]) -> Mapping[str, Owned]:
    """Return the owners of tenants; tenants without an owner are left out."""
    return services.cluster.owners(tenant_ids) if tenant_ids else {}


async def told_of(
    services: Services, scope: Scope, tenant_ids: Sequence[str], owners: Mapping[str, Owned]
) -> Told:
    """Ask the nodes for the runtime state of tenants."""
    return await runtimes_of(
        tenant_ids,
        owners,
        control=services.control,
        cluster=services.cluster,
        peers=services.peers,
        scope=scope,
    )
