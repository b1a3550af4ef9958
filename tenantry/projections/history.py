"""A tenant as it was: its state folded up to a version or a time."""

from __future__ import annotations

from datetime import datetime
from itertools import takewhile

from tenantry.domain import names
from tenantry.domain.tenant import TenantState, fold
from tenantry.journal.port import EventStore
from tenantry.journal.tenants import snapshot_state, tenant_events


def as_of_version(store: EventStore, tenant_id: str, version: int) -> TenantState | None:
    """See `TenantDirectory.as_of_version`."""
    if version < 1:
        return None
    state = snapshot_state(store, tenant_id, up_to=version)
    after = 0 if state is None else state.version
    if after < version:
        stream = names.journal_stream(tenant_id)
        recorded = store.read_stream(stream, after=after, limit=version - after)
        state = fold(tenant_events(recorded), state)
    return state if state is not None and state.version == version else None


def as_of_time(store: EventStore, tenant_id: str, at: datetime) -> TenantState | None:
    """See `TenantDirectory.as_of_time`. Raises `ValueError` for a time without a zone."""
    if at.tzinfo is None:
        raise ValueError("a time without a zone names no moment")
    recorded = store.read_stream(names.journal_stream(tenant_id))
    return fold(tenant_events(takewhile(lambda one: one.recorded_at <= at, recorded)))
