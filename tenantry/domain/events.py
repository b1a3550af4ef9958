"""The events of a tenant. Events are facts: past tense, never changed, never taken back.

Fields hold only what JSON holds (text, whole numbers, booleans, tuples of these, dataclasses of
these), so that the codec needs no case of its own for any event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tenantry.domain.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class OfTenant:
    """The base of a tenant's events: the tenant's id."""

    tenant_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCreated(OfTenant):
    """The tenant was accepted; its objects are about to be created.

    `partitions` is the default for topics, `topic_partitions` the number for each of `topics`;
    partitions of `ordered` topics keep their order.
    """

    name: str
    workers: int
    topics: tuple[str, ...]
    partitions: int
    topic_partitions: tuple[int, ...] = ()
    ordered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantProvisioned(OfTenant):
    """The tenant's exchange, queues, user and partition exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningAbandoned(OfTenant):
    """Provisioning failed and has been undone; the id is free again."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersResized(OfTenant):
    """The number of workers changed; `reason` is given for changes that no operator asked for."""

    previous: int
    workers: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsChanged(OfTenant):
    """The tenant's limits changed; these are the new ones."""

    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPaused(OfTenant):
    """An operator stopped the consumer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantParked(OfTenant):
    """The supervisor stopped the tenant because it kept failing."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantResumed(OfTenant):
    """The tenant consumes again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsRotated(OfTenant):
    """The broker user has a new password (which the journal never holds)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlAccessGranted(OfTenant):
    """The tenant has a database role, with a new password (which the journal never holds)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlAccessRevoked(OfTenant):
    """The tenant's database role is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerAccessGranted(OfTenant):
    """The tenant has a user that reads its topics, with a new password (never held here)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerAccessRevoked(OfTenant):
    """The user that read the tenant's topics is to be removed, with its waiting messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicsAdded(OfTenant):
    """The tenant has these topics too; `topic_partitions` defaults to the tenant's partitions."""

    topics: tuple[str, ...]
    topic_partitions: tuple[int, ...] = ()
    ordered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionRequested(OfTenant):
    """The tenant's deletion began; with `retain` its stored messages stay."""

    retain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDeleted(OfTenant):
    """The tenant was deleted; the counts are of the messages dropped with it."""

    queued: int
    stored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRepaired(OfTenant):
    """Objects of the tenant had been changed from outside, and were repaired.

    `kinds` are of a fixed list (`queue`, `binding`, `user`, ...), `found` says what was wrong.
    """

    kinds: tuple[str, ...]
    found: tuple[str, ...]


TenantEvent: TypeAlias = (
    TenantCreated
    | TenantProvisioned
    | ProvisioningAbandoned
    | WorkersResized
    | LimitsChanged
    | TenantPaused
    | TenantParked
    | TenantResumed
    | CredentialsRotated
    | SqlAccessGranted
    | SqlAccessRevoked
    | ConsumerAccessGranted
    | ConsumerAccessRevoked
    | TopicsAdded
    | DeletionRequested
    | TenantDeleted
    | DriftRepaired
)
"""The events of a tenant's life, in the stream `tenant-ID`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageDeadLettered(OfTenant):
    """A message could not be stored and went to the dead-letter exchange, bytes unchanged.

    It was tried `attempts` times; `error` is the last attempt's. If its topic is `ordered`, later
    messages have passed it: its partition's order is broken there.
    """

    message_id: str | None
    topic: str
    partition: int
    reason: str
    error: str
    first_error: str
    attempts: int
    size: int
    ordered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettersAggregated(OfTenant):
    """Dead letters that have no events of their own, as too many came at once.

    `counts` has a number for each of `reasons`. `total` is the number of all dead letters that the
    tenant has had by then. `ordered` is how many broke the order of a partition (None: not
    counted); `partitions` names these partitions, at most 100, as `orders.3`.
    """

    count: int
    total: int
    reasons: tuple[str, ...]
    counts: tuple[int, ...]
    first_at: str
    last_at: str
    ordered: int | None = 0
    partitions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettersReplayed(OfTenant):
    """Dead letters, named by `ids`, were published to their exchange again."""

    count: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettersDiscarded(OfTenant):
    """Dead letters, named by `ids`, were discarded."""

    count: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageIdsReused(OfTenant):
    """Messages with other content came under ids in use, and were not stored.

    `message_id` is one of the ids. A message with the same content again does not count. There is
    at most one such event a minute.
    """

    message_id: str
    topic: str
    count: int


DeadLetterEvent: TypeAlias = (
    MessageDeadLettered
    | DeadLettersAggregated
    | DeadLettersReplayed
    | DeadLettersDiscarded
    | MessageIdsReused
)
"""The events of a tenant's messages that have no row, in the stream `dead_letters-ID`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantMoved(OfTenant):
    """Another node owns the tenant now, under a new epoch; `previous` is empty if none had it."""

    node: str
    previous: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantMoveRequested(OfTenant):
    """An operator chose the tenant's node; if it is empty, placement chooses."""

    node: str


PlacementEvent: TypeAlias = TenantMoved | TenantMoveRequested
"""The events of a tenant's placement, in the stream `placement-ID`."""


class _OfNoTenant:
    __slots__ = ()

    @property
    def tenant_id(self) -> str:
        """Empty: the event is about no single tenant."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationVerified(_OfNoTenant):
    """So many tenants were proven to reach their own objects and no others."""

    tenants: int
    checks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationViolated(_OfNoTenant):
    """The proof failed; `failures` lists wrongly allowed and wrongly refused attempts."""

    tenants: int
    checks: int
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDrainRequested(_OfNoTenant):
    """An operator began to drain a node."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDrainRevoked(_OfNoTenant):
    """An operator ended the drain of a node."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsArchived(_OfNoTenant):
    """A part of the journal was archived: its oldest events, the last recorded at `until`.

    The events are in the `archive` (`host:path`); `digest` is theirs, as `JournalParts` says.
    """

    part: int
    first_position: int
    last_position: int
    events: int
    until: str
    digest: str
    archive: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsRestored(_OfNoTenant):
    """An archived part is in the journal again."""

    part: int
    first_position: int
    last_position: int
    events: int


SystemEvent: TypeAlias = (
    IsolationVerified
    | IsolationViolated
    | NodeDrainRequested
    | NodeDrainRevoked
    | EventsArchived
    | EventsRestored
)
"""Events of no single tenant, in streams named after their subjects."""

Event: TypeAlias = TenantEvent | DeadLetterEvent | PlacementEvent | SystemEvent
