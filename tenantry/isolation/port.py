"""What a proof of isolation stands on: users and roles that take a tenant's place for a while."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from tenantry.isolation.checks import IsolationReport
from tenantry.journal.port import Metadata
from tenantry.messages.sql_access import SqlCredentials


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestProof:
    """The outcome of the latest proof of all tenants; `at` is seconds since 1970."""

    failures: int
    unjudged: int
    at: float


class DatabaseProbes(Protocol):
    """Makes roles that may in the database what a tenant's role for SQL really may.

    Every call may raise `StoreUnavailableError` and `MessageStoreError`.
    """

    def available(self) -> bool:
        """Tell whether roles can be made; where not, no tenant can read with SQL either."""

    def sweep(self) -> None:
        """Remove what a daemon that died has left."""

    def probe(self, tenant_id: str) -> AbstractContextManager[SqlCredentials]:
        """Make such a role, and remove it at the end."""

    def open(self) -> Sequence[str]:
        """Say what the database leaves open to every role, each with its remedy."""

    def excess(self, tenant_id: str) -> Sequence[str]:
        """Name the rights that the tenant's own role has and should not; none without a role."""


class Prover(Protocol):
    """Proves that no tenant reaches another."""

    def prove(
        self, tenant_ids: Sequence[str] | None = None, *, broker: bool = True, metadata: Metadata
    ) -> IsolationReport:
        """Examine tenants (all, with None) and journal the outcome.

        Who can't be judged is named in the report. Raises `JournalUnavailableError`.
        """
