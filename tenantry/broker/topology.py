"""A tenant's objects on the broker: what to declare, bind, allow and consume."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from tenantry.broker.port import QueueCounts, QueueSpec, TenantTopology
from tenantry.broker.survey import Permissions
from tenantry.domain import names
from tenantry.domain.names import UserKind
from tenantry.domain.tenant import TenantState

QueueType: TypeAlias = Literal["quorum", "classic"]

UNLIMITED_DELIVERIES: Final = 1_000_000
"""A delivery limit that no message reaches.

A quorum queue counts each time a message comes back because its consumer went away, and drops
or dead-letters it at the limit: 20 by default since RabbitMQ 4.0, so twenty crashes would lose
good messages. -1 lifts the limit from 4.0 on, but 3.x takes a negative number for 0, and a
policy can't express -1. A large number means the same to all of them, and a queue with a limit
puts returned messages back where they were instead of at its end.
"""

ONE_AT_A_TIME: Final[Mapping[str, str | int]] = {"x-single-active-consumer": True}
"""An ordered queue delivers to one consumer at a time, and to the next one only once the first has
gone and its unsettled messages are back in the queue. Otherwise a second channel, of a daemon that
has lost its connection before the broker noticed, would get the messages after those."""

GROUP_BYTES: Final = 64 * 1024 * 1024
GROUP_SECONDS: Final = 24 * 60 * 60
"""The most that a queue of a tenant's consumer group holds. Beyond that its oldest messages are
dropped: it never keeps the tenant from publishing, and an unread group fills no disk."""

FIRST_DEATH_QUEUE: Final = "x-first-death-queue"
"""The header of a dead letter that names the queue it was rejected from."""

FIRST_DEATH_NUMBER: Final = "x-first-death-number"
"""Beside it, for a dead letter from another broker: its number there, from 1 on."""

_OWNED: Final = re.compile(
    rf"tenant_(?P<tenant>{names.TENANT_ID.pattern})_"
    r"(?:queue|(?P<dead>dead_letters)|stream\..+|(?P<group>consumer\..+))",
    re.ASCII,
)

_NAMED: Final = re.compile(
    rf"tenant_(?P<tenant>{names.TENANT_ID.pattern})_(?:stream|producer|consumer)", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable queue and its arguments."""

    name: str
    arguments: Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A route from an exchange into a queue."""

    exchange: str
    queue: str
    routing_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All of a tenant's objects, in the order of their making.

    Exchanges are durable and direct. The dead-letter queue and its binding come first, so that a
    message is never dead-lettered into nothing.
    """

    exchanges: tuple[str, ...]
    queues: tuple[Queue, ...] = field(repr=False)
    bindings: tuple[Binding, ...] = field(repr=False)


def plan(topology: TenantTopology, queue_type: QueueType) -> Plan:
    """Describe everything a tenant has on the broker, dead letters included."""
    tenant_id = topology.tenant_id
    dead_letters = names.dead_letter_queue_name(tenant_id)
    queues = [Queue(name=dead_letters, arguments=_dead_letter_arguments(queue_type))]
    bindings = [
        Binding(exchange=names.DEAD_LETTER_EXCHANGE, queue=dead_letters, routing_key=tenant_id)
    ]
    arguments = _arguments(tenant_id, queue_type)
    for spec in topology.queues():
        own = {**arguments, **ONE_AT_A_TIME} if spec.ordered else arguments
        queues.append(Queue(name=spec.name, arguments=own))
        bindings += [
            Binding(exchange=topology.exchange, queue=spec.name, routing_key=key)
            for key in _keys(spec)
        ]
    if topology.consumer_access:
        for topic, keys in _group_keys(topology).items():
            queue = names.group_queue_name(tenant_id, topic)
            queues.append(Queue(name=queue, arguments=_group_arguments(queue_type)))
            bindings += [
                Binding(exchange=topology.exchange, queue=queue, routing_key=key) for key in keys
            ]
    return Plan(
        exchanges=(names.DEAD_LETTER_EXCHANGE, topology.exchange),
        queues=tuple(queues),
        bindings=tuple(bindings),
    )


def permissions(tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> Permissions:
    """Return a tenant's user's rights: to publish to its exchange and read its queues, no more.

    Dead letters are not among these. The user that consumes may read the queues of its group, and
    nothing else. The patterns match whole names. The default exchange, whose name is empty, matches
    none.
    """
    if kind is UserKind.CONSUMER:
        group = re.escape(names.group_queue_name(tenant_id, ""))
        return Permissions(configure="^$", write="^$", read=f"^{group}[a-z0-9_-]+$")
    exchange = re.escape(names.exchange_name(tenant_id))
    queue = re.escape(names.queue_name(tenant_id))
    return Permissions(
        configure="^$",
        write=f"^{exchange}$",
        read=rf"^({queue}|{exchange}\.[a-z0-9_-]+\.[0-9]+)$",
    )


def owner_of(name: str) -> str | None:
    """Return the tenant that an exchange, a queue or a user is named after, or None."""
    match = _NAMED.fullmatch(name)
    return owner(name) if match is None else match["tenant"]


def owner(queue: str) -> str | None:
    """Return the tenant that owns a queue, by the queue's name, or None; dead letters included."""
    match = _OWNED.fullmatch(queue)
    return None if match is None else match["tenant"]


def is_dead_letter_queue(queue: str) -> bool:
    """Return whether a queue, by its name, holds a tenant's dead letters."""
    match = _OWNED.fullmatch(queue)
    return match is not None and match["dead"] is not None


def is_group_queue(queue: str) -> bool:
    """Return whether a queue, by its name, belongs to a tenant's consumer group."""
    match = _OWNED.fullmatch(queue)
    return match is not None and match["group"] is not None


def counts_by_tenant(queues: Mapping[str, tuple[int, int]]) -> dict[str, QueueCounts]:
    """Add up the ready and unsettled messages in queues, by the tenant that owns them.

    Copies for a tenant's own consumers are not counted.
    """
    # This runs every few seconds over thousands of queues, so each name is matched once.
    counts: dict[str, list[int]] = {}
    for queue, (ready, unsettled) in queues.items():
        match = _OWNED.fullmatch(queue)
        if match is None or match["group"] is not None:
            continue
        so_far = counts.setdefault(match["tenant"], [0, 0, 0])
        if match["dead"] is not None:
            so_far[2] += ready + unsettled
        else:
            so_far[0] += ready
            so_far[1] += unsettled
    return {
        tenant_id: QueueCounts(ready=ready, unsettled=unsettled, dead_letters=dead_letters)
        for tenant_id, (ready, unsettled, dead_letters) in counts.items()
    }


def _keys(queue: QueueSpec) -> tuple[str, ...]:
    """Return the routing keys of a queue: a topic's name alone leads to its first partition."""
    first = (queue.topic,) if queue.partition == 0 else ()
    return tuple(dict.fromkeys((queue.routing_key, *first)))


def _group_keys(topology: TenantTopology) -> Mapping[str, tuple[str, ...]]:
    """Return the routing keys of all of a topic's partitions, by topic."""
    keys: dict[str, tuple[str, ...]] = {}
    for spec in topology.queues():
        keys[spec.topic] = keys.get(spec.topic, ()) + _keys(spec)
    return keys


def _group_arguments(queue_type: QueueType) -> Mapping[str, str | int]:
    limits: dict[str, str | int] = {
        "x-queue-type": queue_type,
        "x-max-length-bytes": GROUP_BYTES,
        "x-message-ttl": GROUP_SECONDS * 1000,
        "x-overflow": "drop-head",
    }
    if queue_type == "classic":
        return limits
    return limits | {"x-delivery-limit": UNLIMITED_DELIVERIES}


def _arguments(tenant_id: str, queue_type: QueueType) -> Mapping[str, str | int]:
    dead_lettering: dict[str, str | int] = {
        "x-queue-type": queue_type,
        "x-dead-letter-exchange": names.DEAD_LETTER_EXCHANGE,
        "x-dead-letter-routing-key": tenant_id,
    }
    if queue_type == "classic":
        return dead_lettering
    return dead_lettering | {
        # A dead letter leaves its queue only once the dead-letter queue has confirmed it. RabbitMQ
        # does that only if a full queue refuses messages instead of dropping the oldest.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": UNLIMITED_DELIVERIES,
    }


def _dead_letter_arguments(queue_type: QueueType) -> Mapping[str, str | int]:
    if queue_type == "classic":
        return {"x-queue-type": queue_type}
    # Browsing gives the dead letters back each time, which counts as a delivery.
    return {"x-queue-type": queue_type, "x-delivery-limit": UNLIMITED_DELIVERIES}


def topology_of(state: TenantState) -> TenantTopology:
    """Return the topology that a tenant of this state needs on the broker."""
    return TenantTopology(
        tenant_id=state.tenant_id,
        topics=state.topics,
        partitions=state.partitions,
        consumer_access=state.consumer_access,
        topic_partitions=state.topic_partitions,
        ordered=state.ordered,
    )
