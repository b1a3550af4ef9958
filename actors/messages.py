"""The actors' messages: values, frozen, and safe to hand from thread to thread."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeAlias

import pykka

from tenantry.broker.port import Delivery
from tenantry.broker.survey import Drift
from tenantry.control.port import Outcome
from tenantry.domain.commands import OperatorCommand
from tenantry.domain.limits import Limits
from tenantry.domain.tenant import TenantState
from tenantry.journal.port import Metadata
from tenantry.messages.port import Counts, StoreResult, Tried
from tenantry.tracing import TraceContext

Ref: TypeAlias = pykka.ActorRef[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intact:
    """The state and totals of a tenant of which a look found nothing missing outside."""

    state: TenantState
    totals: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """To a new child, first of all: start your work. An error here is a failure like any other.

    With `park`, the reason, a tenant stands still instead of consuming. With `intact` it has
    nothing to load and nothing to reconcile first. With `in_order` another node has just left it in
    order, so there is nothing to reconcile once it is loaded.
    """

    park: str | None = None
    intact: Intact | None = None
    in_order: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Execute:
    """From the API by way of the supervisor to a tenant: carry out a command, set `reply`.

    `asked` is the trace context of its request, if that is recorded.
    """

    command: OperatorCommand
    metadata: Metadata
    reply: Future[Outcome] = field(compare=False)
    asked: TraceContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildFailed:
    """From a failed actor to its parent, as its last message.

    With `stuck` it is from the watch: the child hangs, or has ended without a message.
    """

    child: Ref
    error: str
    stuck: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """From a tenant to the supervisor: the tenant is parked, and that is recorded."""

    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartChild:
    """From the clock to a parent: the backoff of a failed child is over."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """To any actor: set `reply`, as a sign that the mailbox is handled."""

    reply: Future[None] = field(compare=False)


class Reminder(Enum):
    """From the clock to the actor that asked for it."""

    LINGER_OVER = auto()
    """To a consumer: a small batch has waited long enough."""
    RETRY_DUE = auto()
    """To a consumer: the pause of held deliveries may be over."""
    TOKENS_DUE = auto()
    """To a consumer: the tenant's rate may allow another batch."""
    PORTION_DUE = auto()
    """To a consumer: the next portion of a backlog may go."""
    LOOK_FOR_IDLE_WORKERS = auto()
    """To a consumer: release the workers that have had nothing to do."""
    TRY_AGAIN = auto()
    """To a tenant or the supervisor: retry after an outage."""
    LOOK_FOR_DRIFT = auto()
    """To the reconciler: look for drift."""
    LOOK_AT_LOAD = auto()
    """To the supervisor: autoscale the tenants that ask for it."""
    START_RECONCILER = auto()
    """To the supervisor: restart the failed reconciler."""


# Draining: down the tree as a request, up again as an answer.


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """Deliveries that were accepted and not finished in time; the broker redelivers them."""

    tenant_id: str
    actor: str
    deliveries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """From a parent to a child: finish accepted work, take nothing new, answer `Drained`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """To a tenant: answer the commands under way, then drain for hand-over to another node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """From a child to its parent: nothing accepted is unfinished."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAll:
    """To the supervisor: drain every tenant, then set `reply` with the orphans, if any.

    `seconds` bounds the whole. With `stop`, tenants stop once drained and commands are refused.
    """

    seconds: float
    stop: bool
    reply: Future[tuple[Orphan, ...]] = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainExpired:
    """From the clock to the supervisor: the deadline of this drain has come."""

    drain: DrainAll


# Between nodes: what a node owns changes.


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """To the supervisor: this node owns these tenants. `in_order`: another node drained them."""

    tenant_ids: tuple[str, ...]
    in_order: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """To the supervisor: drain a tenant and release it to another node."""

    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseExpired:
    """From the clock to the supervisor: this tenant's draining has taken too long."""

    tenant_id: str
    ref: Ref


# From the broker to a consumer, carried over from the broker's thread.


@dataclass(frozen=True, slots=True, kw_only=True)
class Consuming:
    """Every queue is being consumed."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """Deliveries have come in, in the order of their tags."""

    generation: int
    deliveries: list[Delivery]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """No delivery follows in this generation."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelLost:
    """The channel is gone, and with it every unsettled delivery."""

    generation: int
    reason: str
    missing: bool


# Between a tenant, its consumer and its workers.


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """Deliveries of one channel, stored together: consecutive ones, as they were cut off.

    The rest of a batch that a worker could not finish is a batch of its own, with the first one as
    `whole`. Deliveries that were held are a batch too, with their earlier tries as `tried`. A batch
    with a `ticket` is of partitions in order (`actors/lanes.py`), and not of consecutive
    deliveries. With `more` the tenant has a backlog, and with `beside` quiet tenants as well. Not
    frozen: the consumer, the only writer, counts in `attempt` the workers that the batch is given
    to.
    """

    generation: int
    deliveries: list[Delivery]
    whole: Batch | None = None
    tried: list[Tried | None] | None = None
    attempt: int = 1
    ticket: int | None = None
    more: bool = False
    beside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """To a worker: store this batch.

    Sent by its consumer; after so many `failures` by the clock, with the `result` if the batch is
    stored already.
    """

    batch: Batch
    result: StoreResult | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDone:
    """From a worker to its consumer: the batch is committed, and `listed` dead letters with it."""

    worker: Ref
    batch: Batch
    result: StoreResult
    listed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerWanted:
    """From a consumer to its tenant: there is work for one more worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined:
    """From a tenant to its consumer: here is a new worker."""

    worker: Ref
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """From a tenant to its consumer: the worker failed; its batch goes back to the consumer."""

    worker: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReleased:
    """From a consumer to its tenant: the worker is idle, gets no more work, and may stop."""

    worker: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """From a tenant to its consumer: a new limit of workers; answered with `Resized`."""

    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """From a tenant to its consumer: the tenant has other limits now."""

    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """From a consumer to its tenant: no more workers are busy than the new limit allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerReady:
    """From a consumer to its tenant: every queue is being consumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyMissing:
    """From a consumer to its tenant: a queue is not there."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuesSilent:
    """From the broker to a consumer, and on to its tenant: these queues do not answer."""

    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resubscribe:
    """From a tenant to its consumer: the queues are there again."""


# Drift: changes outside, behind the daemon's back.


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """From the supervisor to the reconciler: look now, and report intact tenants, as at start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLookDone:
    """From the reconciler to the supervisor: tenants may be started, and repair.

    Tenants in `intact`, by id, have everything that they need.
    """

    intact: Mapping[str, Intact]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drifted:
    """From the reconciler by way of the supervisor to a tenant: repair this drift.

    `seen_at` is the clock's: drift seen before the tenant's own last change outside means nothing.
    A `leftover` belongs to a tenant that the journal says is deleted.
    """

    tenant_id: str
    drift: tuple[Drift, ...]
    seen_at: float
    leftover: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantGone:
    """From a tenant to the supervisor: the tenant exists no more, its actor may stop."""

    tenant_id: str
    ref: Ref
