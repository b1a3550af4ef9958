"""What a proof of isolation consists of: attempts, and whether each went as it should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from tenantry.tenant_client.access import TenantNames
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


class Notes:
    """The checks of one tenant on the objects of one owner."""

    def __init__(self, mine: TenantNames, owner: TenantNames) -> None:
        self._mine = mine
        self._owner = owner
        self.checks: list[Check] = []

    def note(
        self, action: Action, target: str, verdict: AttemptResult, *, forbidden: bool = False
    ) -> bool:
        """Note an attempt; tell whether it was refused."""
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
