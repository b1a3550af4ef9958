"""What may be asked of a tenant. A command is a wish: `decide` answers with events or refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTenant:
    """Bring a tenant to life. `workers` is 1 to 64, `partitions` (per topic) 1 to 64."""

    tenant_id: str
    name: str
    workers: int
    topics: tuple[str, ...] = ()
    partitions: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmProvisioned:
    """Record that the tenant's exchange, queues, user and partition exist."""

    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonProvisioning:
    """Record that provisioning failed and that what was made has been undone."""

    tenant_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeWorkers:
    """Set how many workers may store the tenant's messages at once, 1 to 64."""

    tenant_id: str
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseTenant:
    """Stop consuming; messages wait in the queues."""

    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkTenant:
    """Stop consuming because the tenant's actors keep failing; `reason` says why."""

    tenant_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeTenant:
    """Consume again after a pause, or revive a parked tenant."""

    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateCredentials:
    """Replace the password of the tenant's broker user."""

    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantSqlAccess:
    """Give the tenant a database role that reads its rows, or that role a new password."""

    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeSqlAccess:
    """Take the tenant's database role away."""

    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddTopics:
    """Give the tenant more topics; those it has already are left as they are."""

    tenant_id: str
    topics: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDeletion:
    """Begin to delete the tenant. With `retain`, its stored messages stay readable."""

    tenant_id: str
    retain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmDeleted:
    """Record that everything of the tenant is gone.

    `queued` counts the messages dropped with its queues, `stored` those with its partition.
    """

    tenant_id: str
    queued: int
    stored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRepaired:
    """Record that what had drifted outside was made right; also of a tenant that is deleted."""

    tenant_id: str
    kinds: tuple[str, ...]
    found: tuple[str, ...]


OperatorCommand: TypeAlias = (
    CreateTenant
    | ResizeWorkers
    | PauseTenant
    | ResumeTenant
    | RotateCredentials
    | GrantSqlAccess
    | RevokeSqlAccess
    | AddTopics
    | RequestDeletion
)
"""What the API asks for; the tenant's actor carries each out (`actors/tenant.py`)."""

Command: TypeAlias = (
    OperatorCommand
    | ConfirmProvisioned
    | AbandonProvisioning
    | ParkTenant
    | ConfirmDeleted
    | ConfirmRepaired
)
