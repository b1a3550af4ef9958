"""All tenants together: the figures of each node's actors, added up."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

from starlette.types import Scope

from tenantry.api.schemas.daemon import Overview
from tenantry.api.services import Services
from tenantry.control.port import TenantRuntime
from tenantry.domain.tenant import Lifecycle
from tenantry.http.auth import HANDED_ON
from tenantry.nodes.port import NodeState
from tenantry.unavailable import UnavailableError

_SUMS: Final = ("rate", "pending", "unsettled", "stored", "duplicates", "dead_lettered")
_ASKED: Final = frozenset({NodeState.ACTIVE, NodeState.DRAINING})


async def overview(services: Services, scope: Scope) -> Overview:
    """Add up the tenants of all nodes; answer another node with this node's alone."""
    own = await services.pools.reads.run(_own, services)
    if any(name == HANDED_ON for name, _ in scope["headers"]):
        return own
    cluster, peers = services.cluster, services.peers
    others = [
        one.name for one in cluster.glance() if one.name != cluster.name and one.state in _ASKED
    ]
    if peers is None:
        return own.model_copy(update={"silent_nodes": others})
    answers = await asyncio.gather(*(peers.ask(one, scope, "GET", "/overview") for one in others))
    parts = {node: _read(answer) for node, answer in zip(others, answers, strict=True)}
    silent = sorted(node for node, part in parts.items() if part is None)
    return _sum([own, *(part for part in parts.values() if part is not None)], silent)


def _own(services: Services) -> Overview:
    tenants = services.control.runtimes()
    states = Counter(one.lifecycle or Lifecycle.PROVISIONING for one in tenants.values())
    try:
        dead_letters = sum(services.dead_letters.counts(list(tenants)).values())
    except UnavailableError:
        dead_letters = None
    return Overview(
        tenants=len(tenants),
        states={state.value: count for state, count in sorted(states.items())},
        troubled=sum(_is_troubled(one) for one in tenants.values()),
        **{name: sum(getattr(one, name) or 0 for one in tenants.values()) for name in _SUMS},
        dead_letters=dead_letters,
        silent_nodes=[],
    )


def _is_troubled(one: TenantRuntime) -> bool:
    return one.parked is not None or one.trouble is not None


def _read(answer: Any) -> Overview | None:
    try:
        return None if answer is None else Overview.model_validate(answer)
    except ValueError:  # the node runs another version
        return None


def _sum(parts: list[Overview], silent: list[str]) -> Overview:
    states: Counter[str] = Counter()
    for one in parts:
        states.update(one.states)
    listed = [one.dead_letters for one in parts if one.dead_letters is not None]
    return Overview(
        tenants=sum(one.tenants for one in parts),
        states=dict(sorted(states.items())),
        troubled=sum(one.troubled for one in parts),
        **{name: sum(getattr(one, name) for one in parts) for name in _SUMS},
        dead_letters=sum(listed) if len(listed) == len(parts) else None,
        silent_nodes=silent,
    )
