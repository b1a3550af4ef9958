"""The read model of tenants in memory, beside the event store in memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime

from tenantry.domain import names
from tenantry.domain.tenant import TenantState, fold
from tenantry.journal.port import RecordedEvent
from tenantry.journal.tenants import TENANT_CATEGORY, tenant_events
from tenantry.projections import history
from tenantry.testing.journal import InMemoryEventStore


class InMemoryTenantProjection:
    """The tenants' states, brought forward by the store it is given to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, TenantState] = {}

    def apply(self, recorded: Sequence[RecordedEvent]) -> None:
        """Take up what has just been recorded, in order."""
        with self._lock:
            for one in recorded:
                if names.category(one.stream) == TENANT_CATEGORY:
                    key = one.event.tenant_id
                    state = fold(tenant_events([one]), self._states.get(key))
                    if state is not None:
                        self._states[key] = state

    def states(self) -> dict[str, TenantState]:
        """Give every tenant's state by id, deleted ones too."""
        with self._lock:
            return dict(self._states)


class InMemoryTenantDirectory:
    """A directory (`tenantry.projections.port.TenantDirectory`) of tenants in memory."""

    def __init__(self, store: InMemoryEventStore, projection: InMemoryTenantProjection) -> None:
        self._store = store
        self._projection = projection

    def get(self, tenant_id: str) -> TenantState | None:
        """See `TenantDirectory.get`."""
        return self._projection.states().get(tenant_id)

    def page(self, *, after: str | None = None, limit: int = 50) -> list[TenantState]:
        """See `TenantDirectory.page`."""
        existing = sorted(
            (one for one in self._projection.states().values() if one.exists),
            key=lambda one: one.tenant_id,
        )
        return [one for one in existing if after is None or one.tenant_id > after][:limit]

    def as_of_version(self, tenant_id: str, version: int) -> TenantState | None:
        """See `TenantDirectory.as_of_version`."""
        return history.as_of_version(self._store, tenant_id, version)

    def as_of_time(self, tenant_id: str, at: datetime) -> TenantState | None:
        """See `TenantDirectory.as_of_time`."""
        return history.as_of_time(self._store, tenant_id, at)
