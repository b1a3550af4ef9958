"""The port of the tenants' read model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from tenantry.domain.tenant import TenantState


class Found(NamedTuple):
    """A tenant in a search's result."""

    tenant_id: str
    name: str
    lifecycle: str


class TenantDirectory(Protocol):
    """The tenants as they are, and as they were.

    The directory is updated in the transaction that appends the events, so a caller that has the
    answer to a command sees its effect here. Raises `JournalUnavailableError`.
    """

    def get(self, tenant_id: str) -> TenantState | None:
        """Return the present state of a tenant, even a deleted one; None if it never existed."""

    def page(self, *, after: str | None = None, limit: int = 50) -> list[TenantState]:
        """List the existing tenants, by id, from beyond the id `after`."""

    def search(self, text: str) -> list[Found]:
        """Find the existing tenants with a text in their id or name, ignoring case; by id.

        An empty text matches all tenants; any other text has printable characters only.
        """

    def several(self, tenant_ids: Sequence[str]) -> list[TenantState]:
        """Return tenants' present states, in this order; ids that never existed are left out."""

    def as_of_version(self, tenant_id: str, version: int) -> TenantState | None:
        """Return a tenant's state after its first `version` events, or None if it has fewer."""

    def as_of_time(self, tenant_id: str, at: datetime) -> TenantState | None:
        """Return a tenant's state at a time (with a zone), or None if it did not exist yet."""


class LoopDirectory(Protocol):
    """The tenants as they are, for an event loop: `TenantDirectory.get` without a thread."""

    async def get(self, tenant_id: str) -> TenantState | None:
        """See `TenantDirectory.get`."""


def ordered_topics(directory: TenantDirectory, tenant_id: str) -> tuple[str, ...]:
    """Name a tenant's topics whose partitions are in order. Raises as `get` does."""
    state = directory.get(tenant_id)
    return () if state is None else state.ordered
