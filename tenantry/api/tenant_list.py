"""Lists of tenants that are searched, or sorted by what their actors do, page by page.

A page begins at the count at which the previous one ended: a tenant that has moved past that place
meanwhile is shown twice, or not at all. What runs of tenants is asked of all nodes in parallel.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from starlette.types import Scope

from tenantry.api.peers import Peers
from tenantry.api.schemas.common import MAX_LIST
from tenantry.api.schemas.daemon import runtime_of
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


@dataclass(slots=True)
class Told:
    """The runtime state of tenants; that of tenants on `silent` nodes is missing."""

    runtimes: dict[str, TenantRuntime | None] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)

    def knows(self, owned: Owned | None) -> bool:
        """Tell whether a tenant without runtime state is not running, rather than unknown."""
        return owned is None or owned.node not in self.silent


async def runtimes_of(
    services: Services, scope: Scope, tenant_ids: Iterable[str], owners: Mapping[str, Owned]
) -> Told:
    """Ask all nodes for the runtime state of tenants, in the name of a request's caller."""
    control, cluster, peers = services.control, services.cluster, services.peers
    told = Told()
    away: dict[str, list[str]] = defaultdict(list)
    for one in tenant_ids:
        owned = owners.get(one)
        node = None if owned is None else owned.node
        if node is None or node == cluster.name or one in cluster.owned:
            told.runtimes[one] = control.runtime(one)
        else:
            away[node].append(one)
    if peers is None:
        told.silent = sorted(away)
        return told
    asked = [
        (node, ids[start : start + MAX_LIST])
        for node, ids in away.items()
        for start in range(0, len(ids), MAX_LIST)
    ]
    answers = await asyncio.gather(*(_ask(peers, node, ids, scope) for node, ids in asked))
    silent = set()
    for (node, _), answer in zip(asked, answers, strict=True):
        if answer is None:
            silent.add(node)
        else:
            told.runtimes.update(answer)
    told.silent = sorted(silent)
    return told


async def _ask(
    peers: Peers, node: str, tenant_ids: Collection[str], scope: Scope
) -> dict[str, TenantRuntime] | None:
    answer = await peers.ask(node, scope, "POST", "/runtime", {"tenants": list(tenant_ids)})
    try:
        return None if answer is None else {k: runtime_of(v) for k, v in answer["data"].items()}
    except (ValueError, KeyError, TypeError):  # the node runs another version
        return None


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
    told = await runtimes_of(services, scope, [one.tenant_id for one in page], owners)
    return Part(states=page, owners=owners, told=told, more=len(states) > limit)


async def sorted_by(services: Services, scope: Scope, query: TenantsQuery, begin: int) -> Part:
    """Give the tenants that match, in the given order, from an offset on."""
    run = services.pools.reads.run
    key, descending = query.sort.removeprefix("-"), query.sort.startswith("-")
    found = await run(services.directory.search, query.search)
    known: Told | None = None
    if key in FIGURES:
        ids = [one.tenant_id for one in found]
        known = await runtimes_of(services, scope, ids, await run(owners_of, services, ids))
        found.sort(key=_by_figure(FIGURES[key], known.runtimes), reverse=descending)
    else:
        found.sort(key=_FACTS[key], reverse=descending)
    page = [one.tenant_id for one in found[begin : begin + query.limit]]
    states = await run(services.directory.several, page)
    owners = await run(owners_of, services, page)
    if known is None:
        known = await runtimes_of(services, scope, page, owners)
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
