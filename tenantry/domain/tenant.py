"""The tenant: its state, `decide` (from command to events), `evolve` (from event to state).

Both functions are pure. Times come with the events; ids come with the commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import reduce
from typing import Final, assert_never

from tenantry.domain import names
from tenantry.domain.commands import (
    AbandonProvisioning,
    AddTopics,
    ChangeLimits,
    Command,
    ConfirmDeleted,
    ConfirmProvisioned,
    ConfirmRepaired,
    CreateTenant,
    GrantConsumerAccess,
    GrantSqlAccess,
    InvalidCommandError,
    ParkTenant,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
    RevokeConsumerAccess,
    RevokeSqlAccess,
    RotateCredentials,
    TenantExistsError,
    TenantNotFoundError,
    WrongStateError,
)
from tenantry.domain.events import (
    ConsumerAccessGranted,
    ConsumerAccessRevoked,
    CredentialsRotated,
    DeletionRequested,
    DriftRepaired,
    LimitsChanged,
    ProvisioningAbandoned,
    SqlAccessGranted,
    SqlAccessRevoked,
    TenantCreated,
    TenantDeleted,
    TenantEvent,
    TenantParked,
    TenantPaused,
    TenantProvisioned,
    TenantResumed,
    TopicsAdded,
    WorkersResized,
)
from tenantry.domain.limits import MAX_WORKERS, MIN_WORKERS, NO_LIMITS, Limits
from tenantry.domain.topics import Ordering, Topic, as_topics

MIN_PARTITIONS: Final = 1
MAX_PARTITIONS: Final = 64
MAX_TOPICS: Final = 64
MAX_NAME: Final = 200


class Lifecycle(StrEnum):
    """Where in its life a tenant stands."""

    PROVISIONING = "provisioning"
    ACTIVE = "active"
    PAUSED = "paused"
    DELETING = "deleting"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantState:
    """A tenant's state, folded from its events.

    `version` is the number of events folded so far: the expected version of the next append.
    `parked` is the reason a paused tenant was parked by the supervisor, and `parked_at` the time;
    both are None otherwise.
    `retained` tells that a deleted tenant's messages were kept, `consumer_access` that it has a
    user that reads its topics. `workers` is within its `limits`. A tenant created under a used id
    is another tenant, with the next `incarnation`; its life begins at `created_version`.
    `topic_partitions` are the numbers for each of `topics`; if empty, each has `partitions`. The
    partitions of `ordered` topics keep their order.
    """

    tenant_id: str
    name: str
    lifecycle: Lifecycle
    workers: int
    topics: tuple[str, ...]
    partitions: int
    version: int
    created_at: datetime
    updated_at: datetime
    parked: str | None = None
    parked_at: datetime | None = None
    retained: bool = False
    incarnation: int = 1
    created_version: int = 1
    consumer_access: bool = False
    limits: Limits = NO_LIMITS
    topic_partitions: tuple[int, ...] = ()
    ordered: tuple[str, ...] = ()

    @property
    def exists(self) -> bool:
        """Whether the id is taken: false once the tenant is deleted."""
        return self.lifecycle is not Lifecycle.DELETED

    def partitions_of(self, topic: str) -> int:
        """Return how many partitions one of the tenant's topics has."""
        if not self.topic_partitions:
            return self.partitions
        return self.topic_partitions[self.topics.index(topic)]

    def settings(self) -> tuple[Topic, ...]:
        """Return the tenant's topics with their settings."""
        counts = self.topic_partitions or (self.partitions,) * len(self.topics)
        return tuple(
            Topic(
                name=name,
                partitions=partitions,
                ordering=Ordering.PARTITION if name in self.ordered else Ordering.NONE,
            )
            for name, partitions in zip(self.topics, counts, strict=True)
        )


def decide(state: TenantState | None, command: Command) -> tuple[TenantEvent, ...]:
    """Return the events that a command causes; none, if it would change nothing.

    Raises `DomainError` where the command is refused.
    """
    if isinstance(command, CreateTenant):
        return _create(state, command)
    if state is None:
        raise TenantNotFoundError(command.tenant_id)
    if isinstance(command, ConfirmRepaired):
        kinds, found = command.kinds, command.found
        return (DriftRepaired(tenant_id=state.tenant_id, kinds=kinds, found=found),)
    if not state.exists:
        raise TenantNotFoundError(command.tenant_id)
    tenant_id = state.tenant_id
    match command:
        case ConfirmProvisioned():
            if state.lifecycle is not Lifecycle.PROVISIONING:
                return ()
            return (TenantProvisioned(tenant_id=tenant_id),)
        case AbandonProvisioning(reason=reason):
            _require(state, "abandon provisioning", Lifecycle.PROVISIONING)
            return (ProvisioningAbandoned(tenant_id=tenant_id, reason=reason),)
        case ResizeWorkers(workers=workers, reason=reason):
            return _resize(state, workers, reason)
        case ChangeLimits(changes=changes):
            return _change_limits(state, changes)
        case PauseTenant():
            _require(state, "be paused", Lifecycle.ACTIVE, Lifecycle.PAUSED)
            if state.lifecycle is Lifecycle.PAUSED:
                return ()
            return (TenantPaused(tenant_id=tenant_id),)
        case ParkTenant(reason=reason):
            _require(state, "be parked", Lifecycle.ACTIVE, Lifecycle.PAUSED)
            if state.parked is not None:
                return ()
            return (TenantParked(tenant_id=tenant_id, reason=reason),)
        case ResumeTenant():
            _require(state, "be resumed", Lifecycle.ACTIVE, Lifecycle.PAUSED)
            if state.lifecycle is Lifecycle.ACTIVE:
                return ()
            return (TenantResumed(tenant_id=tenant_id),)
        case RotateCredentials():
            _require(state, "rotate credentials", Lifecycle.ACTIVE, Lifecycle.PAUSED)
            return (CredentialsRotated(tenant_id=tenant_id),)
        case GrantSqlAccess():
            _require(state, "be given SQL access", Lifecycle.ACTIVE, Lifecycle.PAUSED)
            return (SqlAccessGranted(tenant_id=tenant_id),)
        case RevokeSqlAccess():
            _require(state, "have SQL access revoked", Lifecycle.ACTIVE, Lifecycle.PAUSED)
            return (SqlAccessRevoked(tenant_id=tenant_id),)
        case GrantConsumerAccess():
            _require(state, "be given consumer access", Lifecycle.ACTIVE, Lifecycle.PAUSED)
            return (ConsumerAccessGranted(tenant_id=tenant_id),)
        case RevokeConsumerAccess():
            _require(state, "have consumer access revoked", Lifecycle.ACTIVE, Lifecycle.PAUSED)
            return (ConsumerAccessRevoked(tenant_id=tenant_id),) if state.consumer_access else ()
        case AddTopics(topics=topics):
            return _add_topics(state, topics)
        case RequestDeletion(retain=retain):
            if state.lifecycle is Lifecycle.DELETING:
                return ()
            return (DeletionRequested(tenant_id=tenant_id, retain=retain),)
        case ConfirmDeleted(queued=queued, stored=stored):
            _require(state, "be confirmed deleted", Lifecycle.DELETING)
            return (TenantDeleted(tenant_id=tenant_id, queued=queued, stored=stored),)
        case _:
            assert_never(command)


def evolve(state: TenantState | None, event: TenantEvent, at: datetime) -> TenantState:
    """Fold one event, recorded at `at`, into the state. Never refuses: events are facts."""
    if isinstance(event, TenantCreated):
        version = 1 if state is None else state.version + 1
        return TenantState(
            tenant_id=event.tenant_id,
            name=event.name,
            lifecycle=Lifecycle.PROVISIONING,
            workers=event.workers,
            topics=event.topics,
            partitions=event.partitions,
            topic_partitions=_partitions(event, event.partitions),
            ordered=event.ordered,
            version=version,
            created_at=at,
            updated_at=at,
            incarnation=1 if state is None else state.incarnation + 1,
            created_version=version,
        )
    if state is None:
        raise ValueError(
            f"the stream of tenant {event.tenant_id!r} does not begin with its creation"
        )
    state = replace(state, version=state.version + 1, updated_at=at)
    match event:
        case TenantProvisioned() | TenantResumed():
            return replace(state, lifecycle=Lifecycle.ACTIVE, parked=None, parked_at=None)
        case WorkersResized(workers=workers):
            return replace(state, workers=workers)
        case LimitsChanged(limits=limits):
            return replace(state, limits=limits)
        case TenantPaused():
            return replace(state, lifecycle=Lifecycle.PAUSED)
        case TenantParked(reason=reason):
            return replace(state, lifecycle=Lifecycle.PAUSED, parked=reason, parked_at=at)
        case CredentialsRotated() | SqlAccessGranted() | SqlAccessRevoked() | DriftRepaired():
            return state
        case ConsumerAccessGranted():
            return replace(state, consumer_access=True)
        case ConsumerAccessRevoked():
            return replace(state, consumer_access=False)
        case TopicsAdded(topics=topics, ordered=ordered):
            before = state.topic_partitions or (state.partitions,) * len(state.topics)
            return replace(
                state,
                topics=state.topics + topics,
                topic_partitions=before + _partitions(event, state.partitions),
                ordered=state.ordered + ordered,
            )
        case DeletionRequested(retain=retain):
            return replace(
                state,
                lifecycle=Lifecycle.DELETING,
                retained=retain,
                parked=None,
                parked_at=None,
            )
        case TenantDeleted() | ProvisioningAbandoned():
            return replace(state, lifecycle=Lifecycle.DELETED)
        case _:
            assert_never(event)


def fold(
    events: Iterable[tuple[TenantEvent, datetime]], state: TenantState | None = None
) -> TenantState | None:
    """Fold events, each with the time it was recorded, onto `state`, oldest first."""
    return reduce(lambda folded, one: evolve(folded, *one), events, state)


def _create(state: TenantState | None, command: CreateTenant) -> tuple[TenantEvent, ...]:
    if not names.is_tenant_id(command.tenant_id):
        raise InvalidCommandError(
            "id", "must be 1 to 40 of a-z, 0-9 and hyphens, with no hyphen at either end"
        )
    if state is not None and state.exists:
        raise TenantExistsError(command.tenant_id)
    name = command.name
    if not 1 <= len(name) <= MAX_NAME or name.isspace() or not name.isprintable():
        raise InvalidCommandError("name", f"must be 1 to {MAX_NAME} printable characters")
    _check_workers(command.workers)
    topics = as_topics(command.topics)
    _check_topics(topics)
    if not MIN_PARTITIONS <= command.partitions <= MAX_PARTITIONS:
        raise InvalidCommandError("partitions", f"must be {MIN_PARTITIONS} to {MAX_PARTITIONS}")
    return (
        TenantCreated(
            tenant_id=command.tenant_id,
            name=name,
            workers=command.workers,
            topics=tuple(one.name for one in topics),
            partitions=command.partitions,
            topic_partitions=tuple(one.partitions or command.partitions for one in topics),
            ordered=tuple(one.name for one in topics if one.ordered),
        ),
    )


def _add_topics(state: TenantState, given: tuple[str | Topic, ...]) -> tuple[TenantEvent, ...]:
    _require(state, "take new topics", Lifecycle.ACTIVE, Lifecycle.PAUSED)
    topics = as_topics(given)
    _check_topics(topics)
    there = {one.name: one for one in state.settings()}
    for one in topics:
        if (known := there.get(one.name)) is not None and not _agree(one, known):
            raise InvalidCommandError(
                "topics",
                f"{one.name!r} is there already, with {known.partitions} partition(s) and "
                f"ordering {known.ordering}, which stay as they are",
            )
    new = tuple(one for one in topics if one.name not in there)
    if not new:
        return ()
    if len(state.topics) + len(new) > MAX_TOPICS:
        raise InvalidCommandError("topics", f"a tenant has {MAX_TOPICS} at most")
    return (
        TopicsAdded(
            tenant_id=state.tenant_id,
            topics=tuple(one.name for one in new),
            topic_partitions=tuple(one.partitions or state.partitions for one in new),
            ordered=tuple(one.name for one in new if one.ordered),
        ),
    )


def _agree(asked: Topic, known: Topic) -> bool:
    """Tell whether the given settings of a topic agree with its present ones."""
    return asked.partitions in (None, known.partitions) and asked.ordering in (None, known.ordering)


def _partitions(event: TenantCreated | TopicsAdded, usual: int) -> tuple[int, ...]:
    """Return the numbers of partitions of an event's topics."""
    if len(event.topic_partitions) == len(event.topics):
        return event.topic_partitions
    return (usual,) * len(event.topics)


def _resize(state: TenantState, workers: int, reason: str) -> tuple[TenantEvent, ...]:
    _check_workers(workers)
    _require(state, "be resized", Lifecycle.ACTIVE, Lifecycle.PAUSED)
    if workers not in (allowed := state.limits.workers):
        raise InvalidCommandError(
            "workers",
            f"must be {allowed.start} to {allowed.stop - 1}: "
            "the tenant's limits workers_min and workers_max say so",
        )
    return _resized(state, workers, reason)


def _change_limits(
    state: TenantState, changes: Mapping[str, int | None]
) -> tuple[TenantEvent, ...]:
    _require(state, "be given other limits", Lifecycle.ACTIVE, Lifecycle.PAUSED)
    limits = state.limits.changed(changes)
    if limits == state.limits:
        return ()
    return (
        LimitsChanged(tenant_id=state.tenant_id, limits=limits),
        *_resized(state, limits.within(state.workers), "workers_min or workers_max"),
    )


def _resized(state: TenantState, workers: int, reason: str) -> tuple[TenantEvent, ...]:
    if workers == state.workers:
        return ()
    return (
        WorkersResized(
            tenant_id=state.tenant_id, previous=state.workers, workers=workers, reason=reason
        ),
    )


def _check_workers(workers: int) -> None:
    if not MIN_WORKERS <= workers <= MAX_WORKERS:
        raise InvalidCommandError("workers", f"must be {MIN_WORKERS} to {MAX_WORKERS}")


def _check_topics(topics: tuple[Topic, ...]) -> None:
    if len(topics) > MAX_TOPICS:
        raise InvalidCommandError("topics", f"a tenant has {MAX_TOPICS} at most")
    if len({one.name for one in topics}) != len(topics):
        raise InvalidCommandError("topics", "names a topic twice")
    for topic in topics:
        if not names.is_topic(topic.name):
            raise InvalidCommandError(
                "topics",
                f"{topic.name[:80]!r} is no topic name: 1 to 63 of a-z, 0-9, _ and -, "
                f"and not {names.DEFAULT_TOPIC!r}",
            )
        if topic.partitions is not None and not (
            MIN_PARTITIONS <= topic.partitions <= MAX_PARTITIONS
        ):
            raise InvalidCommandError(
                "topics",
                f"{topic.name!r} asks for {topic.partitions} partitions: {MIN_PARTITIONS} to "
                f"{MAX_PARTITIONS} are allowed",
            )


def _require(state: TenantState, wanted: str, *allowed: Lifecycle) -> None:
    if state.lifecycle not in allowed:
        raise WrongStateError(state.tenant_id, state.lifecycle.value, wanted)
