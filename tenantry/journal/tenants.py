"""A tenant's present state from the journal: the latest snapshot and the events after it."""

from __future__ import annotations

from typing import Final

from tenantry.domain import names
from tenantry.domain.tenant import TenantState, fold
from tenantry.journal.codec import (
    STATE_SCHEMA,
    MalformedEventError,
    decode_base,
    decode_state,
    encode_state,
    tenant_events,
)
from tenantry.journal.port import EventsArchivedError, EventStore, Snapshot

TENANT_CATEGORY: Final = names.category(names.journal_stream("any"))
"""The category of the streams that hold tenants' lives."""


def load_tenant(store: EventStore, tenant_id: str) -> TenantState | None:
    """Fold the state of a tenant, even a deleted one; None if there never was one.

    Raises `JournalUnavailableError`, `JournalError`.
    """
    state = snapshot_state(store, tenant_id)
    stream = names.journal_stream(tenant_id)
    try:
        tail = store.read_stream(stream, after=0 if state is None else state.version)
    except EventsArchivedError:
        # The snapshot is missing, or in another shape: fold the kept events onto the base.
        state = base_state(store, tenant_id)
        tail = store.read_stream(stream, after=0 if state is None else state.version)
    return fold(tenant_events(tail), state)


def base_state(store: EventStore, tenant_id: str) -> TenantState | None:
    """Return the base state of a tenant's archived events; None where none are archived.

    Raises `JournalUnavailableError`, `JournalError`.
    """
    stream = names.journal_stream(tenant_id)
    base = store.load_base(stream)
    if base is None:
        return None
    return decode_base(base.schema_version, base.data, stream=stream, version=base.version)


def snapshot_state(
    store: EventStore, tenant_id: str, *, up_to: int | None = None
) -> TenantState | None:
    """Return the state in a tenant's snapshot, if of the present shape and at most at `up_to`."""
    snapshot = store.load_snapshot(names.journal_stream(tenant_id))
    if snapshot is None or snapshot.schema_version != STATE_SCHEMA:
        return None
    if up_to is not None and snapshot.version > up_to:
        return None
    try:
        state = decode_state(snapshot.data)
    except MalformedEventError:
        return None
    return state if state.version == snapshot.version else None


def snapshot_of(state: TenantState) -> Snapshot:
    """Make a snapshot of a tenant's state."""
    return Snapshot(
        stream=names.journal_stream(state.tenant_id),
        version=state.version,
        schema_version=STATE_SCHEMA,
        data=encode_state(state),
    )
