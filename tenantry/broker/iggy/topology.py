"""A tenant's objects on an Iggy server, and its users' rights there."""

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
"""The name under which a tenant's own consumers store their offsets. It is not a group: see
`consumer_permissions`."""

LONGEST_ID: Final = 34
"""The longest tenant id, in bytes, that fits into a user's name, of which Iggy takes 50."""


class Place(NamedTuple):
    """The place of a queue's messages: a partition of a topic."""

    stream: str
    topic: str
    partition: int


def place_of(queue: QueueSpec) -> Place:
    """Return the partition that a queue stands for."""
    return Place(names.exchange_name(layout.owner(queue.name) or ""), queue.topic, queue.partition)


def mark_topic(installation: str) -> str:
    """Return the topic that marks a stream as ours. It is never read; no tenant can make it."""
    return _MARK + installation


def marked_by(topic: str) -> str | None:
    """Return the installation whose mark a topic is; None for an ordinary topic."""
    match = _MARKED.fullmatch(topic)
    return None if match is None else match[1]


def producer_name(tenant_id: str) -> str:
    """Return the name of a tenant's sending user: the usual one, if its id is short enough."""
    return f"tenant_{_short(tenant_id)}_producer"


def consumer_name(tenant_id: str) -> str:
    """Return the name of a tenant's reading user."""
    return f"tenant_{_short(tenant_id)}_consumer"


def user_name(tenant_id: str, kind: UserKind) -> str:
    """Return the name of a tenant's user."""
    return producer_name(tenant_id) if kind is UserKind.PRODUCER else consumer_name(tenant_id)


def former_name(tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> str:
    """Return the name of the user with the former password, until the next one is confirmed.

    It may be needed again, and Iggy sets no password by its hash.
    """
    return f"former_{_short(tenant_id)}_{kind}"


def retired_name(started: int, number: int) -> str:
    """Return the name of a retired user, from the server's start and the user's number."""
    return f"retired_{started}_{number}"


def retired_before(name: str, started: int) -> bool:
    """Return whether a name is of a user that was retired before the server's last start."""
    match = re.fullmatch(r"retired_([0-9]+)_[0-9]+", name, re.ASCII)
    return match is not None and int(match[1]) != started


def _short(tenant_id: str) -> str:
    """Return an id for users' names; a long id is cut and gets a digest.

    No id has a dot, so no other tenant's user has the name.
    """
    if len(tenant_id) <= LONGEST_ID:
        return tenant_id
    return f"{tenant_id[:17]}.{hashlib.sha256(tenant_id.encode()).hexdigest()[:16]}"


def producer_permissions(stream_id: int) -> Permissions:
    """Return the rights to send to one stream, and to do nothing else."""
    iggy = library()
    permissions: Permissions = iggy.Permissions(
        streams={stream_id: iggy.StreamPermissions(send_messages=True, read_topics=False)}
    )
    return permissions


def consumer_permissions(stream_id: int) -> Permissions:
    """Return the rights to read one stream and store offsets, and to do nothing else.

    The user joins no group: with the right to join one it could join the daemon's, be assigned
    partitions there, and store offsets beyond messages that were not stored.
    """
    iggy = library()
    permissions: Permissions = iggy.Permissions(
        streams={stream_id: iggy.StreamPermissions(poll_messages=True, read_topics=False)}
    )
    return permissions


def permissions_of(kind: UserKind, stream_id: int) -> Permissions:
    """Return the rights of a tenant's user."""
    give = producer_permissions if kind is UserKind.PRODUCER else consumer_permissions
    return give(stream_id)


def routed(exchange: str, routing_key: str) -> Place:
    """Return the partition that a routing key leads to: `topic`, or `topic.partition`."""
    topic, _, number = routing_key.partition(".")
    return Place(exchange, topic, int(number) if number.isdecimal() else 0)
