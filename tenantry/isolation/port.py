"""What a proof of isolation is: attempts, whether each went as it should, and what it stands on.

It stands on users and roles that take a tenant's place for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from tenantry.broker.port import TenantTopology
from tenantry.journal.port import Metadata
from tenantry.messages.sql_access import SqlCredentials
from tenantry.tenant_client.amqp import AttemptResult

Action: TypeAlias = Literal["write", "read", "configure"]

_VERBS: Final = {"write": "to write to", "read": "to read from", "configure": "to change"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One attempt: `tenant_id` tried to `action` what belongs to `owner`.

    What is one's own should be `allowed`, unless `forbidden`; what is another's never.
    """

    tenant_id: str
    owner: str
    action: Action
    target: str
    allowed: bool
    forbidden: bool = False

    @property
    def expected(self) -> bool:
        """Whether it should be allowed."""
        return self.tenant_id == self.owner and not self.forbidden

    @property
    def holds(self) -> bool:
        """Whether it went as it should."""
        return self.allowed == self.expected

    def __str__(self) -> str:
        said = "is allowed" if self.allowed else "is refused"
        verb = _VERBS[self.action]
        if self.tenant_id == self.owner:
            return f"tenant {self.tenant_id} {said} {verb} its own {self.target}"
        return f"tenant {self.tenant_id} {said} {verb} {self.target} of tenant {self.owner}"


class Findings:
    """The checks of one tenant on the objects of one owner."""

    def __init__(self, mine: TenantTopology, owner: TenantTopology) -> None:
        self._mine = mine
        self._owner = owner
        self.checks: list[Check] = []

    def record(
        self, action: Action, target: str, verdict: AttemptResult, *, forbidden: bool = False
    ) -> bool:
        """Record an attempt; tell whether it was refused."""
        allowed = verdict is AttemptResult.ALLOWED
        self.checks.append(
            Check(
                tenant_id=self._mine.tenant_id,
                owner=self._owner.tenant_id,
                action=action,
                target=target,
                allowed=allowed,
                forbidden=forbidden,
            )
        )
        return not allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationReport:
    """Every attempt that was made; `unjudged` says who could not be judged, and why.

    `open` is what the database leaves open to every role, and the daemon can't close.
    """

    checks: tuple[Check, ...]
    unjudged: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    @property
    def leaks(self) -> tuple[Check, ...]:
        """Attempts that succeeded and should not have."""
        return tuple(one for one in self.checks if not one.holds and one.allowed)

    @property
    def denials(self) -> tuple[Check, ...]:
        """Attempts on a tenant's own objects that were refused and should not have been."""
        return tuple(one for one in self.checks if not one.holds and not one.allowed)

    @property
    def holds(self) -> bool:
        """Whether every tenant reaches its own and nothing else, as far as that was judged."""
        return all(one.holds for one in self.checks)


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
