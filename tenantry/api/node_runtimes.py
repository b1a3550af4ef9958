"""The runtime state of tenants on all nodes, which are asked in parallel."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from starlette.types import Scope

from tenantry.api.peers import Peers
from tenantry.api.schemas.common import MAX_LIST
from tenantry.api.schemas.daemon import runtime_of
from tenantry.control.port import Control, TenantRuntime
from tenantry.nodes.port import Cluster, Owned


@dataclass(slots=True)
class Told:
    """The runtime state of tenants; that of tenants on `silent` nodes is missing."""

    runtimes: dict[str, TenantRuntime | None] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)

    def knows(self, owned: Owned | None) -> bool:
        """Tell whether a tenant without runtime state is not running, rather than unknown."""
        return owned is None or owned.node not in self.silent


async def runtimes_of(
    tenant_ids: Iterable[str],
    owners: Mapping[str, Owned],
    *,
    control: Control,
    cluster: Cluster,
    peers: Peers | None,
    scope: Scope,
) -> Told:
    """Ask all nodes for the runtime state of tenants, in the name of a request's caller."""
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
