"""What a tenant has on an Iggy server, and what its users may do there."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from tenantry.broker import topology as layout
from tenantry.broker.drift import NAME
from tenantry.broker.iggy.client import library
from tenantry.broker.port import QueueSpec
from tenantry.domain import names
from tenantry.domain.names import UserKind

if TYPE_CHECKING:
    from apache_iggy import Permissions

GROUP: Final = "tenantry"
"""The daemon's consumer group, on each topic."""

_MARK: Final = "tenantry."
_MARKED: Final = re.compile(rf"{re.escape(_MARK)}({NAME.pattern})")

READERS: Final = "consume"
"""Under which name a tenant's own consumers store their offsets. It is no group: see
`consumer_permissions`."""

LONGEST_ID: Final = 34
"""Bytes of a tenant's id that have room in a user's name, of which Iggy takes 50."""


class Place(NamedTuple):
    """Where a queue's messages are: a partition of a topic."""

    stream: str
    topic: str
    partition: int


def place_of(queue: QueueSpec) -> Place:
    """Give the partition that stands for a queue."""
    return Place(names.exchange_name(layout.owner(queue.name) or ""), queue.topic, queue.partition)


def mark_topic(installation: str) -> str:
    """Name the topic that tells whose a stream is. Nobody reads it, and no tenant can make it."""
    return _MARK + installation


def marked_by(topic: str) -> str | None:
    """Give the installation that a topic is the mark of; None for an ordinary topic."""
    match = _MARKED.fullmatch(topic)
    return None if match is None else match[1]


def producer_name(tenant_id: str) -> str:
    """Name the tenant's user that may send: as on every broker, where its id is short enough."""
    return f"tenant_{_short(tenant_id)}_producer"


def consumer_name(tenant_id: str) -> str:
    """Name the tenant's user that may read."""
    return f"tenant_{_short(tenant_id)}_consumer"


def user_name(tenant_id: str, kind: UserKind) -> str:
    """Name a tenant's user."""
    return producer_name(tenant_id) if kind is UserKind.PRODUCER else consumer_name(tenant_id)


def former_name(tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> str:
    """Name the tenant's user of the former password, until the next one is confirmed.

    One may have to go back to it, and Iggy sets no password by its hash.
    """
    return f"former_{_short(tenant_id)}_{kind}"


def retired_name(started: int, number: int) -> str:
    """Name a user that is nobody's any more, by the server's start and its own number."""
    return f"retired_{started}_{number}"


def retired_before(name: str, started: int) -> bool:
    """Tell whether a name is that of a user that was retired before the server's last start."""
    match = re.fullmatch(r"retired_([0-9]+)_[0-9]+", name, re.ASCII)
    return match is not None and int(match[1]) != started


def _short(tenant_id: str) -> str:
    """Give an id as users' names have it; a long one by its beginning and its digest.

    No id has a dot, so no other tenant's user has the name.
    """
    if len(tenant_id) <= LONGEST_ID:
        return tenant_id
    return f"{tenant_id[:17]}.{hashlib.sha256(tenant_id.encode()).hexdigest()[:16]}"


def producer_permissions(stream_id: int) -> Permissions:
    """Let a user send to one stream, and do nothing else."""
    iggy = library()
    permissions: Permissions = iggy.Permissions(
        streams={stream_id: iggy.StreamPermissions(send_messages=True, read_topics=False)}
    )
    return permissions


def consumer_permissions(stream_id: int) -> Permissions:
    """Let a user read one stream and store how far it has read it, and do nothing else.

    It joins no group: who may join one may join the daemon's, have partitions there, and store
    offsets beyond messages that were not stored.
    """
    iggy = library()
    permissions: Permissions = iggy.Permissions(
        streams={stream_id: iggy.StreamPermissions(poll_messages=True, read_topics=False)}
    )
    return permissions


def permissions_of(kind: UserKind, stream_id: int) -> Permissions:
    """Give what a tenant's user may."""
    give = producer_permissions if kind is UserKind.PRODUCER else consumer_permissions
    return give(stream_id)


def routed(exchange: str, routing_key: str) -> Place:
    """Give the partition that a routing key leads to: `topic`, or `topic.partition`."""
    topic, _, number = routing_key.partition(".")
    return Place(exchange, topic, int(number) if number.isdecimal() else 0)
