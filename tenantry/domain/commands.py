"""The commands to a tenant, and the errors that refuse them.

A command is a request: `decide` answers with events, or raises an error that names the problem and
the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tenantry.domain.topics import Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class ForTenant:
    """The base of all commands: the id of the tenant it is for."""

    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTenant(ForTenant):
    """Create a tenant. `workers` is 1 to 64, `partitions` (per topic) 1 to 64.

    A topic given by its name alone has this number of partitions, and no order.
    """

    name: str
    workers: int
    topics: tuple[str | Topic, ...] = ()
    partitions: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmProvisioned(ForTenant):
    """Record that the tenant's exchange, queues, user and partition exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonProvisioning(ForTenant):
    """Record that provisioning failed and has been undone."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeWorkers(ForTenant):
    """Set how many workers may store the tenant's messages at once, 1 to 64.

    `reason` says why the daemon itself resizes; it is empty for an operator's command.
    """

    workers: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeLimits(ForTenant):
    """Change some of the tenant's limits: new values by the names of `Limits`; None lifts one."""

    changes: Mapping[str, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseTenant(ForTenant):
    """Stop consuming; messages wait in the queues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkTenant(ForTenant):
    """Stop consuming because the tenant's actors keep failing; `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeTenant(ForTenant):
    """Consume again after a pause, or revive a parked tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateCredentials(ForTenant):
    """Replace the password of the tenant's broker user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantSqlAccess(ForTenant):
    """Give the tenant a database role that reads its rows, or that role a new password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeSqlAccess(ForTenant):
    """Take the tenant's database role away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantConsumerAccess(ForTenant):
    """Give the tenant a user that reads its topics, or that user a new password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeConsumerAccess(ForTenant):
    """Take away the user that reads the tenant's topics, and the messages that wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddTopics(ForTenant):
    """Give the tenant more topics; existing topics are left as they are.

    Settings given for an existing topic must equal its present ones: a topic never changes.
    """

    topics: tuple[str | Topic, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDeletion(ForTenant):
    """Begin to delete the tenant. With `retain`, its stored messages stay readable."""

    retain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmDeleted(ForTenant):
    """Record that all objects of the tenant are gone.

    `queued` counts the messages dropped with its queues, `stored` those with its partition.
    """

    queued: int
    stored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRepaired(ForTenant):
    """Record that drift was repaired; also for a deleted tenant."""

    kinds: tuple[str, ...]
    found: tuple[str, ...]


OperatorCommand: TypeAlias = (
    CreateTenant
    | ResizeWorkers
    | ChangeLimits
    | PauseTenant
    | ResumeTenant
    | RotateCredentials
    | GrantSqlAccess
    | RevokeSqlAccess
    | GrantConsumerAccess
    | RevokeConsumerAccess
    | AddTopics
    | RequestDeletion
)
"""The commands of the API; the tenant's actor carries each out (`actors/tenant.py`)."""

Command: TypeAlias = (
    OperatorCommand
    | ConfirmProvisioned
    | AbandonProvisioning
    | ParkTenant
    | ConfirmDeleted
    | ConfirmRepaired
)


class DomainError(Exception):
    """A command was refused; nothing has changed."""


class TenantNotFoundError(DomainError):
    """No such tenant, or it has been deleted."""

    def __init__(self, tenant_id: str) -> None:
        super().__init__(f"there is no tenant {tenant_id!r}")


class TenantExistsError(DomainError):
    """The id is taken."""

    def __init__(self, tenant_id: str) -> None:
        super().__init__(f"tenant {tenant_id!r} exists already; choose another id")


class InvalidCommandError(DomainError):
    """A field of the command is out of its range."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class WrongStateError(DomainError):
    """The tenant's state does not allow the command."""

    def __init__(self, tenant_id: str, state: str, wanted: str) -> None:
        super().__init__(f"tenant {tenant_id!r} is {state} and can't {wanted} now")
        self.state = state
