"""What the routes work with: the ports, what is made once for all requests, tenants looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tenantry.api.health import Health
from tenantry.api.idempotency import IdempotencyKeys
from tenantry.api.paging import Cursors
from tenantry.api.routing import checked_id
from tenantry.api.streams import Streams
from tenantry.api.tail import JournalTail
from tenantry.audit.auditor import Auditor
from tenantry.control.port import Control
from tenantry.dead_letters.port import DeadLetterIndex
from tenantry.dead_letters.replay import Reprocessing
from tenantry.domain.commands import WrongStateError
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.http.pool import Pool, Turns
from tenantry.http.problems import former_token, no_such_tenant
from tenantry.http.tokens import Principal
from tenantry.isolation.port import Prover
from tenantry.journal.port import EventStore
from tenantry.messages.port import MessageStore, Whose, whose
from tenantry.projections.port import TenantDirectory


class TenantLookup:
    """Finds the tenant that a request names. Each call blocks; `who` asks.

    Raises `Problem`: 404 where there is none, 401 for the token of a former tenant of the id.
    """

    def __init__(self, directory: TenantDirectory) -> None:
        self._directory = directory

    @staticmethod
    def admit(who: Principal, whose: Whose) -> None:
        """Let the tenant itself and admins pass; 401 for who was a former tenant of the id."""
        if who.is_former(whose.incarnation, whose.since):
            raise former_token()

    def known(self, tenant_id: str, who: Principal) -> TenantState:
        """Find a tenant that exists or has existed. Blocks; 401, 404."""
        state = self._directory.get(checked_id(tenant_id))
        if state is None:
            raise no_such_tenant()
        self.admit(who, whose(state))
        return state

    def existing(self, tenant_id: str, who: Principal) -> TenantState:
        """Find a tenant that exists. Blocks; 401, 404."""
        state = self.known(tenant_id, who)
        if not state.exists:
            raise no_such_tenant()
        return state

    def publishable(self, tenant_id: str, who: Principal) -> TenantState:
        """Find a tenant that takes messages. Blocks; 401, 404, 409."""
        state = self.existing(tenant_id, who)
        if state.lifecycle not in (Lifecycle.ACTIVE, Lifecycle.PAUSED):
            raise WrongStateError(tenant_id, state.lifecycle.value, "take messages")
        return state

    def readable(self, tenant_id: str, who: Principal) -> TenantState:
        """Find a tenant whose messages may be read: a deleted one if they were retained. Blocks."""
        state = self.known(tenant_id, who)
        if not (state.exists or state.retained):
            raise no_such_tenant()
        return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Threads for blocking calls, a kind each. `urgent` is for draining and stopping."""

    commands: Pool = field(default_factory=lambda: Pool(16))
    reads: Pool = field(default_factory=lambda: Pool(16))
    dead_letters: Pool = field(default_factory=lambda: Pool(4))
    audits: Pool = field(default_factory=lambda: Pool(2))
    proofs: Pool = field(default_factory=lambda: Pool(1))
    urgent: Pool = field(default_factory=lambda: Pool(2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything a route may use. Timeouts are in seconds."""

    control: Control
    directory: TenantDirectory
    lookup: TenantLookup
    journal: EventStore
    messages: MessageStore
    idempotency: IdempotencyKeys
    dead_letters: DeadLetterIndex
    reprocessing: Reprocessing
    info: Mapping[str, object]
    default_workers: Callable[[], int]
    command_timeout: float
    cursors: Cursors
    tail: JournalTail
    streams: Streams
    health: Health
    auditor: Auditor
    prover: Prover
    pools: Pools = field(default_factory=Pools)
    turns: Turns = field(default_factory=Turns)
