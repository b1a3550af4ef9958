"""What the routes use: the ports, objects shared by all requests, and the lookup of tenants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, TypeAlias

from tenantry.api.asyncapi_brokers import BrokerPlace
from tenantry.api.health import Health
from tenantry.api.idempotency import IdempotencyKeys
from tenantry.api.login_codes import LoginCodes
from tenantry.api.paging import Cursors
from tenantry.api.peers import Peers
from tenantry.api.routing import checked_id, held_by_app
from tenantry.api.streams import Streams
from tenantry.api.tail import JournalTail
from tenantry.audit.auditor import Auditor
from tenantry.broker.port import Publishing
from tenantry.control.port import Control
from tenantry.dead_letters.port import DeadLetterIndex
from tenantry.dead_letters.replay import Reprocessing
from tenantry.domain.commands import WrongStateError
from tenantry.domain.limits import DEFAULT_WEIGHT
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.http.identity import Identity
from tenantry.http.oidc import Logins
from tenantry.http.pool import Pool, Turns
from tenantry.http.problems import former_token, no_such_tenant
from tenantry.http.tokens import Principal
from tenantry.isolation.port import Prover
from tenantry.journal.parts import JournalParts
from tenantry.journal.port import EventStore
from tenantry.messages.port import MessageStore, PageReader, Whose, whose
from tenantry.metrics.page import Metrics
from tenantry.metrics.refusals import Refusals
from tenantry.metrics.statistics import Statistics
from tenantry.nodes.port import Cluster
from tenantry.projections.port import LoopDirectory, TenantDirectory
from tenantry.tracing import Tracer

COMMAND_SECONDS: Final = 30.0


class TenantLookup:
    """Finds the tenant that a request names. Each call blocks; `who` is the caller.

    Raises `Problem`: 404 if there is none, 401 for the token of a former tenant of the id.
    """

    def __init__(self, directory: TenantDirectory) -> None:
        self._directory = directory
        self._weights: dict[str, int] = {}

    def weight_of(self, tenant_id: str) -> float:
        """Give a tenant's weight as of its latest lookup; 1 before that."""
        return self._weights.get(tenant_id, DEFAULT_WEIGHT)

    @staticmethod
    def admit(who: Principal, whose: Whose) -> None:
        """Let the tenant itself and admins pass; 401 for a former tenant of the id."""
        if who.is_former(whose.incarnation, whose.since):
            raise former_token()

    def known(self, tenant_id: str, who: Principal) -> TenantState:
        """Find a tenant that exists or existed. Blocks; 401, 404."""
        return self._seen(tenant_id, who, self._directory.get(checked_id(tenant_id)))

    def _seen(self, tenant_id: str, who: Principal, state: TenantState | None) -> TenantState:
        if state is None:
            raise no_such_tenant()
        self.admit(who, whose(state))
        if state.limits.weight != self._weights.get(tenant_id, DEFAULT_WEIGHT):
            self._weights[tenant_id] = state.limits.weight
        return state

    def existing(self, tenant_id: str, who: Principal) -> TenantState:
        """Find a tenant that exists. Blocks; 401, 404."""
        state = self.known(tenant_id, who)
        if not state.exists:
            raise no_such_tenant()
        return state

    def publishable(self, tenant_id: str, who: Principal) -> TenantState:
        """Find a tenant that accepts messages. Blocks; 401, 404, 409."""
        return self._accepting(self.known(tenant_id, who))

    async def publishable_on_loop(
        self, directory: LoopDirectory, tenant_id: str, who: Principal
    ) -> TenantState:
        """As `publishable`, without blocking."""
        state = await directory.get(checked_id(tenant_id))
        return self._accepting(self._seen(tenant_id, who, state))

    @staticmethod
    def _accepting(state: TenantState) -> TenantState:
        if state.lifecycle in (Lifecycle.ACTIVE, Lifecycle.PAUSED):
            return state
        if not state.exists:
            raise no_such_tenant()
        raise WrongStateError(state.tenant_id, state.lifecycle.value, "take messages")

    def readable(self, tenant_id: str, who: Principal) -> TenantState:
        """Find a tenant with readable messages, or a deleted one that retained them. Blocks."""
        state = self.known(tenant_id, who)
        if not (state.exists or state.retained):
            raise no_such_tenant()
        return state


class Pools:
    """Thread pools for blocking calls, one for each kind; tenants take turns by these weights.

    `urgent` is for draining and stopping.
    """

    def __init__(self, weight_of: Callable[[str], float]) -> None:
        self.commands = Pool(16, weight_of=weight_of)
        self.reads = Pool(16, weight_of=weight_of)
        self.publishes = Pool(16, weight_of=weight_of)
        self.dead_letters = Pool(4, weight_of=weight_of)
        self.audits = Pool(2, weight_of=weight_of)
        self.proofs = Pool(1)
        self.metrics = Pool(2)
        self.urgent = Pool(2)


@dataclass(kw_only=True)
class Services:
    """Everything that routes use: the ports, and objects made once for all requests.

    `cursor_key` (at least 16 bytes) seals cursors, which stay valid as long as it is the same.
    `info` is the answer of `GET /info`, without secrets. `identity` signs sessions of the page,
    `logins` is for logins by a provider. `metrics` renders `/metrics`. `refusals` counts calls
    refused for a tenant's limits. `broker` is the address for tenants' clients.
    """

    control: Control
    cluster: Cluster
    directory: TenantDirectory
    journal: EventStore
    parts: JournalParts
    messages: MessageStore
    page_reader: PageReader
    publishing: Publishing
    idempotency: IdempotencyKeys
    dead_letters: DeadLetterIndex
    reprocessing: Reprocessing
    auditor: Auditor
    prover: Prover
    statistics: Statistics
    metrics: Metrics
    cursor_key: bytes
    default_workers: Callable[[], int]
    info: Mapping[str, object]
    identity: Identity = field(default_factory=Identity)
    refusals: Refusals = field(default_factory=Refusals)
    logins: Logins | None = None
    peers: Peers | None = None
    tracer: Tracer = field(default_factory=Tracer)
    broker: BrokerPlace = field(default_factory=BrokerPlace)
    command_timeout: float = COMMAND_SECONDS

    def __post_init__(self) -> None:
        self.lookup = TenantLookup(self.directory)
        self.cursors = Cursors(self.cursor_key)
        self.login_codes = LoginCodes(self.cursors, self.idempotency, self.identity)
        self.tail = JournalTail(self.journal)
        self.streams = Streams(self.control)
        self.health = Health(self.control)
        self.pools = Pools(self.lookup.weight_of)
        self.turns = Turns()


Injected: TypeAlias = Annotated[Services, held_by_app("services")]
