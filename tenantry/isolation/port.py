"""The port of proofs of isolation: attempts, their expected outcomes, and the probes they use.

Probes are users and roles that take a tenant's place for a while.
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
    """One attempt: `tenant_id` tried to `action` an object of `owner`.

    It should be `allowed` on the tenant's own objects, unless `forbidden`; never on another's.
    """

    tenant_id: str
    owner: str
    action: Action
    target: str
    allowed: bool
    forbidden: bool = False

    @property
    def expected(self) -> bool:
        """Whether the attempt should be allowed."""
        return self.tenant_id == self.owner and not self.forbidden

    @property
    def holds(self) -> bool:
        """Whether the outcome is the expected one."""
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
        """Record an attempt; return whether it was refused."""
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
    """All attempts; `unjudged` names the tenants that could not be judged, and why.

    `open` lists what the database leaves open to every role and the daemon can't close.
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
        """Whether every judged tenant reaches its own objects and nothing else."""
        return all(one.holds for one in self.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestProof:
    """The outcome of the latest proof of all tenants; `at` is seconds since 1970."""

    failures: int
    unjudged: int
    at: float


class DatabaseProbes(Protocol):
    """Makes roles with exactly the rights that a tenant's SQL role really has.

    Every call may raise `StoreUnavailableError` and `MessageStoreError`.
    """

    def available(self) -> bool:
        """Tell whether roles can be created; where not, no tenant can read with SQL either."""

    def sweep(self) -> None:
        """Remove the probes that a dead daemon has left."""

    def probe(self, tenant_id: str) -> AbstractContextManager[SqlCredentials]:
        """Create such a role, and remove it at the end."""

    def open(self) -> Sequence[str]:
        """List what the database leaves open to every role, each with its remedy."""

    def excess(self, tenant_id: str) -> Sequence[str]:
        """Name the rights that the tenant's own role should not have; none without a role."""


class Prover(Protocol):
    """Proves that no tenant reaches another."""

    def prove(
        self, tenant_ids: Sequence[str] | None = None, *, broker: bool = True, metadata: Metadata
    ) -> IsolationReport:
        """Examine tenants (all, with None) and journal the outcome.

        The report names tenants that can't be judged. Raises `JournalUnavailableError`.
        """
