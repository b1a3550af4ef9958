"""What the read model of tenants promises."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from tenantry.domain.tenant import TenantState


class Found(NamedTuple):
    """A tenant as a search finds it."""

    tenant_id: str
    name: str
    lifecycle: str


class TenantDirectory(Protocol):
    """The tenants as they are, and as they were.

    It is brought forward in the transaction that appends the events, so a caller that
    has seen a command answered sees its effect here. Raises `JournalUnavailableError`.
    """

    def get(self, tenant_id: str) -> TenantState | None:
        """Give a tenant's present state (deleted ones too), or None if there never was one."""

    def page(self, *, after: str | None = None, limit: int = 50) -> list[TenantState]:
        """List the tenants that exist, by id, from beyond the id `after`."""

    def search(self, text: str) -> list[Found]:
        """Find the tenants that exist with a text in their id or name, whatever its case; by id.

        An empty text is in all of them; others are of printable characters.
        """

    def several(self, tenant_ids: Sequence[str]) -> list[TenantState]:
        """Give the present states of tenants, in this order; who never was is left out."""

    def as_of_version(self, tenant_id: str, version: int) -> TenantState | None:
        """Give a tenant's state after its first `version` events, or None if it has fewer."""

    def as_of_time(self, tenant_id: str, at: datetime) -> TenantState | None:
        """Give a tenant's state at a time (with a zone), or None if it did not exist yet."""


def ordered_topics(directory: TenantDirectory, tenant_id: str) -> tuple[str, ...]:
    """Name the topics of a tenant whose partitions are kept in order. Raises as `get` does."""
    state = directory.get(tenant_id)
    return () if state is None else state.ordered
