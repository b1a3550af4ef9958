"""Moves a tenant at an operator's request: sets the wanted node, and waits for the hand-over."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import Scope

from tenantry.api.schemas.tenants import Tenant
from tenantry.api.services import Services
from tenantry.api.tenant_list import runtimes_of
from tenantry.control.port import CommandTimeoutError, TenantRuntime
from tenantry.domain import names
from tenantry.domain.events import TenantMoveRequested
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.http.tokens import Principal
from tenantry.journal.port import ANY, Metadata
from tenantry.nodes.port import Owned

LOOK_EVERY: Final = 0.1


class Move:
    """One request to move a tenant."""

    def __init__(self, services: Services, scope: Scope) -> None:
        self._services = services
        self._scope = scope

    async def run(
        self, tenant_id: str, node: str | None, who: Principal, caller: Metadata
    ) -> Tenant:
        """Set the wanted node, which is journalled, and wait. Raises as `Cluster.want` does.

        Raises `CommandTimeoutError` if the hand-over takes longer than a command may; it goes on.
        """
        services = self._services

        def wish() -> TenantState:
            state = services.lookup.existing(tenant_id, who)
            services.cluster.want(tenant_id, node)
            event = TenantMoveRequested(tenant_id=tenant_id, node=node or "")
            stream = names.placement_journal_stream(tenant_id)
            services.journal.append(stream, [event], expected=ANY, metadata=caller)
            return state

        state = await services.pools.commands.run(wish)
        try:
            async with asyncio.timeout(services.command_timeout):
                while True:
                    owned, runtime, known = await self._look(tenant_id)
                    if node is None or self._is_there(state, owned, runtime, node):
                        return Tenant.of(state, runtime, owned, known=known)
                    await asyncio.sleep(LOOK_EVERY)
                    state = await services.pools.reads.run(services.lookup.existing, tenant_id, who)
        except TimeoutError:
            raise CommandTimeoutError(
                f"tenant {tenant_id!r} is wanted on node {node!r} and not at work there yet"
            ) from None

    async def _look(self, tenant_id: str) -> tuple[Owned | None, TenantRuntime | None, bool]:
        services = self._services
        owners = await services.pools.reads.run(services.cluster.owners, [tenant_id])
        told = await runtimes_of(services, self._scope, [tenant_id], owners)
        owned = owners.get(tenant_id)
        return owned, told.runtimes.get(tenant_id), told.knows(owned)

    @staticmethod
    def _is_there(
        state: TenantState, owned: Owned | None, runtime: TenantRuntime | None, node: str
    ) -> bool:
        if owned is None or owned.node != node or runtime is None:
            return False
        at_rest = state.lifecycle is not Lifecycle.ACTIVE or runtime.parked or runtime.trouble
        return runtime.consuming or bool(at_rest)
