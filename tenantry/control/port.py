"""The one way from the API to the running system: commands in, states out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from tenantry.broker.port import Credentials
from tenantry.domain.commands import OperatorCommand
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.journal.port import Metadata
from tenantry.messages.sql_access import SqlCredentials
from tenantry.nodes.port import Glance


class ControlError(Exception):
    """The running system did not carry out a command."""


class ControlUnavailableError(ControlError):
    """The system takes no commands now (starting, draining, or a backend is away): try later."""


class ElsewhereError(ControlUnavailableError):
    """Another node owns the tenant or is about to, or this node is just starting: ask again."""


class CommandFailedError(ControlError):
    """A step failed; half-made objects have been undone, or will be at the next start."""


class CommandTimeoutError(ControlError):
    """No answer in time; the command may still be carried out."""


class SystemState(StrEnum):
    """How the daemon as a whole is."""

    STARTING = "starting"
    STANDBY = "standby"
    RUNNING = "running"
    DRAINING = "draining"
    DRAINED = "drained"
    STOPPING = "stopping"


class Role(StrEnum):
    """The daemon's role among those on the same database: the leader acts, a standby waits."""

    LEADER = "leader"
    STANDBY = "standby"


@dataclass(frozen=True, slots=True, kw_only=True)
class TermStatus:
    """The term as this daemon knows it: its number, its holder, and since when."""

    number: int
    host: str
    pid: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStatus:
    """One actor of the tree: `kind` is its class, `state` a word, `mailbox` its depth.

    An actor that hangs and is about to be replaced is `stuck`.
    """

    name: str
    kind: str
    state: str
    mailbox: int
    restarts: int
    children: tuple[ActorStatus, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRuntime:
    """What a tenant's actors are doing. Totals count since the tenant's creation.

    `unsettled` counts deliveries taken from the broker and not yet acknowledged, `held` those of
    them that wait for another attempt; `rate` is messages settled a second, over the last ten;
    `pending` is the broker's own count of waiting messages, None while unknown. `parked` is why the
    tenant was parked; `parked_at` since when, where that is recorded. `trouble` is the tenant's
    other trouble: why its queues are not consumed, or which drift can't be repaired. `lifecycle` is
    None until the tenant's events, and with them its totals, have been read; so is `incarnation`.
    `latency_p99_ms` is of the last full minute, None if nothing was stored in it; `rate_limit` and
    `backlog_limit` (messages) are of its limits, None without a limit.
    """

    tenant_id: str
    workers_current: int
    consuming: bool
    unsettled: int
    rate: float
    pending: int | None
    stored: int
    duplicates: int
    dead_lettered: int
    parked: str | None
    held: int = 0
    trouble: str | None = None
    lifecycle: Lifecycle | None = None
    incarnation: int | None = None
    parked_at: datetime | None = None
    latency_p99_ms: float | None = None
    rate_limit: int | None = None
    backlog_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """The state of the system, and the reasons why it is not ready; empty if it is."""

    state: SystemState
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemStatus:
    """The daemon at a glance; `reasons` says why it is not ready, when it is not.

    `abandoned` names replaced actors whose threads still hang. `node` is this daemon's name among
    the `nodes`, as last seen; `tenants` are its own.
    """

    state: SystemState
    ready: bool
    reasons: tuple[str, ...]
    started_at: datetime
    version: str
    pid: int
    tree: ActorStatus
    abandoned: tuple[str, ...] = ()
    role: Role = Role.LEADER
    term: TermStatus | None = None
    node: str | None = None
    nodes: Sequence[Glance] = ()
    tenants: Mapping[str, TenantRuntime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A command's effect. `credentials` come with creation and rotation, once.

    So do `sql_credentials` with a grant of SQL access.
    """

    tenant: TenantState
    runtime: TenantRuntime | None = None
    credentials: Credentials | None = None
    sql_credentials: SqlCredentials | None = None


class Control(Protocol):
    """The running system, as commands and questions. Callable from any thread."""

    def execute(self, command: OperatorCommand, *, metadata: Metadata, timeout: float) -> Outcome:
        """Carry out a tenant command; when it returns, the effect is in force.

        Raises `DomainError` (refused), `ControlUnavailableError`, `CommandFailedError`,
        `CommandTimeoutError`.
        """

    def status(self) -> SystemStatus:
        """Return the status of the whole system, without waiting for any actor."""

    def readiness(self) -> Readiness:
        """Return the state and the reasons of `status`, at a cost independent of tenants."""

    def runtime(self, tenant_id: str) -> TenantRuntime | None:
        """Return what one tenant's actors are doing, without waiting; None if it has none."""

    def runtimes(self) -> Mapping[str, TenantRuntime]:
        """Return only the `tenants` of `status`: what all tenants' actors are doing, by id."""

    def liveness(self) -> tuple[str, ...]:
        """Return why the daemon can't go on and has to be restarted; empty while it can.

        A hanging actor does not count while its parent can replace it. Never waits.
        """

    def ping(self) -> Future[None]:
        """Ping the root of the actors; the future is set when the root handles that.

        Never waits. Raises `ControlUnavailableError` if the root is dead.
        """

    def drain(self) -> None:
        """Begin to stop consuming but stay up; `status` tells when it is done."""

    def stop(self) -> None:
        """Begin a graceful shutdown of the daemon."""
