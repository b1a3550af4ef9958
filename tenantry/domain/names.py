"""The names of tenants, and of their objects on the broker and in the database."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

TENANT_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
TOPIC: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62})", re.ASCII)

DEFAULT_TOPIC: Final = "default"
"""The topic of messages from a tenant's default queue; no tenant may declare it."""

DEAD_LETTER_EXCHANGE: Final = "dlx_exchange"


class UserKind(StrEnum):
    """The purpose of a tenant's broker user: it publishes, or it reads."""

    PRODUCER = "producer"
    CONSUMER = "consumer"


ISOLATION_STREAM: Final = "isolation"
"""The journal's stream of the daemon's own proofs of isolation."""

PARTS_STREAM: Final = "journal"
"""The journal's stream about its own parts."""


def is_tenant_id(value: str) -> bool:
    """Tell whether `value` may name a tenant: 1 to 40 of a-z, 0-9 and inner hyphens."""
    return TENANT_ID.fullmatch(value) is not None


def is_topic(value: str) -> bool:
    """Tell whether `value` may name a topic: 1 to 63 of a-z, 0-9, `_` and `-`.

    A dot is refused because it separates topic and partition in routing keys.
    """
    return TOPIC.fullmatch(value) is not None and value != DEFAULT_TOPIC


def exchange_name(tenant_id: str) -> str:
    """Name the tenant's exchange, durable and direct."""
    return f"tenant_{tenant_id}_stream"


def queue_name(tenant_id: str) -> str:
    """Name the tenant's default queue."""
    return f"tenant_{tenant_id}_queue"


def partition_queue_name(tenant_id: str, topic: str, partition: int) -> str:
    """Name the queue of one partition (from 0) of a topic."""
    return f"{exchange_name(tenant_id)}.{topic}.{partition}"


def dead_letter_queue_name(tenant_id: str) -> str:
    """Name the queue that keeps the tenant's dead letters."""
    return f"tenant_{tenant_id}_dead_letters"


def group_queue_name(tenant_id: str, topic: str) -> str:
    """Name the queue from which the tenant's own consumers read a topic."""
    return f"tenant_{tenant_id}_consumer.{topic}"


def username(tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> str:
    """Name the tenant's broker user of a kind."""
    return f"tenant_{tenant_id}_{kind}"


def partition_table_name(tenant_id: str) -> str:
    """Name the tenant's partition of `messages` (49 bytes at most; PostgreSQL allows 63)."""
    return f"messages_{tenant_id}"


def retained_table_name(tenant_id: str, incarnation: int) -> str:
    """Name the table of a former tenant's retained rows, once its id is used again.

    With ids of 40 bytes, incarnations of 13 digits fit into PostgreSQL's 63.
    """
    return f"retained_{tenant_id}_{incarnation}"


def journal_stream(tenant_id: str) -> str:
    """Name the journal's stream of a tenant's life."""
    return f"tenant-{tenant_id}"


def dead_letter_journal_stream(tenant_id: str) -> str:
    """Name the journal's stream of a tenant's dead letters.

    It stands apart from the tenant's life so that a flood of bad messages neither makes that
    stream long nor competes with commands for its version.
    """
    return f"dead_letters-{tenant_id}"


def placement_journal_stream(tenant_id: str) -> str:
    """Name the journal's stream of a tenant's placement.

    It stands apart from the tenant's life: nodes append to it, whatever commands are under way.
    """
    return f"placement-{tenant_id}"


def node_journal_stream(node: str) -> str:
    """Name the journal's stream of an operator's requests to a node."""
    return f"node-{node}"


def streams_of(tenant_id: str) -> list[str]:
    """Name all streams of the journal about a tenant."""
    named = journal_stream, dead_letter_journal_stream, placement_journal_stream
    return [name(tenant_id) for name in named]


def category(stream: str) -> str:
    """Return the part of a journal stream's name before its first hyphen."""
    return stream.partition("-")[0]


def place_in(tenant_id: str, queue: object) -> tuple[str, int]:
    """Return the topic and partition of a tenant's queue by its name; else the default ones."""
    prefix = f"{exchange_name(tenant_id)}."
    if isinstance(queue, str) and queue.startswith(prefix):
        topic, _, partition = queue.removeprefix(prefix).rpartition(".")
        if is_topic(topic) and partition.isdecimal() and len(partition) < 6:
            return topic, int(partition)
    return DEFAULT_TOPIC, 0
